"""The same numbers laid out in memory in every way an input may arrive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def misaligned(array: Array) -> Array:
    """Contiguous, starting one element (2, 4 or 8 bytes) past an aligned buffer's start."""
    buffer = np.empty(array.size + 1, array.dtype)[1:]
    copy = buffer.reshape(array.shape)
    copy[...] = array
    return copy


def unaligned(array: Array) -> Array:
    """Contiguous, starting at an odd address."""
    buffer = np.empty(array.nbytes + 1, np.uint8)[1:]
    copy = buffer.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def strided(array: Array) -> Array:
    """Every other element of an array twice as wide in its last axis, NaN-filled between."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[...] = np.nan if array.dtype.kind not in "iu" else -1
    wide[..., ::2] = array
    return wide[..., ::2]


def reversed_view(array: Array) -> Array:
    """Negative strides in every axis."""
    flip = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[flip])[flip]


def transposed(array: Array) -> Array:
    """Column-major order."""
    return np.asfortranarray(array)


def sliced_rows(array: Array) -> Array:
    """Contiguous rows inside a wider array."""
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    wide[..., 1:-2] = array
    return wide[..., 1:-2]


def read_only(array: Array) -> Array:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    misaligned,
    unaligned,
    strided,
    reversed_view,
    transposed,
    sliced_rows,
    read_only,
)
