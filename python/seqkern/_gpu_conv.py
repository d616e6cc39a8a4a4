"""Convolution over CuPy arrays: the windows of some images as columns, then one product for each group."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from ._gpu_check import accumulator, expect, expect_vector, expect_weight, floating

Array = Any
COLUMNS = 256 << 20  # bytes the columns of some images may take; one image may take more


class Windows(NamedTuple):
    """Where the windows of a kernel lie in a plane with zeros round it; all pairs are (height, width)."""

    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """The plane with all that windows reach beyond it."""
        high, wide = (max(b + n, (o - 1) * s + d * (k - 1) + 1) for n, o, k, s, b, d in zip(*self, strict=True))
        return high, wide

    @property
    def inside(self) -> tuple[Any, ...]:
        """The plane within the padded one."""
        top, left = self.before
        return ..., slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def taps(self) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        """Of each place of the kernel in turn: how far down and right it is, what it reads of the padded plane."""
        for i, j in product(*map(range, self.kernel)):
            down, right = i * self.dilation[0], j * self.dilation[1]
            rows, columns = (
                slice(at, at + (o - 1) * s + 1, s)
                for at, o, s in zip((down, right), self.out, self.stride, strict=True)
            )
            yield down, right, (..., rows, columns)


def pad(x: Array, windows: Windows, value: float) -> Array:
    """x `[N, C, H, W]` with `value` round its planes; x itself where nothing is needed."""
    if windows.padded == windows.size:
        return x
    padded = sys.modules["cupy"].zeros((*x.shape[:2], *windows.padded), x.dtype)
    if value:
        padded.fill(value)
    padded[windows.inside] = x
    return padded


def out_size(op: str, size: int, kernel: int, stride: int, zeros: int, dilation: int) -> int:
    reach = dilation * (kernel - 1) + 1
    if size + zeros < reach:
        raise ValueError(
            f"{op}: x, with padding, must be at least as large as the kernel, with dilation, which is {reach}, "
            f"got {size + zeros}"
        )
    return (size + zeros - reach) // stride + 1


def conv_forward(
    dims: int, x: Array, weight: Array, bias: Array | None, stride: list[int], before: list[int], after: list[int],
    dilation: list[int], groups: int,
) -> Array:  # fmt: skip
    """As `_cpu.conv_forward`; 16-bit products are rounded before the bias is added."""
    op, wide, cupy = f"conv{dims}d", accumulator(x), sys.modules["cupy"]
    floating(op, bias=bias)
    x4, w, windows = _checked(op, x, weight, stride, before, after, dilation, groups)
    expect_vector(op, "bias", bias, len(weight), x, weight.dtype.name == "bfloat16")
    y = cupy.empty((len(x), len(weight), *windows.out), x.dtype)
    for images, columns in _columns(x4, windows, groups):
        z = _products(w, columns).reshape(len(weight), columns.shape[2] // math.prod(windows.out), *windows.out)
        if bias is not None:
            z = z.astype(wide, copy=False) + bias.astype(wide, copy=False)[:, None, None, None]
        y[images] = z.swapaxes(0, 1)
    return y.reshape(*y.shape[:2], *windows.out[-dims:])


def conv_backward(
    dims: int, dy: Array | None, x: Array, weight: Array, with_bias: bool, stride: list[int], before: list[int],
    after: list[int], dilation: list[int], groups: int,
) -> tuple[Array, Array, Array | None]:  # fmt: skip
    """As `_cpu.conv_backward`; products and sums are float32 (float64 for float64)."""
    op, wide, cupy = f"conv{dims}d", accumulator(x), sys.modules["cupy"]
    floating(op, dy=dy)
    x4, w, windows = _checked(op, x, weight, stride, before, after, dilation, groups)
    dx, dw = cupy.zeros(x4.shape, x.dtype), cupy.zeros(w.shape, wide)
    dbias = cupy.zeros(len(weight), wide) if with_bias else None
    if dy is None:
        return dx.reshape(x.shape), dw.reshape(weight.shape), dbias
    expect(op, "dy", dy, (len(x), len(weight), *windows.out[-dims:]), x.dtype)
    w = w.astype(wide, copy=False).swapaxes(1, 2)
    for images, columns in _columns(x4.astype(wide, copy=False), windows, groups):
        dz = dy[images].astype(wide, copy=False).swapaxes(0, 1).reshape(groups, w.shape[2], columns.shape[2])
        dw += _products(columns, dz.swapaxes(1, 2)).swapaxes(1, 2)
        if dbias is not None:
            dbias += dz.sum(2).ravel()
        dx[images] = _scattered(_products(w, dz), windows, x4.shape[1])
    return dx.reshape(x.shape), dw.reshape(weight.shape), dbias


def _checked(
    op: str, x: Array, weight: Array, stride: list[int], before: list[int], after: list[int], dilation: list[int],
    groups: int,
) -> tuple[Array, Array, Windows]:  # fmt: skip
    """x as `[N, C, H, W]`, weight as `[groups, O / groups, C / groups kh kw]` of its dtype; errors as the CPU's."""
    floating(op, x=x, weight=weight)
    dims = len(stride)
    for name, array, layout in (("x", x, "[N, C, L]"), ("weight", weight, "[O, C / groups, k]")):
        if array.ndim != dims + 2:
            layout = layout.replace("L", "H, W").replace("k", "kh, kw") if dims == 2 else layout
            raise ValueError(f"{op}: {name} must be {layout}, got shape {list(array.shape)}")
    expect_weight(op, x, weight)
    out_channels, channels, *kernel = weight.shape
    if channels * groups != x.shape[1]:
        raise ValueError(
            f"{op}: x must have C = groups * weight's second dimension = {groups} * {channels} channels, "
            f"got {x.shape[1]}"
        )
    if out_channels % groups:
        raise ValueError(
            f"{op}: weight's first dimension must be a multiple of groups = {groups}, got {out_channels}"
        )
    if min(kernel) < 1:
        raise ValueError(f"{op}: weight must have a kernel of at least 1, got {[1, *kernel][-2:]}")
    zeros = [b + a for b, a in zip(before, after, strict=True)]
    out = list(map(out_size, [op] * dims, x.shape[2:], kernel, stride, zeros, dilation))
    line = [1] * (2 - dims)  # one dimension is a plane of height 1

    def pair(sizes: Any, first: list[int] = line) -> tuple[int, int]:
        high, wide = first + list(sizes)
        return high, wide

    windows = Windows(
        pair(x.shape[2:]), pair(out), pair(kernel), pair(stride), pair(before, [0] * len(line)), pair(dilation)
    )
    taps = channels * windows.kernel[0] * windows.kernel[1]
    w = weight.astype(x.dtype, copy=False).reshape(groups, out_channels // groups, taps)
    return x.reshape(*x.shape[:2], *windows.size), w, windows


def _columns(x: Array, windows: Windows, groups: int) -> Iterator[tuple[slice, Array]]:
    """Some images at a time, and their windows `[groups, C / groups kh kw, images H' W']`."""
    as_strided = sys.modules["cupy"].lib.stride_tricks.as_strided
    (kh, kw), (high, wide) = windows.kernel, windows.out
    of_one = x.shape[1] * kh * kw * high * wide
    count = max(1, COLUMNS // max(1, of_one * x.dtype.itemsize))
    for first in range(0, len(x), count):
        images = slice(first, first + count)
        padded = pad(x[images], windows, 0)
        image, channel, *step = padded.strides
        shape = (x.shape[1], kh, kw, len(padded), high, wide)
        tap = [s * d for s, d in zip(step, windows.dilation, strict=True)]
        move = [s * d for s, d in zip(step, windows.stride, strict=True)]
        view = as_strided(padded, shape, (channel, *tap, image, *move))
        yield images, view.reshape(groups, of_one // (groups * high * wide), len(padded) * high * wide)


def _scattered(columns: Array, windows: Windows, channels: int) -> Array:
    """`[n, C, H, W]`, each place the sum of what it was in the columns: tap by tap, so always in the same order."""
    images = columns.shape[2] // math.prod(windows.out)
    parts = columns.reshape(channels, math.prod(windows.kernel), images, *windows.out)
    padded = sys.modules["cupy"].zeros((channels, images, *windows.padded), columns.dtype)
    for tap, (_, _, reads) in enumerate(windows.taps()):
        read = padded[reads]
        read += parts[:, tap]
    return padded[windows.inside].swapaxes(0, 1)


def _products(a: Array, b: Array) -> Array:
    """a @ b of every group; CuPy's batched product knows no bfloat16."""
    if len(a) > 1 and a.dtype.itemsize > 2:
        return a @ b
    if len(a) == 1:
        return (a[0] @ b[0])[None]
    each = sys.modules["cupy"].empty((len(a), a.shape[1], b.shape[2]), a.dtype)
    for group in range(len(a)):
        each[group] = a[group] @ b[group]
    return each
