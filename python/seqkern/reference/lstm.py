"""LSTM: one layer in one direction over a whole sequence, with projection and peepholes.

The loop over `lstm_cell`, and back-propagation through time: the same loop backwards, where the
gradient of h_t is the output's part dy_t plus what step t+1 hands back.

Names and meaning as in `torch.nn.LSTM`, with `peephole`, `lengths` and `reverse` as keywords.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen, widen_all
from ._sequence import (
    accumulate,
    live_rows,
    previous_states,
    time_steps,
    zero_padding,
    zeros_for,
)
from .lstm_cell import LSTMCellSaved, lstm_cell_backward, lstm_cell_forward


class LSTMSaved(NamedTuple):
    """Inputs as given, and what the forward pass computed, 0 past a row's length.

    `y` `[T, N, P]`: the output before rounding to x's dtype; `gates` `[T, N, 4H]`: the activated
    i, f, g, o; `cells` `[T, N, H]`: c_t.
    """

    x: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None
    c0: Array | None
    weight_hr: Array | None
    peephole: Array | None
    lengths: Array | None
    y: Array
    gates: Array
    cells: Array
    reverse: bool
    precision: str | None


class LSTMGradients(NamedTuple):
    """Gradients of `lstm`'s arguments; dh0 and dc0 are always arrays, else None for None."""

    dx: Array
    dh0: Array
    dc0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dweight_hr: Array | None
    dpeephole: Array | None


def lstm_forward(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    c0: Array | None = None,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
    lengths: Array | None = None,
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Array, tuple[Array, Array], LSTMSaved]:
    """As `lstm`, and what `lstm_backward` needs: y, (h_n, c_n), saved."""
    dtype = compute_dtype(x)
    parameters = widen_all(dtype, weight_ih, weight_hh, bias_ih, bias_hh)
    w_hr, peep = widen_all(dtype, weight_hr, peephole)
    inputs = zero_padding(widen(x, dtype), lengths)
    seq_len, batch, _ = x.shape
    hidden_size, state_size = weight_hh.shape[0] // 4, weight_hh.shape[1]
    h = or_zeros(h0, (batch, state_size), dtype)
    c = or_zeros(c0, (batch, hidden_size), dtype)
    y = np.zeros((seq_len, batch, state_size), dtype)
    gates = np.zeros((seq_len, batch, 4 * hidden_size), dtype)
    cells = np.zeros((seq_len, batch, hidden_size), dtype)
    for t in time_steps(seq_len, reverse):
        live = live_rows(lengths, t)
        h_new, c_new, step = lstm_cell_forward(
            inputs[t], (h, c), *parameters, weight_hr=w_hr, peephole=peep
        )
        y[t], cells[t] = np.where(live, h_new, 0), np.where(live, c_new, 0)
        gates[t] = np.where(live, step.gates, 0)
        h, c = np.where(live, h_new, h), np.where(live, c_new, c)
    saved = LSTMSaved(
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0,
        c0,
        weight_hr,
        peephole,
        lengths,
        y,
        gates,
        cells,
        reverse,
        precision,
    )
    return narrow(y, x), (narrow(h, x), c), saved


def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    c0: Array | None = None,
    weight_hr: Array | None = None,
    peephole: Array | None = None,
    lengths: Array | None = None,
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """One LSTM layer, one direction: x `[T, N, I]` gives y `[T, N, P]` and (h_n, c_n).

    weight_ih `[4H, I]`, weight_hh `[4H, P]`, biases `[4H]`, weight_hr `[P, H]` (P = H without),
    peephole `[3, H]` with rows p_i, p_f, p_o; h0, h_n `[N, P]`, c0, c_n `[N, H]`, zeros when not
    given. lengths `[N]`: past a row's length y is 0 and the state is frozen. reverse walks
    t = T-1 … 0. y and h_n have x's dtype, c_n is float32 (float64 for float64 x). `precision` is
    ignored.
    """
    y, state, _ = lstm_forward(
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0=h0,
        c0=c0,
        weight_hr=weight_hr,
        peephole=peephole,
        lengths=lengths,
        reverse=reverse,
        precision=precision,
    )
    return y, state


def lstm_backward(
    dy: Array | None, dstate: tuple[Array | None, Array | None] | None, saved: LSTMSaved
) -> LSTMGradients:
    """Gradients from dy `[T, N, P]` and (dh_n `[N, P]`, dc_n `[N, H]`); None stands for zero."""
    dtype = saved.y.dtype
    seq_len = saved.y.shape[0]
    parameters = widen_all(
        dtype,
        saved.weight_ih,
        saved.weight_hh,
        saved.bias_ih,
        saved.bias_hh,
        saved.weight_hr,
        saved.peephole,
    )
    inputs = zero_padding(widen(saved.x, dtype), saved.lengths)
    h0 = or_zeros(saved.h0, saved.y.shape[1:], dtype)
    c0 = or_zeros(saved.c0, saved.cells.shape[1:], dtype)
    h_previous = previous_states(saved.y, h0, saved.lengths, saved.reverse)
    c_previous = previous_states(saved.cells, c0, saved.lengths, saved.reverse)

    dh_n, dc_n = dstate if dstate is not None else (None, None)
    dy = or_zeros(dy, saved.y.shape, dtype)
    dh, dc = or_zeros(dh_n, h0.shape, dtype), or_zeros(dc_n, c0.shape, dtype)
    dx = np.zeros_like(inputs)
    totals = zeros_for(parameters)
    for t in reversed(time_steps(seq_len, saved.reverse)):
        live = live_rows(saved.lengths, t)
        step_inputs = inputs[t], h_previous[t], c_previous[t], *parameters
        step_saved = LSTMCellSaved._make(
            (*step_inputs, saved.gates[t], saved.cells[t], saved.precision)
        )
        dstate_t = np.where(live, dy[t] + dh, 0), np.where(live, dc, 0)
        step = lstm_cell_backward(dstate_t, step_saved)
        dx[t] = np.where(live, step.dx, 0)
        dh, dc = np.where(live, step.dh, dh), np.where(live, step.dc, dc)
        accumulate(totals, step[3:])
    return LSTMGradients(narrow(dx, saved.x), narrow(dh, saved.x), dc, *totals)
