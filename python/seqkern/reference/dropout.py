"""Dropout: y = x / (1 - p) where an element is kept, 0 where it is dropped.

The mask comes from the counter-based generator Philox4x32-10 (Salmon, Moraes, Dror & Shaw,
"Parallel random numbers: as easy as 1, 2, 3", 2011), so it is a pure function of the seed, the
offset and the element's position:

    key = (seed mod 2³², seed div 2³²)
    block b = e div 4 has counter (b mod 2³², b div 2³², offset mod 2³², offset div 2³²)
    element e, in C order, uses word e mod 4 of its block and is kept when word >= floor(p 2³²)

Different offsets under one seed are independent streams. p = 1 drops everything. A dropped
element is 0 even where x is NaN or infinite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen

_LOW_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: the key's step per round
_ROUNDS = 10


class DropoutSaved(NamedTuple):
    """The inputs as given; the mask is computed anew from seed and offset."""

    x: Array
    p: float
    seed: int
    offset: int


class DropoutGradients(NamedTuple):
    """dx, of x's shape and dtype."""

    dx: Array


def philox4x32(counter: Array, key: tuple[int, int]) -> Array:
    """Ten rounds over counters `[..., 4]`, each word held in a uint64; returns the same shape."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    low, shift = np.uint64(_LOW_WORD), np.uint64(32)
    for r in range(_ROUNDS):
        k0, k1 = (
            np.uint64((word + r * step) & _LOW_WORD) for word, step in zip(key, _WEYL, strict=True)
        )
        product0, product1 = np.uint64(_MULTIPLIERS[0]) * c0, np.uint64(_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ k0,
            product1 & low,
            (product0 >> shift) ^ c3 ^ k1,
            product0 & low,
        )
    return np.stack([c0, c1, c2, c3], axis=-1)


def dropout_mask(shape: tuple[int, ...], p: float, *, seed: int, offset: int = 0) -> Array:
    """Which elements are kept: a bool array of `shape`."""
    size = math.prod(shape)
    block = np.arange((size + 3) // 4, dtype=np.uint64)
    counter = np.empty((block.size, 4), np.uint64)
    counter[:, 0], counter[:, 1] = block & np.uint64(_LOW_WORD), block >> np.uint64(32)
    counter[:, 2], counter[:, 3] = offset & _LOW_WORD, (offset >> 32) & _LOW_WORD
    words = philox4x32(counter, (seed & _LOW_WORD, (seed >> 32) & _LOW_WORD))
    kept: Array = words.ravel()[:size] >= np.uint64(math.floor(p * 2**32))
    return kept.reshape(shape)


def _drop(x: Array, p: float, seed: int, offset: int) -> Array:
    kept = dropout_mask(x.shape, p, seed=seed, offset=offset)
    scale = 0.0 if p >= 1 else 1 / (1 - p)
    y = np.zeros_like(x)
    np.multiply(x, x.dtype.type(scale), out=y, where=kept)
    return y


def dropout_forward(
    x: Array, p: float, *, seed: int, offset: int = 0
) -> tuple[Array, DropoutSaved]:
    """As `dropout`, and what `dropout_backward` needs: y, saved."""
    y = _drop(widen(x, compute_dtype(x)), p, seed, offset)
    return narrow(y, x), DropoutSaved(x, p, seed, offset)


def dropout(x: Array, p: float, *, seed: int, offset: int = 0) -> Array:
    """Drop each element of x with probability p, 0 <= p <= 1, and scale the others by 1/(1-p)."""
    return dropout_forward(x, p, seed=seed, offset=offset)[0]


def dropout_backward(dy: Array | None, saved: DropoutSaved) -> DropoutGradients:
    """dx = dy / (1 - p) where x was kept, else 0; dy None stands for zero."""
    dy = or_zeros(dy, saved.x.shape, compute_dtype(saved.x))
    return DropoutGradients(narrow(_drop(dy, saved.p, saved.seed, saved.offset), saved.x))
