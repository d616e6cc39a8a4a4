"""Swin's orders of tokens and masks: windows of a grid, shifted windows, and squares of 2 x 2.

To partition a padded, shifted grid into windows is to take its tokens in another order. So an order is worked out
once per size, and both the windows and the way back, forwards and for gradients, are one gather of rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..nn._arrays import Array, array_module
from ._images import Pair


class Order(NamedTuple):
    """tokens `[places]`: which token each place takes, -1 for padding; places `[tokens]`: where each one went."""

    tokens: np.ndarray
    places: np.ndarray

    def arrange(self, x: Array) -> Array:
        """x `[B, tokens, C]` as `[B, places, C]`, zeros in the padding; also the gradient of `restore`."""
        tokens = array_module(x).asarray(self.tokens)
        y = x.take(tokens, axis=1)
        if len(self.tokens) > len(self.places):
            y[:, tokens < 0] = 0
        return y

    def restore(self, y: Array) -> Array:
        """`arrange` undone, padding dropped; also its gradient."""
        return y.take(array_module(y).asarray(self.places), axis=1)


@lru_cache(maxsize=64)
def window_order(grid: Pair, window: int, shift: int) -> Order:
    """Windows one after the other, row by row, each row by row, of the grid rolled up and left by `shift`."""
    return _order(_windows(np.roll(_padded(grid, window), (-shift, -shift), (0, 1)), window))


@lru_cache(maxsize=64)
def merge_order(grid: Pair) -> Order:
    """Squares of 2 x 2 row by row, each column by column."""
    squares = _windows(_padded(grid, 2), 2).reshape(-1, 2, 2)
    return _order(squares.swapaxes(1, 2))


@lru_cache(maxsize=64)
def shift_mask(grid: Pair, window: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Which windows hold tokens that only the roll made neighbours, and for each of them `[L, L]`: -100 (as in the
    original) between such tokens, else 0."""
    places = [np.arange(n) for n in _padded(grid, window).shape]
    rows, columns = ((p >= len(p) - window).astype(int) + (p >= len(p) - shift) for p in places)
    regions = _windows(3 * rows[:, None] + columns, window)
    (wrapped,) = np.nonzero((regions != regions[:, :1]).any(1))
    apart = regions[wrapped, :, None] != regions[wrapped, None]
    return wrapped, np.where(apart, -100.0, 0.0)


@lru_cache(maxsize=64)
def relative_index(table: int, window: int) -> np.ndarray:
    """`[L, L]`: the row of a bias table made for windows of `table` that belongs to a query and a key."""
    place = np.stack(np.divmod(np.arange(window * window), window))
    rows, columns = place[:, :, None] - place[:, None] + table - 1
    return rows * (2 * table - 1) + columns


def _padded(grid: Pair, step: int) -> np.ndarray:
    """The tokens of the grid, -1 below and right of them up to multiples of step."""
    height, width = grid
    tokens = np.arange(height * width).reshape(grid)
    return np.pad(tokens, ((0, -height % step), (0, -width % step)), constant_values=-1)


def _windows(grid: np.ndarray, window: int) -> np.ndarray:
    """`[windows, window * window]`."""
    height, width = grid.shape
    parts = grid.reshape(height // window, window, width // window, window)
    return parts.swapaxes(1, 2).reshape(-1, window * window)


def _order(tokens: np.ndarray) -> Order:
    tokens = tokens.reshape(-1)
    return Order(tokens, np.argsort(tokens, kind="stable")[np.count_nonzero(tokens < 0) :])
