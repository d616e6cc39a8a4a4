"""The functional API over CuPy arrays.

It is the text of `seqkern.ops` itself: `on_gpu` gives a function of it other globals, in which `_cpu` is `KERNELS`
and `np` is CuPy. Kernels come from the extension `_cuda`; matrix products are cuBLAS's, through CuPy. Work is queued
on CuPy's current stream, and nothing here waits for it.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

Array = Any


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


# --- products: cuBLAS through CuPy ------------------------------------------------------------


def linear_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, residual: Array | None, out: Array | None,
    keep_z: bool, precision: str,
) -> tuple[Array, Array | None]:  # fmt: skip
    """As `_cpu.linear_forward`; sums are float32 (float64 for float64), z is rounded to x's dtype."""
    rows, wide = _checked(x, weight, bias, activation), _accumulator(x)
    z = rows @ weight.astype(x.dtype, copy=False).T
    if bias is not None:
        z = z.astype(wide, copy=False) + bias.astype(wide, copy=False)
    z = z.astype(x.dtype, copy=False).reshape(*x.shape[:-1], len(weight))
    y = z if activation is None else extension().activation_forward(activation, z, None)
    if residual is not None:
        _expect("residual", residual, z.shape, x.dtype)
        y = y + residual
    if out is not None:
        _expect("out", out, z.shape, x.dtype)
        out[...] = y
        y = out
    return y, z if keep_z and activation is not None else None


def linear_backward(
    dy: Array, x: Array, weight: Array, with_bias: bool, activation: str | None, z: Array | None, precision: str
) -> tuple[Array, Array, Array | None]:
    """As `_cpu.linear_backward`: dx in x's dtype, the rest in the accumulator's."""
    rows, wide = _checked(x, weight, None, activation), _accumulator(x)
    _expect("dy", dy, (*x.shape[:-1], len(weight)), x.dtype)
    dz = dy if activation is None else extension().activation_backward(activation, dy, z, None)
    dz = dz.reshape(len(rows), len(weight))
    dx = (dz @ weight.astype(x.dtype, copy=False)).reshape(x.shape)
    dz = dz.astype(wide, copy=False)
    return dx, dz.T @ rows.astype(wide, copy=False), dz.sum(0) if with_bias else None


def _checked(x: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """x as rows; ValueError or TypeError as the CPU's."""
    if activation not in (None, "gelu", "gelu_tanh", "relu", "silu"):
        raise ValueError(
            f"linear: activation must be None, 'gelu', 'gelu_tanh', 'relu' or 'silu', got {activation!r}"
        )
    cupy = sys.modules["cupy"]
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if array is not None and not isinstance(array, cupy.ndarray):
            raise TypeError(f"linear: {name} must be a CuPy array, got {type(array).__name__}")
    if weight.ndim != 2:
        raise ValueError(f"linear: weight must be [out_features, in_features], got shape {list(weight.shape)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x must be [..., in_features] with in_features = {weight.shape[1]}, got {list(x.shape)}"
        )
    if x.dtype.name not in ("float32", "float64", "bfloat16", "float16"):
        raise TypeError(f"linear: x must be float32, float64, bfloat16 or float16, got {x.dtype}")
    if (x.dtype.name, weight.dtype.name) != ("float32", "bfloat16"):
        _expect("weight", weight, weight.shape, x.dtype)
    if bias is not None:
        allowed = (_accumulator(x), "bfloat16") if weight.dtype.name == "bfloat16" else (_accumulator(x),)
        if bias.dtype.name not in allowed:
            raise TypeError(f"linear: bias must be {' or '.join(allowed)}, got {bias.dtype}")
        _expect("bias", bias, (len(weight),), bias.dtype)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _accumulator(x: Array) -> str:
    return "float64" if x.dtype.name == "float64" else "float32"


def _expect(name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
    if array.shape != shape:
        raise ValueError(f"linear: {name} must be {list(shape)}, got {list(array.shape)}")
    if array.dtype != dtype:
        raise TypeError(f"linear: {name} must be {dtype}, got {array.dtype}")


class _Kernels:
    """What the text of `ops` finds in place of `_cpu`: the products above, and the kernels of `_cuda`."""

    linear_forward = staticmethod(linear_forward)
    linear_backward = staticmethod(linear_backward)

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(extension(), name, None)
        if kernel is None:
            raise NotImplementedError(f"{name} has no CUDA kernel; take the arrays to the CPU")
        return kernel


KERNELS = _Kernels()
