"""linear: y = x Wᵀ + b and its gradients, in every precision mode."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.cases import ALL_TAILS, TAILS, Arrays, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

SHAPES = [  # leading dimensions of x, in_features, out_features
    *(((3,), 5, n) for n in TAILS),
    *(((3,), n, 6) for n in (1, 16, 17, 31, 64, 65)),
    *(((n,), 7, 9) for n in (0, 1, 2, 4, 5, 13, 14, 15, 33)),
    *(((16,), 33, n) for n in (16, 47, 48, 49, 55, 56, 57, 104)),  # the larger factor in units of its rows
    *(((n,), 33, 16) for n in (47, 48, 49, 55, 56, 57, 104)),
    *(((n,), 64, 50) for n in (8, 30, 32, 40)),
    *(((n,), 64, 100) for n in (17, 23, 24, 39, 49)),  # rows past the last whole register
    ((), 5, 6),
    ((2, 3), 5, 6),
    ((2, 0, 3), 5, 6),
    ((2, 1, 3), 33, 17),
    ((130,), 401, 50),  # more than one block of rows, terms and columns
    ((901,), 20, 33),
    ((2,), 1000, 9),
    ((40,), 30, 800),
]


def make(leading: tuple[int, ...], wide: int, out: int, dtypes: DTypes) -> Arrays:
    """x, weight, bias and dy; a tenth of x are outliers."""
    rng = generator("linear", leading, wide, out, dtypes.name)
    x = rng.standard_normal((*leading, wide))
    x = np.where(rng.random(x.shape) < 0.1, 1e3 * x, x)
    return {
        "x": x.astype(dtypes.x),
        "weight": random_array(rng, (out, wide), dtypes.weight),
        "bias": random_array(rng, (out,), dtypes.bias),
        "dy": random_array(rng, (*leading, out), dtypes.x),
    }


def check(
    ops: ModuleType,
    tolerance: ModuleType,
    arrays: Arrays,
    dtypes: DTypes,
    precision: str | None = None,
) -> None:
    """Forward and all gradients against the float64 products, elementwise."""
    x, weight, bias, dy = (arrays[k].astype(np.float64) for k in ("x", "weight", "bias", "dy"))
    given = {k: v for k, v in arrays.items() if k != "dy"}
    y, saved = ops.linear_forward(**given, precision=precision)
    assert_bitwise_equal(ops.linear(**given, precision=precision), y, "linear")
    gradients = ops.linear_backward(arrays["dy"], saved)
    wide, out = x.shape[-1], dy.shape[-1]
    rows, dy_rows = x.reshape(-1, wide), dy.reshape(-1, out)
    ax, aw, ag = np.abs(rows), np.abs(weight), np.abs(dy_rows)
    shape = (*x.shape[:-1], out)
    wanted = {
        "y": (y, x @ weight.T + bias, (ax @ aw.T + np.abs(bias)).reshape(shape), wide + 1),
        "dx": (gradients.dx, dy @ weight, (ag @ aw).reshape(x.shape), out),
        "dweight": (gradients.dweight, dy_rows.T @ rows, ag.T @ ax, len(rows)),
        "dbias": (gradients.dbias, dy_rows.sum(0), ag.sum(0), len(rows)),
    }
    for name, (actual, reference, size, terms) in wanted.items():
        kind = dtypes.x if name in ("y", "dx") else dtypes.cell
        assert actual.dtype == kind, name
        bound = tolerance.product(size, terms, dtypes, result=reference, out=kind, precision=precision)
        assert_matches(actual, reference, bound, name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(ops: ModuleType, tolerance: ModuleType, shape: tuple[Any, ...], dtype: DTypes) -> None:
    check(ops, tolerance, make(shape[0], shape[1], shape[2], dtype), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ALL_TAILS)
def test_every_tail(ops: ModuleType, tolerance: ModuleType, rows: int, dtype: DTypes) -> None:
    for out in ALL_TAILS:
        check(ops, tolerance, make((rows,), 19, out, dtype), dtype)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("shape", [((1,), 64, 48), ((70,), 33, 65), ((64,), 128, 96)], ids=str)
def test_precision(
    ops: ModuleType, tolerance: ModuleType, shape: tuple[Any, ...], precision: str, dtype: DTypes
) -> None:
    check(ops, tolerance, make(shape[0], shape[1], shape[2], dtype), dtype, precision)


def test_without_bias(ops: ModuleType, dtype: DTypes) -> None:
    arrays = make((4,), 9, 17, dtype)
    y, saved = ops.linear_forward(arrays["x"], arrays["weight"])
    zero = np.zeros(17, dtype.bias)
    assert np.array_equal(y, ops.linear(arrays["x"], arrays["weight"], zero))
    assert ops.linear_backward(arrays["dy"], saved).dbias is None


def test_gradient_of_none_is_zero(ops: ModuleType, dtype: DTypes) -> None:
    arrays = make((4,), 9, 17, dtype)
    _, saved = ops.linear_forward(arrays["x"], arrays["weight"])
    gradients = ops.linear_backward(None, saved)
    assert not gradients.dx.any() and not gradients.dweight.any() and gradients.dbias is None


def test_layouts(ops: ModuleType, dtype: DTypes) -> None:
    arrays = make((5,), 9, 17, dtype)

    def run(arrays: Arrays) -> tuple[Any, ...]:
        y, saved = ops.linear_forward(arrays["x"], arrays["weight"], arrays["bias"])
        return (y, *ops.linear_backward(arrays["dy"], saved))

    want = run(arrays)
    for layout in LAYOUTS:
        got = run({k: layout(v) for k, v in arrays.items()})
        assert_bitwise_equal(got, want, layout.__name__)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_stay_apart(ops: ModuleType, dtype: DTypes, bad: float) -> None:
    arrays = make((6,), 9, 17, dtype)
    clean = ops.linear(arrays["x"], arrays["weight"], arrays["bias"])
    arrays["x"][2, 4] = bad
    dirty = ops.linear(arrays["x"], arrays["weight"], arrays["bias"])
    others = [0, 1, 3, 4, 5]
    assert_bitwise_equal(dirty[others], clean[others], "other rows")
    assert not np.isfinite(dirty[2].astype(np.float64)).any()


def test_precision_setting_is_the_default(ops: ModuleType, dtype: DTypes) -> None:
    """precision=None means the mode `set_matmul_precision` chose."""
    arrays = make((64,), 64, 64, dtype)
    before = ops.get_matmul_precision()
    assert before == "highest"
    try:
        for mode in ("medium", "high", "highest"):
            ops.set_matmul_precision(mode)
            assert ops.get_matmul_precision() == mode
            y = ops.linear(arrays["x"], arrays["weight"])
            named = ops.linear(arrays["x"], arrays["weight"], precision=mode)
            assert_bitwise_equal(y, named, mode)
    finally:
        ops.set_matmul_precision(before)


@pytest.mark.torch
def test_agrees_with_torch(ops: ModuleType, tolerance: ModuleType, dtype: DTypes) -> None:
    import torch

    arrays = make((6, 5), 19, 23, dtype)
    x, weight, bias, dy = (torch.from_numpy(a.astype(np.float64)) for a in arrays.values())
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    wanted = torch.nn.functional.linear(x, weight, bias)
    wanted.backward(dy)  # type: ignore[no-untyped-call]
    y, saved = ops.linear_forward(arrays["x"], arrays["weight"], arrays["bias"])
    size = x.detach().abs() @ weight.detach().abs().T + bias.detach().abs()
    want = wanted.detach().numpy()
    bound = tolerance.product(size.numpy(), 20, dtype, result=want, out=dtype.x)
    assert_matches(y, want, bound, "y")
    size = dy.abs().reshape(30, 23).T @ x.detach().abs().reshape(30, 19)
    assert weight.grad is not None
    want = weight.grad.numpy()
    bound = tolerance.product(size.numpy(), 30, dtype, result=want)
    assert_matches(ops.linear_backward(arrays["dy"], saved).dweight, want, bound, "dweight")
