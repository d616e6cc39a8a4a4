"""OpenVINO on its CPU plugin: inference only."""

from __future__ import annotations

import numpy as np
import openvino

from ..attention import AttentionTask
from ..tasks import Array, Entry, LinearTask, NormTask, RecurrentTask, UnsupportedError
from ..zoo import ModelTask
from .onnx_model import exported_model, linear_model, norm_model, recurrent_model

NAME = "openvino"

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}


def prepare(threads: int) -> None:
    """Models compiled from now on compute on so many threads, tuned for latency."""
    _config["INFERENCE_NUM_THREADS"] = threads


def recurrent_forward(task: RecurrentTask) -> Entry:
    """The whole stack; results: the output."""
    return _entry(recurrent_model(task), [task.x], task.dtype)


def linear(task: LinearTask) -> Entry:
    """A Gemm node; results: y."""
    return _entry(linear_model(task), [task.x], task.dtype)


def attention(task: AttentionTask) -> Entry:
    """Its own scaled dot-product attention; results: out."""
    ops = openvino.opset13
    arrays = [task.query, task.key, task.value]
    parameters = [ops.parameter(list(array.shape), np.float32) for array in arrays]
    out = ops.scaled_dot_product_attention(*parameters, causal=task.row.causal)
    return _entry(openvino.Model([out], parameters, "attention"), arrays, task.dtype)


def norm_forward(task: NormTask) -> Entry:
    """The row's node; results: y."""
    return _entry(norm_model(task), [task.x], "float32")


def model(task: ModelTask) -> Entry:
    """The torch module as torch exports it to ONNX; results: its first output."""
    return _entry(exported_model(task), [task.x], task.dtype)


def _entry(source: bytes | openvino.Model, arrays: list[Array], dtype: str) -> Entry:
    """One reused infer request over shared input tensors."""
    core = openvino.Core()
    hint = _HINTS[dtype]
    # Where the CPU has no bfloat16 instructions the plugin still accepts the hint and emulates
    # them, many times slower than its own float32: nobody would run that.
    if hint.upper() not in ("F32", *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")):
        raise UnsupportedError(f"its CPU plugin has no {hint} on this machine but by emulation")
    model = core.read_model(source, b"") if isinstance(source, bytes) else source
    compiled = core.compile_model(model, "CPU", {**_config, "INFERENCE_PRECISION_HINT": hint})
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != hint:
        raise UnsupportedError(f"it computes in {used} on this machine when asked for {hint}")
    request = compiled.create_infer_request()
    # The request borrows the arrays' memory and keeps neither array nor tensor alive: the closure does.
    borrowed = [(array, openvino.Tensor(array, shared_memory=True)) for array in arrays]
    for index, (_, tensor) in enumerate(borrowed):
        request.set_input_tensor(index, tensor)

    def call(_keep: object = borrowed) -> None:
        request.infer()

    def results() -> list[Array]:
        call()
        return [np.array(request.get_output_tensor(0).data, np.float32)]

    return Entry(call, results)
