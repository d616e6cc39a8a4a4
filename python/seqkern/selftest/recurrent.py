"""Cases of the recurrent layers and cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ._check import DTYPES, MIXED, PRECISIONS, Array, Case, Cases, label

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
        label(shape, form),
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
                label(shape[1:], form),
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


CASES: dict[str, Cases] = {
    "rnn": _recurrent,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_cell": _cells,
    "lstm_cell": _cells,
    "gru_cell": _cells,
}
