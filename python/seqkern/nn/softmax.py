"""Softmax and LogSoftmax over one dimension, the last by default (torch.nn.Softmax)."""

from __future__ import annotations

from .. import ops
from ._arrays import Array, OutputForm
from .module import Module, Pullback


class Softmax(Module):
    """y = exp(x) / sum(exp(x)) along `dim`; x and y of any one shape."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def __call__(self, x: Array) -> Array:
        return ops.softmax(x, self.dim)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, saved = ops.softmax_forward(x, self.dim)
        form = OutputForm.of(y)
        return y, Pullback(lambda dy: (ops.softmax_backward(form.gradient(dy), saved).dx,))


class LogSoftmax(Module):
    """y = x - log(sum(exp(x))) along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def __call__(self, x: Array) -> Array:
        return ops.log_softmax(x, self.dim)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, saved = ops.log_softmax_forward(x, self.dim)
        form = OutputForm.of(y)
        return y, Pullback(lambda dy: (ops.log_softmax_backward(form.gradient(dy), saved).dx,))
