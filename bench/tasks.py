"""What every contender of a row is given: the same weights, input and output gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .shapes import GATES, LinearRow, NormRow, RecurrentRow

Array: TypeAlias = npt.NDArray[Any]

# Loose on purpose: the check is that everybody computes the same thing, not how well. Relative to
# the largest entry. A swapped gate or a forgotten bias is off by tens of per cent.
AGREEMENT = {"float32": 1e-3, "bfloat16": 1e-1}


class UnsupportedError(Exception):
    """A contender that cannot do a task; the text says why, for the reader of the table."""


class LayerWeights(NamedTuple):
    """One layer and direction, gates in torch's order: `[G·H, I]`, `[G·H, H]`, `[G·H]` twice."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array
    bias_hh: Array


@dataclass(frozen=True)
class RecurrentTask:
    """x `[T, N, I]`, the gradient of the output `[T, N, D·H]`, weights by layer and direction.

    All arrays are float32; `dtype` ("float32" or "bfloat16") is what the contender computes in.
    """

    row: RecurrentRow
    dtype: str
    weights: tuple[tuple[LayerWeights, ...], ...]
    x: Array
    dy: Array

    def state_dict(self) -> dict[str, Array]:
        """The weights under torch's names, `weight_ih_l0`, `weight_ih_l0_reverse` and so on."""
        return {
            f"{name}_l{layer}{'_reverse' if direction else ''}": array
            for layer, directions in enumerate(self.weights)
            for direction, weights in enumerate(directions)
            for name, array in weights._asdict().items()
        }


@dataclass(frozen=True)
class LinearTask:
    """x `[m, k]`, weight `[n, k]`, bias `[n]`, the gradient of the output `[m, n]`, float32."""

    row: LinearRow
    dtype: str
    x: Array
    weight: Array
    bias: Array
    dy: Array


@dataclass(frozen=True)
class NormTask:
    """x and the output's gradient `[rows, columns]`, which is also a residual, weight and bias `[columns]`, float32;
    ids `[rows]` of an embedding whose table is x."""

    row: NormRow
    x: Array
    dy: Array
    weight: Array
    bias: Array
    ids: Array


@dataclass(frozen=True)
class Entry:
    """One contender's way of doing a task: the call that is timed, and its results as float32."""

    call: Callable[[], object]
    results: Callable[[], Sequence[Array]]


def recurrent_task(row: RecurrentRow, dtype: str = "float32", seed: int = 0) -> RecurrentTask:
    """Weights uniform in ±1/√H as torch initialises them, x and dy standard normal."""
    rng = np.random.default_rng(seed)
    width = GATES[row.kind] * row.hidden_size
    bound = row.hidden_size**-0.5

    def uniform(*shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    weights = tuple(
        tuple(
            LayerWeights(
                uniform(width, row.layer_input(layer)),
                uniform(width, row.hidden_size),
                uniform(width),
                uniform(width),
            )
            for _ in range(row.directions)
        )
        for layer in range(row.layers)
    )
    x = rng.standard_normal((row.seq_len, row.batch, row.input_size), np.float32)
    outputs = row.hidden_size * row.directions
    dy = rng.standard_normal((row.seq_len, row.batch, outputs), np.float32)
    return RecurrentTask(row, dtype, weights, x, dy)


def linear_task(row: LinearRow, dtype: str = "float32", seed: int = 0) -> LinearTask:
    """Weight and bias uniform in ±1/√k, x and dy standard normal."""
    rng = np.random.default_rng(seed)
    bound = row.k**-0.5
    weight = rng.uniform(-bound, bound, (row.n, row.k)).astype(np.float32)
    bias = rng.uniform(-bound, bound, row.n).astype(np.float32)
    x = rng.standard_normal((row.m, row.k), np.float32)
    return LinearTask(row, dtype, x, weight, bias, rng.standard_normal((row.m, row.n), np.float32))


def norm_task(row: NormRow, seed: int = 0) -> NormTask:
    """All standard normal; ids a permutation."""
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal(row.shape, np.float32) for _ in range(2))
    weight, bias = (rng.standard_normal(row.columns, np.float32) for _ in range(2))
    return NormTask(row, x, dy, weight, bias, rng.permutation(row.rows))


def disagreement(mine: Sequence[Array], theirs: Sequence[Array], dtype: str) -> str | None:
    """None when both computed the same thing, else a sentence that says how far apart they are."""
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.shape != b.shape:
            return f"result {number} has shape {b.shape}, expected {a.shape}"
        scale = max(float(np.abs(a).max(initial=0.0)), 1e-30)
        error = float(np.abs(a - b).max(initial=0.0)) / scale
        if not error <= AGREEMENT[dtype]:
            return f"result {number} differs by {error:.2g} of its largest entry"
    return None
