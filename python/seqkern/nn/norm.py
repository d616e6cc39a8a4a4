"""LayerNorm and RMSNorm (torch.nn's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm
from ._init import Initializer, check_size
from .module import Module, Parameter, Pullback


class LayerNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions of x.

    normalized_shape: their sizes, or the size of the last one. weight and bias, of that shape,
    start from 1 and 0; with `elementwise_affine=False` there are none.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        init = Initializer(None, dtype)
        self.weight = init.constant(1, *self.normalized_shape) if elementwise_affine else None
        self.bias = init.constant(0, *self.normalized_shape) if elementwise_affine and bias else None

    def __call__(self, x: Array) -> Array:
        return ops.layer_norm(x, self.normalized_shape, _data(self.weight), _data(self.bias), self.eps)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        weight, bias = self.weight, self.bias
        y, saved = ops.layer_norm_forward(
            x, self.normalized_shape, _data(weight), _data(bias), self.eps
        )
        form = OutputForm.of(y)

        def pull(dy: Array | None) -> tuple[Array]:
            grads = ops.layer_norm_backward(form.gradient(dy), saved)
            _add(weight, grads.dweight)
            _add(bias, grads.dbias)
            return (grads.dx,)

        return y, Pullback(pull)

    def __repr__(self) -> str:
        affine = self.weight is not None
        return f"LayerNorm({self.normalized_shape}, eps={self.eps}, elementwise_affine={affine})"


class RMSNorm(Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimensions of x.

    eps None: the machine epsilon of float32 (float64 for float64 x). weight starts from 1.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        init = Initializer(None, dtype)
        self.weight = init.constant(1, *self.normalized_shape) if elementwise_affine else None

    def __call__(self, x: Array) -> Array:
        return ops.rms_norm(x, self.normalized_shape, _data(self.weight), self.eps)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        weight = self.weight
        y, saved = ops.rms_norm_forward(x, self.normalized_shape, _data(weight), self.eps)
        form = OutputForm.of(y)

        def pull(dy: Array | None) -> tuple[Array]:
            grads = ops.rms_norm_backward(form.gradient(dy), saved)
            _add(weight, grads.dweight)
            return (grads.dx,)

        return y, Pullback(pull)

    def __repr__(self) -> str:
        affine = self.weight is not None
        return f"RMSNorm({self.normalized_shape}, eps={self.eps}, elementwise_affine={affine})"


def _shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    single = not isinstance(normalized_shape, tuple | list)
    sizes = (normalized_shape,) if single else normalized_shape
    return tuple(check_size(size, "normalized_shape") for size in sizes)  # type: ignore[union-attr]


def _data(parameter: Parameter | None) -> Array | None:
    return None if parameter is None else parameter.data


def _add(parameter: Parameter | None, grad: Array | None) -> None:
    if parameter is not None:
        parameter.add_grad(grad)
