"""Linear layers over CuPy arrays: cuBLAS through CuPy, activations from `_cuda`."""

from __future__ import annotations

import math
from typing import Any

from . import _gpu
from ._gpu_check import accumulator, expect, expect_vector, expect_weight, floating, written

Array = Any


def linear_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, residual: Array | None, out: Array | None,
    keep_z: bool, precision: str,
) -> tuple[Array, Array | None]:  # fmt: skip
    """As `_cpu.linear_forward`; sums are float32 (float64 for float64), z is rounded to x's dtype."""
    rows, wide = _checked(x, weight, bias, activation), accumulator(x)
    z = rows @ weight.astype(x.dtype, copy=False).T
    if bias is not None:
        z = z.astype(wide, copy=False) + bias.astype(wide, copy=False)
    z = z.astype(x.dtype, copy=False).reshape(*x.shape[:-1], len(weight))
    y = z if activation is None else _gpu.extension().activation_forward(activation, z, None)
    if residual is not None:
        expect("linear", "residual", residual, z.shape, x.dtype)
        y = y + residual
    return written("linear", y, out), z if keep_z and activation is not None else None


def linear_backward(
    dy: Array, x: Array, weight: Array, with_bias: bool, activation: str | None, z: Array | None, precision: str
) -> tuple[Array, Array, Array | None]:
    """As `_cpu.linear_backward`: dx in x's dtype, the rest in the accumulator's."""
    rows, wide = _checked(x, weight, None, activation), accumulator(x)
    expect("linear", "dy", dy, (*x.shape[:-1], len(weight)), x.dtype)
    dz = dy if activation is None else _gpu.extension().activation_backward(activation, dy, z, None)
    dz = dz.reshape(len(rows), len(weight))
    dx = (dz @ weight.astype(x.dtype, copy=False)).astype(x.dtype, copy=False).reshape(x.shape)
    dz = dz.astype(wide, copy=False)
    return dx, dz.T @ rows.astype(wide, copy=False), dz.sum(0) if with_bias else None


def linear_int8(
    x: Array, q: Array, scale: Array, bias: Array | None, activation: str | None, residual: Array | None
) -> Array:
    """As `_cpu.linear_int8`: in float32, rounded to x's dtype at the end."""
    op = "linear_int8"
    floating(op, x=x, scale=scale, bias=bias, residual=residual)
    if x.dtype.name == "float64":
        raise TypeError(f"{op}: x must be float32, bfloat16 or float16, got float64")
    if getattr(q, "dtype", None) != "int8":
        raise TypeError(f"{op}: q must be int8, got {getattr(q, 'dtype', type(q).__name__)}")
    rows = _rows(op, "q", x, q, activation)
    expect(op, "scale", scale, (len(q),), "float32")
    expect_vector(op, "bias", bias, len(q), x, True)
    z = rows.astype("float32", copy=False) @ q.astype("float32").T * scale
    if bias is not None:
        z = z + bias.astype("float32", copy=False)
    y = z if activation is None else _gpu.extension().activation_forward(activation, z, None)
    y = y.reshape(*x.shape[:-1], len(q))
    if residual is not None:
        expect(op, "residual", residual, y.shape, x.dtype)
        y = y + residual.astype("float32", copy=False)
    return y.astype(x.dtype, copy=False)


def _checked(x: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """x as rows; ValueError or TypeError as the CPU's."""
    floating("linear", x=x, weight=weight, bias=bias)
    rows = _rows("linear", "weight", x, weight, activation)
    expect_weight("linear", x, weight)
    expect_vector("linear", "bias", bias, len(weight), x, weight.dtype.name == "bfloat16")
    return rows


def _rows(op: str, name: str, x: Array, weight: Array, activation: str | None) -> Array:
    if activation not in (None, "gelu", "gelu_tanh", "relu", "silu"):
        raise ValueError(f"{op}: activation must be None, 'gelu', 'gelu_tanh', 'relu' or 'silu', got {activation!r}")
    if weight.ndim != 2:
        raise ValueError(f"{op}: {name} must be [out_features, in_features], got shape {list(weight.shape)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: x must be [..., in_features] with in_features = {weight.shape[1]}, got {list(x.shape)}"
        )
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
