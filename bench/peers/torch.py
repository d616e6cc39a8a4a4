"""PyTorch: its own modules under `inference_mode`, and its autograd for forward + backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import zoo
from ..attention import AttentionTask
from ..conv import ConvTask
from ..tasks import Array, Entry, LinearTask, NormTask, RecurrentTask, UnsupportedError
from ..zoo import ModelTask
from .torch_charrnn import charrnn_train as charrnn_train

NAME = "torch"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
_CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}


def prepare(threads: int) -> None:
    """Compute on so many threads from now on."""
    torch.set_num_threads(threads)


def recurrent_forward(task: RecurrentTask) -> Entry:
    """The whole stack in inference mode; results: the output."""
    module = _module(task).eval()
    x = torch.from_numpy(task.x).to(_DTYPES[task.dtype])

    def call() -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = module(x)[0]
            return output

    _first_call(call)
    return Entry(call, lambda: [_numpy(call())])


def recurrent_train(task: RecurrentTask) -> Entry:
    """Forward and backward from a given output gradient; results: output, dx, dweight_hh_l0."""
    module = _module(task).train()
    dtype = _DTYPES[task.dtype]
    x = torch.from_numpy(task.x).to(dtype).requires_grad_()
    dy = torch.from_numpy(task.dy).to(dtype)

    def call() -> torch.Tensor:
        x.grad = None
        module.zero_grad(set_to_none=True)
        output: torch.Tensor = module(x)[0]
        torch.autograd.backward(output, dy)
        return output

    def results() -> Sequence[Array]:
        output = call()
        return [_numpy(tensor) for tensor in (output, x.grad, module.weight_hh_l0.grad)]

    _first_call(call)
    return Entry(call, results)


def ragged(task: RecurrentTask, lengths: Array) -> Entry:
    """PackedSequence: pack, run, pad again, as a user with padded rows has to."""
    module = _module(task).eval()
    x = torch.from_numpy(task.x)
    row_lengths = torch.from_numpy(lengths)
    pack = torch.nn.utils.rnn.pack_padded_sequence
    pad = torch.nn.utils.rnn.pad_packed_sequence

    def call() -> torch.Tensor:
        with torch.inference_mode():
            packed = pack(x, row_lengths, enforce_sorted=False)
            output, _ = pad(module(packed)[0], total_length=x.shape[0])
            return output

    return Entry(call, lambda: [_numpy(call())])


def cell(kind: str, weights: dict[str, Array], x: Array, state: Sequence[Array]) -> Entry:
    """One call of a cell; results: the new state's arrays."""
    module = _CELLS[kind](x.shape[1], state[0].shape[1]).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    x_tensor = torch.from_numpy(x)
    states = tuple(torch.from_numpy(array) for array in state)
    old = states if kind == "lstm" else states[0]

    def call() -> Any:
        with torch.inference_mode():
            return module(x_tensor, old)

    def results() -> Sequence[Array]:
        new = call()
        return [_numpy(tensor) for tensor in (new if kind == "lstm" else (new,))]

    return Entry(call, results)


def linear(task: LinearTask) -> Entry:
    """`torch.nn.functional.linear`; results: y."""
    dtype = _DTYPES[task.dtype]
    x, weight, bias = (torch.from_numpy(a).to(dtype) for a in (task.x, task.weight, task.bias))

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return torch.nn.functional.linear(x, weight, bias)

    return Entry(call, lambda: [_numpy(call())])


def linear_train(task: LinearTask) -> Entry:
    """Autograd through `functional.linear` from a given dy; results: y, dx, dweight."""
    leaves = [torch.from_numpy(a).requires_grad_() for a in (task.x, task.weight, task.bias)]
    dy = torch.from_numpy(task.dy)

    def call() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        y = torch.nn.functional.linear(*leaves)
        torch.autograd.backward(y, dy)
        return y

    def results() -> Sequence[Array]:
        y = call()
        return [_numpy(tensor) for tensor in (y, leaves[0].grad, leaves[1].grad)]

    return Entry(call, results)


def attention(task: AttentionTask) -> Entry:
    """`torch.nn.functional.scaled_dot_product_attention`, the back-end torch picks; results: out."""
    dtype = _DTYPES[task.dtype]
    query, key, value = (torch.from_numpy(array).to(dtype) for array in (task.query, task.key, task.value))
    attend = torch.nn.functional.scaled_dot_product_attention

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return attend(query, key, value, is_causal=task.row.causal)

    _first_call(call)
    return Entry(call, lambda: [_numpy(call())])


def attention_train(task: AttentionTask) -> Entry:
    """Forward and backward from a given output gradient; results: out, dquery, dkey, dvalue."""
    dtype, arrays = _DTYPES[task.dtype], (task.query, task.key, task.value)
    leaves = [torch.from_numpy(array.copy()).to(dtype).requires_grad_() for array in arrays]
    dout = torch.from_numpy(task.dout).to(dtype)
    attend: Any = torch.nn.functional.scaled_dot_product_attention

    def call() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        out = attend(*leaves, is_causal=task.row.causal)
        torch.autograd.backward(out, dout)
        return out

    return Entry(call, lambda: [_numpy(tensor) for tensor in (call(), *(leaf.grad for leaf in leaves))])


def conv(task: ConvTask) -> Entry:
    """`torch.nn.functional.conv1d` or `conv2d`; results: y."""
    x, weight, bias = (torch.from_numpy(array) for array in (task.x, task.weight, task.bias))
    function = torch.nn.functional.conv1d if len(task.row.size) == 1 else torch.nn.functional.conv2d
    row = task.row

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return function(x, weight, bias, row.stride, row.padding, 1, row.groups)

    return Entry(call, lambda: [_numpy(call())])


def model(task: ModelTask) -> Entry:
    """Eager, in inference mode; results: logits, or the last hidden state."""
    module, x = _model(task)

    def call() -> Any:
        with torch.inference_mode():
            return zoo.first_array(module(x))

    return Entry(call, lambda: [_numpy(call())])


def model_decode(task: ModelTask) -> Entry:
    """One token against a cache, cut back before every call; results: logits."""
    from transformers import DynamicCache

    module, x = _model(task)
    token, cache = torch.from_numpy(task.decode), DynamicCache()
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    with torch.inference_mode():
        module(x, use_cache=True, **{name: cache})

    def call() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(token, use_cache=True, **{name: cache}).logits
            cache.crop(-1)
            return logits

    return Entry(call, lambda: [_numpy(call())])


def model_train(task: ModelTask) -> Entry:
    """Autograd from a given gradient of the output; results: the output."""
    call = train_call(*_model(task), torch.from_numpy(task.dy))
    return Entry(call, lambda: [_numpy(call())])


def train_call(module: Any, x: Any, dy: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One forward and backward pass of a model, from the gradient of its output."""

    def call() -> torch.Tensor:
        module.zero_grad(set_to_none=True)
        output: torch.Tensor = zoo.first_array(module(x))
        torch.autograd.backward(output, dy)
        return output

    return call


def _model(task: ModelTask) -> tuple[Any, torch.Tensor]:
    """int8 is ours alone: torch then runs in float32."""
    x, dtype = torch.from_numpy(task.x), _DTYPES[task.dtype]
    return zoo.torch_module(task.model).to(dtype), x.to(dtype) if x.is_floating_point() else x


def norm_forward(task: NormTask) -> Entry:
    """`torch.nn.LayerNorm`, `GELU`, `Softmax` or `Embedding` in inference mode; results: y."""
    module, x = _norm_module(task), torch.from_numpy(task.ids if task.row.op == "embedding" else task.x)
    residual = torch.from_numpy(task.dy) if task.row.op == "residual" else None

    def call() -> torch.Tensor:
        with torch.inference_mode():
            y: torch.Tensor = module(x if residual is None else x + residual)
            return y

    return Entry(call, lambda: [_numpy(call())])


def norm_train(task: NormTask) -> Entry:
    """Forward and backward from a given output gradient; results: y, dx, parameters' gradients."""
    module = _norm_module(task)
    x, dy = torch.from_numpy(task.x.copy()).requires_grad_(), torch.from_numpy(task.dy)

    def call() -> torch.Tensor:
        x.grad = None
        module.zero_grad(set_to_none=True)
        y: torch.Tensor = module(x)
        torch.autograd.backward(y, dy)
        return y

    def results() -> Sequence[Array]:
        y = call()
        return [_numpy(tensor) for tensor in (y, x.grad, *(p.grad for p in module.parameters()))]

    return Entry(call, results)


def _norm_module(task: NormTask) -> Any:
    if task.row.op == "embedding":
        return torch.nn.Embedding(task.row.rows, task.row.columns, _weight=torch.from_numpy(task.x))
    if task.row.op in ("gelu", "softmax"):
        return torch.nn.GELU() if task.row.op == "gelu" else torch.nn.Softmax(-1)
    module = torch.nn.LayerNorm(task.row.columns)
    state = {"weight": task.weight, "bias": task.bias}
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return module


def _module(task: RecurrentTask) -> Any:
    row = task.row
    module = _MODULES[row.kind](row.input_size, row.hidden_size, row.layers, bidirectional=row.bidirectional)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in task.state_dict().items()})
    return module.to(_DTYPES[task.dtype])


def _first_call(call: Any) -> None:
    """Where torch has no kernel for a dtype it says so on the first call."""
    try:
        call()
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedError(str(error).splitlines()[0]) from error


def _numpy(tensor: torch.Tensor | None) -> Array:
    if tensor is None:
        raise UnsupportedError("it gave no gradient")
    return np.asarray(tensor.detach().float().numpy())
