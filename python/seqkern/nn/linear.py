"""Linear: y = x W^T + b (torch.nn.Linear)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm
from ._init import PRECISIONS, Initializer, check_choice, check_size
from .module import Module, Pullback


class Linear(Module):
    """x [..., in_features] -> y [..., out_features].

    weight [out_features, in_features] and bias [out_features] start from
    U(-1/sqrt(in_features), 1/sqrt(in_features)), as in torch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.in_features = check_size(in_features, "in_features")
        self.out_features = check_size(out_features, "out_features")
        self.precision = check_choice(precision, "precision", PRECISIONS)
        init = Initializer(rng, dtype)
        bound = 1 / math.sqrt(in_features)
        self.weight = init.uniform(bound, out_features, in_features)
        self.bias = init.uniform(bound, out_features) if bias else None

    def __call__(self, x: Array, **fused: Any) -> Array:
        """fused: `activation` and `residual`, as `seqkern.linear` takes them."""
        bias = None if self.bias is None else self.bias.data
        return ops.linear(x, self.weight.data, bias, precision=self.precision, **fused)

    def vjp(self, x: Array, **fused: Any) -> tuple[Array, Pullback]:
        """The pullback returns (dx,); the gradient of a `residual` is dy itself."""
        weight, bias = self.weight, self.bias
        y, saved = ops.linear_forward(
            x, weight.data, None if bias is None else bias.data, precision=self.precision, **fused
        )

        form = OutputForm.of(y)

        def pull(dy: Array | None) -> tuple[Array]:
            grads = ops.linear_backward(form.gradient(dy), saved)
            weight.add_grad(grads.dweight)
            if bias is not None:
                bias.add_grad(grads.dbias)
            return (grads.dx,)

        return y, Pullback(pull)

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}, bias={self.bias is not None})"
