"""Elementwise activations: relu, sigmoid, tanh, silu, and gelu in its exact and its tanh form.

    relu(x) = max(x, 0)                             relu'(x) = 1 where x > 0
    sigmoid(x) = s = 1 / (1 + e⁻ˣ)                  sigmoid'(x) = s (1 - s)
    tanh(x)                                         tanh'(x) = 1 - tanh(x)²
    silu(x) = x s                                   silu'(x) = s (1 + x (1 - s))
    gelu(x) = x Φ(x),  Φ(x) = erfc(-x / √2) / 2     gelu'(x) = Φ(x) + x φ(x),  φ = e^(-x²/2) / √(2π)
    gelu_tanh(x) = x (1 + t) / 2,  t = tanh(u),  u = √(2/π) (x + 0.044715 x³)
        gelu_tanh'(x) = (1 + t) / 2 + x (1 - t²) u' / 2

Names and arguments as in `torch.nn.functional`; GELU: Hendrycks & Gimpel 2016.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen
from ._arrays import sigmoid as _sigmoid

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


class ReLUSaved(NamedTuple):
    """The input."""

    x: Array


class ReLUGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


class SigmoidSaved(NamedTuple):
    """The output."""

    y: Array


class SigmoidGradients(NamedTuple):
    """dx, of y's shape and dtype."""

    dx: Array


class TanhSaved(NamedTuple):
    """The output."""

    y: Array


class TanhGradients(NamedTuple):
    """dx, of y's shape and dtype."""

    dx: Array


class SiLUSaved(NamedTuple):
    """The input."""

    x: Array


class SiLUGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


class GELUSaved(NamedTuple):
    """The input, and which form was asked for."""

    x: Array
    approximate: str


class GELUGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


def _wide(x: Array) -> Array:
    return widen(x, compute_dtype(x))


def _times_slope(dy: Array | None, slope: Array, x: Array) -> Array:
    return narrow(or_zeros(dy, x.shape, slope.dtype) * slope, x)


def relu_forward(x: Array) -> tuple[Array, ReLUSaved]:
    """As `relu`, and what `relu_backward` needs: y, saved."""
    return np.maximum(x, np.zeros((), x.dtype)), ReLUSaved(x)


def relu(x: Array) -> Array:
    """max(x, 0); the shape and dtype of x."""
    return relu_forward(x)[0]


def relu_backward(dy: Array | None, saved: ReLUSaved) -> ReLUGradients:
    """dx = dy where x > 0, else 0; dy None stands for zero."""
    dy = or_zeros(dy, saved.x.shape, compute_dtype(saved.x))
    return ReLUGradients(narrow(np.where(_wide(saved.x) <= 0, np.zeros_like(dy), dy), saved.x))


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidSaved]:
    """As `sigmoid`, and what `sigmoid_backward` needs: y, saved."""
    y = narrow(_sigmoid(_wide(x)), x)
    return y, SigmoidSaved(y)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ); the shape and dtype of x."""
    return sigmoid_forward(x)[0]


def sigmoid_backward(dy: Array | None, saved: SigmoidSaved) -> SigmoidGradients:
    """dx = dy y (1 - y); dy None stands for zero."""
    y = _wide(saved.y)
    return SigmoidGradients(_times_slope(dy, y * (1 - y), saved.y))


def tanh_forward(x: Array) -> tuple[Array, TanhSaved]:
    """As `tanh`, and what `tanh_backward` needs: y, saved."""
    y = narrow(np.tanh(_wide(x)), x)
    return y, TanhSaved(y)


def tanh(x: Array) -> Array:
    """tanh x; the shape and dtype of x."""
    return tanh_forward(x)[0]


def tanh_backward(dy: Array | None, saved: TanhSaved) -> TanhGradients:
    """dx = dy (1 - y²); dy None stands for zero."""
    y = _wide(saved.y)
    return TanhGradients(_times_slope(dy, 1 - y * y, saved.y))


def silu_forward(x: Array) -> tuple[Array, SiLUSaved]:
    """As `silu`, and what `silu_backward` needs: y, saved."""
    wide = _wide(x)
    return narrow(wide * _sigmoid(wide), x), SiLUSaved(x)


def silu(x: Array) -> Array:
    """x sigmoid(x); the shape and dtype of x."""
    return silu_forward(x)[0]


def silu_backward(dy: Array | None, saved: SiLUSaved) -> SiLUGradients:
    """dx = dy silu'(x); dy None stands for zero."""
    x = _wide(saved.x)
    s = _sigmoid(x)
    return SiLUGradients(_times_slope(dy, s * (1 + x * (1 - s)), saved.x))


def _normal_cdf(x: Array) -> Array:
    """Φ(x); by erfc, whose tail keeps its relative accuracy for very negative x."""
    return np.asarray(_erfc(-x / math.sqrt(2)) / 2, x.dtype)


def _gelu_tanh_argument(x: Array) -> Array:
    """2u of the docstring: (1 + tanh u) / 2 = sigmoid(2u), which does not cancel."""
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def gelu_forward(x: Array, approximate: str = "none") -> tuple[Array, GELUSaved]:
    """As `gelu`, and what `gelu_backward` needs: y, saved."""
    wide = _wide(x)
    exact = approximate == "none"
    weight = _normal_cdf(wide) if exact else _sigmoid(_gelu_tanh_argument(wide))
    return narrow(wide * weight, x), GELUSaved(x, approximate)


def gelu(x: Array, approximate: str = "none") -> Array:
    """x Φ(x), or its tanh form for approximate="tanh"; the shape and dtype of x."""
    return gelu_forward(x, approximate)[0]


def gelu_backward(dy: Array | None, saved: GELUSaved) -> GELUGradients:
    """dx = dy gelu'(x); dy None stands for zero."""
    x = _wide(saved.x)
    if saved.approximate == "none":
        slope = _normal_cdf(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    else:
        v = _gelu_tanh_argument(x)
        dv = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
        slope = _sigmoid(v) * (1 + x * _sigmoid(-v) * dv)
    return GELUGradients(_times_slope(dy, slope, saved.x))
