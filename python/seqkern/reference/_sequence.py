"""The walk over time that the three recurrent layers share: direction, lengths, prior states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ._arrays import Array


def time_steps(seq_len: int, reverse: bool) -> Sequence[int]:
    """The steps in walking order: 0 … T-1, or T-1 … 0 for the reverse direction."""
    return range(seq_len)[::-1] if reverse else range(seq_len)


def live_rows(lengths: Array | None, t: int) -> Array:
    """Which rows take part in step t: a bool `[N, 1]`, or `[1, 1]` when every row is full."""
    if lengths is None:
        return np.ones((1, 1), dtype=bool)
    return t < np.asarray(lengths)[:, None]


def zero_padding(x: Array, lengths: Array | None) -> Array:
    """x `[T, N, I]` with 0 past each row's length, so that a NaN in the padding stays there."""
    if lengths is None:
        return x
    live = np.arange(x.shape[0])[:, None] < np.asarray(lengths)
    return np.where(live[:, :, None], x, np.zeros((), x.dtype))


def previous_states(states: Array, initial: Array, lengths: Array | None, reverse: bool) -> Array:
    """The state each step started from, `[T, N, H]`, from the states the steps ended with.

    The first live step of a row starts from `initial` `[N, H]`; past a row's length stands 0, so
    that not even the NaN state of an empty row reaches a gradient.
    """
    seq_len = states.shape[0]
    previous = np.empty_like(states)
    for t in range(seq_len):
        before = t + 1 if reverse else t - 1
        if 0 <= before < seq_len:
            start = np.where(live_rows(lengths, before), states[before], initial)
        else:
            start = initial
        previous[t] = np.where(live_rows(lengths, t), start, 0)
    return previous


def zeros_for(parameters: Iterable[Array | None]) -> list[Any]:
    """A zero gradient for every parameter; None for those that were not given."""
    return [None if parameter is None else np.zeros_like(parameter) for parameter in parameters]


def accumulate(totals: Iterable[Array | None], parts: Iterable[Array | None]) -> None:
    """Add one step's parameter gradients to the totals, in place."""
    for total, part in zip(totals, parts, strict=True):
        if total is not None:
            total += part
