"""RNN, LSTM and GRU with the constructors, calls, parameter names and results of torch.nn.

Shapes, with T steps, batch N, input size I, hidden size H, L layers, D = 2 if bidirectional
else 1, and P = proj_size or H:
    input    [T, N, I], or [N, T, I] with batch_first, or [T, I] for one sequence
    output   [T, N, D*P], laid out like the input; the last layer's h of every step
    h_n      [L*D, N, P]; c_n [L*D, N, H]; without N for one sequence; hx has the same form.
             Row k*D + d belongs to layer k, direction d.
    lengths  integers [N], any order, zeros allowed: outputs past a row's length are 0, the final
             states are those after its last valid step, the reverse direction starts there.

Between layers, in training mode, dropout with probability `dropout` is applied to the outputs;
its seed is the next draw of the library's generator, one per layer boundary and call
(`seqkern.manual_seed` repeats them; the mask is the Philox stream of `seqkern.dropout`).

Every class also takes `precision` (None: the global matmul precision), `dtype` and `rng`.
After `freeze()` the packed weights are kept from call to call.
Parameters start from U(-1/sqrt(H), 1/sqrt(H)). ValueError and TypeError name a bad argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import Array
from ._init import check_choice
from ._recurrent_base import RecurrentBase
from ._recurrent_parts import LayerParameters, States


class RNN(RecurrentBase):
    """h_t = tanh(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh), or relu (Elman; torch.nn.RNN)."""

    _op = "rnn"
    _gates = 1
    _num_states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional),
            precision=precision,
            dtype=dtype,
            rng=rng,
        )
        self.nonlinearity = check_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))

    def _apply(
        self,
        op: Callable[..., Any],
        x: Array,
        row: LayerParameters,
        state: States,
        lengths: Any,
        reverse: bool = False,
    ) -> Any:
        weight_ih, weight_hh, bias_ih, bias_hh, _, _ = row
        return op(
            x,
            weight_ih.data,
            weight_hh.data,
            None if bias_ih is None else bias_ih.data,
            None if bias_hh is None else bias_hh.data,
            h0=state[0],
            nonlinearity=self.nonlinearity,
            lengths=lengths,
            reverse=reverse,
            precision=self.precision,
        )


class GRU(RecurrentBase):
    """Gated recurrent unit (Cho et al. 2014; torch.nn.GRU), gates r, z, n:

    r = sigmoid(x W_ir^T + b_ir + h W_hr^T + b_hr), z likewise
    n = tanh(x W_in^T + b_in + r * (h W_hn^T + b_hn))       reset_after=True (torch)
    n = tanh(x W_in^T + b_in + (r * h) W_hn^T + b_hn)       reset_after=False (ONNX default)
    h' = (1 - z) * n + z * h
    """

    _op = "gru"
    _gates = 3
    _num_states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional),
            precision=precision,
            dtype=dtype,
            rng=rng,
        )
        self.reset_after = bool(reset_after)

    def _apply(
        self,
        op: Callable[..., Any],
        x: Array,
        row: LayerParameters,
        state: States,
        lengths: Any,
        reverse: bool = False,
    ) -> Any:
        weight_ih, weight_hh, bias_ih, bias_hh, _, _ = row
        return op(
            x,
            weight_ih.data,
            weight_hh.data,
            None if bias_ih is None else bias_ih.data,
            None if bias_hh is None else bias_hh.data,
            h0=state[0],
            reset_after=self.reset_after,
            lengths=lengths,
            reverse=reverse,
            precision=self.precision,
        )


class LSTM(RecurrentBase):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; torch.nn.LSTM), gates i, f, g, o:

        i, f, o = sigmoid(x W^T + b_ih + h U^T + b_hh), g = tanh(same)
        c' = f * c + i * g;  h' = o * tanh(c'), then h' W_hr^T with proj_size

    peephole=True (Gers & Schmidhuber 2000) adds parameters weight_peephole_l{k} [3, H], rows
    p_i, p_f, p_o: i and f also see p * c, o sees p_o * c'. torch has no such option.
    hx and the final states are tuples (h, c). The pullback returns `(dx, (dh0, dc0))`, and
    `(dx, None)` when hx was not given.
    """

    _op = "lstm"
    _gates = 4
    _num_states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peephole: bool = False,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional),
            proj_size=proj_size,
            peephole=peephole,
            precision=precision,
            dtype=dtype,
            rng=rng,
        )

    def _apply(
        self,
        op: Callable[..., Any],
        x: Array,
        row: LayerParameters,
        state: States,
        lengths: Any,
        reverse: bool = False,
    ) -> Any:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole = row
        return op(
            x,
            weight_ih.data,
            weight_hh.data,
            None if bias_ih is None else bias_ih.data,
            None if bias_hh is None else bias_hh.data,
            h0=state[0],
            c0=state[1],
            weight_hr=None if weight_hr is None else weight_hr.data,
            peephole=None if peephole is None else peephole.data,
            lengths=lengths,
            reverse=reverse,
            precision=self.precision,
        )
