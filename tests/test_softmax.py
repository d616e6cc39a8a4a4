"""softmax and log_softmax, forward and backward."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.cases import BFLOAT16, FLOAT32, FLOAT64, TAILS, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

Array = np.ndarray
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
BOTH = pytest.mark.parametrize("name", ["softmax", "log_softmax"])
SHAPES = [
    *(((3, n), -1) for n in (*TAILS, 100, 1000)),
    *(((n, 5), 1) for n in (0, 1, 2, 13, 33)),
    ((7,), 0),
    ((4, 5, 6), 0),
    ((4, 5, 6), 1),
    ((4, 5, 6), -2),
    ((4, 5, 6), 2),
    ((2, 0, 3), 2),
]


def make(shape: tuple[int, ...], dtypes: DTypes, spread: float = 5.0) -> tuple[Array, Array]:
    rng = generator("softmax", shape, dtypes.name)
    x = (spread * rng.standard_normal(shape)).astype(dtypes.x)
    return x, random_array(rng, shape, dtypes.x)


def run(ops: ModuleType, name: str, x: Array, dy: Array | None, dim: int) -> tuple[Array, Array]:
    y, saved = getattr(ops, f"{name}_forward")(x, dim)
    (dx,) = getattr(ops, f"{name}_backward")(dy, saved)
    assert_bitwise_equal(getattr(ops, name)(x, dim), y, name)
    return y, dx


def check(ops: ModuleType, tolerance: ModuleType, name: str, x: Array, dy: Array, dim: int, dtypes: DTypes) -> None:
    from seqkern import reference

    y, dx = run(ops, name, x, dy, dim)
    assert y.dtype == dx.dtype == dtypes.x
    wide, upstream = x.astype(np.float64), dy.astype(np.float64)
    wanted = run(reference, name, wide, upstream, dim)
    last = [np.moveaxis(a, dim, -1) for a in (wide, upstream)]
    model = tolerance.Softmax(last[0], dtypes, last[1], log=name == "log_softmax")
    for got, want, bound, what in zip((y, dx), wanted, model.bounds(dtypes.x), ("y", "dx"), strict=True):
        assert_matches(got, want, np.moveaxis(bound, -1, dim), f"{name} {what}")


@DTYPES
@BOTH
@pytest.mark.parametrize("shape, dim", SHAPES, ids=str)
def test_against_reference(
    ops: ModuleType,
    tolerance: ModuleType,
    name: str,
    shape: tuple[Any, ...],
    dim: int,
    dtypes: DTypes,
) -> None:
    check(ops, tolerance, name, *make(shape, dtypes), dim, dtypes)


@DTYPES
@BOTH
@pytest.mark.parametrize("spread", [1e-30, 100.0, 1e4])
def test_wide_and_narrow_spreads(
    ops: ModuleType, tolerance: ModuleType, name: str, dtypes: DTypes, spread: float
) -> None:
    check(ops, tolerance, name, *make((5, 33), dtypes, spread), -1, dtypes)


@DTYPES
@BOTH
def test_layouts(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    x, dy = make((3, 4, 17), dtypes)
    for dim in (0, 1, 2):
        want = run(ops, name, x, dy, dim)
        for layout in LAYOUTS:
            got = run(ops, name, layout(x), layout(dy), dim)
            assert_bitwise_equal(got, want, f"{layout.__name__} {dim}")


@DTYPES
@BOTH
def test_masked_classes(ops: ModuleType, tolerance: ModuleType, name: str, dtypes: DTypes) -> None:
    """A class at -inf has probability 0; the others are as if it were not there."""
    x, _ = make((4, 17), dtypes)
    kept = np.arange(17) % 3 != 0
    x[:, ~kept] = -np.inf
    y = getattr(ops, name)(x)
    assert np.all(y[:, ~kept] == (0 if name == "softmax" else -np.inf))
    rest = x[:, kept].astype(np.float64)
    bound, _ = tolerance.Softmax(rest, dtypes, rest, log=name == "log_softmax").bounds(dtypes.x)
    with np.errstate(divide="ignore"):
        wanted = np.exp(rest) / np.exp(rest).sum(-1, keepdims=True)
    assert_matches(y[:, kept], wanted if name == "softmax" else np.log(wanted), bound + 1e-15, name)


@DTYPES
@BOTH
@pytest.mark.parametrize("bad", ["nan", "inf", "all -inf"])
def test_rows_stay_apart(ops: ModuleType, name: str, dtypes: DTypes, bad: str) -> None:
    """A row without a finite maximum is NaN, and no other row notices."""
    x, dy = make((5, 19), dtypes)
    clean, dclean = run(ops, name, x, dy, -1)
    if bad == "all -inf":
        x[2] = -np.inf
    else:
        x[2, 7] = float(bad)
    y, dx = run(ops, name, x, dy, -1)
    others = [0, 1, 3, 4]
    assert_bitwise_equal(y[others], clean[others], "y")
    assert_bitwise_equal(dx[others], dclean[others], "dx")
    row = y[2].astype(np.float64)
    assert np.isnan(row[7] if bad == "inf" else row).all()


@DTYPES
@BOTH
def test_gradient_of_none_is_zero(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    x, _ = make((3, 4), dtypes)
    assert not run(ops, name, x, None, -1)[1].any()


@pytest.mark.torch
@BOTH
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_agrees_with_torch(ops: ModuleType, name: str, dim: int) -> None:
    import torch

    x, dy = make((4, 5, 6), FLOAT64)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    wanted = getattr(torch.nn.functional, name)(leaf, dim)
    wanted.backward(torch.from_numpy(dy))
    y, dx = run(ops, name, x, dy, dim)
    assert leaf.grad is not None
    assert_matches(y, wanted.detach().numpy(), 1e-13 * (1 + np.abs(y)), "y")
    assert_matches(dx, leaf.grad.numpy(), 1e-13 * (1 + np.abs(dx)), "dx")
