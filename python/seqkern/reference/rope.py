"""Rotary position embedding (Su et al., RoFormer, 2021), and the sinusoidal one (Vaswani et al. 2017).

    θ_i = base^(-2i / R),  φ = position · θ_i,  i < R / 2
    (a, b) → (a cos φ - b sin φ, b cos φ + a sin φ)         backward: the rotation by -φ

The pairs (a, b) of the first R = rotary_dim elements are (x_i, x_{i + R/2}), or (x_2i, x_{2i+1})
when interleaved; the rest passes through.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen


class RopeSaved(NamedTuple):
    """x, for its shape and dtype, and the arguments."""

    x: Array
    positions: Array | None
    base: float
    interleaved: bool
    rotary_dim: int | None


class RopeGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


def _rotate(x: Array, saved: RopeSaved, sign: float) -> Array:
    dtype = compute_dtype(x)
    wide = np.array(x, dtype)
    size = x.shape[-1] if saved.rotary_dim is None else saved.rotary_dim
    positions = np.arange(x.shape[-2]) if saved.positions is None else saved.positions
    angle = positions[..., None] * saved.base ** (-2.0 * np.arange(size // 2) / max(size, 1))
    cos, sin = np.cos(angle).astype(dtype), (sign * np.sin(angle)).astype(dtype)
    pairs: tuple[Any, Any] = (np.s_[..., 0:size:2], np.s_[..., 1:size:2])
    if not saved.interleaved:
        pairs = (np.s_[..., : size // 2], np.s_[..., size // 2 : size])
    a, b = (widen(x[part], dtype) for part in pairs)
    wide[pairs[0]], wide[pairs[1]] = a * cos - b * sin, b * cos + a * sin
    return narrow(wide, x)


def rope_forward(
    x: Array,
    positions: Array | None = None,
    *,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[Array, RopeSaved]:
    """As `rope`, and what `rope_backward` needs: y, saved."""
    saved = RopeSaved(x, positions, base, interleaved, rotary_dim)
    return _rotate(x, saved, 1.0), saved


def rope(
    x: Array,
    positions: Array | None = None,
    *,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """Rotate x [..., L, D] by its positions: 0 … L-1, or integers that broadcast to [..., L]."""
    return rope_forward(
        x, positions, base=base, interleaved=interleaved, rotary_dim=rotary_dim
    )[0]


def rope_backward(dy: Array | None, saved: RopeSaved) -> RopeGradients:
    """dx: dy rotated back; None stands for zero."""
    dy = or_zeros(dy, saved.x.shape, compute_dtype(saved.x))
    return RopeGradients(narrow(_rotate(dy, saved, -1.0), saved.x))


def sinusoidal_positions(length: int, dim: int, *, base: float = 10000.0) -> Array:
    """[length, dim], float64: sin(pos / base^(2i / dim)) in columns 2i, cos of the same in 2i + 1."""
    angle = np.arange(length)[:, None] * base ** (-(np.arange(dim) // 2 * 2) / max(dim, 1))
    table: Array = np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle))
    return table
