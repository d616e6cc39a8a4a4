"""Vanilla (Elman) RNN cell: one step of `rnn`, forward and backward.

    a = x W_ihᵀ + b_ih + h W_hhᵀ + b_hh,   h' = tanh(a) or relu(a)

Backward, from δh' the gradient of h':

    δa = δh' ⊙ (1 - h'²)   (relu: δh' where h' > 0)
    dx = δa W_ih,  dh = δa W_hh,  dW_ih = δaᵀ x,  dW_hh = δaᵀ h,  db_ih = db_hh = Σ δa

Shapes: x `[N, I]`, h `[N, H]`, weight_ih `[H, I]`, weight_hh `[H, H]`, biases `[H]`.
Elman, "Finding structure in time", 1990; names and meaning as in `torch.nn.RNNCell`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._arrays import Array, affine, bias_gradient, compute_dtype, narrow, or_zeros, widen


class RNNCellSaved(NamedTuple):
    """Inputs of one step as given, and `h_new` `[N, H]`, the state it computed."""

    x: Array
    h: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    h_new: Array
    nonlinearity: str
    precision: str | None


class RNNCellGradients(NamedTuple):
    """Gradients in the order of `rnn_cell`'s arguments; None for a bias that was None."""

    dx: Array
    dh: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


def _relu(a: Array) -> Array:
    return np.maximum(a, 0)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": np.tanh, "relu": _relu}


def rnn_cell_forward(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    precision: str | None = None,
) -> tuple[Array, RNNCellSaved]:
    """As `rnn_cell`, and what `rnn_cell_backward` needs."""
    dtype = compute_dtype(x)
    a = affine(widen(x, dtype), widen(weight_ih, dtype), widen(bias_ih, dtype))
    a = a + affine(widen(h, dtype), widen(weight_hh, dtype), widen(bias_hh, dtype))
    h_new = _ACTIVATIONS[nonlinearity](a)
    saved = RNNCellSaved(
        x, h, weight_ih, weight_hh, bias_ih, bias_hh, h_new, nonlinearity, precision
    )
    return narrow(h_new, x), saved


def rnn_cell(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    precision: str | None = None,
) -> Array:
    """One step: x `[N, I]` and h `[N, H]` give the new h `[N, H]`; `precision` is ignored."""
    return rnn_cell_forward(
        x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity=nonlinearity, precision=precision
    )[0]


def rnn_cell_backward(dh: Array | None, saved: RNNCellSaved) -> RNNCellGradients:
    """Gradients of one step from `dh` `[N, H]`, the gradient of its new state."""
    dtype = compute_dtype(saved.x)
    weight_ih, weight_hh = widen(saved.weight_ih, dtype), widen(saved.weight_hh, dtype)
    dh = or_zeros(dh, saved.h_new.shape, dtype)
    if saved.nonlinearity == "tanh":
        da = dh * (1 - saved.h_new**2)
    else:
        da = np.where(saved.h_new <= 0, np.zeros_like(dh), dh)
    return RNNCellGradients(
        dx=narrow(da @ weight_ih, saved.x),
        dh=narrow(da @ weight_hh, saved.x),
        dweight_ih=da.T @ widen(saved.x, dtype),
        dweight_hh=da.T @ widen(saved.h, dtype),
        dbias_ih=bias_gradient(da, saved.bias_ih),
        dbias_hh=bias_gradient(da, saved.bias_hh),
    )
