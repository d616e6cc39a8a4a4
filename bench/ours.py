"""seqkern's own entries: its modules, as a user calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqkern

from .tasks import Array, Entry, LinearTask, NormTask, RecurrentTask

NAME = "ours"


def settings(threads: int, precision: str = "highest") -> Callable[[], None]:
    """What runs untimed before each of our turns."""

    def enter() -> None:
        seqkern.set_num_threads(threads)
        seqkern.set_matmul_precision(precision)

    return enter


def recurrent_forward(task: RecurrentTask, x_dtype: str | None = None) -> Entry:
    """`module(x)`, all in the task's dtype; with `x_dtype` only the weights are.

    x then has `x_dtype` and the biases stay float32. Results: the output.
    """
    module = recurrent_module(task, weights_only=x_dtype is not None).eval()
    x = cast(task.x, x_dtype or task.dtype)

    def results() -> list[Array]:
        return [as_float32(module(x)[0])]

    return Entry(lambda: module(x), results)


def recurrent_train(task: RecurrentTask) -> Entry:
    """`vjp` and its pullback; results: output, dx, dweight_hh_l0."""
    module = recurrent_module(task)
    x, dy = cast(task.x, task.dtype), cast(task.dy, task.dtype)

    def call() -> Any:
        module.zero_grad()
        (y, _), pullback = module.vjp(x)
        return y, pullback(dy)[0]

    def results() -> Sequence[Array]:
        y, dx = call()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        return [as_float32(array) for array in (y, dx, gradients["weight_hh_l0"])]

    return Entry(call, results)


def ragged(task: RecurrentTask, lengths: Array | None) -> Entry:
    """`module(x, lengths=…)`, or the padded batch when lengths is None."""
    module = recurrent_module(task).eval()

    def call() -> Any:
        return module(task.x, lengths=lengths)

    return Entry(call, lambda: [as_float32(call()[0])])


def cell(kind: str, weights: dict[str, Array], x: Array, state: Sequence[Array]) -> Entry:
    """`seqkern.nn.LSTMCell` and so on; results: the new state's arrays."""
    classes = {"lstm": seqkern.nn.LSTMCell, "gru": seqkern.nn.GRUCell, "rnn": seqkern.nn.RNNCell}
    module = classes[kind](x.shape[1], state[0].shape[1])
    module.load_state_dict(weights)
    old = tuple(state) if kind == "lstm" else state[0]

    def call() -> Any:
        return module(x, old)

    return Entry(call, lambda: list(call()) if kind == "lstm" else [call()])


def cell_function(kind: str, weights: dict[str, Array], x: Array, state: Sequence[Array]) -> Entry:
    """`seqkern.lstm_cell` and so on, the functions; results: the new state's arrays."""
    function = getattr(seqkern, f"{kind}_cell")
    arrays = [weights[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    old = tuple(state) if kind == "lstm" else state[0]

    def call() -> Any:
        return function(x, old, *arrays)

    return Entry(call, lambda: list(call()) if kind == "lstm" else [call()])


def linear(task: LinearTask, x_dtype: str | None = None) -> Entry:
    """`seqkern.linear` in the task's dtype; with `x_dtype` only the weight is. Results: y."""
    x = cast(task.x, x_dtype or task.dtype)
    weight = cast(task.weight, task.dtype)

    def call() -> Any:
        return seqkern.linear(x, weight, task.bias)

    return Entry(call, lambda: [as_float32(call())])


def linear_train(task: LinearTask) -> Entry:
    """`linear_forward` and `linear_backward`; results: y, dx, dweight."""

    def call() -> Any:
        y, saved = seqkern.linear_forward(task.x, task.weight, task.bias)
        return y, seqkern.linear_backward(task.dy, saved)

    def results() -> list[Array]:
        y, gradients = call()
        return [y, gradients.dx, gradients.dweight]

    return Entry(call, results)


def linear_int8(task: LinearTask) -> Entry:
    """`seqkern.linear_int8`, quantised beforehand; results: y."""
    q, scale = seqkern.quantize_int8(task.weight)

    def call() -> Any:
        return seqkern.linear_int8(task.x, q, scale, task.bias)

    return Entry(call, lambda: [call()])


def norm_forward(task: NormTask) -> Entry:
    """`seqkern.nn.LayerNorm`, `GELU` or `Softmax`, `add_layer_norm` or `embedding`; results: y."""
    if task.row.op == "residual":
        shape = task.weight.shape
        return _one_result(lambda: seqkern.add_layer_norm(task.x, task.dy, shape, task.weight, task.bias)[0])
    if task.row.op == "embedding":
        return _one_result(lambda: seqkern.embedding(task.ids, task.x))
    module = norm_module(task)
    return _one_result(lambda: module(task.x))


def _one_result(call: Callable[[], Array]) -> Entry:
    return Entry(call, lambda: [as_float32(call())])


def norm_train(task: NormTask) -> Entry:
    """`vjp` and its pullback; results: y, dx and the parameters' gradients."""
    module = norm_module(task)

    def call() -> Any:
        module.zero_grad()
        y, pullback = module.vjp(task.x)
        return y, pullback(task.dy)[0]

    def results() -> Sequence[Array]:
        return [as_float32(a) for a in (*call(), *(p.grad for p in module.parameters()))]

    return Entry(call, results)


def norm_module(task: NormTask) -> Any:
    """The task's module with its parameters, if it has any."""
    if task.row.op != "layer_norm":
        return {"gelu": seqkern.nn.GELU, "softmax": seqkern.nn.Softmax}[task.row.op]()
    module = seqkern.nn.LayerNorm(task.row.columns)
    module.load_state_dict({"weight": task.weight, "bias": task.bias})
    return module


def recurrent_module(task: RecurrentTask, weights_only: bool = False) -> Any:
    """The task's module with its weights in its dtype, and its biases unless `weights_only`."""
    row = task.row
    classes = {"lstm": seqkern.nn.LSTM, "gru": seqkern.nn.GRU, "rnn": seqkern.nn.RNN}
    module = classes[row.kind](row.input_size, row.hidden_size, row.layers, bidirectional=row.bidirectional)
    module.load_state_dict(task.state_dict())
    for name, parameter in module.named_parameters():
        if name.startswith("weight") or not weights_only:
            parameter.data = cast(parameter.data, task.dtype)
    return module


ITEMSIZE = {"float32": 4, "bfloat16": 2}


def cast(array: Array, dtype: str) -> Array:
    if dtype == "float32":
        return array
    import ml_dtypes

    return array.astype(getattr(ml_dtypes, dtype))


def as_float32(array: Array) -> Array:
    return np.asarray(array, np.float32)
