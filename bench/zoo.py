"""The models of `bench models`: a torch module with random weights, and ours with the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import seqkern

from .tasks import Array, UnsupportedError

LAYER = "encoder layer"  # torch.nn's, as is LSTM; the others are Hugging Face's
GPT2, BERT, VIT, SWIN = "gpt2", "bert-base", "vit-b/16", "swin-t"
LSTM, UNITS = "char-lstm 512", 512
VOCABULARY = {GPT2: 50257, BERT: 30522, LSTM: 128}
IMAGE = (3, 224, 224)
# By model: transformers' config and class, and ours.
_HUGGING_FACE = {
    GPT2: ("GPT2Config", "GPT2LMHeadModel", "GPT2"),
    BERT: ("BertConfig", "BertModel", "BERT"),
    VIT: ("ViTConfig", "ViTForImageClassification", "ViT"),
    SWIN: ("SwinConfig", "SwinForImageClassification", "Swin"),
}


@dataclass(frozen=True)
class ModelTask:
    """One model and its input: ids `[batch, length]`, images, or for LAYER x `[batch, length, 768]`.

    decode: ids is one token per row, after `length` others that are in the cache. dy: for training a LAYER.
    """

    model: str
    dtype: str
    x: Array
    dy: Array | None = None
    decode: Array | None = None
    int8: bool = False


def torch_module(model: str) -> Any:
    """In eval mode, weights from a fixed seed; UnsupportedError without transformers."""
    import torch

    torch.manual_seed(0)
    if model == LAYER:
        return torch.nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True).eval()
    if model == LSTM:
        return torch_language_model()
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UnsupportedError("it needs transformers, whose models are compared") from error
    config_name, class_name, _ = _HUGGING_FACE[model]
    labels = {"num_labels": 1000} if model in (VIT, SWIN) else {}
    config = getattr(transformers, config_name)(attn_implementation="sdpa", **labels)
    return getattr(transformers, class_name)(config).eval()


def torch_language_model() -> Any:
    """`seqkern.models.RNNLM` in torch: an embedding, an LSTM and a head, under the same names."""
    import torch

    class LanguageModel(torch.nn.Module):  # type: ignore[misc]  # without torch it is Any
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(VOCABULARY[LSTM], 64)
            self.rnn = torch.nn.LSTM(64, UNITS, batch_first=True)
            self.head = torch.nn.Linear(UNITS, VOCABULARY[LSTM])

        def forward(self, ids: Any) -> Any:
            return self.head(self.rnn(self.embedding(ids))[0])

    return LanguageModel().eval()


@contextmanager
def traceable() -> Iterator[None]:
    """torch's fused encoder layer is one operator that no exporter knows: within, it runs in its parts."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def our_module(task: ModelTask) -> Any:
    """Ours, with torch's weights where torch is there and random ones where it is not."""
    try:
        theirs = torch_module(task.model)
    except (ImportError, UnsupportedError):
        theirs = None
    module = bare_module(task.model, getattr(theirs, "config", None))
    if theirs is not None:
        module.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return ready(module, task)


def bare_module(model: str, config: Any = None, rng: Any = None) -> Any:
    """Ours, with weights of its own; config: transformers', by default the same sizes."""
    if model == LAYER:
        return seqkern.nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True, rng=rng)
    if model == LSTM:
        return seqkern.models.RNNLM(seqkern.models.RNNLMConfig(VOCABULARY[LSTM], 64, UNITS), rng=rng)
    cls = getattr(seqkern.models, _HUGGING_FACE[model][2])
    return cls(cls.Config() if config is None else cls.Config.from_hf(config.to_dict()), rng=rng)


def ready(module: Any, task: ModelTask) -> Any:
    module.eval()
    return module.to(task.dtype) if task.dtype != "float32" else module


def filled_module(task: ModelTask) -> Any:
    """Ours with a constant in every weight, made without anything beside it."""
    from seqkern.models._files import blank

    module = bare_module(task.model, rng=blank())
    for parameter in module.parameters():
        parameter.data[...] = 0.01
    return ready(module, task)


def parameters(model: str) -> int:
    """How many the model has, counted without making it."""
    if model == LAYER:
        return 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    if model == LSTM:
        return seqkern.models.count_parameters(seqkern.models.RNNLMConfig(VOCABULARY[LSTM], 64, UNITS))
    return seqkern.models.count_parameters(getattr(seqkern.models, _HUGGING_FACE[model][2]).Config())


def first_array(output: Any) -> Any:
    """What a model's result is compared by."""
    for name in ("logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output


def model_input(model: str, batch: int, length: int) -> Array:
    rng = np.random.default_rng(0)
    if model == LAYER:
        return rng.standard_normal((batch, length, 768), np.float32)
    if model in VOCABULARY:
        return rng.integers(0, VOCABULARY[model], (batch, length))
    return rng.standard_normal((batch, *IMAGE), np.float32)
