"""ONNX Runtime on its CPU provider: inference only."""

from __future__ import annotations

import numpy as np
import onnxruntime

from ..attention import AttentionTask
from ..tasks import Array, Entry, LinearTask, NormTask, RecurrentTask, UnsupportedError
from ..zoo import ModelTask
from .onnx_model import attention_model, exported_model, linear_model, norm_model, recurrent_model

NAME = "onnxruntime"

_options = onnxruntime.SessionOptions()


def prepare(threads: int) -> None:
    """Sessions made from now on compute on so many threads, one operator at a time."""
    _options.intra_op_num_threads = threads
    _options.inter_op_num_threads = 1


def recurrent_forward(task: RecurrentTask) -> Entry:
    """`session.run` as a user calls it; results: the output."""
    if task.dtype != "float32":
        raise UnsupportedError(f"its CPU provider has no recurrent layers in {task.dtype}")
    return _entry(recurrent_model(task), {"x": task.x})


def linear(task: LinearTask) -> Entry:
    """A Gemm node; results: y."""
    if task.dtype != "float32":
        raise UnsupportedError(f"its CPU provider has no Gemm in {task.dtype}")
    return _entry(linear_model(task), {"x": task.x})


def attention(task: AttentionTask) -> Entry:
    """An Attention node; results: out."""
    if task.dtype != "float32":
        raise UnsupportedError(f"its CPU provider has no Attention in {task.dtype}")
    return _entry(attention_model(task), {name: getattr(task, name) for name in ("query", "key", "value")})


def norm_forward(task: NormTask) -> Entry:
    """The row's node; results: y."""
    return _entry(norm_model(task), {"x": task.x})


def model(task: ModelTask) -> Entry:
    """The torch module, exported; results: its first output."""
    if task.dtype != "float32":
        raise UnsupportedError(f"its CPU provider has no such models in {task.dtype}")
    return _entry(exported_model(task), {"x": task.x})


def _entry(model: bytes, inputs: dict[str, Array]) -> Entry:
    session = onnxruntime.InferenceSession(model, _options, providers=["CPUExecutionProvider"])

    def call() -> Array:
        return np.asarray(session.run(None, inputs)[0])

    return Entry(call, lambda: [call()])
