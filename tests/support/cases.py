"""The cases every kernel test draws from: dtypes, shapes, and random inputs that can fail.

A case is a frozen record whose repr seeds its inputs, so any failure reproduces from its name.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]
BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
OPTIONS = {"rnn": ("nonlinearity",), "lstm": (), "gru": ("reset_after",)}


class DTypes(NamedTuple):
    """Which dtype each kind of argument has, and how the arithmetic rounds (unit roundoffs)."""

    name: str
    x: np.dtype
    weight: np.dtype
    bias: np.dtype
    cell: np.dtype
    unit: float
    storage: float

    def of(self, argument: str) -> np.dtype:
        """The dtype of an argument: x, states and gradients, weights, biases, cell states."""
        if argument.startswith("weight"):
            return self.weight
        if argument.startswith("bias") or argument == "peephole":
            return self.bias
        return self.cell if argument.startswith(("c0", "c_n", "dc")) else self.x

    def of_gradient(self, argument: str) -> np.dtype:
        """States' gradients have the dtype of x, parameters' and cell states' the arithmetic's."""
        return self.x if argument in ("dx", "dh", "dh0") else self.cell


U32, U64, UBF16 = 2.0**-24, 2.0**-53, 2.0**-8
FLOAT32 = DTypes("float32", F32, F32, F32, F32, U32, 0.0)
FLOAT64 = DTypes("float64", F64, F64, F64, F64, U64, 0.0)
BFLOAT16 = DTypes("bfloat16", BF16, BF16, BF16, F32, U32, UBF16)
BFLOAT16_WEIGHTS = DTypes("bfloat16_weights", F32, BF16, F32, F32, U32, 0.0)
DTYPES = (FLOAT32, FLOAT64, BFLOAT16, BFLOAT16_WEIGHTS)


@dataclass(frozen=True)
class Recurrent:
    """One call of rnn, lstm or gru: sizes, variant, and which optional arguments are given.

    biases: which of "ih", "hh" are given. state: are initial states given. lengths: None, "full",
    "ragged" (0, 1, T and others, in any order) or "zero". spread: scale of weight_hh; its rows sum
    to about `spread` in magnitude, so that 1 neither contracts nor expands.
    """

    op: str
    T: int = 4
    N: int = 3
    I: int = 5  # noqa: E741
    H: int = 6
    P: int = 0
    nonlinearity: str = "tanh"
    reset_after: bool = True
    peephole: bool = False
    biases: tuple[str, ...] = ("ih", "hh")
    state: bool = True
    lengths: str | None = None
    reverse: bool = False
    precision: str | None = None
    outliers: bool = False
    spread: float = 1.0

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in ("op", "T", "N", "I", "H") and getattr(self, f.name) != f.default
        ]
        return "-".join([f"T{self.T}N{self.N}I{self.I}H{self.H}", *changed]).replace(" ", "")

    @property
    def out_size(self) -> int:
        return self.P or self.H

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y", "h_n", "c_n") if self.op == "lstm" else ("y", "h_n")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the array arguments this case gives."""
        rows = GATES[self.op] * self.H
        shapes: dict[str, tuple[int, ...]] = {
            "x": (self.T, self.N, self.I),
            "weight_ih": (rows, self.I),
            "weight_hh": (rows, self.out_size),
        }
        shapes.update({f"bias_{side}": (rows,) for side in self.biases})
        if self.state:
            shapes["h0"] = (self.N, self.out_size)
            if self.op == "lstm":
                shapes["c0"] = (self.N, self.H)
        if self.P:
            shapes["weight_hr"] = (self.P, self.H)
        if self.peephole:
            shapes["peephole"] = (3, self.H)
        if self.lengths:
            shapes["lengths"] = (self.N,)
        return shapes

    def options(self) -> dict[str, Any]:
        """The keyword options that are not arrays."""
        names = (*OPTIONS[self.op], "reverse", "precision")
        return {name: getattr(self, name) for name in names}


def generator(*key: object) -> np.random.Generator:
    """A generator seeded by what it is for."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normal numbers, none of them 0."""
    values = rng.standard_normal(shape)
    return np.asarray(np.where(values == 0, 1, values)).astype(dtype)


def make_arrays(case: Recurrent, dtypes: DTypes) -> Arrays:
    """Random inputs of a case, already rounded to their dtypes."""
    rng = generator(case, dtypes.name)
    arrays: Arrays = {}
    for name, shape in case.shapes().items():
        if name == "lengths":
            arrays[name] = make_lengths(case.lengths, case.T, case.N, rng)
            continue
        values = rng.uniform(-1, 1, shape)
        if name == "x":
            values = rng.standard_normal(shape)
            if case.outliers:
                values[rng.random(shape) < 0.1] *= 1e4
        elif name == "weight_ih":
            values /= np.sqrt(max(shape[1], 1))
        elif name in ("weight_hh", "weight_hr"):
            values *= case.spread * min(1.0, 2 / max(shape[1], 1))
        elif name != "h0":
            values *= 0.5
        arrays[name] = values.astype(dtypes.of(name))
    return arrays


def make_lengths(kind: str | None, steps: int, rows: int, rng: np.random.Generator) -> Array:
    """Lengths [rows] between 0 and `steps`, in any order."""
    if kind in ("zero", "full"):
        return np.full(rows, 0 if kind == "zero" else steps, np.int64)
    lengths = rng.integers(0, steps + 1, rows)
    forced = np.array([0, min(1, steps), steps])[: max(rows - 1, 0)]
    lengths[: len(forced)] = forced
    return rng.permutation(lengths)


def make_gradients(case: Recurrent, dtypes: DTypes) -> Arrays:
    """Random gradients of the outputs: dy, dh_n and, for the LSTM, dc_n."""
    rng = generator("gradients", case, dtypes.name)
    shapes = {
        "dy": (case.T, case.N, case.out_size),
        "dh_n": (case.N, case.out_size),
        "dc_n": (case.N, case.H),
    }
    names = [f"d{name}" for name in case.outputs]
    return {name: random_array(rng, shapes[name], dtypes.of(name)) for name in names}


TAILS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
ALL_TAILS = tuple(range(1, 2 * 16 + 2))
BATCHES = (0, 1, 2, 3, 4, 5, 7, 13, 14, 15, 29, 33)


def shape_cases(base: Recurrent) -> list[Recurrent]:
    """Hidden tails, batch tails, lengths of time and input tails around one variant."""
    hidden = [replace(base, H=n, P=max(1, n - 2) if base.P else 0, T=2) for n in TAILS]
    batch = [replace(base, N=n, H=9, I=3) for n in BATCHES]
    time = [replace(base, T=n, H=5, N=2) for n in (0, 1, 2, 9)]
    inputs = [replace(base, I=n, T=2, N=2) for n in (1, 7, 16, 17, 33)]
    return list(dict.fromkeys([*hidden, *batch, *time, *inputs]))


def block_cases(base: Recurrent) -> list[Recurrent]:
    """More rows, terms or steps than fit one block of a blocked matrix product."""
    return [
        replace(base, T=3, N=130, I=401, H=33),
        replace(base, T=2, N=3, I=785, H=19),
        replace(base, T=2, N=5, I=9, H=205, P=base.P and 203),
        replace(base, T=90, N=9, I=6, H=11, lengths="ragged", spread=0.7),
    ]


def option_cases(base: Recurrent) -> list[Recurrent]:
    """Every optional argument, alone and together."""
    small = replace(base, T=5, N=4, H=7)
    return [
        replace(small, biases=()),
        replace(small, biases=("ih",)),
        replace(small, biases=("hh",)),
        replace(small, state=False),
        replace(small, reverse=True),
        replace(small, outliers=True),
        replace(small, lengths="zero"),
        replace(small, lengths="full"),
        replace(small, lengths="ragged"),
        replace(small, lengths="ragged", reverse=True),
        replace(small, lengths="ragged", reverse=True, state=False, biases=(), N=7, H=17),
        replace(small, lengths="ragged", N=33, H=19, T=9),
        replace(small, spread=3.0),
    ]
