"""The comparator: what `equal within a bound` means in every test."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def assert_matches(actual: Array, reference: Array, bound: Any, what: str = "result") -> None:
    """Assert |actual - reference| <= bound elementwise.

    NaN must stand exactly where the reference has NaN, and an infinity where it has an infinity of
    the same sign. `bound` broadcasts against `reference` and must be finite, not NaN and not
    negative wherever it is used; only elements with a finite reference use it.
    """
    assert isinstance(actual, np.ndarray | np.generic), f"{what}: {type(actual)} is no array"
    assert actual.shape == reference.shape, f"{what}: shape {actual.shape}, not {reference.shape}"
    got = np.asarray(actual).astype(np.float64)
    want = np.asarray(reference).astype(np.float64)
    limit = np.broadcast_to(np.asarray(bound, np.float64), want.shape)
    special = np.isfinite(want) != np.isfinite(got)
    special |= np.isnan(want) != np.isnan(got)
    special |= np.isinf(want) & (got != want)
    finite = np.isfinite(want) & np.isfinite(got)
    assert np.all(np.isfinite(limit[finite]) & (limit[finite] >= 0)), f"{what}: unusable bound"
    error = np.zeros(want.shape)
    error[finite] = np.abs(got[finite] - want[finite])
    wrong = special | (error > np.where(finite, limit, np.inf))
    if not wrong.any():
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(special, np.inf, np.where(wrong, error / limit, 0))
    at = np.unravel_index(np.argmax(excess), want.shape)
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {want.size} elements are off;"
        f" worst at {list(map(int, at))}: got {got[at]!r}, want {want[at]!r},"
        f" error {error[at]:.3g}, bound {limit[at]:.3g} (shape {want.shape}, {actual.dtype})"
    )


def assert_bitwise_equal(actual: Any, expected: Any, what: str = "result") -> None:
    """Assert the same dtype, shape and bits in arrays, or in nested tuples of arrays and None."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple) and len(actual) == len(expected), what
        names = getattr(expected, "_fields", range(len(expected)))
        for name, a, e in zip(names, actual, expected, strict=True):
            assert_bitwise_equal(a, e, f"{what}.{name}")
        return
    if not isinstance(expected, np.ndarray | np.generic):
        assert type(actual) is type(expected), f"{what}: {actual!r}, not {expected!r}"
        assert actual == expected, f"{what}: {actual!r}, not {expected!r}"
        return
    assert isinstance(actual, np.ndarray | np.generic), f"{what}: {actual!r} is no array"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, not {expected.shape}"
    a, e = (np.frombuffer(v.tobytes(), np.uint8) for v in (actual, expected))
    different = np.flatnonzero(a != e) // expected.itemsize
    if different.size:
        index = list(map(int, np.unravel_index(different[0], expected.shape)))
        raise AssertionError(
            f"{what}: not bitwise equal, first at {index}: got {actual.flat[different[0]]!r}, want"
            f" {expected.flat[different[0]]!r}; {np.unique(different).size} of {expected.size}"
            f" elements differ (shape {expected.shape}, {expected.dtype})"
        )
