"""Batch norm of [N, C, ...], per channel (Ioffe & Szegedy 2015).

    x̂ = (x - μ) r,  r = 1 / √(v + ε),  y = x̂ ⊙ w + b
    training: μ, v are mean and biased variance of the batch, over all dimensions but C, of n elements;
        running_mean ← (1 - m) running_mean + m μ,  running_var ← (1 - m) running_var + m v n / (n - 1)
    otherwise: μ, v are the running ones
    dx = r w (dy - E[dy] - x̂ E[dy ⊙ x̂]) in training, else r w dy;  dw = Σ dy ⊙ x̂,  db = Σ dy

Names and arguments as in `torch.nn.functional.batch_norm`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen


class BatchNormSaved(NamedTuple):
    """Inputs as given; `mean` and `rstd` [C] are those that were used (μ and r above)."""

    x: Array
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array
    training: bool


class BatchNormGradients(NamedTuple):
    """Gradients of the arrays; None for a weight or bias that was None."""

    dx: Array
    dweight: Array | None
    dbias: Array | None


def _per_channel(array: Array, x: Array) -> Array:
    return array.reshape(-1, *(1,) * (x.ndim - 2))


def batch_norm_forward(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormSaved]:
    """As `batch_norm`, and what `batch_norm_backward` needs: y, saved."""
    dtype = compute_dtype(x)
    wide = widen(x, dtype)
    axes = (0, *range(2, x.ndim))
    if training:
        mean, var = wide.mean(axes), wide.var(axes)
        count = x.size // max(x.shape[1], 1)
        for running, new in ((running_mean, mean), (running_var, var * count / (count - 1))):
            if running is not None:
                running[...] = (1 - momentum) * running + momentum * new
    else:
        mean, var = widen(running_mean, dtype), widen(running_var, dtype)
        assert mean is not None and var is not None
    rstd = 1 / np.sqrt(var + dtype.type(eps))
    y = (wide - _per_channel(mean, x)) * _per_channel(rstd, x)
    if weight is not None:
        y = y * _per_channel(widen(weight, dtype), x)
    if bias is not None:
        y = y + _per_channel(widen(bias, dtype), x)
    return narrow(y, x), BatchNormSaved(x, weight, bias, mean.copy(), rstd, training)


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """Normalise each channel of x; in training the running statistics are updated in place."""
    return batch_norm_forward(
        x, running_mean, running_var, weight, bias, training, momentum, eps
    )[0]


def batch_norm_backward(dy: Array | None, saved: BatchNormSaved) -> BatchNormGradients:
    """Gradients from dy, of x's shape; None stands for zero."""
    x, dtype = saved.x, compute_dtype(saved.x)
    dy = or_zeros(dy, x.shape, dtype)
    axes = (0, *range(2, x.ndim))
    rstd = _per_channel(saved.rstd, x)
    normalized = (widen(x, dtype) - _per_channel(saved.mean, x)) * rstd
    dbias, dweight = dy.sum(axes), (dy * normalized).sum(axes)
    scale = rstd if saved.weight is None else rstd * _per_channel(widen(saved.weight, dtype), x)
    dx = dy
    if saved.training:
        count = max(x.size // max(x.shape[1], 1), 1)
        dx = dy - _per_channel(dbias, x) / count - normalized * _per_channel(dweight, x) / count
    return BatchNormGradients(
        dx=narrow(scale * dx, x),
        dweight=None if saved.weight is None else dweight,
        dbias=None if saved.bias is None else dbias,
    )
