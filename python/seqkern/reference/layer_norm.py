"""Layer norm over the last dimensions (Ba, Kiros & Hinton 2016).

    x̂ = (x - E[x]) r,  r = 1 / √(Var[x] + ε),  y = x̂ ⊙ w + b      (Var biased)
    dx = r (g - E[g] - x̂ E[g ⊙ x̂]) with g = dy ⊙ w;  dw = Σ dy ⊙ x̂,  db = Σ dy

E and Var run over the dimensions of `normalized_shape`, the sums over all others. Names and
arguments as in `torch.nn.functional.layer_norm`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen


class LayerNormSaved(NamedTuple):
    """Inputs as given; `mean` and `rstd` (r above) keep the normalised dimensions as 1."""

    x: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array


class LayerNormGradients(NamedTuple):
    """Gradients of the arrays; None for a weight or bias that was None."""

    dx: Array
    dweight: Array | None
    dbias: Array | None


def layer_norm_forward(
    x: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, LayerNormSaved]:
    """As `layer_norm`, and what `layer_norm_backward` needs: y, saved."""
    dtype = compute_dtype(x)
    wide = widen(x, dtype)
    axes = tuple(range(-len(normalized_shape), 0))
    mean = wide.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(wide.var(axes, keepdims=True) + dtype.type(eps))
    y = (wide - mean) * rstd
    if weight is not None:
        y = y * widen(weight, dtype)
    if bias is not None:
        y = y + widen(bias, dtype)
    saved = LayerNormSaved(x, tuple(normalized_shape), weight, bias, mean, rstd)
    return narrow(y, x), saved


def layer_norm(
    x: Array,
    normalized_shape: tuple[int, ...],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> Array:
    """Normalise the last dimensions of x, of shape `normalized_shape`, as are weight and bias."""
    return layer_norm_forward(x, normalized_shape, weight, bias, eps)[0]


def layer_norm_backward(dy: Array | None, saved: LayerNormSaved) -> LayerNormGradients:
    """Gradients from dy, of x's shape; None stands for zero."""
    dtype = compute_dtype(saved.x)
    dy = or_zeros(dy, saved.x.shape, dtype)
    normalized = (widen(saved.x, dtype) - saved.mean) * saved.rstd
    g = dy if saved.weight is None else dy * widen(saved.weight, dtype)
    axes = tuple(range(-len(saved.normalized_shape), 0))
    along = (g * normalized).mean(axes, keepdims=True)
    dx = saved.rstd * (g - g.mean(axes, keepdims=True) - normalized * along)
    others = tuple(range(dy.ndim - len(axes)))
    return LayerNormGradients(
        dx=narrow(dx, saved.x),
        dweight=None if saved.weight is None else (dy * normalized).sum(others),
        dbias=None if saved.bias is None else dy.sum(others),
    )
