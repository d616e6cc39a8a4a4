"""rnn, lstm, gru over whole sequences and their single-step cells.

Shapes: T steps, N batch rows, I inputs, H hidden units, P projected units, S = P or H the width of h.
x ``[T, N, I]``, y ``[T, N, S]``, weight_ih ``[G·H, I]``, weight_hh ``[G·H, S]``, biases ``[G·H]``, states
``[N, ·]``, with G = 1, 4 (i, f, g, o) or 3 (r, z, n) gates, as in torch. Cells take x ``[N, I]``.

dtypes: float32, float64 (exact, for gradient checks) or bfloat16 storage with float32 arithmetic; float32 x
with bfloat16 weight matrices also works and halves the bytes a step reads. c, saved gates and weight
gradients are float32 for bfloat16. Biases, c0 and peepholes may be float32 or bfloat16 there.

``lengths``: integers ``[N]`` in 0..T, any order. Past a row's length y is 0 and its state stands still;
``reverse`` walks t downwards, starting at each row's own last step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from seqkern import _cpu
from seqkern._check import saved_by
from seqkern._dispatch import public
from seqkern._precision import check_precision

__all__ = [
    "GRUCellGradients", "GRUCellSaved", "GRUGradients", "GRUSaved",
    "LSTMCellGradients", "LSTMCellSaved", "LSTMGradients", "LSTMSaved",
    "RNNCellGradients", "RNNCellSaved", "RNNGradients", "RNNSaved",
    "gru", "gru_backward", "gru_cell", "gru_cell_backward", "gru_cell_forward", "gru_forward",
    "lstm", "lstm_backward", "lstm_cell", "lstm_cell_backward", "lstm_cell_forward", "lstm_forward",
    "rnn", "rnn_backward", "rnn_cell", "rnn_cell_backward", "rnn_cell_forward", "rnn_forward",
]  # fmt: skip

Array = Any
Pair = tuple[Array, Array]


# ---- what the backward passes need, and what they give ----


class RNNSaved(NamedTuple):
    """The inputs of `rnn` and its output y ``[T, N, H]``."""

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
    """Gradients of `rnn`; a bias that was not given has None."""

    dx: Array
    dh0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class LSTMSaved(NamedTuple):
    """The inputs of `lstm`, y ``[T, N, S]``, the activated gates i, f, g, o ``[T, N, 4H]`` and c_t ``[T, N, H]``."""

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
    """Gradients of `lstm`; parameters that were not given have None."""

    dx: Array
    dh0: Array
    dc0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dweight_hr: Array | None
    dpeephole: Array | None


class GRUSaved(NamedTuple):
    """The inputs of `gru`, y ``[T, N, H]``, the activated gates r, z, n ``[T, N, 3H]`` and, with reset_after,
    hidden_n = h W_hnᵀ + b_hn ``[T, N, H]``."""

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
    """Gradients of `gru`; a bias that was not given has None."""

    dx: Array
    dh0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class RNNCellSaved(NamedTuple):
    """The inputs of `rnn_cell` and its output h_new ``[N, H]``."""

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
    """Gradients of `rnn_cell`."""

    dx: Array
    dh: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class LSTMCellSaved(NamedTuple):
    """The inputs of `lstm_cell`, its activated gates ``[N, 4H]``, h_new ``[N, S]`` and c_new ``[N, H]``."""

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
    h_new: Array
    c_new: Array
    precision: str | None


class LSTMCellGradients(NamedTuple):
    """Gradients of `lstm_cell`."""

    dx: Array
    dh: Array
    dc: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dweight_hr: Array | None
    dpeephole: Array | None


class GRUCellSaved(NamedTuple):
    """The inputs of `gru_cell`, its activated gates ``[N, 3H]``, hidden_n (reset_after) and h_new ``[N, H]``."""

    x: Array
    h: Array
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    gates: Array
    hidden_n: Array | None
    h_new: Array
    reset_after: bool
    precision: str | None


class GRUCellGradients(NamedTuple):
    """Gradients of `gru_cell`."""

    dx: Array
    dh: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


def _relu(op: str, nonlinearity: str) -> bool:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"{op}: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return nonlinearity == "relu"


def _pair(op: str, name: str, value: Any) -> Pair:
    if value is None:
        return None, None
    if not isinstance(value, tuple) or len(value) != 2:
        came = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
        raise TypeError(f"{op}: {name} must be a tuple of two arrays, got {came}")
    return value


# ---- whole sequences ----


@public
def rnn(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, h0: Array | None = None, nonlinearity: str = "tanh",
    lengths: Array | None = None, reverse: bool = False, precision: str | None = None,
) -> Pair:  # fmt: skip
    """Vanilla RNN: h_t = f(x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh), f = tanh or relu (Elman 1990).

    Returns y ``[T, N, H]`` and h_n ``[N, H]``. Shapes, dtypes and `lengths`: see the module. ValueError or
    TypeError for arguments that do not fit, naming the one.
    """
    y, h_n, *_ = _cpu.rnn_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, None, None, None, lengths,
        _relu("rnn", nonlinearity), bool(reverse), False, check_precision("rnn", precision))  # fmt: skip
    return y, h_n


@public
def rnn_forward(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, h0: Array | None = None, nonlinearity: str = "tanh",
    lengths: Array | None = None, reverse: bool = False, precision: str | None = None,
) -> tuple[Array, Array, RNNSaved]:  # fmt: skip
    """`rnn`, and what `rnn_backward` needs."""
    y, h_n = rnn(x, weight_ih, weight_hh, bias_ih, bias_hh, h0=h0, nonlinearity=nonlinearity,
                 lengths=lengths, reverse=reverse, precision=precision)  # fmt: skip
    saved = RNNSaved(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, y, nonlinearity, reverse, precision)
    return y, h_n, saved


@public
def rnn_backward(dy: Array | None, dh_n: Array | None, saved: RNNSaved) -> RNNGradients:
    """Gradients of `rnn` from those of y and h_n (None = zero), by back-propagation through time."""
    s = saved
    saved_by("rnn", s, RNNSaved)
    dx, dh0, _, *weights = _cpu.rnn_backward(
        s.x, s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh, s.h0, None, None, None, s.lengths,
        _relu("rnn", s.nonlinearity), bool(s.reverse), s.y, None, None, dy, dh_n, None,
        check_precision("rnn", s.precision))  # fmt: skip
    return RNNGradients(dx, dh0, *weights[:4])


@public
def lstm(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, h0: Array | None = None, c0: Array | None = None,
    weight_hr: Array | None = None, peephole: Array | None = None, lengths: Array | None = None,
    reverse: bool = False, precision: str | None = None,
) -> tuple[Array, Pair]:  # fmt: skip
    """LSTM (Hochreiter and Schmidhuber 1997, with forget gates): c = σ(f)c + σ(i)tanh(g), h = σ(o)tanh(c).

    i, f, g, o are the four parts of x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh. weight_hr ``[P, H]`` projects h
    (Sak et al. 2014); peephole ``[3, H]`` adds p_i c_{t-1}, p_f c_{t-1} and p_o c_t to i, f, o (Gers et al.
    2002). Returns y ``[T, N, S]`` and (h_n ``[N, S]``, c_n ``[N, H]``). Shapes, dtypes and `lengths`: see the
    module. ValueError or TypeError for arguments that do not fit, naming the one.
    """
    y, h_n, c_n, _, _ = _cpu.lstm_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, weight_hr, peephole, lengths,
        False, bool(reverse), False, check_precision("lstm", precision))  # fmt: skip
    return y, (h_n, c_n)


@public
def lstm_forward(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, h0: Array | None = None, c0: Array | None = None,
    weight_hr: Array | None = None, peephole: Array | None = None, lengths: Array | None = None,
    reverse: bool = False, precision: str | None = None,
) -> tuple[Array, Pair, LSTMSaved]:  # fmt: skip
    """`lstm`, and what `lstm_backward` needs."""
    y, h_n, c_n, gates, cells = _cpu.lstm_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, weight_hr, peephole, lengths,
        False, bool(reverse), True, check_precision("lstm", precision))  # fmt: skip
    saved = LSTMSaved(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, weight_hr, peephole, lengths,
                      y, gates, cells, reverse, precision)  # fmt: skip
    return y, (h_n, c_n), saved


@public
def lstm_backward(dy: Array | None, dhx: Pair | None, saved: LSTMSaved) -> LSTMGradients:
    """Gradients of `lstm` from those of y and (h_n, c_n) (None = zero), by back-propagation through time."""
    s = saved
    saved_by("lstm", s, LSTMSaved)
    dh_n, dc_n = _pair("lstm", "the gradient of (h_n, c_n)", dhx)
    return LSTMGradients(*_cpu.lstm_backward(
        s.x, s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh, s.h0, s.c0, s.weight_hr, s.peephole,
        s.lengths, False, bool(s.reverse), s.y, s.gates, s.cells, dy, dh_n, dc_n,
        check_precision("lstm", s.precision)))  # fmt: skip


@public
def gru(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, h0: Array | None = None, reset_after: bool = True,
    lengths: Array | None = None, reverse: bool = False, precision: str | None = None,
) -> Pair:  # fmt: skip
    """GRU (Cho et al. 2014): h_t = (1 - z) n + z h_{t-1}, with r, z logistic and

    n = tanh(x W_inᵀ + b_in + r (h W_hnᵀ + b_hn)) for `reset_after` (torch, cuDNN), else
    n = tanh(x W_inᵀ + b_in + (r h) W_hnᵀ + b_hn) (the paper, ONNX's default).

    Returns y ``[T, N, H]`` and h_n ``[N, H]``. Shapes, dtypes and `lengths`: see the module. ValueError or
    TypeError for arguments that do not fit, naming the one.
    """
    y, h_n, *_ = _cpu.gru_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, None, None, None, lengths,
        bool(reset_after), bool(reverse), False, check_precision("gru", precision))  # fmt: skip
    return y, h_n


@public
def gru_forward(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, h0: Array | None = None, reset_after: bool = True,
    lengths: Array | None = None, reverse: bool = False, precision: str | None = None,
) -> tuple[Array, Array, GRUSaved]:  # fmt: skip
    """`gru`, and what `gru_backward` needs."""
    y, h_n, _, gates, hidden_n = _cpu.gru_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h0, None, None, None, lengths,
        bool(reset_after), bool(reverse), True, check_precision("gru", precision))  # fmt: skip
    saved = GRUSaved(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, y, gates, hidden_n,
                     reset_after, reverse, precision)  # fmt: skip
    return y, h_n, saved


@public
def gru_backward(dy: Array | None, dh_n: Array | None, saved: GRUSaved) -> GRUGradients:
    """Gradients of `gru` from those of y and h_n (None = zero), by back-propagation through time."""
    s = saved
    saved_by("gru", s, GRUSaved)
    dx, dh0, _, *weights = _cpu.gru_backward(
        s.x, s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh, s.h0, None, None, None, s.lengths,
        bool(s.reset_after), bool(s.reverse), s.y, s.gates, s.hidden_n, dy, dh_n, None,
        check_precision("gru", s.precision))  # fmt: skip
    return GRUGradients(dx, dh0, *weights[:4])


# ---- single steps ----


@public
def rnn_cell(
    x: Array, h: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, nonlinearity: str = "tanh", precision: str | None = None,
) -> Array:  # fmt: skip
    """One step of `rnn`: x ``[N, I]``, h ``[N, H]`` to the new h. A loop over it equals `rnn` bit for bit."""
    return _cpu.rnn_cell_forward(x, weight_ih, weight_hh, bias_ih, bias_hh, h, None, None, None, None,
                                 _relu("rnn_cell", nonlinearity), False, False,
                                 check_precision("rnn_cell", precision))[1]  # fmt: skip


@public
def rnn_cell_forward(
    x: Array, h: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, nonlinearity: str = "tanh", precision: str | None = None,
) -> tuple[Array, RNNCellSaved]:  # fmt: skip
    """`rnn_cell`, and what `rnn_cell_backward` needs."""
    new = rnn_cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity=nonlinearity, precision=precision)
    return new, RNNCellSaved(x, h, weight_ih, weight_hh, bias_ih, bias_hh, new, nonlinearity, precision)


@public
def rnn_cell_backward(dh: Array, saved: RNNCellSaved) -> RNNCellGradients:
    """Gradients of `rnn_cell` from that of its output."""
    s = saved
    saved_by("rnn_cell", s, RNNCellSaved)
    dx, dh_prev, _, *weights = _cpu.rnn_cell_backward(
        s.x, s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh, s.h, None, None, None, None,
        _relu("rnn_cell", s.nonlinearity), False, s.h_new, None, None, None, dh, None,
        check_precision("rnn_cell", s.precision))  # fmt: skip
    return RNNCellGradients(dx, dh_prev, *weights[:4])


@public
def lstm_cell(
    x: Array, hx: Pair, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, weight_hr: Array | None = None, peephole: Array | None = None,
    precision: str | None = None,
) -> Pair:  # fmt: skip
    """One step of `lstm`: x ``[N, I]``, (h ``[N, S]``, c ``[N, H]``) to the new (h, c).

    A loop over it equals `lstm` bit for bit.
    """
    h, c = _pair("lstm_cell", "hx", hx)
    _, h, c, _, _ = _cpu.lstm_cell_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, weight_hr, peephole, None, False, False, False,
        check_precision("lstm_cell", precision))  # fmt: skip
    return h, c


@public
def lstm_cell_forward(
    x: Array, hx: Pair, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, weight_hr: Array | None = None, peephole: Array | None = None,
    precision: str | None = None,
) -> tuple[Array, Array, LSTMCellSaved]:  # fmt: skip
    """`lstm_cell`, and what `lstm_cell_backward` needs: h, c, saved."""
    h, c = _pair("lstm_cell", "hx", hx)
    _, h_new, c_new, gates, _ = _cpu.lstm_cell_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, weight_hr, peephole, None, False, False, True,
        check_precision("lstm_cell", precision))  # fmt: skip
    return h_new, c_new, LSTMCellSaved(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole,
                                       gates, h_new, c_new, precision)  # fmt: skip


@public
def lstm_cell_backward(dh: Any, dc: Any, saved: LSTMCellSaved | None = None) -> LSTMCellGradients:
    """Gradients of `lstm_cell` from dh and dc, either None for zero.

    Also called as ``lstm_cell_backward((dh, dc), saved)``.
    """
    s = dc if saved is None else saved
    saved_by("lstm_cell", s, LSTMCellSaved)
    if saved is None:
        dh, dc = _pair("lstm_cell", "the gradient of (h, c)", dh)
    return LSTMCellGradients(*_cpu.lstm_cell_backward(
        s.x, s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh, s.h, s.c, s.weight_hr, s.peephole, None,
        False, False, s.h_new, s.gates, s.c_new, None, dh, dc, check_precision("lstm_cell", s.precision)))  # fmt: skip


@public
def gru_cell(
    x: Array, h: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, reset_after: bool = True, precision: str | None = None,
) -> Array:  # fmt: skip
    """One step of `gru`: x ``[N, I]``, h ``[N, H]`` to the new h. A loop over it equals `gru` bit for bit."""
    return _cpu.gru_cell_forward(x, weight_ih, weight_hh, bias_ih, bias_hh, h, None, None, None, None,
                                 bool(reset_after), False, False,
                                 check_precision("gru_cell", precision))[1]  # fmt: skip


@public
def gru_cell_forward(
    x: Array, h: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None,
    bias_hh: Array | None = None, *, reset_after: bool = True, precision: str | None = None,
) -> tuple[Array, GRUCellSaved]:  # fmt: skip
    """`gru_cell`, and what `gru_cell_backward` needs."""
    _, new, _, gates, hidden_n = _cpu.gru_cell_forward(
        x, weight_ih, weight_hh, bias_ih, bias_hh, h, None, None, None, None, bool(reset_after), False, True,
        check_precision("gru_cell", precision))  # fmt: skip
    return new, GRUCellSaved(x, h, weight_ih, weight_hh, bias_ih, bias_hh, gates, hidden_n, new,
                             reset_after, precision)  # fmt: skip


@public
def gru_cell_backward(dh: Array, saved: GRUCellSaved) -> GRUCellGradients:
    """Gradients of `gru_cell` from that of its output."""
    s = saved
    saved_by("gru_cell", s, GRUCellSaved)
    dx, dh_prev, _, *weights = _cpu.gru_cell_backward(
        s.x, s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh, s.h, None, None, None, None,
        bool(s.reset_after), False, s.h_new, s.gates, s.hidden_n, None, dh, None,
        check_precision("gru_cell", s.precision))  # fmt: skip
    return GRUCellGradients(dx, dh_prev, *weights[:4])
