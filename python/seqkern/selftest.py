"""`python -m seqkern selftest`: every kernel against its NumPy reference, on this machine.

Each case is run in float32, float64 and bfloat16 (recurrent ones also in float32 with bfloat16
weights, `bf16w`), forward and backward, and compared with the
reference in float64 on the already rounded inputs. A kernel is covered by one entry in `REGISTRY`:
a function that draws the kernel's cases. This is a check of an installation; the tests in the
repository are far stricter.

Bound of an error, in the maximum norm, for a result r of sums of up to K terms over T steps:

    |error| <= T·(p + gamma_K)·sqrt(K)·max(1, |r|) + s·u_out·max(1, |r|)

gamma_K = K·u / (1 - K·u) with u the unit roundoff of the arithmetic, p the relative error of one
product in the precision mode. sqrt(K): inputs are of order one and weights of order 1/sqrt(K), so
by Cauchy and Schwarz no sum of absolute products exceeds it. T: every step passes the errors
before it on. u_out is the roundoff of a bfloat16 result, 0 otherwise, and s = T + 1: the state is
stored once per step, the result once more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
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
    """The bound of the module's docstring for one result; `truth` is the reference's."""
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


# --- the cases ------------------------------------------------------------------------------

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
# (T, N, I, H): one lane, one past a vector, empty in time, empty in rows, more than one vector.
SHAPES = (
    (5, 3, 7, 17),
    (1, 1, 1, 1),
    (0, 2, 3, 4),
    (3, 0, 3, 4),
    (4, 5, 33, 48),
    (9, 2, 65, 100),
    (3, 33, 40, 130),
)
QUICK_SHAPES = SHAPES[:2]
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "rnn": ({"nonlinearity": "relu"},),
    "lstm": ({"proj": True}, {"peephole": True}, {"proj": True, "peephole": True, "lengths": True}),
    "gru": ({"reset_after": False}, {"reset_after": False, "lengths": True, "reverse": True}),
}
COMMON_FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"bare": True},
    {"reverse": True},
    {"lengths": True},
    {"lengths": True, "reverse": True},
)
PRECISIONS = ("high", "medium")


def _recurrent(kernel: str, quick: bool) -> Iterator[Case]:
    """A layer: every form at every shape, the lower precisions at the first."""
    shapes = QUICK_SHAPES if quick else SHAPES
    for number, shape in enumerate(shapes):
        for form in (*COMMON_FORMS, *FORMS[kernel]):
            yield _layer_case(kernel, shape, form, number, (*DTYPES, MIXED))
    for precision in PRECISIONS:
        yield _layer_case(kernel, SHAPES[0], {"precision": precision}, 0, ("float32",))


def _layer_case(
    kernel: str,
    shape: tuple[int, int, int, int],
    form: Mapping[str, Any],
    seed: int,
    dtypes: tuple[str, ...],
) -> Case:
    seq_len, batch, input_size, hidden_size = shape
    rng = np.random.default_rng(seed)
    options = dict(form)
    bare = options.pop("bare", False)
    weights, state, extra = _parameters(kernel, shape, options, rng, bare)
    if options.pop("lengths", False):
        options["lengths"] = rng.integers(0, seq_len, batch, endpoint=True)
    options |= extra
    if not bare:
        options |= {f"{name}0": array for name, array in zip("hc", state, strict=False)}
    x = rng.standard_normal((seq_len, batch, input_size))
    longest = max(input_size + hidden_size, seq_len * batch, GATES[kernel] * hidden_size)
    if options.get("nonlinearity") == "relu" and seq_len > 1:
        # A state rounded to bfloat16 moves the next step's sums across relu's kink, where the
        # gradient jumps: no bound holds there.
        dtypes = tuple(dtype for dtype in dtypes if dtype != "bfloat16")
    return Case(
        _label(shape, form),
        (x, *weights),
        longest,
        max(seq_len, 1),
        options,
        dtypes,
        weights=(1, 2),
    )


def _cells(kernel: str, quick: bool) -> Iterator[Case]:
    """One step: the layer's forms that a single step has."""
    layer = kernel.removesuffix("_cell")
    forms = [form for form in ({}, {"bare": True}, *FORMS[layer]) if "lengths" not in form]
    for number, shape in enumerate(QUICK_SHAPES if quick else SHAPES):
        for form in forms:
            rng = np.random.default_rng(number)
            options = dict(form)
            bare = options.pop("bare", False)
            weights, state, extra = _parameters(layer, shape, options, rng, bare)
            x = rng.standard_normal((shape[1], shape[2]))
            old = state if layer == "lstm" else state[0]
            longest = max(shape[2] + shape[3], shape[1], GATES[layer] * shape[3])
            yield Case(
                _label(shape[1:], form),
                (x, old, *weights),
                longest,
                options=options | extra,
                dtypes=(*DTYPES, MIXED),
                paired=layer == "lstm",
                weights=(2, 3),
            )


def _parameters(
    kernel: str,
    shape: tuple[int, int, int, int],
    options: dict[str, Any],
    rng: np.random.Generator,
    bare: bool,
) -> tuple[tuple[Array, ...], tuple[Array, ...], dict[str, Array]]:
    """Weights and biases, initial states, and the LSTM's projection and peepholes.

    Uniform in ±1/sqrt(H) as modules initialise them. bare: no biases. Takes `proj` and `peephole`
    out of `options`.
    """
    _, batch, input_size, hidden_size = shape
    rows, bound = GATES[kernel] * hidden_size, hidden_size**-0.5

    def uniform(*sizes: int) -> Array:
        return rng.uniform(-bound, bound, sizes)

    extra: dict[str, Array] = {}
    out_size = hidden_size
    if options.pop("proj", False):
        out_size = hidden_size // 2 + 1
        extra["weight_hr"] = uniform(out_size, hidden_size)
    if options.pop("peephole", False):
        extra["peephole"] = uniform(3, hidden_size)
    weights = (uniform(rows, input_size), uniform(rows, out_size))
    biases = () if bare else (uniform(rows), uniform(rows))
    state = (rng.uniform(-1, 1, (batch, out_size)), rng.uniform(-1, 1, (batch, hidden_size)))
    return weights + biases, state[: 2 if kernel == "lstm" else 1], extra


def _label(shape: tuple[int, ...], form: Mapping[str, Any]) -> str:
    words = [name if value is True else f"{name}={value}" for name, value in form.items()]
    return " ".join([f"({','.join(map(str, shape))})", *words])


def _linear(_: str, quick: bool) -> Iterator[Case]:
    shapes = ((1, 1, 1), (5, 7, 17), (0, 3, 4), (33, 65, 100), (64, 256, 96))
    rng = np.random.default_rng(0)
    for m, k, n in shapes[:2] if quick else shapes:
        x, weight = rng.standard_normal((m, k)), rng.uniform(-1, 1, (n, k)) * k**-0.5
        label, longest = f"({m},{k},{n})", max(m, k, n)
        yield Case(label, (x, weight, rng.uniform(-1, 1, n)), longest)
        yield Case(f"{label} bare", (x, weight), longest)
        yield Case(f"{label} 3-d", (x[:, None], weight), longest)
        for precision in PRECISIONS:
            options = {"precision": precision}
            yield Case(_label((m, k, n), options), (x, weight), longest, 1, options, ("float32",))


def _embedding(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((4, 3), (0,), (7,)):
        ids = rng.integers(0, 11, shape)  # fewer rows than ids: their gradients add up
        for options in ({}, {"padding_idx": 2}):
            yield Case(_label(shape, options), (ids, rng.standard_normal((11, 19))), 12, 1, options)


def _softmax(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((3, 1), (5, 17), (2, 3, 65), (0, 4)):
        for dim in (-1, 0):
            if shape[dim] and (dim == -1 or not quick):
                x = 4 * rng.standard_normal(shape)
                yield Case(f"{shape} dim={dim}", (x,), 4 * shape[dim], 1, {"dim": dim})


def _cross_entropy(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((1, 2), (7, 17), (3, 5, 33)):
        logits, target = 4 * rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:-1])
        target.flat[0] = 0 if target.size == 1 else -100  # one target that is ignored
        for reduction in ("mean", "sum", "none"):
            for smoothing in (0.0, 0.1):
                options = {"reduction": reduction, "label_smoothing": smoothing}
                terms = 4 * shape[-1] * max(target.size, 1)
                yield Case(_label(shape, options), (logits, target), terms, 1, options)


def _dropout(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((1,), (5, 17), (3, 1001)):
        for p in (0.0, 0.3, 1.0):
            options = {"seed": 2**40 + 7, "offset": 3}
            yield Case(f"{shape} p={p}", (rng.standard_normal(shape), p), 1, 1, options)


def _update_cases(settings: list[dict[str, Any]], states: int) -> Callable[..., Iterator[Case]]:
    """Cases of an optimiser's update: parameter, gradient, and so many state arrays (>= 0)."""

    def cases(_: str, quick: bool) -> Iterator[Case]:
        rng = np.random.default_rng(0)
        for size in (1, 37) if quick else (0, 1, 37, 1003):
            for options in settings:
                wanted = states if options.get("momentum", 1) else 0
                state = [np.abs(rng.standard_normal(size)) for _ in range(wanted)]
                arguments = (*rng.standard_normal((2, size)), *state, *[None] * (states - wanted))
                yield Case(
                    _label((size,), options), arguments, 8, 1, options, DTYPES[:2], in_place=True
                )

    return cases


_SGD = [
    {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]
_ADAMW = {"step": 3, "lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}

REGISTRY: dict[str, Callable[[str, bool], Iterator[Case]]] = {
    "rnn": _recurrent,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_cell": _cells,
    "lstm_cell": _cells,
    "gru_cell": _cells,
    "linear": _linear,
    "embedding": _embedding,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "cross_entropy": _cross_entropy,
    "dropout": _dropout,
    "sgd_update": _update_cases(_SGD, 1),
    "adagrad_update": _update_cases([{"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.01}], 1),
    "adamw_update": _update_cases([_ADAMW], 2),
}


# --- the command ----------------------------------------------------------------------------

ProgressBar: TypeAlias = Callable[[int, str], AbstractContextManager[Any]]


def jobs(quick: bool = False, only: str | None = None) -> list[tuple[str, Case, str]]:
    """(kernel, case, dtype) for everything that is to be checked."""
    return [
        (kernel, case, dtype)
        for kernel, cases in REGISTRY.items()
        if only is None or only in kernel
        for case in cases(kernel, quick)
        for dtype in case.dtypes
    ]


def run(work: list[tuple[str, Case, str]], progress: ProgressBar | None = None) -> list[Result]:
    """Check all of `work`; `progress(total, label)` is a context manager with `update(1)`."""
    results = []
    with progress(len(work), "selftest") if progress else nullcontext() as bar:
        for job in work:
            results.append(check(*job))
            if bar is not None:
                bar.update(1)
    return results


def summary(results: list[Result]) -> str:
    """A line per kernel and dtype with its worst case, then every failure in full."""
    lines = [
        f"{'kernel':15} {'dtype':9} {'cases':>5} {'worst error':>11} {'bound':>10}  ok",
        f"{'-' * 15} {'-' * 9} {'-' * 5} {'-' * 11} {'-' * 10}  --",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.dtype), []).append(result)
    for (kernel, dtype), members in groups.items():
        worst = max(members, key=lambda result: result.severity)
        lines.append(
            f"{kernel:15} {dtype:9} {len(members):5} {worst.error:11.2e} {worst.bound:10.2e}  "
            f"{'ok' if worst.ok else 'FAILED'}"
        )
    failed = [result for result in results if not result.ok]
    lines += [
        f"FAILED {r.kernel} {r.form} {r.dtype}: "
        + (r.problem or f"{r.array} is off by {r.error:.3g}, bound {r.bound:.3g}")
        for r in failed
    ]
    return "\n".join(lines)


def main(quick: bool = False, only: str | None = None, progress: ProgressBar | None = None) -> int:
    """Check, print the table; 0 when everything is within its bound, 1 when not, 2 for no match."""
    work = jobs(quick, only)
    if not work:
        print(f"no kernel's name contains {only!r}; there are {', '.join(REGISTRY)}")
        return 2
    start = time.perf_counter()
    results = run(work, progress)
    print(summary(results))
    failed = sum(not result.ok for result in results)
    print(
        f"\n{len(results)} comparisons of forward and backward with the NumPy reference in "
        f"{time.perf_counter() - start:.1f} s: {f'{failed} FAILED' if failed else 'all ok'}"
    )
    return 1 if failed else 0
