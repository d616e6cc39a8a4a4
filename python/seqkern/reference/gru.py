"""GRU: one layer in one direction over a whole sequence, reset gate in either place.

The loop over `gru_cell`, and back-propagation through time: the same loop backwards, where the
gradient of h_t is the output's part dy_t plus what step t+1 hands back.

Names and meaning as in `torch.nn.GRU`, with `reset_after`, `lengths` and `reverse` as keywords.
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
from .gru_cell import GRUCellSaved, gru_cell_backward, gru_cell_forward


class GRUSaved(NamedTuple):
    """Inputs as given, and what the forward pass computed, 0 past a row's length.

    `y` `[T, N, H]`: the output before rounding to x's dtype; `gates` `[T, N, 3H]`: the activated
    r, z, n; `hidden_n` `[T, N, H]`: h W_hnᵀ + b_hn, None when reset_after is False.
    """

    x: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None
    lengths: Array | None
    y: Array
    gates: Array
    hidden_n: Array | None
    reset_after: bool
    reverse: bool
    precision: str | None


class GRUGradients(NamedTuple):
    """Gradients of `gru`'s arguments; dh0 is always an array, a missing bias gets None."""

    dx: Array
    dh0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


def gru_forward(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    reset_after: bool = True,
    lengths: Array | None = None,
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Array, Array, GRUSaved]:
    """As `gru`, and what `gru_backward` needs: y, h_n, saved."""
    dtype = compute_dtype(x)
    parameters = widen_all(dtype, weight_ih, weight_hh, bias_ih, bias_hh)
    inputs = zero_padding(widen(x, dtype), lengths)
    seq_len, batch, _ = x.shape
    hidden_size = weight_hh.shape[1]
    h = or_zeros(h0, (batch, hidden_size), dtype)
    y = np.zeros((seq_len, batch, hidden_size), dtype)
    gates = np.zeros((seq_len, batch, 3 * hidden_size), dtype)
    hidden_n = np.zeros_like(y) if reset_after else None
    for t in time_steps(seq_len, reverse):
        live = live_rows(lengths, t)
        h_new, step = gru_cell_forward(inputs[t], h, *parameters, reset_after=reset_after)
        y[t], gates[t] = np.where(live, h_new, 0), np.where(live, step.gates, 0)
        if hidden_n is not None and step.hidden_n is not None:
            hidden_n[t] = np.where(live, step.hidden_n, 0)
        h = np.where(live, h_new, h)
    saved = GRUSaved(
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0,
        lengths,
        y,
        gates,
        hidden_n,
        reset_after,
        reverse,
        precision,
    )
    return narrow(y, x), narrow(h, x), saved


def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    reset_after: bool = True,
    lengths: Array | None = None,
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Array, Array]:
    """One GRU layer, one direction: x `[T, N, I]` gives y `[T, N, H]` and h_n `[N, H]`.

    weight_ih `[3H, I]`, weight_hh `[3H, H]`, biases `[3H]`; h0 `[N, H]` defaults to zeros.
    lengths `[N]`: past a row's length y is 0 and the state is frozen. reverse walks
    t = T-1 … 0. y and h_n have x's dtype. `precision` is ignored.
    """
    y, h_n, _ = gru_forward(
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0=h0,
        reset_after=reset_after,
        lengths=lengths,
        reverse=reverse,
        precision=precision,
    )
    return y, h_n


def gru_backward(dy: Array | None, dh_n: Array | None, saved: GRUSaved) -> GRUGradients:
    """Gradients from dy `[T, N, H]` and dh_n `[N, H]`; None stands for zero."""
    dtype = saved.y.dtype
    seq_len = saved.y.shape[0]
    parameters = widen_all(dtype, saved.weight_ih, saved.weight_hh, saved.bias_ih, saved.bias_hh)
    inputs = zero_padding(widen(saved.x, dtype), saved.lengths)
    h0 = or_zeros(saved.h0, saved.y.shape[1:], dtype)
    h_previous = previous_states(saved.y, h0, saved.lengths, saved.reverse)

    dy = or_zeros(dy, saved.y.shape, dtype)
    dh = or_zeros(dh_n, h0.shape, dtype)
    dx = np.zeros_like(inputs)
    totals = zeros_for(parameters)
    for t in reversed(time_steps(seq_len, saved.reverse)):
        live = live_rows(saved.lengths, t)
        hidden_n = None if saved.hidden_n is None else saved.hidden_n[t]
        step_inputs = inputs[t], h_previous[t], *parameters
        step_saved = GRUCellSaved._make(
            (*step_inputs, saved.gates[t], hidden_n, saved.reset_after, saved.precision)
        )
        step = gru_cell_backward(np.where(live, dy[t] + dh, 0), step_saved)
        dx[t] = np.where(live, step.dx, 0)
        dh = np.where(live, step.dh, dh)
        accumulate(totals, step[2:])
    return GRUGradients(narrow(dx, saved.x), narrow(dh, saved.x), *totals)
