"""Dropout: the Philox generator against the published vectors, and what the mask promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference
from seqkern.reference.dropout import dropout_mask, philox4x32

ONES = 0xFFFFFFFF

# Known answers that the authors of Random123 distribute for philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    np.testing.assert_array_equal(philox4x32(np.array(counter, np.uint64), key), expected)


def philox_one_word(seed: int, offset: int, element: int) -> int:
    """The contract in Python integers: the 32-bit word that decides over one element."""
    block = element // 4
    c = [block & ONES, block >> 32, offset & ONES, offset >> 32]
    k = [seed & ONES, seed >> 32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return c[element % 4]


@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (1, 0), (0, 1), (2**40 + 7, 3), (5, 2**35), (2**64 - 1, 2**64 - 1)]
)
@pytest.mark.parametrize("shape", [(0,), (), (5,), (3, 7)], ids=str)
def test_mask_is_a_function_of_seed_offset_and_position(
    seed: int, offset: int, shape: tuple[int, ...]
) -> None:
    p = 0.3
    kept = dropout_mask(shape, p, seed=seed, offset=offset)
    assert kept.shape == shape
    threshold = int(p * 2**32)
    expected = [philox_one_word(seed, offset, e) >= threshold for e in range(kept.size)]
    np.testing.assert_array_equal(kept.ravel(), expected)


def test_values_and_gradient(rng: Any, assert_gradients: Any) -> None:
    x = rng.standard_normal((5, 6))
    y, saved = reference.dropout_forward(x, 0.4, seed=3, offset=8)
    kept = dropout_mask(x.shape, 0.4, seed=3, offset=8)
    np.testing.assert_allclose(y, np.where(kept, x / 0.6, 0), rtol=1e-15)
    dy = rng.standard_normal(x.shape)
    dx = reference.dropout_backward(dy, saved).dx
    assert_gradients(
        lambda: (dy * reference.dropout(x, 0.4, seed=3, offset=8)).sum(), {"x": (x, dx)}
    )
    assert not reference.dropout_backward(None, saved).dx.any()


def test_edges() -> None:
    x = np.array([1.0, np.nan, np.inf, -2.0])
    np.testing.assert_array_equal(reference.dropout(x, 0.0, seed=1), x)
    np.testing.assert_array_equal(reference.dropout(x, 1.0, seed=1), np.zeros(4))


def test_rate() -> None:
    """The share of dropped elements is p to within five standard deviations."""
    size, p = 2**18, 0.2
    dropped = size - dropout_mask((size,), p, seed=12).sum()
    assert abs(dropped - p * size) < 5 * np.sqrt(size * p * (1 - p))
