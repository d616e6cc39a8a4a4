"""The functional API over CuPy arrays.

It is the text of `seqkern.ops` itself: `on_gpu` gives a function of it other globals, in which `_cpu` is `KERNELS`
and `np` is CuPy. Kernels come from the extension `_cuda`; linear layers, convolution, pooling and batch norm are plain
CuPy, their products cuBLAS's. Work is queued on CuPy's current stream, and nothing here waits for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from . import _gpu_batch_norm, _gpu_conv, _gpu_linear, _gpu_pool


@cache
def extension() -> ModuleType:
    """`_cuda`; RuntimeError where this build has none."""
    try:
        return importlib.import_module("seqkern._cuda")
    except ImportError as error:
        raise RuntimeError(
            f"seqkern: this build has no CUDA kernels ({error}); build with -C cmake.define.SEQKERN_CUDA=ON"
        ) from None


def missing() -> str | None:
    """Why no kernel can run on a GPU here; None where one can."""
    try:
        extension().information()
    except RuntimeError as error:
        return str(error)
    return None


def describe() -> str:
    """One line of `show_config`: what was built, and the device or why there is none."""
    try:
        built = f"built for {extension().architectures}"
    except RuntimeError:
        return "not built"
    if reason := missing():
        return f"{built}; {reason}"
    found = extension().information()
    major, minor = found["capability"]
    return f"{found['name']} (sm_{major}{minor}, {found['memory'] >> 30} GiB, {found['count']} visible); {built}"


def on_gpu(op: Callable[..., Any]) -> Callable[..., Any]:
    """The function of `seqkern.ops` for CuPy arrays on the current device."""
    cupy = sys.modules["cupy"]
    return _twin(op, cupy.cuda.runtime.getDevice())


@cache
def _twin(op: Any, device: int) -> Callable[..., Any]:
    return _rebound(op, _globals(op.__module__, device))


@cache
def _globals(module: str, device: int) -> dict[str, Any]:
    """The globals of a module of `ops`, its helpers included, for one device: some keep tables there."""
    twin = dict(vars(sys.modules[module]), _cpu=KERNELS, np=sys.modules["cupy"])
    for name, value in list(twin.items()):
        if getattr(value, "__module__", None) != module or isinstance(value, type):
            continue
        if hasattr(value, "cache_parameters"):
            twin[name] = cache(_rebound(value.__wrapped__, twin))
        elif isinstance(value, FunctionType) and not hasattr(value, "__wrapped__"):  # the public ones choose by type
            twin[name] = _rebound(value, twin)
    return twin


def _rebound(function: Any, names: dict[str, Any]) -> Any:
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


class _Kernels:
    """What the text of `ops` finds in place of `_cpu`: functions in plain CuPy, and the kernels of `_cuda`."""

    linear_forward = staticmethod(_gpu_linear.linear_forward)
    linear_backward = staticmethod(_gpu_linear.linear_backward)
    linear_int8 = staticmethod(_gpu_linear.linear_int8)
    conv_forward = staticmethod(_gpu_conv.conv_forward)
    conv_backward = staticmethod(_gpu_conv.conv_backward)
    max_pool2d_forward = staticmethod(_gpu_pool.max_pool2d_forward)
    max_pool2d_backward = staticmethod(_gpu_pool.max_pool2d_backward)
    batch_norm_forward = staticmethod(_gpu_batch_norm.batch_norm_forward)
    batch_norm_backward = staticmethod(_gpu_batch_norm.batch_norm_backward)

    def __getattr__(self, name: str) -> Any:
        return getattr(extension(), name)


KERNELS = _Kernels()
