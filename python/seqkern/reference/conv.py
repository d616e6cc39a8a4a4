"""Convolution (cross-correlation), as `torch.nn.functional.conv1d` and `conv2d`.

    y[n, o, q] = b[o] + Σ over c, k of w[o, c, k] x̂[n, c, q·stride + k·dilation]

x̂ is x with `padding` zeros on both sides of every spatial dimension; c runs over the C / groups channels of
o's group. One tap k of the kernel is a product of matrices over a strided view of x̂; its gradients add to the
same view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen


class ConvSaved(NamedTuple):
    """The arguments as given."""

    x: Array
    weight: Array
    bias: Array | None
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    precision: str | None


class ConvGradients(NamedTuple):
    """Gradients of the array arguments; dbias is None when there was no bias."""

    dx: Array
    dweight: Array
    dbias: Array | None


class _Geometry:
    """Zeros before and after, output size and taps of one call, for any number of dimensions."""

    def __init__(self, saved: ConvSaved) -> None:
        self.kernel = saved.weight.shape[2:]
        dims = len(self.kernel)
        self.stride, self.dilation = _each(saved.stride, dims), _each(saved.dilation, dims)
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        if isinstance(saved.padding, str):
            self.pads = [(r // 2, r - r // 2) if saved.padding == "same" else (0, 0) for r in reach]
        else:
            self.pads = [(p, p) for p in _each(saved.padding, dims)]
        self.padded = [n + sum(p) for n, p in zip(saved.x.shape[2:], self.pads, strict=True)]
        self.out = tuple((n - r - 1) // s + 1 for n, r, s in zip(self.padded, reach, self.stride, strict=True))

    def pad(self, x: Array) -> Array:
        return np.pad(x, [(0, 0), (0, 0), *self.pads])

    def crop(self, x: Array) -> Array:
        """`pad` undone."""
        inner = [slice(before, size - after) for (before, after), size in zip(self.pads, self.padded, strict=True)]
        index: tuple[Any, ...] = (..., *inner)
        return x[index]

    def taps(self) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Index of a tap in the weight, and of the positions it reads in the padded input."""
        sizes = list(zip(self.stride, self.dilation, self.out, strict=True))
        for tap in product(*map(range, self.kernel)):
            seen = [slice(k * d, k * d + (q - 1) * s + 1, s) for k, (s, d, q) in zip(tap, sizes, strict=True)]
            yield (..., *tap), (..., *seen)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def _grouped(array: Array, groups: int, axis: int) -> Array:
    """`axis` split in (groups, rest)."""
    return array.reshape(*array.shape[:axis], groups, array.shape[axis] // groups, *array.shape[axis + 1 :])


def _forward(*arguments: Any) -> tuple[Array, ConvSaved]:
    saved = ConvSaved(*arguments)
    dtype, geometry, groups = compute_dtype(saved.x), _Geometry(saved), saved.groups
    x = _grouped(geometry.pad(widen(saved.x, dtype)), groups, 1)
    weight = _grouped(widen(saved.weight, dtype), groups, 0)
    y = np.zeros((len(x), *weight.shape[:2], *geometry.out), dtype)
    for tap, seen in geometry.taps():
        y += np.einsum("goc,ngc...->ngo...", weight[tap], x[seen])
    y = y.reshape(len(x), len(saved.weight), *geometry.out)
    if saved.bias is not None:
        y += widen(saved.bias, dtype).reshape(len(saved.weight), *[1] * len(geometry.out))
    return narrow(y, saved.x), saved


def _backward(dy: Array | None, saved: ConvSaved) -> ConvGradients:
    dtype, geometry, groups = compute_dtype(saved.x), _Geometry(saved), saved.groups
    x = _grouped(geometry.pad(widen(saved.x, dtype)), groups, 1)
    weight = _grouped(widen(saved.weight, dtype), groups, 0)
    dy = or_zeros(dy, (len(x), len(saved.weight), *geometry.out), dtype)
    rows = _grouped(dy, groups, 1)
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for tap, seen in geometry.taps():
        dx[seen] += np.einsum("goc,ngo...->ngc...", weight[tap], rows)
        places = math.prod(geometry.out)
        flat = rows.reshape(*rows.shape[:3], places), x[seen].reshape(*x.shape[:3], places)
        dweight[tap] = np.einsum("ngop,ngcp->goc", *flat, optimize=True)
    return ConvGradients(
        dx=narrow(geometry.crop(dx.reshape(len(x), saved.x.shape[1], *geometry.padded)), saved.x),
        dweight=dweight.reshape(saved.weight.shape),
        dbias=None if saved.bias is None else dy.sum(axis=(0, *range(2, dy.ndim))),
    )


def conv1d_forward(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> tuple[Array, ConvSaved]:  # fmt: skip
    """As `conv1d`, and what `conv1d_backward` needs: y, saved."""
    return _forward(x, weight, bias, stride, padding, dilation, groups, precision)


def conv2d_forward(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> tuple[Array, ConvSaved]:  # fmt: skip
    """As `conv2d`, and what `conv2d_backward` needs: y, saved."""
    return _forward(x, weight, bias, stride, padding, dilation, groups, precision)


def conv1d(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> Array:  # fmt: skip
    """x `[N, C, L]`, weight `[O, C / groups, k]`, bias `[O]` to `[N, O, L']`."""
    return _forward(x, weight, bias, stride, padding, dilation, groups, precision)[0]


def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> Array:  # fmt: skip
    """x `[N, C, H, W]`, weight `[O, C / groups, kh, kw]`, bias `[O]` to `[N, O, H', W']`."""
    return _forward(x, weight, bias, stride, padding, dilation, groups, precision)[0]


def conv1d_backward(dy: Array | None, saved: ConvSaved) -> ConvGradients:
    """Gradients from dy `[N, O, L']`; None stands for zero."""
    return _backward(dy, saved)


def conv2d_backward(dy: Array | None, saved: ConvSaved) -> ConvGradients:
    """Gradients from dy `[N, O, H', W']`; None stands for zero."""
    return _backward(dy, saved)
