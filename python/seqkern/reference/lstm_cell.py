"""LSTM cell: one step of `lstm`, forward and backward, with optional projection and peepholes.

    i, f, g, o = x W_ihᵀ + b_ih + h W_hhᵀ + b_hh   (four blocks of H columns, in this order)
    i = sigmoid(i + p_i ⊙ c),  f = sigmoid(f + p_f ⊙ c),  g = tanh(g),  c' = f ⊙ c + i ⊙ g
    o = sigmoid(o + p_o ⊙ c'),  m = o ⊙ tanh(c'),  h' = m, or m W_hrᵀ with a projection

Backward, from δh' and δc' (δm = δh', or δh' W_hr; the bars are gradients before activation):

    ō = δm ⊙ tanh(c') ⊙ o(1 - o)
    δc = δc' + δm ⊙ o ⊙ (1 - tanh²(c')) + p_o ⊙ ō      the whole gradient of c'
    ī = δc ⊙ g ⊙ i(1 - i),  f̄ = δc ⊙ c ⊙ f(1 - f),  ḡ = δc ⊙ i ⊙ (1 - g²)
    dc = δc ⊙ f + p_i ⊙ ī + p_f ⊙ f̄,  and with δa = [ī f̄ ḡ ō] all else as in the RNN

Shapes: x `[N, I]`, h `[N, P]` (P = H without a projection), c `[N, H]`, weight_ih `[4H, I]`,
weight_hh `[4H, P]`, biases `[4H]`, weight_hr `[P, H]`, peephole `[3, H]` with rows p_i, p_f, p_o.
Hochreiter & Schmidhuber 1997; forget gate and peepholes: Gers et al. 2000, 2002; projection:
Sak et al. 2014. Names and gate order as in `torch.nn.LSTMCell`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import (
    Array,
    affine,
    bias_gradient,
    compute_dtype,
    narrow,
    or_zeros,
    sigmoid,
    widen,
    widen_all,
)


class LSTMCellSaved(NamedTuple):
    """Inputs as given; `gates` `[N, 4H]`, the activated i, f, g, o; `c_new` `[N, H]`."""

    x: Array
    h: Array
    c: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    weight_hr: Array | None
    peephole: Array | None
    gates: Array
    c_new: Array
    precision: str | None


class LSTMCellGradients(NamedTuple):
    """Gradients of `lstm_cell`'s arguments; None for an argument that was None."""

    dx: Array
    dh: Array
    dc: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dweight_hr: Array | None
    dpeephole: Array | None


def lstm_cell_forward(
    x: Array,
    state: tuple[Array, Array],
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
    precision: str | None = None,
) -> tuple[Array, Array, LSTMCellSaved]:
    """As `lstm_cell`, and what `lstm_cell_backward` needs: h, c, saved."""
    dtype = compute_dtype(x)
    h, c = widen_all(dtype, *state)
    a = affine(widen(x, dtype), widen(weight_ih, dtype), widen(bias_ih, dtype))
    a = a + affine(h, widen(weight_hh, dtype), widen(bias_hh, dtype))
    i, f, g, o = np.split(a, 4, axis=1)
    if peephole is not None:
        p_i, p_f, p_o = widen(peephole, dtype)
        i, f = i + p_i * c, f + p_f * c
    i, f, g = sigmoid(i), sigmoid(f), np.tanh(g)
    c_new = f * c + i * g
    if peephole is not None:
        o = o + p_o * c_new
    o = sigmoid(o)
    h_new = o * np.tanh(c_new)
    if weight_hr is not None:
        h_new = h_new @ widen(weight_hr, dtype).T
    saved = LSTMCellSaved(
        x,
        *state,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        weight_hr,
        peephole,
        gates=np.concatenate([i, f, g, o], axis=1),
        c_new=c_new,
        precision=precision,
    )
    return narrow(h_new, x), c_new, saved


def lstm_cell(
    x: Array,
    state: tuple[Array, Array],
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
    precision: str | None = None,
) -> tuple[Array, Array]:
    """One step: x `[N, I]` and state (h `[N, P]`, c `[N, H]`) give the new (h, c).

    h has x's dtype; c stays in float32 (float64 for float64 x). `precision` is ignored.
    """
    return lstm_cell_forward(
        x,
        state,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        weight_hr=weight_hr,
        peephole=peephole,
        precision=precision,
    )[:2]


def lstm_cell_backward(dh: Any, dc: Any, saved: LSTMCellSaved | None = None) -> LSTMCellGradients:
    """Gradients of one step from dh `[N, P]` and dc `[N, H]`, those of its new state.

    Also called as `lstm_cell_backward((dh, dc), saved)`.
    """
    if saved is None:
        (dh, dc), saved = dh or (None, None), dc
    dtype = compute_dtype(saved.x)
    x, h, c = widen_all(dtype, saved.x, saved.h, saved.c)
    weight_ih, weight_hh = widen_all(dtype, saved.weight_ih, saved.weight_hh)
    i, f, g, o = np.split(saved.gates, 4, axis=1)
    dh, dc = or_zeros(dh, h.shape, dtype), or_zeros(dc, c.shape, dtype)
    tanh_c = np.tanh(saved.c_new)

    dm, dweight_hr, dpeephole = dh, None, None
    if saved.weight_hr is not None:
        dm = dh @ widen(saved.weight_hr, dtype)
        dweight_hr = dh.T @ (o * tanh_c)
    da_o = dm * tanh_c * o * (1 - o)
    dc = dc + dm * o * (1 - tanh_c**2)
    if saved.peephole is not None:
        p_i, p_f, p_o = widen(saved.peephole, dtype)
        dc = dc + p_o * da_o
    da_i, da_f, da_g = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2)
    dc = dc * f
    if saved.peephole is not None:
        dc = dc + p_i * da_i + p_f * da_f
        dpeephole = np.stack(
            [(da * s).sum(0) for da, s in ((da_i, c), (da_f, c), (da_o, saved.c_new))]
        )
    da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
    return LSTMCellGradients(
        dx=narrow(da @ weight_ih, saved.x),
        dh=narrow(da @ weight_hh, saved.x),
        dc=dc,
        dweight_ih=da.T @ x,
        dweight_hh=da.T @ h,
        dbias_ih=bias_gradient(da, saved.bias_ih),
        dbias_hh=bias_gradient(da, saved.bias_hh),
        dweight_hr=dweight_hr,
        dpeephole=dpeephole,
    )
