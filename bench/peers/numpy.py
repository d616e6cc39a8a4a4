"""Plain NumPy: the reference implementation, what a user without any framework would write.

It always can be measured, so the benchmark has something to show where no peer is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from seqkern import reference

from ..tasks import Array, Entry, LayerWeights, LinearTask, RecurrentTask, UnsupportedError

NAME = "numpy"


def prepare(threads: int) -> None:
    """NumPy's BLAS takes its number of threads from the environment only."""


def recurrent_forward(task: RecurrentTask) -> Entry:
    """Layer after layer, direction after direction; results: the output."""
    if task.dtype != "float32":
        raise UnsupportedError(f"it has no {task.dtype} arithmetic")
    layer = getattr(reference, task.row.kind)

    def one(x: Array, weights: LayerWeights, reverse: bool) -> Array:
        return np.asarray(layer(x, *weights, reverse=reverse)[0])

    def call() -> Array:
        x = task.x
        for directions in task.weights:
            x = np.concatenate([one(x, w, bool(d)) for d, w in enumerate(directions)], axis=-1)
        return x

    return Entry(call, lambda: [call()])


def recurrent_train(task: RecurrentTask) -> Entry:
    """Forward and backward of one layer in one direction; results: output, dx, dweight_hh."""
    if task.row.layers > 1 or task.row.bidirectional or task.dtype != "float32":
        raise UnsupportedError("the reference trains one float32 layer in one direction")
    forward = getattr(reference, f"{task.row.kind}_forward")
    backward = getattr(reference, f"{task.row.kind}_backward")

    def call() -> tuple[Array, Any]:
        y, _, saved = forward(task.x, *task.weights[0][0])
        return y, backward(task.dy, None, saved)

    def results() -> list[Array]:
        y, gradients = call()
        return [y, gradients.dx, gradients.dweight_hh]

    return Entry(call, results)


def linear(task: LinearTask) -> Entry:
    """x Wᵀ + b; results: y."""

    def call() -> Array:
        return np.asarray(task.x @ task.weight.T + task.bias)

    return Entry(call, lambda: [call()])


def cell(kind: str, weights: dict[str, Array], x: Array, state: Sequence[Array]) -> Entry:
    """One call of a cell as it is usually written by hand; results: the new state's arrays."""
    w_ih, w_hh = weights["weight_ih"].T.copy(), weights["weight_hh"].T.copy()
    call = _CELLS[kind](x, list(state), w_ih, w_hh, weights["bias_ih"], weights["bias_hh"])
    return Entry(call, call)


Step = Callable[[], list[Array]]


def _sigmoid(a: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-a)))


def _lstm_cell(x: Array, state: list[Array], w_ih: Array, w_hh: Array, *biases: Array) -> Step:
    h, c = state
    size, bias = h.shape[1], biases[0] + biases[1]

    def call() -> list[Array]:
        a = x @ w_ih + h @ w_hh + bias
        gates = _sigmoid(a)
        i, f, o = gates[:, :size], gates[:, size : 2 * size], gates[:, 3 * size :]
        new_c = f * c + i * np.tanh(a[:, 2 * size : 3 * size])
        return [o * np.tanh(new_c), new_c]

    return call


def _gru_cell(x: Array, state: list[Array], w_ih: Array, w_hh: Array, *biases: Array) -> Step:
    (h,) = state
    size = h.shape[1]

    def call() -> list[Array]:
        a, b = x @ w_ih + biases[0], h @ w_hh + biases[1]
        gates = _sigmoid(a[:, : 2 * size] + b[:, : 2 * size])
        n = np.tanh(a[:, 2 * size :] + gates[:, :size] * b[:, 2 * size :])
        return [n + gates[:, size:] * (h - n)]

    return call


def _rnn_cell(x: Array, state: list[Array], w_ih: Array, w_hh: Array, *biases: Array) -> Step:
    (h,), bias = state, biases[0] + biases[1]
    return lambda: [np.tanh(x @ w_ih + h @ w_hh + bias)]


_CELLS = {"lstm": _lstm_cell, "gru": _gru_cell, "rnn": _rnn_cell}
