"""Conv1d, Conv2d and MaxPool2d, as in torch.nn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..ops.conv import each
from ._arrays import Array, OutputForm
from ._init import PRECISIONS, Initializer, check_choice, check_size
from .module import Module, Pullback


class _Conv(Module):
    """What Conv1d and Conv2d share: parameters, options and the calls."""

    dims: int
    _forward: Any
    _backward: Any

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", *,
        precision: str | None = None, dtype: Any = np.float32, rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        self.in_channels = check_size(in_channels, "in_channels")
        self.out_channels = check_size(out_channels, "out_channels")
        self.groups = check_size(groups, "groups")
        for size, argument in ((in_channels, "in_channels"), (out_channels, "out_channels")):
            if size % groups:
                raise ValueError(f"{name}: {argument} must be a multiple of groups = {groups}, got {size}")
        check_choice(padding_mode, "padding_mode", ("zeros",))
        self.kernel_size = tuple(each(name, "kernel_size", kernel_size, self.dims, 1))
        self.stride = tuple(each(name, "stride", stride, self.dims, 1))
        self.dilation = tuple(each(name, "dilation", dilation, self.dims, 1))
        if isinstance(padding, str):
            self.padding: Any = check_choice(padding, "padding", ("same", "valid"))
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"{name}: padding 'same' needs a stride of 1, got {stride!r}")
        else:
            self.padding = tuple(each(name, "padding", padding, self.dims, 0))
        self.precision = check_choice(precision, "precision", PRECISIONS)
        init = Initializer(rng, dtype)
        per_group = in_channels // groups
        bound = 1 / math.sqrt(per_group * math.prod(self.kernel_size))
        self.weight = init.uniform(bound, out_channels, per_group, *self.kernel_size)
        self.bias = init.uniform(bound, out_channels) if bias else None

    def _arguments(self, x: Array) -> tuple[Any, ...]:
        bias = None if self.bias is None else self.bias.data
        return (x, self.weight.data, bias, self.stride, self.padding, self.dilation, self.groups)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        weight, bias, backward = self.weight, self.bias, self._backward
        y, saved = self._forward(*self._arguments(x), precision=self.precision)
        form = OutputForm.of(y)

        def pull(dy: Array | None) -> tuple[Array]:
            grads = backward(form.gradient(dy), saved)
            weight.add_grad(grads.dweight)
            if bias is not None:
                bias.add_grad(grads.dbias)
            return (grads.dx,)

        return y, Pullback(pull)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None})"
        )


class Conv1d(_Conv):
    """x [N, in_channels, L] -> y [N, out_channels, L'] (torch.nn.Conv1d; batches only, zero padding only).

    weight [out_channels, in_channels / groups, kernel_size] and bias [out_channels] start from U(-b, b),
    b = 1/sqrt(in_channels / groups * kernel_size), as in torch.
    """

    dims = 1
    _forward = staticmethod(ops.conv1d_forward)
    _backward = staticmethod(ops.conv1d_backward)

    def __call__(self, x: Array) -> Array:
        return ops.conv1d(*self._arguments(x), precision=self.precision)


class Conv2d(_Conv):
    """x [N, in_channels, H, W] -> y [N, out_channels, H', W'] (torch.nn.Conv2d; batches only, zero padding only).

    weight [out_channels, in_channels / groups, kh, kw] and bias [out_channels] start from U(-b, b),
    b = 1/sqrt(in_channels / groups * kh * kw), as in torch.
    """

    dims = 2
    _forward = staticmethod(ops.conv2d_forward)
    _backward = staticmethod(ops.conv2d_backward)

    def __call__(self, x: Array) -> Array:
        return ops.conv2d(*self._arguments(x), precision=self.precision)


class MaxPool2d(Module):
    """x [N, C, H, W] -> y [N, C, H', W'], the maximum of every window (torch.nn.MaxPool2d; batches only)."""

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, ceil_mode: bool = False
    ) -> None:
        self.kernel_size = tuple(each("MaxPool2d", "kernel_size", kernel_size, 2, 1))
        self.stride = self.kernel_size if stride is None else tuple(each("MaxPool2d", "stride", stride, 2, 1))
        self.padding = tuple(each("MaxPool2d", "padding", padding, 2, 0))
        self.dilation = tuple(each("MaxPool2d", "dilation", dilation, 2, 1))
        self.ceil_mode = bool(ceil_mode)

    def _options(self) -> tuple[Any, ...]:
        return (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def __call__(self, x: Array) -> Array:
        return ops.max_pool2d(x, *self._options())

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, saved = ops.max_pool2d_forward(x, *self._options())
        form = OutputForm.of(y)
        return y, Pullback(lambda dy: (ops.max_pool2d_backward(form.gradient(dy), saved).dx,))

    def __repr__(self) -> str:
        return (
            f"MaxPool2d(kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode})"
        )
