"""dropout: the documented Philox stream, exactly, and its gradient."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from support.cases import BFLOAT16, FLOAT32, FLOAT64, TAILS, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS
from support.philox import philox, words

DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
KNOWN = [  # published test vectors of Philox4x32-10: counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize("counter, key, output", KNOWN)
def test_generator_of_the_tests(counter: str, key: str, output: str) -> None:
    def numbers(text: str) -> list[int]:
        return [int(word, 16) for word in text.split()]

    assert philox(numbers(counter), numbers(key)) == tuple(numbers(output))


@DTYPES
@pytest.mark.parametrize("size", [0, *TAILS, 1000])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_keeps_what_the_stream_says(
    ops: ModuleType, tolerance: ModuleType, size: int, p: float, dtypes: DTypes
) -> None:
    x = random_array(generator("dropout", size), (size,), dtypes.x)
    seed, offset = 0x0123456789ABCDEF, 7
    kept = words(size, seed, offset) >= int(p * 2**32)
    y, saved = ops.dropout_forward(x, p, seed=seed, offset=offset)
    assert y.dtype == dtypes.x
    scale = 1 / (1 - p) if p < 1 else 0.0
    wanted = np.where(kept, x.astype(np.float64) * scale, 0)
    bound = tolerance.product(np.abs(wanted), 3, dtypes, result=wanted, out=dtypes.x)
    assert_matches(y, wanted, np.where(kept, bound, 0), "y")
    assert_bitwise_equal(ops.dropout(x, p, seed=seed, offset=offset), y, "dropout")
    assert_bitwise_equal(ops.dropout_backward(x, saved).dx, y, "dx of dy = x")


@pytest.mark.parametrize("seed, offset", [(0, 0), (1, 0), (0, 1), (2**64 - 1,) * 2, (5, 2**32)])
def test_seed_and_offset(ops: ModuleType, seed: int, offset: int) -> None:
    """Both are 64-bit; the mask is a function of them and of the position in C order alone."""
    x = np.ones((5, 7, 3), np.float32)
    y = ops.dropout(x, 0.5, seed=seed, offset=offset)
    kept = words(x.size, seed, offset) >= 2**31
    assert np.array_equal(y.reshape(-1) != 0, kept)


@DTYPES
def test_layouts(ops: ModuleType, dtypes: DTypes) -> None:
    x = random_array(generator("layouts"), (3, 4, 17), dtypes.x)
    want, saved = ops.dropout_forward(x, 0.3, seed=3)
    for layout in LAYOUTS:
        assert_bitwise_equal(ops.dropout(layout(x), 0.3, seed=3), want, layout.__name__)
        got = ops.dropout_backward(layout(x), saved).dx
        assert_bitwise_equal(got, want, layout.__name__)


def test_average_is_kept(ops: ModuleType) -> None:
    """The number kept is binomial: within six standard deviations of its mean."""
    size, p = 100_000, 0.3
    kept = np.count_nonzero(ops.dropout(np.ones(size, np.float32), p, seed=11))
    assert abs(kept - size * (1 - p)) < 6 * np.sqrt(size * p * (1 - p))


def test_gradient_of_none_is_zero(ops: ModuleType) -> None:
    x = np.ones((5, 7), np.float32)
    dx = ops.dropout_backward(None, ops.dropout_forward(x, 0.5, seed=1)[1]).dx
    assert dx.shape == x.shape and not dx.any()
