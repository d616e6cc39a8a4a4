"""Max pooling over CuPy arrays."""

from __future__ import annotations

import math
import sys
from typing import Any

from ._gpu_check import accumulator, expect_shape, floating
from ._gpu_conv import Windows, out_size, pad

Array = Any
OP = "max_pool2d"


def max_pool2d_forward(
    x: Array, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool,
    with_indices: bool,
) -> tuple[Array, Array | None]:  # fmt: skip
    """As `_cpu.max_pool2d_forward`: of equal maxima the first, of NaNs the last."""
    floating(OP, x=x)
    if x.ndim != 4:
        raise ValueError(f"{OP}: x must be [N, C, H, W], got shape {list(x.shape)}")
    cupy, options = sys.modules["cupy"], (kernel, stride, padding, dilation)
    high, wide = (_pooled(*sizes, ceil_mode) for sizes in zip(x.shape[2:], *options, strict=True))
    windows = Windows(x.shape[2:], (high, wide), *map(tuple, options))  # type: ignore[arg-type]
    top = cupy.arange(high)[:, None] * stride[0] - padding[0]
    left = cupy.arange(wide) * stride[1] - padding[1]

    def place(down: Any, right: Any) -> Array:
        return (top + down) * x.shape[3] + (left + right)

    padded = pad(x.astype(accumulator(x), copy=False), windows, -math.inf)
    best = cupy.full((*x.shape[:2], high, wide), -math.inf, padded.dtype)
    # Where all is -inf nothing is better: the first place inside the plane.
    first = (cupy.maximum(-(start // d), 0) * d for start, d in zip((top, left), dilation, strict=True))
    indices = cupy.broadcast_to(place(*first), best.shape) if with_indices else None
    for down, right, reads in windows.taps():
        value = padded[reads]
        better = (value > best) | (value != value)
        best = cupy.where(better, value, best)
        if with_indices:
            indices = cupy.where(better, place(down, right), indices)
    return best.astype(x.dtype, copy=False), indices


def max_pool2d_backward(dy: Array, indices: Array, shape: list[int]) -> Array:
    """As `_cpu.max_pool2d_backward`, but an index out of range is moved into it.

    Windows that overlap may share a maximum. Sorted by place, its gradients lie side by side, and sums of 2, 4, 8, ...
    of them lead to the last: always in the same order.
    """
    floating(OP, dy=dy)
    if dy.ndim != 4:
        raise ValueError(f"{OP}: dy must be [N, C, H', W'], got shape {list(dy.shape)}")
    for name, array in (("indices", indices), ("dy", dy)):
        expect_shape(OP, name, array, (*shape[:2], *dy.shape[2:]))
    if dy.size == 0:
        return sys.modules["cupy"].zeros(shape, dy.dtype)
    cupy, plane, total = sys.modules["cupy"], shape[2] * shape[3], math.prod(shape)
    starts = cupy.arange(shape[0] * shape[1])[:, None] * plane
    places = (indices.reshape(len(starts), -1).clip(0, plane - 1) + starts).ravel()
    order = cupy.argsort(places)
    places, sums = places[order], dy.ravel()[order].astype(accumulator(dy))
    step = 1
    while step < dy.shape[2] * dy.shape[3]:
        later = sums[step:]
        later += cupy.where(places[step:] == places[:-step], sums[:-step], 0)
        step *= 2
    dx = cupy.zeros(total + 1, sums.dtype)  # the last for all but the whole sums
    dx[cupy.where(places[1:] == places[:-1], total, places[:-1])] = sums[:-1]
    dx[places[-1:]] = sums[-1:]
    return dx[:total].reshape(shape).astype(dy.dtype, copy=False)


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """As torch: in ceil mode a window may hang over the end, if it starts before the right zeros."""
    out = out_size(OP, size, kernel, stride, 2 * padding, dilation)
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    return out + int(ceil_mode and room % stride > 0 and out * stride < size + padding)
