"""Vanilla (Elman) RNN: one layer in one direction over a whole sequence.

The loop over `rnn_cell`, and back-propagation through time: the same loop backwards, where the
gradient of h_t is the output's part dy_t plus what step t+1 hands back.

Names and meaning as in `torch.nn.RNN`, with `lengths` and `reverse` as keywords.
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
from .rnn_cell import RNNCellSaved, rnn_cell, rnn_cell_backward


class RNNSaved(NamedTuple):
    """Inputs as given, and `y` `[T, N, H]`, the output before rounding to x's dtype."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    h0: Array | None
    lengths: Array | None
    y: Array
    nonlinearity: str
    reverse: bool
    precision: str | None


class RNNGradients(NamedTuple):
    """Gradients of `rnn`'s arguments; dh0 is always an array, a missing bias gets None."""

    dx: Array
    dh0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


def rnn_forward(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Array, Array, RNNSaved]:
    """As `rnn`, and what `rnn_backward` needs: y, h_n, saved."""
    dtype = compute_dtype(x)
    parameters = widen_all(dtype, weight_ih, weight_hh, bias_ih, bias_hh)
    inputs = zero_padding(widen(x, dtype), lengths)
    seq_len, batch, _ = x.shape
    h = or_zeros(h0, (batch, weight_hh.shape[1]), dtype)
    y = np.zeros((seq_len, *h.shape), dtype)
    for t in time_steps(seq_len, reverse):
        live = live_rows(lengths, t)
        h_new = rnn_cell(inputs[t], h, *parameters, nonlinearity=nonlinearity)
        y[t] = np.where(live, h_new, 0)
        h = np.where(live, h_new, h)
    saved = RNNSaved(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, y, nonlinearity, reverse, precision
    )
    return narrow(y, x), narrow(h, x), saved


def rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    h0: Array | None = None,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Array, Array]:
    """One RNN layer, one direction: x `[T, N, I]` gives y `[T, N, H]` and h_n `[N, H]`.

    h0 `[N, H]` defaults to zeros. lengths `[N]`: past a row's length y is 0 and the state is
    frozen. reverse walks t = T-1 … 0. y and h_n have x's dtype. `precision` is ignored.
    """
    y, h_n, _ = rnn_forward(
        x,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0=h0,
        nonlinearity=nonlinearity,
        lengths=lengths,
        reverse=reverse,
        precision=precision,
    )
    return y, h_n


def rnn_backward(dy: Array | None, dh_n: Array | None, saved: RNNSaved) -> RNNGradients:
    """Gradients from dy `[T, N, H]` and dh_n `[N, H]`; None stands for zero."""
    dtype = saved.y.dtype
    seq_len, batch, hidden_size = saved.y.shape
    parameters = widen_all(dtype, saved.weight_ih, saved.weight_hh, saved.bias_ih, saved.bias_hh)
    inputs = zero_padding(widen(saved.x, dtype), saved.lengths)
    h0 = or_zeros(saved.h0, (batch, hidden_size), dtype)
    h_previous = previous_states(saved.y, h0, saved.lengths, saved.reverse)

    dy = or_zeros(dy, saved.y.shape, dtype)
    dh = or_zeros(dh_n, h0.shape, dtype)
    dx = np.zeros_like(inputs)
    totals = zeros_for(parameters)
    for t in reversed(time_steps(seq_len, saved.reverse)):
        live = live_rows(saved.lengths, t)
        step_saved = RNNCellSaved._make(
            (inputs[t], h_previous[t], *parameters, saved.y[t], saved.nonlinearity, saved.precision)
        )
        step = rnn_cell_backward(np.where(live, dy[t] + dh, 0), step_saved)
        dx[t] = np.where(live, step.dx, 0)
        dh = np.where(live, step.dh, dh)
        accumulate(totals, step[2:])
    return RNNGradients(narrow(dx, saved.x), narrow(dh, saved.x), *totals)
