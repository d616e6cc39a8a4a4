"""Maximum over windows, as `torch.nn.functional.max_pool2d`.

The gradient goes to the first maximum of a window in scan order; a NaN is the maximum of its window (the last
one, as in torch, of several).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array


class MaxPool2dSaved(NamedTuple):
    """Where each maximum lies in its plane, h·W + w, as int64 `[N, C, H', W']`; shape and dtype of x."""

    indices: Array
    shape: tuple[int, ...]
    dtype: Any


class MaxPool2dGradients(NamedTuple):
    """dx `[N, C, H, W]`."""

    dx: Array


def _each(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """A window that would start beyond the input and its left padding is left out in ceil mode."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = -(-room // stride) + 1 if ceil_mode else room // stride + 1
    return out - (ceil_mode and (out - 1) * stride >= size + padding)


def max_pool2d_forward(
    x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Array, MaxPool2dSaved]:
    """As `max_pool2d`, and what `max_pool2d_backward` needs: y, saved."""
    kernel, padding, dilation = _each(kernel_size), _each(padding), _each(dilation)
    stride = kernel if stride is None else _each(stride)
    sizes = list(zip(x.shape[2:], kernel, stride, padding, dilation, strict=True))
    out = [_out_size(*size, ceil_mode) for size in sizes]
    y = np.full((*x.shape[:2], *out), -np.inf, x.dtype)
    indices = np.full(y.shape, -1, np.int64)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            at = [np.arange(q) * s - p + k * d for q, k, (_, _, s, p, d) in zip(out, (i, j), sizes, strict=True)]
            seen = [np.flatnonzero((a >= 0) & (a < n)) for a, n in zip(at, x.shape[2:], strict=True)]
            window = np.ix_(*map(np.arange, x.shape[:2]), *seen)
            place = np.add.outer(at[0][seen[0]] * x.shape[3], at[1][seen[1]])
            values = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])[:, :, place]
            with np.errstate(invalid="ignore"):  # NaN is a maximum like any other
                better = (values > y[window]) | np.isnan(values) | (indices[window] < 0)
            y[window] = np.where(better, values, y[window])
            indices[window] = np.where(better, place, indices[window])
    return y, MaxPool2dSaved(indices, x.shape, x.dtype)


def max_pool2d(
    x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Array:
    """x `[N, C, H, W]` to `[N, C, H', W']`."""
    return max_pool2d_forward(x, kernel_size, stride, padding, dilation, ceil_mode)[0]


def max_pool2d_backward(dy: Array | None, saved: MaxPool2dSaved) -> MaxPool2dGradients:
    """dx from dy `[N, C, H', W']`; None stands for zero."""
    planes = saved.shape[0] * saved.shape[1]
    dx = np.zeros((planes, saved.shape[2] * saved.shape[3]), np.result_type(saved.dtype, np.float32))
    if dy is not None:
        rows, out = np.arange(planes)[:, None], dy.shape[2] * dy.shape[3]
        np.add.at(dx, (rows, saved.indices.reshape(planes, out)), dy.reshape(planes, out).astype(dx.dtype))
    return MaxPool2dGradients(dx.reshape(saved.shape).astype(saved.dtype))
