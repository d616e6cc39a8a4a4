"""RMS norm over the last dimensions (Zhang & Sennrich 2019).

    x̂ = x r,  r = 1 / √(E[x²] + ε),  y = x̂ ⊙ w
    dx = r (g - x̂ E[g ⊙ x̂]) with g = dy ⊙ w;  dw = Σ dy ⊙ x̂

E runs over the dimensions of `normalized_shape`, the sum over all others. Names and arguments
as in `torch.nn.functional.rms_norm`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen


class RMSNormSaved(NamedTuple):
    """Inputs as given; `rrms` (r above) keeps the normalised dimensions as 1."""

    x: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    rrms: Array


class RMSNormGradients(NamedTuple):
    """Gradients of the arrays; dweight is None when there was no weight."""

    dx: Array
    dweight: Array | None


def rms_norm_forward(
    x: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    eps: float | None = None,
) -> tuple[Array, RMSNormSaved]:
    """As `rms_norm`, and what `rms_norm_backward` needs: y, saved."""
    dtype = compute_dtype(x)
    wide = widen(x, dtype)
    axes = tuple(range(-len(normalized_shape), 0))
    epsilon = dtype.type(np.finfo(dtype).eps if eps is None else eps)
    rrms = 1 / np.sqrt((wide**2).mean(axes, keepdims=True) + epsilon)
    y = wide * rrms
    if weight is not None:
        y = y * widen(weight, dtype)
    return narrow(y, x), RMSNormSaved(x, tuple(normalized_shape), weight, rrms)


def rms_norm(
    x: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    eps: float | None = None,
) -> Array:
    """Scale the last dimensions of x, of shape `normalized_shape`, to a mean square of 1.

    eps None means the machine epsilon of the dtype that is computed in.
    """
    return rms_norm_forward(x, normalized_shape, weight, eps)[0]


def rms_norm_backward(dy: Array | None, saved: RMSNormSaved) -> RMSNormGradients:
    """Gradients from dy, of x's shape; None stands for zero."""
    dtype = compute_dtype(saved.x)
    dy = or_zeros(dy, saved.x.shape, dtype)
    normalized = widen(saved.x, dtype) * saved.rrms
    g = dy if saved.weight is None else dy * widen(saved.weight, dtype)
    axes = tuple(range(-len(saved.normalized_shape), 0))
    dx = saved.rrms * (g - normalized * (g * normalized).mean(axes, keepdims=True))
    others = tuple(range(dy.ndim - len(axes)))
    return RMSNormGradients(
        dx=narrow(dx, saved.x),
        dweight=None if saved.weight is None else (dy * normalized).sum(others),
    )
