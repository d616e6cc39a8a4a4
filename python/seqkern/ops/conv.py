"""Convolution in one and two dimensions and max pooling, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import integer, saved_by
from seqkern._dispatch import public
from seqkern._precision import check_precision

__all__ = [
    "ConvGradients", "ConvSaved", "MaxPool2dGradients", "MaxPool2dSaved",
    "conv1d", "conv1d_backward", "conv1d_forward", "conv2d", "conv2d_backward", "conv2d_forward",
    "max_pool2d", "max_pool2d_backward", "max_pool2d_forward",
]  # fmt: skip

Array = Any
LARGEST = 2**31 - 1  # of a stride, padding, dilation or kernel: their products must not overflow


class ConvSaved(NamedTuple):
    """The arguments of the convolution, as given."""

    x: Array
    weight: Array
    bias: Array | None
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    precision: str | None


class ConvGradients(NamedTuple):
    """Gradients of a convolution: dx in x's dtype, dweight and dbias float32 (float64 for float64)."""

    dx: Array
    dweight: Array
    dbias: Array | None


def each(op: str, name: str, value: Any, dims: int, low: int) -> list[int]:
    """One integer for every spatial dimension, from one for all or a tuple of them, each at least `low`."""
    values = list(value) if isinstance(value, tuple | list) else [value] * dims
    if len(values) != dims:
        raise ValueError(f"{op}: {name} must be an integer or {dims} of them, got {value!r}")
    values = [integer(op, name, v) for v in values]
    if not all(low <= v <= LARGEST for v in values):
        raise ValueError(f"{op}: {name} must lie in [{low}, {LARGEST}], got {value!r}")
    return values


def _geometry(op: str, s: ConvSaved) -> tuple[list[int], list[int], list[int], list[int], int]:
    """stride, zeros before and after, dilation and groups as the kernels take them."""
    dims = 1 if op == "conv1d" else 2
    stride, dilation = each(op, "stride", s.stride, dims, 1), each(op, "dilation", s.dilation, dims, 1)
    groups = each(op, "groups", s.groups, 1, 1)[0]
    if not isinstance(s.padding, str):
        zeros = each(op, "padding", s.padding, dims, 0)
        return stride, zeros, zeros, dilation, groups
    if s.padding not in ("same", "valid"):
        raise ValueError(f"{op}: padding must be integers, 'same' or 'valid', got {s.padding!r}")
    if s.padding == "valid":
        return stride, [0] * dims, [0] * dims, dilation, groups
    if stride != [1] * dims:
        raise ValueError(f"{op}: padding 'same' needs a stride of 1, got {s.stride!r}")
    kernel = getattr(s.weight, "shape", ())[2:]
    reach = [d * max(k - 1, 0) for d, k in zip(dilation, kernel, strict=False)] + [0] * dims
    before = [r // 2 for r in reach[:dims]]
    return stride, before, [r - b for r, b in zip(reach, before, strict=False)], dilation, groups


def _forward(op: str, saved: ConvSaved) -> Array:
    check_precision(op, saved.precision)
    dims = 1 if op == "conv1d" else 2
    return _cpu.conv_forward(dims, saved.x, saved.weight, saved.bias, *_geometry(op, saved))


def _backward(op: str, dy: Array | None, saved: ConvSaved) -> ConvGradients:
    saved_by(op, saved, ConvSaved)
    dims = 1 if op == "conv1d" else 2
    with_bias = saved.bias is not None
    return ConvGradients(*_cpu.conv_backward(dims, dy, saved.x, saved.weight, with_bias, *_geometry(op, saved)))


@public
def conv1d(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> Array:  # fmt: skip
    """Convolution (cross-correlation) as torch's F.conv1d, for batches.

    x ``[N, C, L]``, weight ``[O, C / groups, k]``, bias ``[O]`` to ``[N, O, L']`` with
    L' = (L + 2 padding - dilation (k - 1) - 1) // stride + 1; padding "same" keeps L (stride 1; an odd zero goes
    behind), "valid" adds none. float32, float64 or bfloat16; float32 x may meet a bfloat16 weight.
    """
    return _forward("conv1d", ConvSaved(x, weight, bias, stride, padding, dilation, groups, precision))


@public
def conv1d_forward(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> tuple[Array, ConvSaved]:  # fmt: skip
    """`conv1d`, and what `conv1d_backward` needs."""
    saved = ConvSaved(x, weight, bias, stride, padding, dilation, groups, precision)
    return _forward("conv1d", saved), saved


@public
def conv1d_backward(dy: Array | None, saved: ConvSaved) -> ConvGradients:
    """Gradients of `conv1d` from dy ``[N, O, L']`` (None = zero)."""
    return _backward("conv1d", dy, saved)


@public
def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> Array:  # fmt: skip
    """Convolution (cross-correlation) as torch's F.conv2d, for batches.

    x ``[N, C, H, W]``, weight ``[O, C / groups, kh, kw]``, bias ``[O]`` to ``[N, O, H', W']``; options are integers
    or pairs (height, width), sizes as in `conv1d`.
    """
    return _forward("conv2d", ConvSaved(x, weight, bias, stride, padding, dilation, groups, precision))


@public
def conv2d_forward(
    x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, precision: str | None = None,
) -> tuple[Array, ConvSaved]:  # fmt: skip
    """`conv2d`, and what `conv2d_backward` needs."""
    saved = ConvSaved(x, weight, bias, stride, padding, dilation, groups, precision)
    return _forward("conv2d", saved), saved


@public
def conv2d_backward(dy: Array | None, saved: ConvSaved) -> ConvGradients:
    """Gradients of `conv2d` from dy ``[N, O, H', W']`` (None = zero)."""
    return _backward("conv2d", dy, saved)


class MaxPool2dSaved(NamedTuple):
    """Where each maximum lies in its plane, h·W + w, as int64 ``[N, C, H', W']``; shape and dtype of x."""

    indices: Array
    shape: tuple[int, ...]
    dtype: Any


class MaxPool2dGradients(NamedTuple):
    """dx ``[N, C, H, W]``."""

    dx: Array


def _pool(
    x: Array, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, with_indices: bool
) -> tuple[Array, Array | None]:
    op = "max_pool2d"
    kernel, dilation = each(op, "kernel_size", kernel_size, 2, 1), each(op, "dilation", dilation, 2, 1)
    stride = kernel if stride is None else each(op, "stride", stride, 2, 1)
    zeros = each(op, "padding", padding, 2, 0)
    if any(2 * p > k for p, k in zip(zeros, kernel, strict=True)):
        raise ValueError(f"{op}: padding must be at most half of kernel_size, got {padding!r} for {kernel_size!r}")
    return _cpu.max_pool2d_forward(x, kernel, stride, zeros, dilation, bool(ceil_mode), with_indices)


@public
def max_pool2d(
    x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Array:
    """Maximum over windows, as torch's F.max_pool2d: x ``[N, C, H, W]`` to ``[N, C, H', W']``.

    stride None = kernel_size. What the padding adds is never the maximum; a NaN always is.
    """
    return _pool(x, kernel_size, stride, padding, dilation, ceil_mode, False)[0]


@public
def max_pool2d_forward(
    x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Array, MaxPool2dSaved]:
    """`max_pool2d`, and what `max_pool2d_backward` needs."""
    y, indices = _pool(x, kernel_size, stride, padding, dilation, ceil_mode, True)
    return y, MaxPool2dSaved(indices, tuple(x.shape), x.dtype)


@public
def max_pool2d_backward(dy: Array | None, saved: MaxPool2dSaved) -> MaxPool2dGradients:
    """dx from dy ``[N, C, H', W']`` (None = zero): every gradient goes to the first maximum of its window."""
    saved_by("max_pool2d", saved, MaxPool2dSaved)
    if dy is None:
        return MaxPool2dGradients(np.zeros(saved.shape, saved.dtype))
    return MaxPool2dGradients(_cpu.max_pool2d_backward(dy, saved.indices, list(saved.shape)))
