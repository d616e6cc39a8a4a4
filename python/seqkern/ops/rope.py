"""Positions: rotary embedding, forward and backward, and the sinusoidal table."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import integer, number, saved_by
from seqkern._dispatch import public

__all__ = ["RopeGradients", "RopeSaved", "rope", "rope_backward", "rope_forward", "sinusoidal_positions"]

Array = Any


class RopeSaved(NamedTuple):
    """x, for its shape and dtype, and the arguments as given."""

    x: Array
    positions: Array | None
    base: float
    interleaved: bool
    rotary_dim: int | None


class RopeGradients(NamedTuple):
    """dx, in x's dtype."""

    dx: Array


@public
def rope(
    x: Array, positions: Array | None = None, *, base: float = 10000.0, interleaved: bool = False,
    rotary_dim: int | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Rotary position embedding of x ``[..., L, D]`` (Su et al., RoFormer, 2021).

    Pairs of the first `rotary_dim` (None: D) elements, (i, i + rotary_dim / 2) or, interleaved, (2i, 2i + 1), are
    rotated by position · base^(-2i / rotary_dim); the rest is copied. positions: integers that broadcast to
    ``[..., L]``, by default 0 … L-1. Angles are computed in float64, x is rotated in float32 (float64 for float64).
    out: where y is written, contiguous and apart from x.
    """
    return _rotate("x", x, RopeSaved(x, positions, base, interleaved, rotary_dim), False, out)


@public
def rope_forward(
    x: Array, positions: Array | None = None, *, base: float = 10000.0, interleaved: bool = False,
    rotary_dim: int | None = None, out: Array | None = None,
) -> tuple[Array, RopeSaved]:  # fmt: skip
    """`rope`, and what `rope_backward` needs."""
    saved = RopeSaved(x, positions, base, interleaved, rotary_dim)
    return _rotate("x", x, saved, False, out), saved


@public
def rope_backward(dy: Array | None, saved: RopeSaved, *, out: Array | None = None) -> RopeGradients:
    """dx: dy, of x's shape (None = zero), rotated back."""
    saved_by("rope", saved, RopeSaved)
    dy = np.zeros_like(saved.x) if dy is None else dy
    if isinstance(dy, np.ndarray) and (dy.shape, dy.dtype) != (saved.x.shape, saved.x.dtype):
        raise (ValueError if dy.shape != saved.x.shape else TypeError)(
            f"rope: dy must have the shape and dtype of x, {list(saved.x.shape)} and {saved.x.dtype}, "
            f"got {list(dy.shape)} and {dy.dtype}"
        )
    return RopeGradients(_rotate("dy", dy, saved, True, out))


def _rotate(name: str, x: Array, saved: RopeSaved, inverse: bool, out: Array | None) -> Array:
    base = number("rope", "base", saved.base, np.finfo(np.float64).tiny, float("inf"))
    if not isinstance(x, np.ndarray) or x.ndim < 2:
        size, length = 0, 1  # refused below
    else:
        size, length = x.shape[-1], x.shape[-2]
    if saved.rotary_dim is not None:
        size = integer("rope", "rotary_dim", saved.rotary_dim)
    wide = getattr(x, "dtype", None) == np.float64
    interleaved, places = bool(saved.interleaved), None
    if saved.positions is None or not isinstance(x, np.ndarray):
        tables = _standard_tables(length, size, base, interleaved, wide)
    else:
        rows, places = _places(saved.positions, x)
        tables = _tables(rows, size, base, interleaved, wide)
    return _cpu.rope(name, x, *tables, places, size, interleaved, inverse, out)


def _places(positions: Array, x: Array) -> tuple[Array, Array]:
    """The positions in a row, and for each row of x which of them is its own."""
    fit = isinstance(positions, np.ndarray) and positions.dtype.kind in "iu" and positions.dtype.isnative
    if not fit:
        got = getattr(positions, "dtype", type(positions).__name__)
        raise TypeError(f"rope: positions must be a NumPy array of integers in native byte order, got {got}")
    lead = x.shape[:-1] if isinstance(x, np.ndarray) else ()
    try:
        places = np.broadcast_to(np.arange(positions.size).reshape(positions.shape), lead)
    except ValueError:
        raise ValueError(
            f"rope: positions must broadcast to {list(lead)}, the shape of x without its last axis, "
            f"got {list(positions.shape)}"
        ) from None
    return positions.reshape(-1), places.reshape(-1)


def _tables(positions: Array, size: int, base: float, interleaved: bool, wide: bool) -> tuple[Array, Array]:
    """cos and sin ``[P, size / 2]``; interleaved, each twice side by side, sin first with a minus."""
    pairs = max(size, 0) // 2
    angle = positions[:, None] * base ** (-2.0 * np.arange(pairs) / max(size, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    if interleaved:
        cos, sin = (np.stack(both, -1).reshape(len(angle), 2 * pairs) for both in ((cos, cos), (-sin, sin)))
    dtype = np.float64 if wide else np.float32
    return cos.astype(dtype), sin.astype(dtype)


@lru_cache(maxsize=16)
def _standard_tables(length: int, size: int, base: float, interleaved: bool, wide: bool) -> tuple[Array, Array]:
    return _tables(np.arange(length), size, base, interleaved, wide)


def sinusoidal_positions(
    length: int, dim: int, *, base: float = 10000.0, dtype: Any = np.float32
) -> Array:
    """The table ``[length, dim]`` of Vaswani et al. (2017), as a NumPy array of `dtype`.

    Column 2i holds sin(pos / base^(2i / dim)), column 2i + 1 the cosine of the same.
    """
    op = "sinusoidal_positions"
    length, dim = integer(op, "length", length), integer(op, "dim", dim)
    base = number(op, "base", base, np.finfo(np.float64).tiny, float("inf"))
    for name, value in (("length", length), ("dim", dim)):
        if value < 0:
            raise ValueError(f"{op}: {name} must be at least 0, got {value}")
    angle = np.arange(length)[:, None] * base ** (-(np.arange(dim) // 2 * 2) / max(dim, 1))
    return np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)
