"""`count_parameters` of every config is the number of parameters of the model built from it."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
from seqkern import models
from seqkern.models import GPT2Config, RNNLMConfig, SequenceModelConfig

SMALL: dict[str, dict[str, Any]] = {
    "BERT": {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 12, "max_position_embeddings": 9},
    "Captioner": {"vocab_size": 11, "channels": (3, 5), "embedding_size": 4, "hidden_size": 6},
    "GPT2": {"vocab_size": 11, "n_positions": 9, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 20},
    "RNNLM": {"vocab_size": 11, "embedding_size": 4, "hidden_size": 6},
    "Seq2Seq": {"src_vocab_size": 11, "tgt_vocab_size": 7, "embedding_size": 4, "hidden_size": 6},
    "SequenceModel": {"input_size": 5, "output_size": 3, "hidden_size": 6},
    "Swin": {"image_size": 16, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2,
             "patch_size": 2},
    "TransformerMT": {"src_vocab_size": 11, "tgt_vocab_size": 7, "d_model": 8, "num_heads": 2, "dim_feedforward": 12,
                      "num_encoder_layers": 1, "num_decoder_layers": 2},
    "VGG": {"channels": (3, 4), "convolutions": (1, 2), "classifier_size": 5, "pooled_size": 2},
    "ViT": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
            "image_size": 8, "patch_size": 4},
    "Wav2Vec2": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
                 "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4},
    "Word2Vec": {"words": ["a", "b", "c"], "counts": [3, 2, 1], "dim": 4},
}  # fmt: skip


def check(name: str, **changes: Any) -> None:
    cls = getattr(models, name)
    config = cls.Config(**{**SMALL[name], **changes})
    built = sum(p.data.size for p in cls(config, rng=np.random.default_rng(0)).parameters())
    assert models.count_parameters(config) == built, (name, changes)


def test_every_config_is_here() -> None:
    configs = {name.removesuffix("Config") for name in models.__all__ if name.endswith("Config")}
    assert configs == set(SMALL) == {n for n in models.__all__ if hasattr(getattr(models, n), "Config")}


@pytest.mark.parametrize("name", SMALL)
def test_the_built_model_has_as_many(name: str) -> None:
    check(name)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrent_models(cell: str) -> None:
    for layers, embedding, tied in itertools.product((1, 2), (0, 4, 6), (False, True)):
        if embedding == 6 or not tied:
            check("RNNLM", cell=cell, num_layers=layers, embedding_size=embedding, tie_weights=tied)
    for layers, both, task, vocab in itertools.product(
        (1, 3), (False, True), ("many_to_one", "many_to_many", "one_to_many"), (0, 7)
    ):
        check("SequenceModel", cell=cell, num_layers=layers, bidirectional=both, task=task, vocab_size=vocab)


def test_nothing_is_allocated() -> None:
    """Sizes that no machine has room for."""
    assert models.count_parameters(RNNLMConfig(10**9, 10**6, 10**6, num_layers=2)) > 10**15
    assert models.count_parameters(SequenceModelConfig(10**6, 10**9, hidden_size=10**6)) > 10**15


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt1", 116_534_784), ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200), ("gpt3-small", 125_226_240), ("gpt3-175b", 174_604_259_328),
    ],
)  # fmt: skip
def test_published_sizes(name: str, count: int) -> None:
    """Sum of every matrix and vector, written out once more."""
    c = GPT2Config.named(name)
    e, inner = c.n_embd, 4 * c.n_embd
    layer = 3 * e * e + 3 * e + e * e + e + e * inner + inner + inner * e + e + 4 * e
    expected = c.vocab_size * e + c.n_positions * e + c.n_layer * layer + (0 if name == "gpt1" else 2 * e)
    assert models.count_parameters(c) == expected == count
    assert c.n_embd % c.n_head == 0
    with pytest.raises(ValueError, match="name must be one of"):
        GPT2Config.named("gpt5")


def test_published_gpt3_figures() -> None:
    """Table 2.1 of Brown et al. 2020, in billions, to the digits printed there."""
    printed = {"medium": 0.35, "large": 0.76, "xl": 1.3, "2.7b": 2.7, "6.7b": 6.7, "13b": 13.0, "175b": 175.0}
    for name, billions in printed.items():
        counted = models.count_parameters(GPT2Config.named(f"gpt3-{name}")) / 1e9
        assert counted == pytest.approx(billions, rel=0.02), name


def test_configs_are_dataclasses_with_a_count() -> None:
    for name in SMALL:
        assert inspect.isfunction(getattr(models, name).Config.count_parameters)
