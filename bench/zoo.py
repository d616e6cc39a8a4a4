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

LAYER = "encoder layer"  # torch.nn's; the others are Hugging Face's
GPT2, BERT, VIT, SWIN = "gpt2", "bert-base", "vit-b/16", "swin-t"
VOCABULARY = {GPT2: 50257, BERT: 30522}
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
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UnsupportedError("it needs transformers, whose models are compared") from error
    config_name, class_name, _ = _HUGGING_FACE[model]
    config = getattr(transformers, config_name)(attn_implementation="sdpa")
    return getattr(transformers, class_name)(config).eval()


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
    if task.model == LAYER:
        module: Any = seqkern.nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True)
    else:
        cls = getattr(seqkern.models, _HUGGING_FACE[task.model][2], None)
        if cls is None:
            raise UnsupportedError("seqkern has no such model yet")
        module = cls(cls.Config.from_hf(theirs.config.to_dict()) if theirs is not None else cls.Config())
    if theirs is not None:
        module.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    module.eval()
    return module.to(task.dtype) if task.dtype != "float32" else module


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
