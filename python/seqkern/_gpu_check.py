"""What the products and layers in plain CuPy ask of their arguments, in the words of the CPU's bindings."""

from __future__ import annotations

import sys
from typing import Any

Array = Any
FLOATING = ("float32", "float64", "bfloat16", "float16")


def floating(op: str, **arrays: Array | None) -> None:
    """TypeError or ValueError unless each is a CuPy array of floating point on the current device, or None."""
    cupy = sys.modules["cupy"]
    here = cupy.cuda.runtime.getDevice()
    for name, array in arrays.items():
        if array is None:
            continue
        if not isinstance(array, cupy.ndarray):
            raise TypeError(f"{op}: {name} must be a CuPy array, got {type(array).__name__}")
        if array.dtype.name not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {array.dtype}")
        if array.size and array.device.id != here:
            raise ValueError(
                f"{op}: {name} must be on the current device, {here}, got an array on device {array.device.id}: "
                "make that the current one with cupy.cuda.Device"
            )


def expect_shape(op: str, name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{op}: {name} must be {list(shape)}, got {list(array.shape)}")


def expect(op: str, name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
    expect_shape(op, name, array, shape)
    if array.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, got {array.dtype}")


def accumulator(x: Array) -> str:
    return "float64" if x.dtype.name == "float64" else "float32"


def expect_weight(op: str, x: Array, weight: Array) -> None:
    """x's dtype, or bfloat16 where x is float32."""
    if (x.dtype.name, weight.dtype.name) != ("float32", "bfloat16"):
        expect(op, "weight", weight, weight.shape, x.dtype)


def expect_vector(op: str, name: str, array: Array | None, size: int, x: Array, or_bfloat16: bool) -> None:
    """None, or `size` values of x's accumulator, or of bfloat16 if that is allowed."""
    if array is None:
        return
    allowed = (accumulator(x), "bfloat16") if or_bfloat16 else (accumulator(x),)
    if array.dtype.name not in allowed:
        raise TypeError(f"{op}: {name} must be {' or '.join(allowed)}, got {array.dtype}")
    expect_shape(op, name, array, (size,))


def written(op: str, y: Array, out: Array | None) -> Array:
    """y, in `out` if that is given."""
    if out is None:
        return y
    floating(op, out=out)
    expect(op, "out", out, y.shape, y.dtype)
    out[...] = y
    return out
