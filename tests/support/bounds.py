"""The recurrent equations over `Bounded` numbers: what a correct kernel may be off by.

The equations are those of torch.nn.RNN, LSTM (with the peepholes of Gers and Schmidhuber, 2000) and
GRU (both reset forms). One step costs one product of K = I + H + 2 terms per gate, activations
within 4 ulp, and a rounding per elementwise operation; steps compose as `running_error` describes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from support.cases import GATES, Array, Arrays, DTypes, Recurrent
from support.running_error import Arithmetic, Bounded, Tape

SPLIT = {None: 0.0, "highest": 0.0, "high": 3 * 2.0**-18, "medium": 2.0**-8}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
Estimates = dict[str, tuple[Array, Array]]  # name -> (value, bound of the error)


def arithmetic(case: Recurrent, dtypes: DTypes) -> Arithmetic:
    """How a case rounds. float64 has no reduced precision; a bf16 factor is already split."""
    split = 0.0 if dtypes.x == np.float64 else SPLIT[case.precision]
    terms = GATES[case.op] * case.H + case.I + 2
    return Arithmetic(dtypes.unit, split, dtypes.storage, terms, case.T * (case.N + 1) + 1)


def recurrent_estimates(
    case: Recurrent, dtypes: DTypes, arrays: Arrays, gradients: Arrays
) -> tuple[Estimates, Estimates]:
    """Outputs and gradients of a call on float64 `arrays`, each with its error bound.

    gradients: dy, dh_n and, for the LSTM, dc_n, in float64.
    """
    walk = _Walk(case, dtypes, arrays)
    walk.forward()
    walk.backward(gradients)
    return walk.outputs(), walk.gradients()


class _Walk:
    """One pass over time on a tape, and back."""

    def __init__(self, case: Recurrent, dtypes: DTypes, arrays: Arrays) -> None:
        self.case = case
        self.tape = Tape(arithmetic(case, dtypes))
        given = {k: v for k, v in arrays.items() if k not in ("x", "lengths", "peephole")}
        given.setdefault("h0", np.zeros((case.N, case.out_size)))
        if case.op == "lstm":
            given.setdefault("c0", np.zeros((case.N, case.H)))
        self.inputs = {name: self.tape.leaf(array) for name, array in given.items()}
        self.peepholes = [self.tape.leaf(row) for row in arrays.get("peephole", ())]
        self.x = [self.tape.leaf(step) for step in arrays["x"]]
        self.lengths = arrays.get("lengths", np.full(case.N, case.T))
        self.h = self.inputs["h0"]
        self.c = self.inputs.get("c0", self.h)
        self.y: list[Bounded] = list(self.x)

    def forward(self) -> None:
        step = getattr(self, f"_{self.case.op}")
        times = range(self.case.T)
        nothing = self.tape.leaf(np.zeros((self.case.N, self.case.out_size)))
        for t in reversed(times) if self.case.reverse else times:
            active = (t < self.lengths)[:, None]
            h, c = step(self.x[t], self.h, self.c)
            self.h = self.tape.where(active, self.tape.stored(h), self.h)
            if self.case.op == "lstm":
                self.c = self.tape.where(active, c, self.c)
            self.y[t] = self.tape.where(active, self.h, nothing)

    def backward(self, gradients: Arrays) -> None:
        ends = {"dh_n": self.h} | ({"dc_n": self.c} if self.case.op == "lstm" else {})
        seeds = [(end, gradients[name]) for name, end in ends.items()]
        for seed, grad in [*seeds, *zip(self.y, gradients["dy"], strict=True)]:
            seed.receive(grad, np.zeros(grad.shape))
        self.tape.backward()

    def outputs(self) -> Estimates:
        found = {
            "y": _stack(self.y, "value", "err", (0, *self.h.value.shape)),
            "h_n": (self.h.value, self.h.err),
            "c_n": (self.c.value, self.c.err),
        }
        return {name: found[name] for name in self.case.outputs}

    def gradients(self) -> Estimates:
        found = {f"d{name}": (leaf.grad, leaf.grad_err) for name, leaf in self.inputs.items()}
        found["dx"] = _stack(self.x, "grad", "grad_err", (0, self.case.N, self.case.I))
        if self.peepholes:
            found["dpeephole"] = _stack(self.peepholes, "grad", "grad_err", ())
        return found

    def _rows(self, name: str, first: int, last: int) -> Any:
        """Gates first … last - 1 of a fused parameter; None stays None."""
        whole, size = self.inputs.get(name), self.case.H
        return whole and self.tape.part(whole, np.s_[first * size : last * size])

    def _gates(self, x: Bounded, h: Bounded, count: int) -> list[Bounded]:
        """The first `count` gates' pre-activations from one fused product."""
        w_ih, w_hh, b_ih, b_hh = (self._rows(name, 0, count) for name in PARAMETERS)
        product = self.tape.products([(x, w_ih), (h, w_hh)], [b_ih, b_hh])
        size = self.case.H
        return [self.tape.part(product, np.s_[:, k * size : (k + 1) * size]) for k in range(count)]

    def _rnn(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded]:
        (a,) = self._gates(x, h, 1)
        return getattr(self.tape, self.case.nonlinearity)(a, self.tape.arith.storage), c

    def _lstm(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded]:
        tape, peep = self.tape, self.peepholes
        i, f, g, o = self._gates(x, h, 4)
        if peep:
            i, f = tape.add(i, tape.mul(peep[0], c)), tape.add(f, tape.mul(peep[1], c))
        kept = tape.mul(tape.sigmoid(f), c)
        c = tape.add(kept, tape.mul(tape.sigmoid(i), tape.tanh(g)))
        if peep:
            o = tape.add(o, tape.mul(peep[2], c))
        h = tape.mul(tape.sigmoid(o), tape.tanh(c))
        if self.case.P:
            h = tape.products([(h, self.inputs["weight_hr"])], [])
        return h, c

    def _gru(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded]:
        tape = self.tape
        r, z = (tape.sigmoid(a) for a in self._gates(x, h, 2))
        w_in, w_hn, b_in, b_hn = (self._rows(name, 2, 3) for name in PARAMETERS)
        if self.case.reset_after:
            hidden = tape.mul(r, tape.products([(h, w_hn)], [b_hn]))
            a = tape.products([(x, w_in)], [b_in, hidden])
        else:
            a = tape.products([(x, w_in), (tape.mul(r, h), w_hn)], [b_in, b_hn])
        one = tape.leaf(np.ones(z.value.shape))
        fresh = tape.mul(tape.add(one, z, -1.0), tape.tanh(a))
        return tape.add(fresh, tape.mul(z, h)), c


def _stack(parts: list[Bounded], value: str, error: str, empty: tuple[int, ...]) -> tuple[Array, Array]:
    """The parts' values and errors stacked; of shape `empty` when there are no parts."""
    if not parts:
        return np.zeros(empty), np.zeros(empty)
    values, errors = (np.stack([getattr(p, field) for p in parts]) for field in (value, error))
    return values, errors
