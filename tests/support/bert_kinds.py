"""Small models of the BERT family, with each head, and ids for them."""

from __future__ import annotations

from typing import Any

import numpy as np

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
SIZES: dict[str, Any] = {
    "vocab_size": 17, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 12, "num_labels": 3,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert"},
    "roberta": {"model_type": "roberta", "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": {"model_type": "distilbert", "type_vocab_size": 0},
}
HEADS = ("masked_lm", "sequence", "token", "span")
KINDS: dict[str, dict[str, Any]] = {name: family for name, family in FAMILIES.items()} | {
    f"{name}-{head}": {**family, "head": head, "num_labels": 2 if head == "span" else 3}
    for name, family in FAMILIES.items()
    for head in HEADS
}


def make(rng: Any, kind: str, dtype: Any = np.float64, **changes: Any) -> Any:
    """A model in eval mode with noise in every parameter."""
    from seqkern.models import BERT, BERTConfig

    config = BERTConfig(**{**SIZES, "pad_token_id": 0, **KINDS[kind], "initializer_range": 0.3, **changes})
    model = BERT(config, dtype=dtype, rng=rng)
    for _, p in model.named_parameters():
        p.data[...] += 0.2 * rng.standard_normal(p.shape)
    return model.eval()


def some_ids(rng: Any, kind: str, padded: bool) -> tuple[Any, dict[str, Any]]:
    """ids [2, 5], and the rest of the call: a mask and, where the model has them, token types."""
    ids = rng.integers(1, 17, (2, 5))
    if not padded:
        return ids, {}
    ids[0, 3:] = 0
    call = {"attention_mask": (ids != 0).astype(int)}
    types = KINDS[kind].get("type_vocab_size", 2)
    return ids, call | ({"token_type_ids": rng.integers(0, types, (2, 5))} if types else {})
