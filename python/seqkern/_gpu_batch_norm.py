"""Batch norm over CuPy arrays."""

from __future__ import annotations

import sys
from typing import Any

from ._gpu_check import accumulator, expect, expect_vector, floating, written

Array = Any
OP = "batch_norm"


def batch_norm_forward(
    x: Array, running_mean: Array | None, running_var: Array | None, weight: Array | None, bias: Array | None,
    training: bool, momentum: float, eps: float, out: Array | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """As `_cpu.batch_norm_forward`."""
    floating(OP, x=x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    planes, wide = _planes(x), accumulator(x)
    count = planes.shape[0] * planes.shape[2]
    for name, array in (("running_mean", running_mean), ("running_var", running_var)):
        expect_vector(OP, name, array, x.shape[1], x, not training and wide == "float32")
    for name, array in (("weight", weight), ("bias", bias)):
        expect_vector(OP, name, array, x.shape[1], x, wide == "float32")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{OP}: running_mean and running_var must be given together")
    if training and count == 1:
        raise ValueError(f"{OP}: x must have more than one value per channel in training, got one")
    if training:
        mean = planes.sum((0, 2)) / max(count, 1)
        centred = planes - mean[:, None]
        var = (centred * centred).sum((0, 2)) / max(count, 1)
        if running_mean is not None and count:
            _move(running_mean, mean, momentum)
            _move(running_var, var * (count / (count - 1)), momentum)
    elif running_mean is None or running_var is None:
        raise ValueError(f"{OP}: running_mean and running_var must be given when training is False")
    else:
        mean, var = running_mean.astype(wide), running_var.astype(wide)
        centred = planes - mean[:, None]
    rstd = 1 / sys.modules["cupy"].sqrt(var + eps)
    y = centred * _scale(rstd, weight)
    if bias is not None:
        y += bias.astype(wide, copy=False)[:, None]
    return written(OP, y.astype(x.dtype, copy=False).reshape(x.shape), out), mean, rstd


def batch_norm_backward(
    dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, with_bias: bool, training: bool,
    out: Array | None,
) -> tuple[Array, Array | None, Array | None]:  # fmt: skip
    """As `_cpu.batch_norm_backward`."""
    floating(OP, x=x, dy=dy, weight=weight, mean=mean, rstd=rstd)
    planes = _planes(x)
    expect(OP, "dy", dy, x.shape, x.dtype)
    expect_vector(OP, "weight", weight, x.shape[1], x, accumulator(x) == "float32")
    for name, array in (("mean", mean), ("rstd", rstd)):
        expect_vector(OP, name, array, x.shape[1], x, False)
    dy, h = _planes(dy), (planes - mean[:, None]) * rstd[:, None]
    dbias, dweight = dy.sum((0, 2)), (dy * h).sum((0, 2))
    if training:
        count = max(planes.shape[0] * planes.shape[2], 1)
        dy = dy - (dbias / count)[:, None] - h * (dweight / count)[:, None]
    dx = written(OP, (dy * _scale(rstd, weight)).astype(x.dtype, copy=False).reshape(x.shape), out)
    return dx, None if weight is None else dweight, dbias if with_bias else None


def _planes(x: Array) -> Array:
    """x as `[N, C, ...]` in one, of the accumulator's type."""
    if x.ndim < 2:
        raise ValueError(f"{OP}: x must be [N, C, ...], got shape {list(x.shape)}")
    inner = 1
    for size in x.shape[2:]:
        inner *= size
    return x.astype(accumulator(x), copy=False).reshape(*x.shape[:2], inner)


def _scale(rstd: Array, weight: Array | None) -> Array:
    return (rstd if weight is None else rstd * weight.astype(rstd.dtype, copy=False))[:, None]


def _move(running: Array, new: Array, momentum: float) -> None:
    running *= 1 - momentum
    running += momentum * new
