"""What wav2vec 2.0 puts before its Transformer: strided convolutions over the sound, and a convolution
that stands for positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..nn import GELU, Conv1d, LayerNorm
from ..nn._arrays import Array, array_module
from ..nn._init import Initializer
from ..nn._residual import chain_vjp
from ..nn.module import Module, Pullback


class ChannelNorm(Module):
    """Every channel of x `[N, C, T]` normalised over time, then scaled and shifted (GroupNorm of C groups)."""

    def __init__(self, channels: int, eps: float, *, dtype: Any) -> None:
        init = Initializer(None, dtype)
        self.weight, self.bias = init.constant(1, channels), init.constant(0, channels)
        self.eps = eps

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        n, saved = ops.layer_norm_forward(x, x.shape[-1:], eps=self.eps)
        weight, bias = self.weight, self.bias

        def pull(dy: Array) -> tuple[Array]:
            weight.add_grad((dy * n).sum((0, 2)))
            bias.add_grad(dy.sum((0, 2)))
            return (ops.layer_norm_backward(dy * weight.data[:, None], saved).dx,)

        return n * weight.data[:, None] + bias.data[:, None], Pullback(pull)


class FeaturesNorm(LayerNorm):
    """LayerNorm over the channels of x `[N, C, T]`."""

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, pull = super().vjp(x.swapaxes(1, 2))
        return y.swapaxes(1, 2), Pullback(lambda dy: (pull(dy.swapaxes(1, 2))[0].swapaxes(1, 2),))


class ConvLayer(Module):
    """x `[N, C, T]` -> gelu(norm(conv(x))), without padding."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, bias: bool, norm: str | None, *, dtype: Any, rng: Any
    ) -> None:
        self.conv = Conv1d(inputs, outputs, kernel, stride, bias=bias, dtype=dtype, rng=rng)
        self.norm: Any = None
        if norm is not None:
            kind: Any = ChannelNorm if norm == "group" else FeaturesNorm
            self.norm = kind(outputs, 1e-5, dtype=dtype)
        self.act = GELU()

    def vjp(self, x: Array) -> tuple[Array, Any]:
        return chain_vjp(x, *(m for m in (self.conv, self.norm, self.act) if m is not None))


class PositionalConv(Module):
    """x `[N, T, E]` -> gelu(conv(x)) of the same shape, the kernel long and in groups of channels.

    The weight is gain · direction / |direction|, the norm taken at each place of the kernel (weight
    normalisation, Salimans & Kingma 2016).
    """

    def __init__(self, size: int, kernel: int, groups: int, *, dtype: Any, rng: Any) -> None:
        init = Initializer(rng, dtype)
        self.groups, self.kernel = groups, kernel
        bound = math.sqrt(12 / (kernel * size))  # deviation 2 / sqrt(kernel * size), as in fairseq
        self.direction = init.uniform(bound, size, size // groups, kernel)
        norm = np.sqrt((self.direction.data.astype(np.float64) ** 2).sum((0, 1), keepdims=True))
        self.gain = init.constant(1, 1, 1, kernel)
        self.gain.data[...] = norm
        self.bias = init.constant(0, size)
        self.act = GELU()

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        xp, (gain, direction, bias) = array_module(x), (self.gain, self.direction, self.bias)
        g, v = (p.data.astype(np.float64) for p in (gain, direction))
        norm = xp.sqrt((v * v).sum((0, 1), keepdims=True))
        weight = (g * v / norm).astype(direction.data.dtype)
        length = x.shape[1]
        y, saved = ops.conv1d_forward(x.swapaxes(1, 2), weight, bias.data, 1, self.kernel // 2, 1, self.groups)
        z, pull_act = self.act.vjp(y[..., :length])  # an even kernel gives one too many

        def pull(dz: Array) -> tuple[Array]:
            dy = xp.zeros(y.shape, dtype=y.dtype)
            (dy[..., :length],) = pull_act(dz.swapaxes(1, 2))
            grads = ops.conv1d_backward(dy, saved)
            bias.add_grad(grads.dbias)
            dweight = grads.dweight.astype(np.float64)
            along = (dweight * v).sum((0, 1), keepdims=True) / norm
            gain.add_grad(along.astype(grads.dweight.dtype))
            direction.add_grad((g / norm * (dweight - along / norm * v)).astype(grads.dweight.dtype))
            return (grads.dx.swapaxes(1, 2),)

        return z.swapaxes(1, 2), Pullback(pull)
