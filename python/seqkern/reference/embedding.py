"""Embedding: row `ids` of a table; its gradient adds every dy back to the row it came from.

ids int `[...]`, weight `[V, E]`, y `[..., E]`, as in `torch.nn.functional.embedding`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, or_zeros


class EmbeddingSaved(NamedTuple):
    """The inputs as given."""

    ids: Array
    weight: Array
    padding_idx: int | None


class EmbeddingGradients(NamedTuple):
    """dweight `[V, E]`."""

    dweight: Array


def embedding_forward(
    ids: Array, weight: Array, *, padding_idx: int | None = None
) -> tuple[Array, EmbeddingSaved]:
    """As `embedding`, and what `embedding_backward` needs: y, saved."""
    return np.take(weight, ids, axis=0), EmbeddingSaved(ids, weight, padding_idx)


def embedding(ids: Array, weight: Array, *, padding_idx: int | None = None) -> Array:
    """Rows of weight `[V, E]` chosen by ids `[...]`; row `padding_idx` gets no gradient."""
    return embedding_forward(ids, weight, padding_idx=padding_idx)[0]


def embedding_backward(dy: Array | None, saved: EmbeddingSaved) -> EmbeddingGradients:
    """Gradient from dy `[..., E]`; None stands for zero."""
    dtype = compute_dtype(saved.weight)
    dweight = np.zeros(saved.weight.shape, dtype)
    np.add.at(dweight, saved.ids, or_zeros(dy, (*saved.ids.shape, dweight.shape[1]), dtype))
    if saved.padding_idx is not None:
        dweight[saved.padding_idx] = 0
    return EmbeddingGradients(dweight)
