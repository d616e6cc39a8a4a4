"""Embedding: one row of a table per id (torch.nn.Embedding)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm
from ._init import Initializer, check_size
from .module import Module, Pullback


class Embedding(Module):
    """ids, integers [...] in [0, num_embeddings) -> rows [..., embedding_dim] of `weight`.

    padding_idx: a row that starts at zero and gets no gradient; negative counts from the end.
    weight [num_embeddings, embedding_dim] starts from N(0, 1). The pullback returns `(None,)`:
    ids have no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.num_embeddings = check_size(num_embeddings, "num_embeddings")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.padding_idx = _row_index(padding_idx, num_embeddings)
        self.weight = Initializer(rng, dtype).normal(num_embeddings, embedding_dim)
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx] = 0

    def __call__(self, ids: Array) -> Array:
        return ops.embedding(ids, self.weight.data, padding_idx=self.padding_idx)

    def vjp(self, ids: Array) -> tuple[Array, Pullback]:
        weight = self.weight
        y, saved = ops.embedding_forward(ids, weight.data, padding_idx=self.padding_idx)

        form = OutputForm.of(y)

        def pull(dy: Array | None) -> tuple[None]:
            weight.add_grad(ops.embedding_backward(form.gradient(dy), saved).dweight)
            return (None,)

        return y, Pullback(pull)

    def __repr__(self) -> str:
        return f"Embedding({self.num_embeddings}, {self.embedding_dim})"


def _row_index(index: int | None, rows: int) -> int | None:
    if index is None:
        return None
    check_size(index, "padding_idx", -rows)
    if index >= rows:
        raise ValueError(f"padding_idx must be below num_embeddings = {rows}, got {index}")
    return int(index) % rows
