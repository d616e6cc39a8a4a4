"""Derived error bounds; `conftest.tolerance` hands this module to the tests and says why."""

from __future__ import annotations

import numpy as np
from support.bounds import SPLIT
from support.cases import Array, DTypes
from support.running_error import Arithmetic, Bounded, Tape


def product(
    size: Array,
    terms: int,
    dtypes: DTypes,
    *,
    result: Array,
    out: np.dtype | None = None,
    precision: str | None = None,
) -> Array:
    """Bound of one product summed over `terms`: (p + gamma_K)·size + u_out·|result|.

    size: the sum of the products' magnitudes. out: the dtype the result is rounded to, where it is
    narrower than the arithmetic.
    """
    split = 0.0 if dtypes.cell == np.float64 else SPLIT[precision]
    arith = Arithmetic(dtypes.unit, split, dtypes.storage, terms, terms)
    bound = (split + arith.gamma(max(terms, 1))) * size
    return finish(np.abs(result), bound, dtypes, out or dtypes.cell)


def finish(magnitude: Array, bound: Array, dtypes: DTypes, out: np.dtype) -> Array:
    """Add the rounding to a narrower `out`, the reference's own error, and underflow."""
    if out != dtypes.cell:
        bound = bound + dtypes.storage * (magnitude + bound)
    if dtypes.cell == np.float64:
        bound = 2 * bound
    return bound + 64 * float(np.finfo(dtypes.cell).smallest_normal)


def ulp_error(actual: Array, exact: Array) -> Array:
    """|actual - exact| in units in the last place of `exact` rounded to float32.

    Below the smallest normal number the unit is that of the subnormals. Results that overflow
    float32, and those that are not finite, must be equal after rounding: otherwise infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(actual.astype(np.float64) - exact) / unit
    same = (actual == rounded) | (np.isnan(actual) & np.isnan(rounded))
    return np.where(np.isfinite(rounded) & np.isfinite(actual), error, np.where(same, 0, np.inf))


class Softmax:
    """Bounds of softmax and log_softmax over the last axis of x [..., C], and their gradients.

    x - max rounds once (a relative error u·|x - max| of its exponential), the exponentials are good
    to 4 ulp, their sum has C terms; y, rounded to its dtype, is what backward sees.
    """

    def __init__(self, x: Array, dtypes: DTypes, dy: Array, *, log: bool = False) -> None:
        classes = x.shape[-1]
        self.tape = tape = Tape(Arithmetic(dtypes.unit, 0.0, dtypes.storage, classes, 1))
        self.dtypes = dtypes
        shifted = tape.add(tape.leaf(x), tape.leaf(x.max(-1, keepdims=True)), -1.0)
        powers = tape.exp(shifted)
        total = tape.rows_sum(powers)
        upstream = tape.leaf(dy)
        if log:
            self.exact = tape.add(shifted, tape.log(total), -1.0)
            y = tape.stored(self.exact)
            share = tape.mul(tape.exp(y), tape.rows_sum(upstream))
            self.dx = tape.add(upstream, share, -1.0)
        else:
            self.exact = tape.div(powers, total)
            y = tape.stored(self.exact)
            mean = tape.rows_sum(tape.mul(y, upstream))
            self.dx = tape.mul(y, tape.add(upstream, mean, -1.0))

    def bounds(self, out: np.dtype) -> tuple[Array, Array]:
        """Bounds of y and dx, both of dtype `out`."""
        return tuple(  # type: ignore[return-value]
            finish(np.abs(v.value), v.err, self.dtypes, out) for v in (self.exact, self.dx)
        )


class CrossEntropy:
    """Bounds of the cross-entropy of logits [M, C] and of its gradient.

    The log-probabilities are as for `Softmax`, kept in the arithmetic's dtype; a row's loss sums C
    of them, the total M losses.
    """

    def __init__(self, logits: Array, weights: Array, dloss: Array, dtypes: DTypes) -> None:
        """weights: the target distribution [M, C], all 0 in an ignored row. dloss: [M]."""
        rows, classes = logits.shape
        arith = Arithmetic(dtypes.unit, 0.0, 0.0, classes, rows)
        log_probs = Softmax(logits, dtypes._replace(storage=0.0), 0 * logits, log=True)
        tape, kept = log_probs.tape, (weights.sum(-1, keepdims=True) > 0) * 1.0
        target = _constant(tape, weights, 3 * arith.unit)
        self.rows = tape.rows_sum(tape.mul(log_probs.exact, target))
        size = self.rows.high.sum()
        self.sum_err = self.rows.err.sum() + arith.gamma(rows + 2) * size
        gap = tape.add(tape.mul(tape.exp(log_probs.exact), tape.leaf(kept)), target, -1.0)
        self.dlogits = tape.mul(gap, _constant(tape, dloss[:, None], 2 * arith.unit))
        self.dtypes = dtypes

    def bounds(self, reduction: str, count: int, out: np.dtype) -> tuple[Array, Array]:
        """Bounds of the loss and of dlogits (of dtype `out`); count: targets not ignored."""
        value, err = np.abs(self.rows.value[:, 0]), self.rows.err[:, 0]
        if reduction != "none":
            divisor = count if reduction == "mean" else 1
            value, err = np.abs(value.sum() / divisor), self.sum_err / divisor
        gradient = finish(np.abs(self.dlogits.value), self.dlogits.err, self.dtypes, out)
        return finish(value, err, self.dtypes, self.dtypes.cell), gradient


class Norm:
    """Bounds of a layer, RMS or batch norm of the rows of x [R, C], and of its gradients.

    A computed mean m is off by at most o = gamma_C mean|x|. Differences x - m round by u of their own
    size, |d| + o with d = x - mean; their mean, which corrects m, is off by e = gamma_C mean(|d| + o), the
    variance by gamma_C mean (|d| + o)^2 + (2o + e) e. So a large mean costs second-order terms alone.
    Weight and bias broadcast against x: [C] for layer norm, [R, 1] (`per_row`) for batch norm.
    """

    def __init__(
        self,
        x: Array,
        dtypes: DTypes,
        eps: float,
        *,
        centred: bool = True,
        statistics: tuple[Array, Array] | None = None,
        per_row: bool = False,
    ) -> None:
        """statistics: mean and variance [R, 1] where they are given, not computed."""
        self.dtypes, self.centring, self.per_row = dtypes, centred and statistics is None, per_row
        self.rows, self.columns = x.shape
        self.tape = Tape(Arithmetic(dtypes.unit, 0.0, dtypes.storage, self.columns, self.rows))
        gamma, u = self.tape.arith.gamma, dtypes.unit
        self.mean = x.mean(-1, keepdims=True) if self.centring else np.zeros((self.rows, 1))
        self.offset = gamma(self.columns + 3) * np.abs(x).mean(-1, keepdims=True) * self.centring
        d = x - (self.mean if statistics is None else statistics[0])
        self.size = np.abs(d) + self.offset
        self.shift_err = gamma(self.columns + 3) * self.size.mean(-1, keepdims=True) * self.centring
        own = 2 * u * np.abs(self.mean) if dtypes.cell == np.float64 else 0  # the reference's error
        self.d = Bounded(self.tape, d, 2 * u * self.size + self.shift_err + own)
        self.var, self.var_err = (d**2).mean(-1, keepdims=True), np.zeros((self.rows, 1))
        if statistics is None:
            second = (self.size**2).mean(-1, keepdims=True)
            self.var_err = gamma(self.columns + 6) * second + (2 * self.offset + self.shift_err) * self.shift_err
        else:
            self.var = statistics[1]
        relative = self.var_err / (self.var + eps) + 2 * u
        assert (relative < 0.5).all(), "the variance is all error"
        rstd = (self.var + eps) ** -0.5
        self.rstd = Bounded(self.tape, rstd, rstd * ((1 - relative) ** -0.5 - 1 + 3 * u))
        self.h = self.tape.mul(self.d, self.rstd)

    def y(self, weight: Array, bias: Array) -> Array:
        """Bound of y, in x's dtype."""
        y = self.tape.mul(self.h, self.tape.leaf(weight))
        return self._finish(self.tape.add(y, self.tape.leaf(bias)), self.dtypes.x)

    def gradients(self, dy: Array, weight: Array, dsummed: Array | None = None) -> tuple[Array, Array, Array]:
        """Bounds of dx, dweight and dbias; dsummed is added to dx."""
        tape, gamma = self.tape, self.tape.arith.gamma
        upstream = tape.leaf(dy)
        g = upstream if self.per_row else tape.mul(upstream, tape.leaf(weight))
        products = g.high * (self.size + self.offset)
        err = gamma(self.columns + 8) * products + self.shift_err * g.high + g.err * self.size
        along = Bounded(tape, (g.value * self.d.value).sum(-1, keepdims=True), err.sum(-1, keepdims=True))
        along = tape.mul(along, self.rstd)
        share = tape.leaf(np.full((self.rows, 1), 1 / max(self.columns, 1)))
        dx = g
        if self.centring:
            dx = tape.add(dx, tape.mul(tape.rows_sum(g), share), -1.0)
        if self.centring or not self.per_row:
            dx = tape.add(dx, tape.mul(self.h, tape.mul(along, share)), -1.0)
        dx = tape.mul(dx, self.rstd)
        if self.per_row:
            dx = tape.mul(dx, tape.leaf(weight))
            parameters = along, tape.rows_sum(upstream)
        else:
            parameters = self._columns_sum(tape.mul(upstream, self.h)), self._columns_sum(upstream)
        if dsummed is not None:
            dx = tape.add(dx, tape.leaf(dsummed))
        dweight, dbias = (self._finish(p, self.dtypes.cell) for p in parameters)
        return self._finish(dx, self.dtypes.x), dweight, dbias

    def running(self, old: tuple[Array, Array], momentum: float) -> tuple[Array, Array]:
        """Bounds of the updated running mean and unbiased variance [R, 1]."""
        u, n = self.dtypes.unit, self.columns
        mean_err = self.shift_err + 2 * u * np.abs(self.mean)
        new = (self.mean, mean_err), (self.var * n / (n - 1), self.var_err * n / (n - 1))
        bounds = []
        for was, (value, err) in zip(old, new, strict=True):
            size = np.abs((1 - momentum) * was) + momentum * (np.abs(value) + err)
            bounds.append(finish(size, momentum * err + 6 * u * size, self.dtypes, self.dtypes.cell))
        return bounds[0], bounds[1]

    def _columns_sum(self, a: Bounded) -> Bounded:
        err = a.err.sum(0) + self.tape.arith.gamma(self.rows + 1) * a.high.sum(0)
        return Bounded(self.tape, a.value.sum(0), err)

    def _finish(self, a: Bounded, out: np.dtype) -> Array:
        return finish(np.abs(a.value), a.err, self.dtypes, out)


def _constant(tape: Tape, value: Array, relative: float) -> Bounded:
    """A constant that was itself rounded: label weights, 1 / count."""
    return Bounded(tape, value, relative * np.abs(value))
