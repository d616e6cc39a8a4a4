"""Past 2^31 elements: indices and strides are 64 bits wide, in every kernel of attention and of what is around it.

By stride arithmetic on memory that is not there (support/huge.py): rows of a few keys 2^31 and more elements apart, and
arrays of 2^31 elements and a few rows that are zeros until the last ones. What reads or writes all of such an
array takes seconds and is marked `slow`: `pytest -m slow tests/test_sizes.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import seqkern
from support.cases import Array, generator
from support.compare import assert_bitwise_equal
from support.huge import PAST, untouched, written_over

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="maps memory as Linux does")
bfloat16 = ml_dtypes.bfloat16
Spread = Callable[[Array], Array]


def far_apart(axis: int) -> Spread:
    """A copy whose entries along `axis` are more than 2^31 elements apart."""

    def spread(a: Array) -> Array:
        count, step = a.shape[axis], PAST + 64
        wide = untouched((count, step), a.dtype)
        rest = a.size // max(count, 1)
        view = wide[:, :rest].reshape(count, *np.delete(a.shape, axis))
        view[...] = np.moveaxis(a, axis, 0)
        return np.moveaxis(view, 0, axis)

    return spread


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    return generator("sizes", shape).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["batch", "heads", "rows"])
@pytest.mark.parametrize("queries", [1, 20], ids=["decode", "blocks"])
def test_attention_strides(isa: str, axis: int, queries: int) -> None:
    """Forward and backward, with a mask spread as far."""
    arrays = [normal(2, 3, n, 8) for n in (queries, 5, 5)]
    mask, dout = normal(2, 3, queries, 5), normal(2, 3, queries, 8)

    def results(spread: Spread) -> list[Array]:
        out, saved = seqkern.scaled_dot_product_attention_forward(*map(spread, arrays), spread(mask), is_causal=True)
        return [out, *seqkern.scaled_dot_product_attention_backward(spread(dout), saved)]

    far = far_apart(axis)
    assert far(arrays[1]).strides[axis] > 4 * PAST
    for got, want in zip(results(far), results(lambda a: a), strict=True):
        assert_bitwise_equal(got, want, f"axis {axis}")


@pytest.mark.parametrize("axis", [0, 1])
def test_attention_varlen_strides(isa: str, axis: int) -> None:
    arrays, cu = [normal(12, 2, 8) for _ in range(3)], np.array([0, 1, 12])

    def results(spread: Spread) -> list[Array]:
        out, saved = seqkern.attention_varlen_forward(*map(spread, arrays), cu, cu)
        return [out, *seqkern.attention_varlen_backward(spread(normal(12, 2, 8)), saved)[:3]]

    for got, want in zip(results(far_apart(axis)), results(lambda a: a), strict=True):
        assert_bitwise_equal(got, want, f"axis {axis}")


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["pages", "rows", "heads"])
@pytest.mark.parametrize("queries", [1, 20])
def test_attention_paged_strides(isa: str, axis: int, queries: int) -> None:
    query, pages = normal(2, 3, queries, 8), [normal(5, 4, 3, 8) for _ in range(2)]
    given = (np.array([[4, 0, 1], [3, 2, -1]], np.int32), np.array([11, 6]))
    far = [far_apart(axis)(p) for p in pages]
    assert_bitwise_equal(
        seqkern.attention_paged(query, *far, *given), seqkern.attention_paged(query, *pages, *given), "out"
    )


def test_a_cache_of_2_to_the_31_values(isa: str) -> None:
    """One step of decoding by the last tokens that a cache of 2^31 values and more holds, one head of many."""
    length, dim = 2**26 + 512, 32
    key, value = (untouched((1, 1, length, dim), np.float32) for _ in range(2))
    last = slice(length - 300, length)
    key[:, :, last], value[:, :, last] = normal(1, 1, 300, dim), normal(1, 1, 300, dim)
    query = normal(1, 1, 1, dim)
    got = seqkern.scaled_dot_product_attention(query, key, value, causal="bottom_right", window=(299, 0))
    want = seqkern.scaled_dot_product_attention(query, key[:, :, last].copy(), value[:, :, last].copy())
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_embedding(isa: str) -> None:
    table = untouched((PAST // 128 + 5, 128), np.float32)
    ids = np.array([len(table) - 1, 0, PAST // 128, len(table) - 2])
    table[ids] = normal(4, 128)
    assert_bitwise_equal(seqkern.embedding(ids, table), table[ids], "rows")


# --- all of it read or written: seconds -----------------------------------------------------------

ROWS = PAST // 2048 + 40


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
def test_linear(isa: str, rows: int) -> None:
    """A weight of 2^31 values and a few rows, and int8 ones."""
    if isa == "scalar":
        pytest.skip("takes a minute")
    weight = untouched((ROWS, 2048), bfloat16)
    weight[-30:] = normal(30, 2048, dtype=bfloat16)
    x = normal(rows, 2048)
    y = seqkern.linear(x, weight)
    few = seqkern.linear(x, weight[-32:].copy())
    assert not y[:, :-30].any()
    np.testing.assert_allclose(y[:, -32:], few, rtol=1e-4, atol=1e-4)
    narrow, scale = untouched((ROWS, 2048), np.int8), np.ones(ROWS, np.float32)
    narrow[-1] = 3
    y = seqkern.linear_int8(x, narrow, scale)
    np.testing.assert_allclose(y[:, -1], 3 * x.sum(1), rtol=1e-4, atol=1e-3)
    assert not y[:, :-1].any()


@pytest.mark.slow
def test_linear_output(isa: str) -> None:
    """A product of 2^31 values and a few rows."""
    if isa == "scalar":
        pytest.skip("takes a minute")
    x, weight = untouched((ROWS, 4), np.float32), normal(2048, 4)
    x[-30:] = normal(30, 4)
    out = written_over((ROWS, 2048), np.float32)
    seqkern.linear(x, weight, out=out)
    np.testing.assert_allclose(out[-32:], x[-32:] @ weight.T, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "layer_norm", "rms_norm", "gelu"])
def test_rows(isa: str, op: str) -> None:
    """Row by row over 2^31 values: the last rows are what they are alone."""
    if isa == "scalar":
        pytest.skip("takes a minute")
    x, out = untouched((ROWS, 2048), np.float32), written_over((ROWS, 2048), np.float32)
    x[-30:] = normal(30, 2048)
    arguments = (2048,) if op.endswith("norm") else ()
    getattr(seqkern, op)(x, *arguments, out=out)
    assert_bitwise_equal(out[-32:], getattr(seqkern, op)(x[-32:].copy(), *arguments), op)


@pytest.mark.slow
def test_attention_of_2_to_the_31_outputs(isa: str) -> None:
    if isa == "scalar":
        pytest.skip("takes a minute")
    rows = PAST // 64 + 200
    query, out = untouched((1, 1, rows, 64), bfloat16), written_over((1, 1, rows, 64), bfloat16)
    query[:, :, -30:] = normal(1, 1, 30, 64, dtype=bfloat16)
    key, value = normal(1, 1, 2, 64, dtype=bfloat16), normal(1, 1, 2, 64, dtype=bfloat16)
    seqkern.scaled_dot_product_attention(query, key, value, out=out)
    want = seqkern.scaled_dot_product_attention(query[:, :, -120:].copy(), key, value)
    assert_bitwise_equal(out[:, :, -30:], want[:, :, -30:], "out")
