"""GRU cell: one step of `gru`, forward and backward, with the reset gate in either place.

    r = sigmoid(x W_irᵀ + b_ir + h W_hrᵀ + b_hr),   z likewise
    n = tanh(x W_inᵀ + b_in + r ⊙ (h W_hnᵀ + b_hn))      reset_after=True (torch, cuDNN)
    n = tanh(x W_inᵀ + b_in + (r ⊙ h) W_hnᵀ + b_hn)      reset_after=False (ONNX's default)
    h' = (1 - z) ⊙ n + z ⊙ h

Backward, from δh' (the bars are gradients before activation):

    z̄ = δh' ⊙ (h - n) ⊙ z(1 - z),   n̄ = δh' ⊙ (1 - z) ⊙ (1 - n²),   r̄ = δr ⊙ r(1 - r)
    reset_after:  δr = n̄ ⊙ (h W_hnᵀ + b_hn);  on the recurrent side n̄ becomes r ⊙ n̄
    otherwise:    δ(r ⊙ h) = n̄ W_hn,  δr = δ(r ⊙ h) ⊙ h

Shapes: x `[N, I]`, h `[N, H]`, weight_ih `[3H, I]`, weight_hh `[3H, H]`, biases `[3H]`, the
blocks of H rows in the order r, z, n.
Cho et al. 2014 (reset before the product); names and gate order as in `torch.nn.GRUCell`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import (
    Array,
    affine,
    bias_gradient,
    compute_dtype,
    narrow,
    or_zeros,
    sigmoid,
    widen_all,
)


class GRUCellSaved(NamedTuple):
    """Inputs as given; `gates` `[N, 3H]`, the activated r, z, n; `hidden_n` `[N, H]`.

    `hidden_n` is h W_hnᵀ + b_hn; None when reset_after is False.
    """

    x: Array
    h: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    gates: Array
    hidden_n: Array | None
    reset_after: bool
    precision: str | None


class GRUCellGradients(NamedTuple):
    """Gradients in the order of `gru_cell`'s arguments; None for a bias that was None."""

    dx: Array
    dh: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


def gru_cell_forward(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    reset_after: bool = True,
    precision: str | None = None,
) -> tuple[Array, GRUCellSaved]:
    """As `gru_cell`, and what `gru_cell_backward` needs: h, saved."""
    dtype = compute_dtype(x)
    inputs = x, h, weight_ih, weight_hh, bias_ih, bias_hh
    x_, h_, w_ih, w_hh, b_ih, b_hh = widen_all(dtype, *inputs)
    w_hr, w_hz, w_hn = np.split(w_hh, 3)
    b_hr, b_hz, b_hn = (None, None, None) if b_hh is None else np.split(b_hh, 3)
    x_r, x_z, x_n = np.split(affine(x_, w_ih, b_ih), 3, axis=1)

    r = sigmoid(x_r + affine(h_, w_hr, b_hr))
    z = sigmoid(x_z + affine(h_, w_hz, b_hz))
    hidden_n = None
    if reset_after:
        hidden_n = affine(h_, w_hn, b_hn)
        n = np.tanh(x_n + r * hidden_n)
    else:
        n = np.tanh(x_n + affine(r * h_, w_hn, b_hn))
    h_new = (1 - z) * n + z * h_
    gates = np.concatenate([r, z, n], axis=1)
    return narrow(h_new, x), GRUCellSaved(*inputs, gates, hidden_n, reset_after, precision)


def gru_cell(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    reset_after: bool = True,
    precision: str | None = None,
) -> Array:
    """One step: x `[N, I]` and h `[N, H]` give the new h `[N, H]`; `precision` is ignored."""
    return gru_cell_forward(
        x, h, weight_ih, weight_hh, bias_ih, bias_hh, reset_after=reset_after, precision=precision
    )[0]


def gru_cell_backward(dh: Array | None, saved: GRUCellSaved) -> GRUCellGradients:
    """Gradients of one step from `dh` `[N, H]`, the gradient of its new state."""
    dtype = compute_dtype(saved.x)
    x, h = widen_all(dtype, saved.x, saved.h)
    weight_ih, weight_hh = widen_all(dtype, saved.weight_ih, saved.weight_hh)
    w_hrz, w_hn = np.split(weight_hh, [2 * h.shape[1]])
    r, z, n = np.split(saved.gates, 3, axis=1)
    dh = or_zeros(dh, h.shape, dtype)

    da_z = dh * (h - n) * z * (1 - z)
    da_n = dh * (1 - z) * (1 - n**2)
    if saved.hidden_n is not None:  # reset after the product
        da_r = da_n * saved.hidden_n * r * (1 - r)
        da_hidden_n = da_n * r
        dh_n, n_input = da_hidden_n @ w_hn, h
    else:
        d_reset_h = da_n @ w_hn
        da_r = d_reset_h * h * r * (1 - r)
        da_hidden_n = da_n
        dh_n, n_input = d_reset_h * r, r * h
    da_rz = np.concatenate([da_r, da_z], axis=1)
    da_input = np.concatenate([da_rz, da_n], axis=1)
    da_hidden = np.concatenate([da_rz, da_hidden_n], axis=1)
    return GRUCellGradients(
        dx=narrow(da_input @ weight_ih, saved.x),
        dh=narrow(dh * z + da_rz @ w_hrz + dh_n, saved.x),
        dweight_ih=da_input.T @ x,
        dweight_hh=np.concatenate([da_rz.T @ h, da_hidden_n.T @ n_input]),
        dbias_ih=bias_gradient(da_input, saved.bias_ih),
        dbias_hh=bias_gradient(da_hidden, saved.bias_hh),
    )
