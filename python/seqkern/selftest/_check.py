"""One case of the self-test: what it calls, the bound of its error, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

import seqkern
from seqkern import reference

Array: TypeAlias = npt.NDArray[Any]
DTYPES = ("float32", "float64", "bfloat16")
MIXED = "bf16w"
TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    MIXED: np.float32,
}
# float64 twice: there the reference rounds as much as the kernel does.
UNIT = {"float32": 2.0**-24, "float64": 2 * 2.0**-53, "bfloat16": 2.0**-24, MIXED: 2.0**-24}
BF16_UNIT = 2.0**-8
SPLIT = {None: 0.0, "highest": 0.0, "high": 3 * 2.0**-18, "medium": 2.0**-8}
# A gate is a sum of its terms and a few roundings more: activation (4 ulp), products, the blend.
ELEMENTWISE = 16
PRECISIONS = ("high", "medium")
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Case:
    """One call. Arrays are float64 (integers stay as they are) and are rounded to each dtype.

    terms: K of the longest sum, forward or backward. steps: T. in_place: the kernel writes to its
    arguments, which are the result, and has no backward. paired: the backward takes the gradients
    of all outputs as one tuple, as `lstm_cell_backward((dh, dc), saved)` does. weights: positions
    of the arguments that are bfloat16 in the dtype `bf16w`, as is the option `weight_hr`.
    """

    form: str
    arguments: tuple[Any, ...]
    terms: int
    steps: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES
    in_place: bool = False
    paired: bool = False
    weights: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """The worst array of one case in one dtype: its error, the bound, or what went wrong."""

    kernel: str
    form: str
    dtype: str
    array: str
    error: float
    bound: float
    problem: str = ""

    @property
    def severity(self) -> float:
        """Error over bound; infinite for a problem or NaN."""
        if self.problem or not np.isfinite(self.error):
            return float("inf")
        return self.error / self.bound if self.bound else float(self.error > 0)

    @property
    def ok(self) -> bool:
        return self.severity <= 1


def error_bound(truth: Array, case: Case, dtype: str) -> float:
    """The bound of the package's docstring for one result; `truth` is the reference's."""
    terms = case.terms + ELEMENTWISE
    gamma = terms * UNIT[dtype] / (1 - terms * UNIT[dtype])
    split = 0.0 if dtype == "float64" else SPLIT[case.options.get("precision")]
    magnitude = float(max(1.0, np.abs(truth).max(initial=0.0)))
    steps = max(case.steps, 1)
    stored = (steps + 1) * BF16_UNIT if dtype == "bfloat16" else 0.0
    return (steps * (split + gamma) * math.sqrt(terms) + stored) * magnitude


# --- running one case -----------------------------------------------------------------------


def check(kernel: str, case: Case, dtype: str) -> Result:
    """Run one case in one dtype, forward and backward."""
    try:
        pairs = list(_update(kernel, case, dtype) if case.in_place else _both(kernel, case, dtype))
        results = [_compare(kernel, case, dtype, *pair) for pair in pairs]
    except FAILURES as failure:
        problem = f"{type(failure).__name__}: {failure}"
        return Result(kernel, case.form, dtype, "", float("inf"), 0.0, problem)
    return max(results, key=lambda result: result.severity)


Pair: TypeAlias = tuple[str, Any, Any]


def _both(kernel: str, case: Case, dtype: str) -> Iterator[Pair]:
    """(name, ours, truth) for every output, then every gradient."""
    arguments, options = _rounded(case, dtype)
    exact_arguments, exact_options = _cast((arguments, options), np.float64)
    *mine, saved = getattr(seqkern, f"{kernel}_forward")(*arguments, **options)
    *truth, exact_saved = getattr(reference, f"{kernel}_forward")(*exact_arguments, **exact_options)
    yield from zip(_names("output", truth), _leaves(mine), _leaves(truth), strict=True)
    rng = np.random.default_rng(len(case.form))
    incoming = _gradients_like((tuple(_leaves(mine)),) if case.paired else tuple(mine), rng)
    found = getattr(seqkern, f"{kernel}_backward")(*incoming, saved)
    expected = getattr(reference, f"{kernel}_backward")(*_cast(incoming, np.float64), exact_saved)
    yield from zip(expected._fields, found, expected, strict=True)


def _rounded(case: Case, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and options as the kernel gets them."""
    rounded, options = _cast((case.arguments, dict(case.options)), TYPES[dtype])
    arguments = list(rounded)
    if dtype == MIXED:
        for place in case.weights:
            arguments[place] = arguments[place].astype(ml_dtypes.bfloat16)
        if "weight_hr" in options:
            options["weight_hr"] = options["weight_hr"].astype(ml_dtypes.bfloat16)
    return tuple(arguments), options


def _update(kernel: str, case: Case, dtype: str) -> Iterator[Pair]:
    """(name, ours, truth) for every array the kernel may have written to."""
    mine = tuple(
        argument.copy() if isinstance(argument, np.ndarray) else argument
        for argument in _cast(case.arguments, TYPES[dtype])
    )
    exact = _cast(mine, np.float64, copy=True)
    getattr(seqkern, kernel)(*mine, **case.options)
    getattr(reference, kernel)(*exact, **case.options)
    yield from zip(_names("argument", mine), mine, exact, strict=True)


def _compare(kernel: str, case: Case, dtype: str, name: str, mine: Any, truth: Any) -> Result:
    """The error of one array."""
    if truth is None or mine is None:
        problem = "" if mine is truth else f"{name}: one of ours and the reference's is None"
        return Result(kernel, case.form, dtype, name, 0.0, 1.0, problem)
    got, want = np.asarray(mine).astype(np.float64), np.asarray(truth)
    if got.shape != want.shape:
        problem = f"{name} has shape {got.shape}, expected {want.shape}"
        return Result(kernel, case.form, dtype, name, float("inf"), 0.0, problem)
    error = float(np.abs(got - want).max(initial=0.0))
    return Result(kernel, case.form, dtype, name, error, error_bound(want, case, dtype))


def _cast(tree: Any, dtype: Any, copy: bool = False) -> Any:
    """Floating arrays of nested tuples and dicts in another dtype; everything else as it is."""
    if isinstance(tree, tuple):
        return tuple(_cast(branch, dtype, copy) for branch in tree)
    if isinstance(tree, dict):
        return {name: _cast(branch, dtype, copy) for name, branch in tree.items()}
    if isinstance(tree, np.ndarray) and not np.issubdtype(tree.dtype, np.integer):
        return tree.astype(dtype, copy=copy)
    return tree


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, tuple | list):
        return [leaf for branch in tree for leaf in _leaves(branch)]
    return [tree]


def _names(what: str, tree: Any) -> list[str]:
    return [f"{what} {number}" for number in range(len(_leaves(tree)))]


def _gradients_like(tree: Any, rng: np.random.Generator) -> Any:
    """Standard normal numbers in the shapes, dtypes and nesting of the outputs."""
    if isinstance(tree, tuple):
        return tuple(_gradients_like(branch, rng) for branch in tree)
    return np.asarray(rng.standard_normal(np.shape(tree))).astype(np.asarray(tree).dtype)


Cases: TypeAlias = Callable[[str, bool], Iterator[Case]]  # kernel, quick


def label(shape: tuple[int, ...], form: Mapping[str, Any]) -> str:
    words = [name if value is True else f"{name}={value}" for name, value in form.items()]
    return " ".join([f"({','.join(map(str, shape))})", *words])
