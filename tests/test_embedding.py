"""embedding: rows of a table, and the scatter-add of their gradients."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.cases import BFLOAT16, FLOAT32, FLOAT64, TAILS, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)


def make(shape: tuple[int, ...], rows: int, width: int, dtypes: DTypes) -> tuple[Any, ...]:
    rng = generator("embedding", shape, rows, width)
    weight = random_array(rng, (rows, width), dtypes.weight)
    dy = random_array(rng, (*shape, width), dtypes.x)
    return rng.integers(0, rows, shape), weight, dy


@DTYPES
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("width", TAILS)
def test_against_numpy(
    ops: ModuleType, tolerance: ModuleType, shape: tuple[Any, ...], width: int, dtypes: DTypes
) -> None:
    ids, weight, dy = make(shape, 5, width, dtypes)
    y, saved = ops.embedding_forward(ids, weight)
    assert_bitwise_equal(y, np.asarray(weight[ids]), "y")
    assert_bitwise_equal(ops.embedding(ids, weight), y, "embedding")
    (dweight,) = ops.embedding_backward(dy, saved)
    assert dweight.dtype == dtypes.cell
    wanted, size = np.zeros(weight.shape), np.zeros(weight.shape)
    np.add.at(wanted, ids, dy.astype(np.float64))
    np.add.at(size, ids, np.abs(dy.astype(np.float64)))
    terms = max(1, ids.size)
    bound = tolerance.product(size, terms, dtypes, result=wanted)
    assert_matches(dweight, wanted, bound, "dweight")


@DTYPES
def test_one_row_many_times(ops: ModuleType, tolerance: ModuleType, dtypes: DTypes) -> None:
    """All gradients go to one row; the order of the sum is the same every time."""
    ids = np.full(1000, 3)
    _, weight, dy = make((1000,), 5, 33, dtypes)
    saved = ops.embedding_forward(ids, weight)[1]
    (dweight,) = ops.embedding_backward(dy, saved)
    wide = dy.astype(np.float64)
    bound = tolerance.product(np.abs(wide).sum(0), 1000, dtypes, result=wide.sum(0))
    assert_matches(dweight[3], wide.sum(0), bound, "dweight[3]")
    assert not dweight[[0, 1, 2, 4]].any()
    for _ in range(10):
        assert_bitwise_equal(ops.embedding_backward(dy, saved).dweight, dweight, "repeat")


@DTYPES
def test_padding_row_has_no_gradient(ops: ModuleType, dtypes: DTypes) -> None:
    ids, weight, dy = make((20,), 5, 9, dtypes)
    y, saved = ops.embedding_forward(ids, weight, padding_idx=2)
    assert_bitwise_equal(y, weight[ids], "y")
    (dweight,) = ops.embedding_backward(dy, saved)
    (full,) = ops.embedding_backward(dy, ops.embedding_forward(ids, weight)[1])
    assert not dweight[2].any()
    assert_bitwise_equal(np.delete(dweight, 2, 0), np.delete(full, 2, 0), "other rows")


@DTYPES
def test_gradient_of_none_is_zero(ops: ModuleType, dtypes: DTypes) -> None:
    ids, weight, _ = make((20,), 5, 9, dtypes)
    (dweight,) = ops.embedding_backward(None, ops.embedding_forward(ids, weight)[1])
    assert dweight.shape == weight.shape and not dweight.any()


@DTYPES
def test_layouts(ops: ModuleType, dtypes: DTypes) -> None:
    ids, weight, dy = make((4, 6), 5, 9, dtypes)
    want = ops.embedding_backward(dy, ops.embedding_forward(ids, weight)[1])
    for layout in LAYOUTS:
        y, saved = ops.embedding_forward(layout(ids), layout(weight))
        assert_bitwise_equal(y, weight[ids], layout.__name__)
        got = ops.embedding_backward(layout(dy), saved)
        assert_bitwise_equal(got.dweight, want.dweight, layout.__name__)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "i4", "u4", "i8", "u8"])
def test_ids_of_any_integer_dtype(ops: ModuleType, kind: str) -> None:
    ids, weight, _ = make((11,), 5, 9, FLOAT32)
    assert_bitwise_equal(ops.embedding(ids.astype(kind), weight), weight[ids], kind)


def test_nan_rows_stay_where_they_are(ops: ModuleType) -> None:
    ids, weight, _ = make((11,), 5, 9, FLOAT32)
    weight[1] = np.nan
    y = ops.embedding(ids, weight)
    assert np.array_equal(np.isnan(y).all(-1), ids == 1)


@pytest.mark.torch
def test_agrees_with_torch(ops: ModuleType) -> None:
    import torch

    ids, weight, dy = make((40,), 5, 9, FLOAT64)
    leaf = torch.from_numpy(weight.copy()).requires_grad_()
    wanted = torch.nn.functional.embedding(torch.from_numpy(ids), leaf, padding_idx=2)
    wanted.backward(torch.from_numpy(dy))  # type: ignore[no-untyped-call]
    y, saved = ops.embedding_forward(ids, weight, padding_idx=2)
    assert_bitwise_equal(y, wanted.detach().numpy(), "y")
    assert leaf.grad is not None
    assert_matches(ops.embedding_backward(dy, saved).dweight, leaf.grad.numpy(), 1e-14, "dweight")
