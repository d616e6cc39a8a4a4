"""The ONNX form of a recurrent stack, for the two runtimes that take ONNX.

Differences from torch's conventions that are settled here (ONNX operators, opset 14):
gate order i, o, f, c (LSTM) and z, r, h (GRU); both directions and both biases in one array each;
`linear_before_reset=1` is torch's GRU; the output is `[T, D, N, H]`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import zoo
from ..attention import AttentionTask
from ..shapes import GATES
from ..tasks import Array, LayerWeights, LinearTask, NormTask, RecurrentTask
from ..zoo import ModelTask

OPSET = 14
IR_VERSION = 8  # the one that came with opset 14's generation: every runtime reads it
IR_VERSIONS = {20: 9, 23: 11}  # the first that know the opset
_OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
_GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def reorder_gates(array: Array, kind: str) -> Array:
    """`[G·H, …]` in torch's gate order to the same in ONNX's."""
    gates = np.split(array, GATES[kind])
    return np.concatenate([gates[gate] for gate in _GATE_ORDER[kind]])


def layer_arrays(directions: Sequence[LayerWeights], kind: str) -> tuple[Array, Array, Array]:
    """W `[D, G·H, I]`, R `[D, G·H, H]` and B `[D, 2·G·H]` of one layer."""
    w = np.stack([reorder_gates(weights.weight_ih, kind) for weights in directions])
    r = np.stack([reorder_gates(weights.weight_hh, kind) for weights in directions])
    b = np.stack([np.concatenate([reorder_gates(bias, kind) for bias in (d.bias_ih, d.bias_hh)]) for d in directions])
    return w, r, b


def recurrent_model(task: RecurrentTask) -> bytes:
    """A serialised model: input `x` `[T, N, I]`, output `y` `[T, N, D·H]`, weights constant."""
    row = task.row
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    source = "x"
    for layer, directions in enumerate(task.weights):
        names = [f"{name}{layer}" for name in ("W", "R", "B")]
        constants += [
            numpy_helper.from_array(array, name)
            for name, array in zip(names, layer_arrays(directions, row.kind), strict=True)
        ]
        target = "y" if layer == row.layers - 1 else f"y{layer}"
        nodes += _layer_nodes(task, source, names, f"Y{layer}", target)
        source = target
    constants.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "joined"))
    return _serialised(nodes, {"x": task.x.shape}, task.dy.shape, constants)


def linear_model(task: LinearTask) -> bytes:
    """Input `x` `[m, k]`, output `y` `[m, n]`, weight and bias constant."""
    constants = [
        numpy_helper.from_array(task.weight, "weight"),
        numpy_helper.from_array(task.bias, "bias"),
    ]
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    return _serialised([node], {"x": task.x.shape}, task.dy.shape, constants)


def attention_model(task: AttentionTask) -> bytes:
    """Inputs `query`, `key`, `value` `[B, H, L, D]`, output `y`: ONNX's own Attention (opset 23)."""
    shapes = {name: getattr(task, name).shape for name in ("query", "key", "value")}
    node = helper.make_node("Attention", list(shapes), ["y"], is_causal=int(task.row.causal))
    return _serialised([node], shapes, task.query.shape, [], opset=23)


def norm_model(task: NormTask) -> bytes:
    """Input `x`, output `y`: LayerNormalization, with Add before it, Gather, Gelu or Softmax (opset 20)."""
    op, arrays = task.row.op, {"weight": task.weight, "bias": task.bias}
    if op == "embedding":
        arrays, nodes = {"ids": task.ids}, [helper.make_node("Gather", ["x", "ids"], ["y"])]
    elif op in ("gelu", "softmax"):
        arrays, nodes = {}, [helper.make_node(op.title(), ["x"], ["y"])]
    else:
        source, nodes = "x", []
        if op == "residual":
            source, arrays["residual"] = "sum", task.dy
            nodes = [helper.make_node("Add", ["x", "residual"], [source])]
        attributes: dict[str, Any] = {"axis": -1, "epsilon": 1e-5}
        nodes.append(helper.make_node("LayerNormalization", [source, "weight", "bias"], ["y"], **attributes))
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return _serialised(nodes, {"x": task.x.shape}, task.x.shape, constants, opset=20)


def exported_model(task: ModelTask) -> bytes:
    """A torch module as torch exports it: input `x`, first output what `zoo.first_array` takes."""
    import torch

    class First(torch.nn.Module):  # type: ignore[misc]  # without torch it is Any
        def __init__(self) -> None:
            super().__init__()
            self.module = zoo.torch_module(task.model)

        def forward(self, x: Any) -> Any:
            return zoo.first_array(self.module(x))

    x = torch.from_numpy(task.x)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad(), zoo.traceable():
        warnings.simplefilter("ignore")
        file = Path(folder, "model.onnx")
        torch.onnx.export(
            First().eval(), (x,), file, input_names=["x"], output_names=["y"], opset_version=17, dynamo=False
        )
        return file.read_bytes()


def _serialised(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    y_shape: Sequence[int],
    constants: list[onnx.TensorProto],
    opset: int = OPSET,
) -> bytes:
    """A checked model of one output, `y`; the shapes of its inputs by name."""
    arrays = [_float_array(name, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "layer", arrays, [_float_array("y", y_shape)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = IR_VERSION if opset == OPSET else IR_VERSIONS[opset]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _layer_nodes(task: RecurrentTask, source: str, weights: list[str], raw: str, target: str) -> list[onnx.NodeProto]:
    """The operator, then `[T, D, N, H]` → `[T, N, D, H]` → `[T, N, D·H]`."""
    row = task.row
    extra: dict[str, Any] = {"linear_before_reset": 1} if row.kind == "gru" else {}
    return [
        helper.make_node(
            _OPERATORS[row.kind],
            [source, *weights],
            [raw],
            hidden_size=row.hidden_size,
            direction="bidirectional" if row.bidirectional else "forward",
            **extra,
        ),
        helper.make_node("Transpose", [raw], [f"{raw}_rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"{raw}_rows", "joined"], [target]),
    ]


def _float_array(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
