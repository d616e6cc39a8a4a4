"""max_pool2d: exactly the reference's maxima and gradients, and torch's."""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import nn, reference
from support.cases import FLOAT32, FLOAT64, DTypes, generator
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "ceil_mode": c}
    for k, s, p, d, c in product((1, 2, (3, 2)), (None, 1, 2, 3), (0, 1), (1, 2), (False, True))
    if p == 0 or k != 1
]
SHAPES = [(2, 3, 7, 9), (1, 2, 12, 37), (0, 2, 6, 6)]


def make(shape: tuple[int, ...], dtypes: DTypes) -> np.ndarray:
    """Small integers, so that maxima are tied, with NaN and whole regions of -inf."""
    rng = generator("pool", shape)
    x = rng.integers(-3, 4, shape).astype(np.float64)
    x[rng.random(shape) < 0.05] = np.nan
    x[:, :1] = np.where(rng.random(x[:, :1].shape) < 0.8, -np.inf, x[:, :1])
    return x.astype(dtypes.x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_is_the_reference(ops: ModuleType, dtype: DTypes, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    x = make(shape, dtype)
    want, truth = reference.max_pool2d_forward(x, **options)
    y, saved = ops.max_pool2d_forward(x, **options)
    assert_matches(y, want, 0, "y")
    assert y.dtype == x.dtype
    assert_bitwise_equal(saved.indices, truth.indices, "indices")
    assert_bitwise_equal(ops.max_pool2d(x, **options), y, "without saved")
    dy = generator("dy", shape).integers(-8, 9, y.shape).astype(dtype.x)  # sums are exact
    dx = ops.max_pool2d_backward(dy, saved).dx
    assert_bitwise_equal(dx, reference.max_pool2d_backward(dy, truth).dx, "dx")
    assert not ops.max_pool2d_backward(None, saved).dx.any()


@pytest.mark.torch
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_is_torch(ops: ModuleType, options: dict[str, Any]) -> None:
    import torch

    x = make(SHAPES[1], FLOAT64)
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    want, where = torch.nn.functional.max_pool2d(tensor, **options, return_indices=True)
    y, saved = ops.max_pool2d_forward(x, **options)
    assert_matches(y, want.detach().numpy(), 0, "y")
    assert_bitwise_equal(saved.indices, where.numpy(), "indices")
    dy = generator("torch").integers(-8, 9, y.shape).astype(np.float64)
    want.backward(torch.from_numpy(dy))
    assert tensor.grad is not None
    assert_matches(ops.max_pool2d_backward(dy, saved).dx, tensor.grad.numpy(), 0, "dx")


def test_layouts_and_threads(ops: ModuleType, dtype: DTypes, threads: None) -> None:
    x = make(SHAPES[1], dtype)
    want, _ = ops.max_pool2d_forward(x, 3, 2, 1)
    for layout in LAYOUTS:
        assert_bitwise_equal(ops.max_pool2d(layout(x), 3, 2, 1), want, layout.__name__)
    for count in (1, 2, 3, 7):
        ops.set_num_threads(count)
        assert_bitwise_equal(ops.max_pool2d(x, 3, 2, 1), want, f"{count} threads")


@pytest.mark.parametrize(
    "option, message",
    [
        ({"kernel_size": 0}, "kernel_size must lie in"),
        ({"kernel_size": (2, 2, 2)}, "kernel_size must be an integer or 2"),
        ({"kernel_size": 9}, "x, with padding, must be at least as large"),
        ({"stride": 0}, "stride must lie in"),
        ({"padding": 2}, "padding must be at most half"),
        ({"dilation": 1.5}, "dilation must be an integer"),
    ],
    ids=str,
)
def test_wrong_options(ops: ModuleType, option: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"max_pool2d: {message}"):
        ops.max_pool2d(make(SHAPES[0], FLOAT32), **{"kernel_size": 2, **option})


def test_tampered_indices(ops: ModuleType) -> None:
    y, saved = ops.max_pool2d_forward(make(SHAPES[0], FLOAT32), 2)
    for wrong in (-1, 63, 2**40):
        with pytest.raises(ValueError, match="max_pool2d: indices must lie in"):
            ops.max_pool2d_backward(y, saved._replace(indices=np.full_like(saved.indices, wrong)))


def test_module(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    module = nn.MaxPool2d(2)
    y, pullback = module.vjp(x)
    np.testing.assert_array_equal(y, x.reshape(2, 3, 4, 2, 4, 2).max((3, 5)))
    (dx,) = pullback(np.ones_like(y))
    assert dx.sum() == y.size and np.array_equal(dx.reshape(2, 3, 4, 2, 4, 2).sum((3, 5)), np.ones_like(y))
