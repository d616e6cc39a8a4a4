"""Activations: relu, sigmoid, tanh, silu and gelu, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import saved_by
from seqkern._dispatch import public

__all__ = [
    "GELUGradients", "GELUSaved", "ReLUGradients", "ReLUSaved", "SiLUGradients", "SiLUSaved",
    "SigmoidGradients", "SigmoidSaved", "TanhGradients", "TanhSaved",
    "gelu", "gelu_backward", "gelu_forward", "relu", "relu_backward", "relu_forward",
    "sigmoid", "sigmoid_backward", "sigmoid_forward", "silu", "silu_backward", "silu_forward",
    "tanh", "tanh_backward", "tanh_forward",
]  # fmt: skip

Array = Any


class ReLUSaved(NamedTuple):
    """The input."""

    x: Array


class ReLUGradients(NamedTuple):
    """dx, in x's dtype."""

    dx: Array


class SigmoidSaved(NamedTuple):
    """The output."""

    y: Array


class SigmoidGradients(NamedTuple):
    """dx, in y's dtype."""

    dx: Array


class TanhSaved(NamedTuple):
    """The output."""

    y: Array


class TanhGradients(NamedTuple):
    """dx, in y's dtype."""

    dx: Array


class SiLUSaved(NamedTuple):
    """The input."""

    x: Array


class SiLUGradients(NamedTuple):
    """dx, in x's dtype."""

    dx: Array


class GELUSaved(NamedTuple):
    """The input, and which form was asked for."""

    x: Array
    approximate: str


class GELUGradients(NamedTuple):
    """dx, in x's dtype."""

    dx: Array


def _gradient(key: str, dy: Array | None, saved: Array, out: Array | None) -> Array:
    return _cpu.activation_backward(key, np.zeros_like(saved) if dy is None else dy, saved, out)


@public
def relu(x: Array, *, out: Array | None = None) -> Array:
    """max(x, 0), NaN staying NaN; any shape. `out`: where the result is written, of x's shape and dtype.

    An `out` must be contiguous and writable and may not overlap x; this holds for every function here.
    """
    return _cpu.activation_forward("relu", x, out)


@public
def relu_forward(x: Array, *, out: Array | None = None) -> tuple[Array, ReLUSaved]:
    """`relu`, and what `relu_backward` needs."""
    return relu(x, out=out), ReLUSaved(x)


@public
def relu_backward(dy: Array | None, saved: ReLUSaved, *, out: Array | None = None) -> ReLUGradients:
    """dx = dy where x > 0, else 0 (dy None = zero)."""
    saved_by("relu", saved, ReLUSaved)
    return ReLUGradients(_gradient("relu", dy, saved.x, out))


@public
def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """1 / (1 + e⁻ˣ); any shape."""
    return _cpu.activation_forward("sigmoid", x, out)


@public
def sigmoid_forward(x: Array, *, out: Array | None = None) -> tuple[Array, SigmoidSaved]:
    """`sigmoid`, and what `sigmoid_backward` needs."""
    y = sigmoid(x, out=out)
    return y, SigmoidSaved(y)


@public
def sigmoid_backward(dy: Array | None, saved: SigmoidSaved, *, out: Array | None = None) -> SigmoidGradients:
    """dx = dy y (1 - y)."""
    saved_by("sigmoid", saved, SigmoidSaved)
    return SigmoidGradients(_gradient("sigmoid", dy, saved.y, out))


@public
def tanh(x: Array, *, out: Array | None = None) -> Array:
    """tanh x; any shape."""
    return _cpu.activation_forward("tanh", x, out)


@public
def tanh_forward(x: Array, *, out: Array | None = None) -> tuple[Array, TanhSaved]:
    """`tanh`, and what `tanh_backward` needs."""
    y = tanh(x, out=out)
    return y, TanhSaved(y)


@public
def tanh_backward(dy: Array | None, saved: TanhSaved, *, out: Array | None = None) -> TanhGradients:
    """dx = dy (1 - y²)."""
    saved_by("tanh", saved, TanhSaved)
    return TanhGradients(_gradient("tanh", dy, saved.y, out))


@public
def silu(x: Array, *, out: Array | None = None) -> Array:
    """x sigmoid(x), as torch's F.silu; relatively accurate however negative x is. Any shape."""
    return _cpu.activation_forward("silu", x, out)


@public
def silu_forward(x: Array, *, out: Array | None = None) -> tuple[Array, SiLUSaved]:
    """`silu`, and what `silu_backward` needs."""
    return silu(x, out=out), SiLUSaved(x)


@public
def silu_backward(dy: Array | None, saved: SiLUSaved, *, out: Array | None = None) -> SiLUGradients:
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)."""
    saved_by("silu", saved, SiLUSaved)
    return SiLUGradients(_gradient("silu", dy, saved.x, out))


def _gelu(approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return "gelu" if approximate == "none" else "gelu_tanh"


@public
def gelu(x: Array, *, approximate: str = "none", out: Array | None = None) -> Array:
    """x Φ(x), Φ the normal distribution (Hendrycks & Gimpel 2016), as torch's F.gelu; any shape.

    approximate="tanh": x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2. Unlike torch's, float32 results are accurate
    relative to themselves, not only to x, for x down to where Φ leaves the normal range (-12.9).
    """
    return _cpu.activation_forward(_gelu(approximate), x, out)


@public
def gelu_forward(
    x: Array, *, approximate: str = "none", out: Array | None = None
) -> tuple[Array, GELUSaved]:
    """`gelu`, and what `gelu_backward` needs."""
    return gelu(x, approximate=approximate, out=out), GELUSaved(x, approximate)


@public
def gelu_backward(dy: Array | None, saved: GELUSaved, *, out: Array | None = None) -> GELUGradients:
    """dx = dy (Φ(x) + x φ(x)), or the slope of the tanh form."""
    saved_by("gelu", saved, GELUSaved)
    return GELUGradients(_gradient(_gelu(saved.approximate), dy, saved.x, out))
