"""Softmax and log-softmax along one dimension.

    y = eˣ / Σ eˣ            dx = y ⊙ (dy - Σ dy ⊙ y)
    l = x - log Σ eˣ         dx = dl - eˡ Σ dl

The largest x is subtracted first, so that nothing overflows. A slice without a finite maximum
(all -inf, or one +inf) gives NaN, as in torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen


class SoftmaxSaved(NamedTuple):
    """`y`, the output, and the dimension."""

    y: Array
    dim: int


class SoftmaxGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


class LogSoftmaxSaved(NamedTuple):
    """`y`, the output (log-probabilities), and the dimension."""

    y: Array
    dim: int


class LogSoftmaxGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


def _minus_maximum(x: Array, dim: int) -> Array:
    """x - max x, wide: -inf from an overflow is right, NaN from inf - inf is promised above."""
    wide = widen(x, compute_dtype(x))
    with np.errstate(over="ignore", invalid="ignore"):
        shifted: Array = wide - wide.max(axis=dim, keepdims=True, initial=-np.inf)
    return shifted


def softmax_forward(x: Array, dim: int = -1) -> tuple[Array, SoftmaxSaved]:
    """As `softmax`, and what `softmax_backward` needs: y, saved."""
    exponential = np.exp(_minus_maximum(x, dim))
    y = narrow(exponential / exponential.sum(axis=dim, keepdims=True), x)
    return y, SoftmaxSaved(y, dim)


def softmax(x: Array, dim: int = -1) -> Array:
    """eˣ / Σ eˣ along `dim`; the shape and dtype of x."""
    return softmax_forward(x, dim)[0]


def softmax_backward(dy: Array | None, saved: SoftmaxSaved) -> SoftmaxGradients:
    """dx = y ⊙ (dy - Σ dy ⊙ y); dy None stands for zero."""
    dtype = compute_dtype(saved.y)
    y, dy = widen(saved.y, dtype), or_zeros(dy, saved.y.shape, dtype)
    dx = y * (dy - (dy * y).sum(axis=saved.dim, keepdims=True))
    return SoftmaxGradients(narrow(dx, saved.y))


def log_softmax_forward(x: Array, dim: int = -1) -> tuple[Array, LogSoftmaxSaved]:
    """As `log_softmax`, and what `log_softmax_backward` needs: y, saved."""
    shifted = _minus_maximum(x, dim)
    with np.errstate(divide="ignore"):  # an empty slice has no logarithm and no element
        log_sum = np.log(np.exp(shifted).sum(axis=dim, keepdims=True))
    y = narrow(shifted - log_sum, x)
    return y, LogSoftmaxSaved(y, dim)


def log_softmax(x: Array, dim: int = -1) -> Array:
    """x - log Σ eˣ along `dim`; the shape and dtype of x."""
    return log_softmax_forward(x, dim)[0]


def log_softmax_backward(dy: Array | None, saved: LogSoftmaxSaved) -> LogSoftmaxGradients:
    """dx = dy - eʸ Σ dy; dy None stands for zero."""
    dtype = compute_dtype(saved.y)
    dy = or_zeros(dy, saved.y.shape, dtype)
    dx = dy - np.exp(widen(saved.y, dtype)) * dy.sum(axis=saved.dim, keepdims=True)
    return LogSoftmaxGradients(narrow(dx, saved.y))
