"""Layer norm and RMS norm of a sum: the residual connection of a Transformer block.

    summed = x + residual,  y = norm(summed)
    dx = dresidual = dnorm(dy) + dsummed

The sum is rounded to x's dtype before it is normalised, so the pair equals an addition followed by
`layer_norm` or `rms_norm`.
"""

from __future__ import annotations

from typing import NamedTuple

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen
from .layer_norm import LayerNormSaved, layer_norm_backward, layer_norm_forward
from .rms_norm import RMSNormSaved, rms_norm_backward, rms_norm_forward


class AddLayerNormSaved(NamedTuple):
    """As `LayerNormSaved`, of the sum."""

    summed: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array


class AddLayerNormGradients(NamedTuple):
    """dx and dresidual are equal; None for a weight or bias that was None."""

    dx: Array
    dresidual: Array
    dweight: Array | None
    dbias: Array | None


class AddRMSNormSaved(NamedTuple):
    """As `RMSNormSaved`, of the sum."""

    summed: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    rrms: Array


class AddRMSNormGradients(NamedTuple):
    """dx and dresidual are equal; dweight is None when there was no weight."""

    dx: Array
    dresidual: Array
    dweight: Array | None


def _sum(x: Array, residual: Array) -> Array:
    dtype = compute_dtype(x)
    return narrow(widen(x, dtype) + widen(residual, dtype), x)


def _plus(dx: Array, dsummed: Array | None) -> Array:
    dtype = compute_dtype(dx)
    return narrow(widen(dx, dtype) + or_zeros(dsummed, dx.shape, dtype), dx)


def add_layer_norm_forward(
    x: Array,
    residual: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, AddLayerNormSaved]:
    """As `add_layer_norm`, and what `add_layer_norm_backward` needs: y, summed, saved."""
    summed = _sum(x, residual)
    y, saved = layer_norm_forward(summed, normalized_shape, weight, bias, eps)
    return y, summed, AddLayerNormSaved(*saved)


def add_layer_norm(
    x: Array,
    residual: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """y, summed: the sum of x and residual, and its layer norm."""
    return add_layer_norm_forward(x, residual, normalized_shape, weight, bias, eps)[:2]


def add_layer_norm_backward(
    dy: Array | None, dsummed: Array | None, saved: AddLayerNormSaved
) -> AddLayerNormGradients:
    """Gradients from those of y and of summed; None stands for zero."""
    dx, dweight, dbias = layer_norm_backward(dy, LayerNormSaved(*saved))
    dx = _plus(dx, dsummed)
    return AddLayerNormGradients(dx, dx, dweight, dbias)


def add_rms_norm_forward(
    x: Array,
    residual: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    eps: float | None = None,
) -> tuple[Array, Array, AddRMSNormSaved]:
    """As `add_rms_norm`, and what `add_rms_norm_backward` needs: y, summed, saved."""
    summed = _sum(x, residual)
    y, saved = rms_norm_forward(summed, normalized_shape, weight, eps)
    return y, summed, AddRMSNormSaved(*saved)


def add_rms_norm(
    x: Array,
    residual: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    eps: float | None = None,
) -> tuple[Array, Array]:
    """y, summed: the sum of x and residual, and its RMS norm."""
    return add_rms_norm_forward(x, residual, normalized_shape, weight, eps)[:2]


def add_rms_norm_backward(
    dy: Array | None, dsummed: Array | None, saved: AddRMSNormSaved
) -> AddRMSNormGradients:
    """Gradients from those of y and of summed; None stands for zero."""
    dx, dweight = rms_norm_backward(dy, RMSNormSaved(*saved))
    dx = _plus(dx, dsummed)
    return AddRMSNormGradients(dx, dx, dweight)
