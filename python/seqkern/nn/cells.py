"""RNNCell, GRUCell and LSTMCell: one step, for hand-written loops; torch.nn's names and forms.

x [N, I] or [I]; states [N, H] or [H], laid out like x; hx not given means zeros. The equations
are those of `seqkern.nn.RNN`, `GRU` and `LSTM`. The pullback returns `(dx, dhx)`, for LSTMCell
`(dx, (dh, dc))`; dhx is None when hx was not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, array_module, check_array, check_shape, shape_text
from ._init import PRECISIONS, Initializer, check_choice, check_size
from ._recurrent_parts import LayerParameters
from .module import Module, Pullback


class _Cell(Module):
    """What the three cells share."""

    _op: str  # name of the op
    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        precision: str | None,
        dtype: Any,
        rng: np.random.Generator | None,
        peephole: bool = False,
    ) -> None:
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.precision = check_choice(precision, "precision", PRECISIONS)
        init = Initializer(rng, dtype)
        bound, rows = 1 / math.sqrt(hidden_size), self._gates * hidden_size
        self.weight_ih = init.uniform(bound, rows, input_size)
        self.weight_hh = init.uniform(bound, rows, hidden_size)
        self.bias_ih = init.uniform(bound, rows) if bias else None
        self.bias_hh = init.uniform(bound, rows) if bias else None
        self.weight_peephole = init.uniform(bound, 3, hidden_size) if peephole else None

    def _apply(self, op: Callable[..., Any], x: Array, state: Any) -> Any:
        """The op, plain or `_forward`, on x [N, I] and its state."""
        raise NotImplementedError

    def _zero_state(self, x: Array) -> Any:
        return self._zeros(x, x.dtype)

    def _zeros(self, x: Array, dtype: Any) -> Array:
        return array_module(x).zeros((*x.shape[:-1], self.hidden_size), dtype=dtype)

    def _each(self, state: Any, change: Any, name: str = "hx") -> Any:
        """`change` applied to every array of a state, or of its gradient."""
        return change(state)

    def _check(self, x: Array, hx: Any) -> bool:
        """Whether x is a batch; TypeError or ValueError for wrong ranks and shapes."""
        check_array(x, "input")
        if x.ndim not in (1, 2):
            raise ValueError(f"input must be [N, I] or [I], got {shape_text(x.shape)}")
        if hx is not None:
            shape = (*x.shape[:-1], self.hidden_size)
            self._each(hx, lambda h: check_shape(h, shape, "hx"))
        return bool(x.ndim == 2)

    def __call__(self, x: Array, hx: Any = None) -> Any:
        """The new state."""
        op = getattr(ops, self._op)
        if hx is not None and getattr(x, "ndim", 0) == 2:  # the loop's step: the op checks
            return self._apply(op, x, hx)
        batched = self._check(x, hx)
        state = self._zero_state(x) if hx is None else hx
        if batched:
            return self._apply(op, x, state)
        state = self._apply(op, x[None], self._each(state, _add_batch))
        return self._each(state, _drop_batch)

    def vjp(self, x: Array, hx: Any = None) -> tuple[Any, Pullback]:
        """`state, pullback`."""
        batched = self._check(x, hx)
        state = self._zero_state(x) if hx is None else hx
        if not batched:
            x, state = x[None], self._each(state, _add_batch)
        row = LayerParameters(
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            weight_peephole=self.weight_peephole,
        )
        *new, saved = self._apply(getattr(ops, self._op + "_forward"), x, state)
        result = self._group(new)

        shape = (*((x.shape[0],) if batched else ()), self.hidden_size)

        def check(dh: Array | None) -> Array | None:
            if dh is not None:
                check_shape(dh, shape, "gradient of the state")
            return dh

        def pull(grad: Any) -> tuple[Array, Any]:
            dstate = self._each(self._gradient_in(grad), check, "gradient")
            if not batched:
                dstate = self._each(dstate, _add_batch)
            grads = getattr(ops, self._op + "_backward")(dstate, saved)
            dx, dhx = grads.dx, self._state_gradient(grads)
            row.add_gradients(grads)
            if not batched:
                dx, dhx = dx[0], self._each(dhx, _drop_batch)
            return dx, None if hx is None else dhx

        return (result if batched else self._each(result, _drop_batch)), Pullback(pull)

    def _group(self, states: list[Array]) -> Any:
        """The state as users see it, from the arrays an op returns."""
        return states[0]

    def _gradient_in(self, grad: Any) -> Any:
        return grad

    def _state_gradient(self, grads: Any) -> Any:
        return grads.dh


def _add_batch(h: Array | None) -> Array | None:
    return None if h is None else h[None]


def _drop_batch(h: Array | None) -> Array | None:
    return None if h is None else h[0]


class RNNCell(_Cell):
    """h' = tanh(x W_ih^T + b_ih + h W_hh^T + b_hh), or relu (torch.nn.RNNCell)."""

    _op = "rnn_cell"
    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, precision, dtype, rng)
        self.nonlinearity = check_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))

    def _apply(self, op: Callable[..., Any], x: Array, state: Any) -> Any:
        bias_ih, bias_hh = self.bias_ih, self.bias_hh
        return op(
            x,
            state,
            self.weight_ih.data,
            self.weight_hh.data,
            None if bias_ih is None else bias_ih.data,
            None if bias_hh is None else bias_hh.data,
            nonlinearity=self.nonlinearity,
            precision=self.precision,
        )


class GRUCell(_Cell):
    """One GRU step (torch.nn.GRUCell); reset_after=False is ONNX's default form."""

    _op = "gru_cell"
    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, precision, dtype, rng)
        self.reset_after = bool(reset_after)

    def _apply(self, op: Callable[..., Any], x: Array, state: Any) -> Any:
        bias_ih, bias_hh = self.bias_ih, self.bias_hh
        return op(
            x,
            state,
            self.weight_ih.data,
            self.weight_hh.data,
            None if bias_ih is None else bias_ih.data,
            None if bias_hh is None else bias_hh.data,
            reset_after=self.reset_after,
            precision=self.precision,
        )


class LSTMCell(_Cell):
    """One LSTM step (torch.nn.LSTMCell): `h, c = cell(x, (h, c))`.

    peephole=True adds the parameter weight_peephole [3, H], rows p_i, p_f, p_o. The pullback
    takes (dh, dc), or dh alone; either may be None.
    """

    _op = "lstm_cell"
    _gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        peephole: bool = False,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, precision, dtype, rng, peephole)

    def _apply(self, op: Callable[..., Any], x: Array, state: Any) -> Any:
        bias_ih, bias_hh, peephole = self.bias_ih, self.bias_hh, self.weight_peephole
        return op(
            x,
            state,
            self.weight_ih.data,
            self.weight_hh.data,
            None if bias_ih is None else bias_ih.data,
            None if bias_hh is None else bias_hh.data,
            peephole=None if peephole is None else peephole.data,
            precision=self.precision,
        )

    def _zero_state(self, x: Array) -> Any:
        # The cell state is kept in float32 where x has fewer bits.
        wide = x.dtype if x.dtype.itemsize >= 4 else array_module(x).float32
        return self._zeros(x, x.dtype), self._zeros(x, wide)

    def _each(self, state: Any, change: Any, name: str = "hx") -> Any:
        if not isinstance(state, tuple) or len(state) != 2:
            raise TypeError(f"{name} must be a tuple (h, c), got {type(state).__name__}")
        return change(state[0]), change(state[1])

    def _group(self, states: list[Array]) -> Any:
        return states[0], states[1]

    def _gradient_in(self, grad: Any) -> Any:
        return grad if isinstance(grad, tuple) else (grad, None)

    def _state_gradient(self, grads: Any) -> Any:
        return grads.dh, grads.dc
