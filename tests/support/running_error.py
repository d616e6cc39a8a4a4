"""Running error analysis: float64 arithmetic in which every number carries an error bound.

A `Bounded` array holds the exact value (to float64) and a bound on how far the same quantity may be
off when it is computed in a shorter arithmetic. Each operation adds two things (Higham, "Accuracy
and Stability of Numerical Algorithms", chapter 3): what the operands' errors become, and what its
own rounding adds. A `Tape` records the operations so that `backward` gives the gradients, again
with bounds; it is therefore also an oracle independent of the hand-derived gradients.

Growth over T steps needs no special case: the error of the state passes through |weight_hh| and the
slope of the activation at every step, exactly as the contraction (or expansion) of the network
prescribes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
ACTIVATION_ULPS = 4  # the accuracy demanded of exp, tanh, sigmoid and log


class Arithmetic(NamedTuple):
    """How the arithmetic under test rounds.

    unit: unit roundoff u of products, sums and elementwise operations.
    split: p, the relative error of one product of a reduced precision mode (0 for `highest`).
    storage: unit roundoff of states and outputs where their dtype is narrower; otherwise 0.
    terms: the longest sum over features, K; a sum may be started on any other addend.
    rows: how many batch rows and time steps a weight gradient sums over.
    """

    unit: float
    split: float
    storage: float
    terms: int
    rows: int

    def gamma(self, count: float) -> float:
        """gamma_K = K·u / (1 - K·u): the bound for K roundings in any order."""
        roundings = count * self.unit
        assert roundings < 0.5, "too many terms for a meaningful bound"
        return roundings / (1 - roundings)


class Bounded:
    """A value, the bound of its error, and (after `Tape.backward`) the same for its gradient."""

    def __init__(self, tape: Tape, value: Array, err: Array | float, *, leaf: bool = False) -> None:
        self.tape = tape
        self.value = value
        self.err = np.broadcast_to(np.asarray(err, np.float64), value.shape)
        self.leaf = leaf
        self.grad: Array = np.zeros(value.shape)
        self.grad_err: Array = np.zeros(value.shape)

    @property
    def high(self) -> Array:
        """A bound on the magnitude of the computed quantity."""
        return np.asarray(np.abs(self.value) + self.err)

    def receive(self, grad: Array, err: Array) -> None:
        """Add a gradient contribution; sums of leaf contributions are counted by their products."""
        arith = self.tape.arith
        if grad.shape != self.value.shape:
            err = err + arith.gamma(arith.rows) * (np.abs(grad) + err)
        grad, err = _sum_to(grad, self.value.shape), _sum_to(err, self.value.shape)
        if not self.leaf and self.grad.any():
            err = err + arith.gamma(arith.terms) * (np.abs(self.grad) + self.grad_err)
            err = err + arith.gamma(arith.terms) * np.abs(grad)
        self.grad = self.grad + grad
        self.grad_err = self.grad_err + err


Derivative = Callable[[Bounded], tuple[Array, Array]]


class Tape:
    """Records operations in order; `backward` runs their gradients in reverse."""

    def __init__(self, arith: Arithmetic) -> None:
        self.arith = arith
        self._pulls: list[Callable[[], None]] = []

    def leaf(self, value: Array) -> Bounded:
        """An input: exact, because references see the already rounded inputs."""
        return Bounded(self, np.asarray(value, np.float64), 0.0, leaf=True)

    def backward(self) -> None:
        """Push the seeded gradients (`Bounded.receive`) back to the leaves."""
        for pull in reversed(self._pulls):
            pull()

    def record(self, out: Bounded, pull: Callable[[], None]) -> Bounded:
        self._pulls.append(pull)
        return out

    def products(self, pairs: list[tuple[Bounded, Bounded]], addends: list[Bounded | None]) -> Bounded:
        """Σ a @ w.T + Σ b: one sum of K terms, accumulated in any order.

        |error| ≤ Σ(|a| + e_a)(|w| + e_w)ᵀ - Σ|a||w|ᵀ + Σe_b + p·Σ|a||w| + gamma_K·(Σ|a||w| + Σ|b|)
        """
        arith = self.arith
        biases = [b for b in addends if b is not None]
        terms = sum(w.value.shape[1] for _, w in pairs) + len(biases)
        value = sum(a.value @ w.value.T for a, w in pairs) + sum(b.value for b in biases)
        exact = sum(np.abs(a.value) @ np.abs(w.value).T for a, w in pairs)
        size = sum(a.high @ w.high.T for a, w in pairs)
        err = (size - exact) + arith.split * size + sum(b.err for b in biases)
        err = err + arith.gamma(terms) * (size + sum(b.high for b in biases))
        out = Bounded(self, np.asarray(value), err)

        def pull() -> None:
            grad, grad_err = out.grad, out.grad_err
            for a, w in pairs:
                a.receive(*_matmul(grad, grad_err, w.value, w.err, arith, w.value.shape[0]))
                w.receive(*_matmul(grad.T, grad_err.T, a.value, a.err, arith, arith.rows))
            for b in biases:
                if b.value.ndim == grad.ndim:
                    b.receive(grad, grad_err)
                    continue
                total = np.abs(grad).sum(0) + grad_err.sum(0)
                b.receive(grad.sum(0), grad_err.sum(0) + arith.gamma(arith.rows) * total)

        return self.record(out, pull)

    def add(self, a: Bounded, b: Bounded, sign: float = 1.0) -> Bounded:
        """a + sign·b."""
        value = a.value + sign * b.value
        err = a.err + b.err
        out = Bounded(self, value, err + self.arith.unit * (np.abs(value) + err))

        def pull() -> None:
            a.receive(out.grad, out.grad_err)
            b.receive(sign * out.grad, out.grad_err)

        return self.record(out, pull)

    def mul(self, a: Bounded, b: Bounded) -> Bounded:
        """a·b; |error| ≤ |a|e_b + |b|e_a + e_a·e_b + u·|a·b|."""
        unit = self.arith.unit
        size = a.high * b.high
        value = a.value * b.value
        out = Bounded(self, value, size - np.abs(value) + unit * size)

        def pull() -> None:
            for this, other in ((a, b), (b, a)):
                this.receive(*_times(out.grad, out.grad_err, other.value, other.err, unit))

        return self.record(out, pull)

    def div(self, a: Bounded, b: Bounded) -> Bounded:
        """a / b for b bounded away from 0."""
        unit = self.arith.unit
        low = np.abs(b.value) - b.err
        value = a.value / b.value
        err = (a.err + np.abs(value) * b.err) / low
        out = Bounded(self, value, err + unit * (np.abs(value) + err))

        def pull() -> None:
            inverse, inverse_err = 1 / b.value, (b.err / low + unit) / low
            grad, grad_err = _times(out.grad, out.grad_err, inverse, inverse_err, unit)
            a.receive(grad, grad_err)
            b.receive(*_times(-grad, grad_err, out.value, out.err, unit))

        return self.record(out, pull)

    def rows_sum(self, a: Bounded) -> Bounded:
        """Sum over the last axis, kept as an axis of one."""
        err = a.err.sum(-1, keepdims=True)
        size = a.high.sum(-1, keepdims=True)
        gamma = self.arith.gamma(a.value.shape[-1])
        out = Bounded(self, a.value.sum(-1, keepdims=True), err + gamma * size)
        return self.record(out, lambda: a.receive(out.grad + 0 * a.value, out.grad_err + 0 * a.value))

    def part(self, a: Bounded, index: Any) -> Bounded:
        """a[index] of a 1-D or 2-D array, index being slices: one gate of a fused parameter."""
        out = Bounded(self, a.value[index], a.err[index])

        def pull() -> None:
            a.grad[index] += out.grad
            a.grad_err[index] += out.grad_err

        out.leaf = a.leaf
        return self.record(out, pull)

    def where(self, mask: Array, a: Bounded, b: Bounded) -> Bounded:
        """a in the rows where the [N, 1] mask holds, b elsewhere: exact."""
        out = Bounded(self, np.where(mask, a.value, b.value), np.where(mask, a.err, b.err))

        def pull() -> None:
            a.receive(np.where(mask, out.grad, 0), np.where(mask, out.grad_err, 0))
            b.receive(np.where(mask, 0, out.grad), np.where(mask, 0, out.grad_err))

        return self.record(out, pull)

    def stored(self, a: Bounded) -> Bounded:
        """a as it is stored between steps; only a shorter storage type rounds."""
        out = Bounded(self, a.value, a.err + self.arith.storage * a.high)
        return self.record(out, lambda: a.receive(out.grad, out.grad_err))

    def _activation(
        self, a: Bounded, value: Array, slope: Array, derivative: Derivative, rounding: float = 0
    ) -> Bounded:
        """value with the error `slope`·e_a plus the 4 ulp an elementwise function may be off.

        derivative: the saved output → (value, error) of the slope used in backward. rounding: the
        unit roundoff with which that output was saved, if it was.
        """
        own = 2 * ACTIVATION_ULPS * self.arith.unit  # one ulp is at most 2u of the value
        err = slope * a.err
        out = Bounded(self, value, err + own * (np.abs(value) + err))

        def pull() -> None:
            saved = Bounded(self, out.value, out.err + rounding * out.high)
            gain, gain_err = derivative(saved)
            a.receive(*_times(out.grad, out.grad_err, gain, gain_err, self.arith.unit))

        return self.record(out, pull)

    def tanh(self, a: Bounded, rounding: float = 0) -> Bounded:
        unit = self.arith.unit
        steepest = 1 - np.tanh(np.maximum(np.abs(a.value) - a.err, 0)) ** 2

        def derivative(y: Bounded) -> tuple[Array, Array]:
            return 1 - y.value**2, y.high**2 - y.value**2 + 2 * unit * (1 + y.high**2)

        return self._activation(a, np.tanh(a.value), steepest, derivative, rounding)

    def sigmoid(self, a: Bounded) -> Bounded:
        unit = self.arith.unit
        inner = np.maximum(np.abs(a.value) - a.err, 0)
        steepest = sigmoid64(inner) * sigmoid64(-inner)

        def derivative(y: Bounded) -> tuple[Array, Array]:
            value = y.value * (1 - y.value)
            return value, y.err * (1 + y.high) + 3 * unit * y.high * (1 + y.high)

        return self._activation(a, sigmoid64(a.value), steepest, derivative)

    def relu(self, a: Bounded, rounding: float = 0) -> Bounded:
        value = np.maximum(a.value, 0)

        def derivative(_: Bounded) -> tuple[Array, Array]:
            undecided = (np.abs(a.value) <= a.err) & (a.err > 0)
            return (a.value > 0).astype(np.float64), undecided.astype(np.float64)

        return self._activation(a, value, np.ones(value.shape), derivative, rounding)

    def exp(self, a: Bounded) -> Bounded:
        value = np.exp(a.value)
        return self._activation(a, value, value * np.exp(a.err), lambda y: (y.value, y.err))

    def log(self, a: Bounded) -> Bounded:
        low = a.value - a.err
        unit = self.arith.unit
        return self._activation(a, np.log(a.value), 1 / low, lambda _: (1 / a.value, (a.err / low + unit) / low))


def sigmoid64(value: Array) -> Array:
    """1 / (1 + exp(-value)) in float64, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -value)))


def _sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum over the axes that `shape` lacks (a peephole row, a bias)."""
    while array.ndim > len(shape):
        array = array.sum(0)
    kept = tuple(i for i, n in enumerate(shape) if n == 1 and array.shape[i] != 1)
    return array.sum(kept, keepdims=True) if kept else array


def _times(a: Array, a_err: Array, b: Array, b_err: Array, unit: float) -> tuple[Array, Array]:
    size = (np.abs(a) + a_err) * (np.abs(b) + b_err)
    return a * b, size - np.abs(a * b) + unit * size


def _matmul(a: Array, a_err: Array, b: Array, b_err: Array, arith: Arithmetic, terms: int) -> tuple[Array, Array]:
    exact = np.abs(a) @ np.abs(b)
    size = (np.abs(a) + a_err) @ (np.abs(b) + b_err)
    return a @ b, size - exact + (arith.split + arith.gamma(terms)) * size
