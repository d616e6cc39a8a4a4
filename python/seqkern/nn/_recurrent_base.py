"""What RNN, LSTM and GRU share: layouts, stacking, directions, dropout between layers, pullbacks.

Inside, everything is time first: x [T, N, I], outputs [T, N, D*P], states [L*D, N, H or P], with
L layers, D directions and P the output size of one direction. "Row" j = k*D + d is layer k in
direction d. States travel as tuples, (h,) or (h, c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _random, ops
from ._arrays import Array, check_array, check_shape, shape_text
from ._init import PRECISIONS, Initializer, check_choice, check_probability, check_size
from ._recurrent_parts import (
    LayerParameters,
    Layout,
    States,
    direction_part,
    join_directions,
    stack_states,
)
from .module import Module, Parameter, Pullback


class _Tape(NamedTuple):
    """What one forward pass leaves for backward: each row's `saved`, each layer's dropout's."""

    rows: list[Any]
    dropouts: list[Any]


class RecurrentBase(Module):
    """Stacked, optionally bidirectional recurrent network; see RNN, LSTM and GRU."""

    _op: str  # name of the op that runs one row
    _gates: int  # blocks of H rows in weight_ih and weight_hh
    _num_states: int  # 1: h; 2: (h, c)

    if TYPE_CHECKING:  # weight_ih_l0 and its kin are made in a loop

        def __getattr__(self, name: str) -> Parameter: ...

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        *,
        proj_size: int = 0,
        peephole: bool = False,
        precision: str | None,
        dtype: Any,
        rng: np.random.Generator | None,
    ) -> None:
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.num_layers = check_size(num_layers, "num_layers")
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        self.dropout = check_probability(dropout, "dropout")
        self.bidirectional = bool(bidirectional)
        self.proj_size = check_size(proj_size, "proj_size", 0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size must be smaller than hidden_size = {hidden_size}, got {proj_size}"
            )
        self.peephole = bool(peephole)
        self.precision = check_choice(precision, "precision", PRECISIONS)
        init = Initializer(rng, dtype)
        for j, suffix in enumerate(self._suffixes()):
            self._make_row(init, suffix, first_layer=j < self._directions)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of h in one direction: proj_size if there is a projection, else hidden_size."""
        return self.proj_size or self.hidden_size

    def _suffixes(self) -> list[str]:
        """Ends of the parameter names, row by row: l0, l0_reverse, l1, ..."""
        directions = ("", "_reverse")[: self._directions]
        return [f"l{layer}{d}" for layer in range(self.num_layers) for d in directions]

    def _make_row(self, init: Initializer, suffix: str, first_layer: bool) -> None:
        """Draw one row's parameters from U(-1/sqrt(H), 1/sqrt(H)), as torch does."""
        hidden, gates = self.hidden_size, self._gates * self.hidden_size
        inputs = self.input_size if first_layer else self._directions * self.output_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, inputs),
            "weight_hh": (gates, self.output_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, hidden)
        if self.peephole:
            shapes["weight_peephole"] = (3, hidden)
        for name, shape in shapes.items():
            setattr(self, f"{name}_{suffix}", init.uniform(1 / math.sqrt(hidden), *shape))

    # The two tuples below spare a call looking its parameters up by name; `__setattr__` drops
    # them when a parameter may have been replaced.

    @cached_property
    def _rows(self) -> tuple[LayerParameters, ...]:
        fields = LayerParameters._fields
        return tuple(
            LayerParameters._make(getattr(self, f"{field}_{suffix}", None) for field in fields)
            for suffix in self._suffixes()
        )

    @cached_property
    def _only_row(self) -> LayerParameters | None:
        """The one row of a module whose call is a single op, else None."""
        return self._rows[0] if len(self._rows) == 1 and not self.batch_first else None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if value is None or isinstance(value, Parameter):
            self.__dict__.pop("_rows", None)
            self.__dict__.pop("_only_row", None)

    # --- arguments --------------------------------------------------------------------------

    def _layout(self, x: Array) -> Layout:
        check_array(x, "input")
        if x.ndim not in (2, 3):
            meaning = "[N, T, I]" if self.batch_first else "[T, N, I]"
            raise ValueError(
                f"input must be {meaning} or, for one sequence, [T, I], got {shape_text(x.shape)}"
            )
        return Layout(x.ndim == 3, self.batch_first)

    def _state_tuple(self, value: Any, name: str) -> States:
        """(h,) or (h, c) from what a user passes or an op returns."""
        if self._num_states == 1:
            return (value,)
        if not isinstance(value, tuple) or len(value) != 2:
            raise TypeError(f"{name} must be a tuple (h, c), got {type(value).__name__}")
        return value

    def _group(self, states: States) -> Any:
        """States as users see them: the array h, or the tuple (h, c)."""
        return states[0] if self._num_states == 1 else states

    def _states_in(self, hx: Any, x: Array, layout: Layout) -> States | None:
        """hx as a tuple of time-first [L*D, N, size] arrays, checked; `x` is time first."""
        if hx is None:
            return None
        states = self._state_tuple(hx, "hx")
        names = ("hx",) if self._num_states == 1 else ("hx[0]", "hx[1]")
        sizes = (self.output_size, self.hidden_size)
        batch, label = ((x.shape[1],), "batch, ") if layout.batched else ((), "")
        for h, size, name in zip(states, sizes, names, strict=False):
            shape = (len(self._rows), *batch, size)
            check_shape(h, shape, name, f"[num_layers * num_directions, {label}size]")
        return tuple(layout.state_in(h) for h in states)

    def _apply(
        self,
        op: Callable[..., Any],
        x: Array,
        row: LayerParameters,
        state: States,
        lengths: Any,
        reverse: bool = False,
    ) -> Any:
        """One row's op, plain or `_forward`, on x [T, N, I] and states [N, size] or None.

        Written out per class: collecting arguments in a tuple and a dict costs a microsecond.
        """
        raise NotImplementedError

    # --- forward ----------------------------------------------------------------------------

    def __call__(self, x: Array, hx: Any = None, *, lengths: Any = None) -> tuple[Array, Any]:
        """`output, h_n`, or `output, (h_n, c_n)` for LSTM."""
        return self._run("", x, hx, lengths)[:2]

    def _run(self, suffix: str, x: Array, hx: Any, lengths: Any) -> tuple[Array, Any, _Tape]:
        """Output, states and tape, by ops named with `suffix` "" (nothing saved) or "_forward"."""
        row = self._only_row
        state = self._single_state(hx)
        if row is None or state is None or getattr(x, "ndim", 0) != 3:
            return self._forward(suffix, x, hx, lengths)
        y, final, *saved = self._apply(getattr(ops, self._op + suffix), x, row, state, lengths)
        if self._num_states == 1:
            return y, final[None], _Tape(saved, [None])
        return y, (final[0][None], final[1][None]), _Tape(saved, [None])

    def _single_state(self, hx: Any) -> States | None:
        """States [N, size] if hx has one row; None leaves an odd hx to the general path to name."""
        # Written out, for this runs on every streaming step.
        if hx is None:
            return (None, None)[: self._num_states]
        try:
            if self._num_states == 1:
                return (hx[0],) if hx.ndim == 3 and len(hx) == 1 else None
            h, c = hx
            single = h.ndim == 3 and c.ndim == 3 and len(h) == 1 and len(c) == 1
            return (h[0], c[0]) if single and isinstance(hx, tuple) else None
        except (AttributeError, TypeError, ValueError):
            return None

    def _forward(self, suffix: str, x: Array, hx: Any, lengths: Any) -> tuple[Array, Any, _Tape]:
        """`_run` over all layers."""
        layout = self._layout(x)
        y = layout.to_time_first(x)
        states = self._states_in(hx, y, layout)
        finals: list[States] = []
        tape = _Tape([], [])
        for layer in range(self.num_layers):
            outputs = []
            for _ in range(self._directions):
                out, final, *saved = self._run_row(suffix, len(finals), y, states, lengths)
                outputs.append(out)
                finals.append(self._state_tuple(final, "states"))
                tape.rows.extend(saved)
            y, *dropped = self._drop(suffix, layer, join_directions(outputs))
            tape.dropouts.append(dropped[0] if dropped else None)
        return layout.from_time_first(y), self._group(stack_states(finals, layout)), tape

    def _run_row(self, suffix: str, j: int, x: Array, states: States | None, lengths: Any) -> Any:
        op = getattr(ops, self._op + suffix)
        state = (None,) * self._num_states if states is None else tuple(h[j] for h in states)
        return self._apply(op, x, self._rows[j], state, lengths, j % self._directions == 1)

    def _drop(self, suffix: str, layer: int, y: Array) -> tuple[Any, ...]:
        """Dropout after every layer but the last, in training: (y,) or (y, saved)."""
        if not self.training or self.dropout == 0 or layer == self.num_layers - 1:
            return (y,)
        seed = _random.draw_seed()
        if suffix:
            y, saved = ops.dropout_forward(y, self.dropout, seed=seed)
            return y, saved
        return (ops.dropout(y, self.dropout, seed=seed),)

    # --- backward ---------------------------------------------------------------------------

    def vjp(
        self, x: Array, hx: Any = None, *, lengths: Any = None
    ) -> tuple[tuple[Array, Any], Pullback]:
        """`(output, states), pullback`; the pullback returns `(dx, dhx)`, dhx None without hx.

        It takes the gradient of `output`, or a tuple (doutput, dstates); None stands for zero.
        With `lengths`, the gradient past a row's length is ignored and dx there is 0.
        """
        output, states, tape = self._run("_forward", x, hx, lengths)
        layout = self._layout(x)
        rows = self._rows
        shapes = [output.shape, *(h.shape for h in self._state_tuple(states, "states"))]

        def pull(grad: Any) -> tuple[Array, Any]:
            dy, dstates = self._gradients_in(grad, shapes, layout)
            dx, dinitial = self._backward(rows, tape, dy, dstates)
            dhx = None if hx is None else self._group(stack_states(dinitial, layout))
            return layout.from_time_first(dx), dhx

        return (output, states), Pullback(pull)

    def _gradients_in(
        self, grad: Any, shapes: list[tuple[int, ...]], layout: Layout
    ) -> tuple[Array | None, States]:
        """The gradients of output and states, checked, time first."""
        if isinstance(grad, tuple) and len(grad) != 2:
            raise ValueError(
                f"gradient must be that of output, or (doutput, dstates), got {len(grad)} items"
            )
        dy, dstates = grad if isinstance(grad, tuple) else (grad, None)
        if dstates is None:
            dstates = (None,) * self._num_states
        else:
            dstates = self._state_tuple(dstates, "gradient of (h_n, c_n)")
        names = ("gradient of output", "gradient of h_n", "gradient of c_n")
        for value, shape, name in zip((dy, *dstates), shapes, names, strict=False):
            if value is not None:
                check_shape(value, shape, name)
        dy = None if dy is None else layout.to_time_first(dy)
        return dy, tuple(None if h is None else layout.state_in(h) for h in dstates)

    def _backward(
        self, rows: tuple[LayerParameters, ...], tape: _Tape, dy: Array | None, dstates: States
    ) -> tuple[Array, list[States]]:
        """dx and the initial states' gradients, row by row.

        Parameter gradients are added once every layer has succeeded."""
        directions = len(rows) // len(tape.dropouts)
        gradients: list[Any] = [None] * len(rows)
        for layer in reversed(range(len(tape.dropouts))):
            if tape.dropouts[layer] is not None:
                (dy,) = ops.dropout_backward(dy, tape.dropouts[layer])
            dx = None
            for direction in range(directions):
                j = layer * directions + direction
                dstate = tuple(None if h is None else h[j] for h in dstates)
                gradients[j] = getattr(ops, self._op + "_backward")(
                    direction_part(dy, direction, directions), self._group(dstate), tape.rows[j]
                )
                dx = gradients[j].dx if dx is None else dx + gradients[j].dx
            dy = dx
        for row, grads in zip(rows, gradients, strict=True):
            row.add_gradients(grads)
        names = ("dh0", "dc0")[: self._num_states]
        return dy, [tuple(getattr(grads, name) for name in names) for grads in gradients]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.input_size}, {self.hidden_size}, "
            f"num_layers={self.num_layers}, bidirectional={self.bidirectional})"
        )
