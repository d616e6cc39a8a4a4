"""relu, sigmoid, tanh, silu and gelu, forward and backward: in ulp, exhaustively in bfloat16."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import reference
from support.cases import ALL_TAILS, BF16, BFLOAT16, FLOAT32, FLOAT64, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

Array = np.ndarray
FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("relu", {}), ("sigmoid", {}), ("tanh", {}), ("silu", {}), ("gelu", {}), ("gelu", {"approximate": "tanh"}),
]  # fmt: skip
EVERY = pytest.mark.parametrize("name, options", FUNCTIONS, ids=lambda v: str(v))
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)


def run(ops: ModuleType, name: str, options: dict[str, Any], x: Array, dy: Array | None) -> tuple[Array, Array]:
    y, saved = getattr(ops, f"{name}_forward")(x, **options)
    (dx,) = getattr(ops, f"{name}_backward")(dy, saved)
    assert_bitwise_equal(getattr(ops, name)(x, **options), y, name)
    return y, dx


def bounds(name: str, options: dict[str, Any], x: Array, y: Array, dy: Array, dtypes: DTypes) -> tuple[Array, Array]:
    """What y and dx may be off by, u the unit roundoff.

    A function is good to 4 ulp = 8u of its value; silu and gelu multiply once more. The tanh form
    passes a rounded argument v = 2u(x) to the logistic function: three roundings of v change it by
    4u|v| of its value. A slope f' of terms of both signs is good to 16u of the sum of their sizes,
    and in the tanh form to 4u|v| more; then one product. Below the smallest normal number, where a
    function times |x| may have lost all its digits, that number is added.
    """
    argument = np.zeros(x.shape)
    if options:
        argument = np.minimum(np.abs(1.6 * (x + 0.044715 * np.clip(x, -100, 100) ** 3)), 200)
    elif name == "gelu" and dtypes.cell == np.float64:
        argument = np.minimum(x * x, 1500)  # float64 passes x / sqrt(2), rounded, to erfc
    u = dtypes.unit * (2 if dtypes.cell == np.float64 else 1)
    relative = (9 + 4 * argument) * u
    size = 1.13 + np.minimum(np.abs(x), 4) * (1 + argument * (np.abs(x) < 10))
    slope = (16 + 8 * argument) * u * np.where(np.abs(x) < 13, size, 1.13) * np.abs(dy)
    out = dtypes.storage
    forward = relative * np.abs(y) + out * np.abs(y) + SMALLEST_NORMAL * (1 + np.minimum(np.abs(x), 200))
    if name == "relu":
        return np.zeros(x.shape), np.zeros(x.shape)
    # sigmoid and tanh read the rounded y: y (1 - y) and 1 - y^2 move by at most 2 of its error
    saved = 2 * (out + 8 * u) * np.abs(dy) if name in ("sigmoid", "tanh") else 0
    return forward, slope + saved + out * 1.13 * np.abs(dy) + SMALLEST_NORMAL


def check(ops: ModuleType, name: str, options: dict[str, Any], x: Array, dy: Array, dtypes: DTypes) -> None:
    y, dx = run(ops, name, options, x, dy)
    assert y.dtype == dx.dtype == x.dtype
    wide, upstream = x.astype(np.float64), dy.astype(np.float64)
    want, want_dx = run(reference, name, options, wide, upstream)
    finite = np.where(np.isfinite(wide), wide, 0)
    for got, exact, bound, what in zip(
        (y, dx), (want, want_dx), bounds(name, options, finite, want, upstream, dtypes), ("y", "dx"), strict=True
    ):
        assert_matches(got, exact, np.where(np.isfinite(exact), bound, 0), f"{name} {what}")


@DTYPES
@EVERY
@pytest.mark.parametrize("size", [0, *ALL_TAILS, 1000], ids=str)
def test_every_length(ops: ModuleType, name: str, options: dict[str, Any], dtypes: DTypes, size: int) -> None:
    rng = generator(name, size, dtypes.name)
    x = (4 * rng.standard_normal(size)).astype(dtypes.x)
    check(ops, name, options, x, random_array(rng, (size,), dtypes.x), dtypes)


@EVERY
def test_float32_everywhere(ops: ModuleType, name: str, options: dict[str, Any]) -> None:
    """The edges of every exponent, both signs, and a fine grid where the functions bend."""
    offsets = np.array([0, 1, 2**22, 2**23 - 1])
    magnitudes = (np.arange(255)[:, None] * 2**23 + offsets).ravel()
    edges = np.concatenate([magnitudes, magnitudes + 2**31]).astype(np.uint32).view(np.float32)
    x = np.concatenate([edges, np.linspace(-16, 16, 100001, dtype=np.float32)])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        check(ops, name, options, x, np.ones_like(x), FLOAT32)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_negative_x_keeps_its_relative_accuracy(ops: ModuleType, name: str) -> None:
    """Within 9u of the result itself (4 ulp and a product), down to where Phi or sigmoid leaves the normal range."""
    x = np.linspace(-12.9 if name == "gelu" else -87, 0, 400001, dtype=np.float32)
    exact = getattr(reference, name)(x.astype(np.float64))
    assert_matches(getattr(ops, name)(x), exact, 9 * FLOAT32.unit * np.abs(exact), name)


@EVERY
@pytest.mark.parametrize("beside", [np.nan, np.inf, -60.0, 6.0])
def test_values_stand_alone(ops: ModuleType, name: str, options: dict[str, Any], beside: float) -> None:
    """The bits of a value do not depend on what stands beside it."""
    x = (2 * generator(name).standard_normal(259)).astype(np.float32)
    other = np.where(np.arange(259) % 3 == 0, x, np.float32(beside))
    with np.errstate(over="ignore", invalid="ignore"):
        got, want = (getattr(ops, name)(a, **options)[::3] for a in (other, x))
    assert_bitwise_equal(got, want, name)


@EVERY
def test_bfloat16_exhaustively(ops: ModuleType, name: str, options: dict[str, Any]) -> None:
    """All 65,536 values, at most 1 ulp after rounding; NaN and infinities as in float64."""
    x = np.arange(2**16, dtype=np.uint16).view(BF16)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = getattr(reference, name)(x.astype(np.float64), **options)
        want = exact.astype(BF16)
    got = getattr(ops, name)(x, **options)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    real = ~np.isnan(want) & ((np.abs(exact) >= SMALLEST_NORMAL) | (exact == 0))
    apart = np.abs(got.view(np.int16)[real].astype(int) - want.view(np.int16)[real].astype(int))
    apart[(got[real] == 0) & (want[real] == 0)] = 0  # either sign of zero
    assert apart.max() <= 1, x[real][apart.argmax()]


@DTYPES
@EVERY
def test_special_values(ops: ModuleType, name: str, options: dict[str, Any], dtypes: DTypes) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1.0]).astype(dtypes.x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        check(ops, name, options, x, np.ones_like(x), dtypes)


@DTYPES
@EVERY
def test_layouts(ops: ModuleType, name: str, options: dict[str, Any], dtypes: DTypes) -> None:
    rng = generator("layouts", name)
    x, dy = random_array(rng, (3, 4, 17), dtypes.x), random_array(rng, (3, 4, 17), dtypes.x)
    want = run(ops, name, options, x, dy)
    for layout in LAYOUTS:
        assert_bitwise_equal(run(ops, name, options, layout(x), layout(dy)), want, layout.__name__)


@EVERY
def test_none_is_a_zero_gradient(ops: ModuleType, name: str, options: dict[str, Any]) -> None:
    assert not run(ops, name, options, np.ones((3, 4), np.float32), None)[1].any()


@pytest.mark.torch
@EVERY
def test_agrees_with_torch(ops: ModuleType, name: str, options: dict[str, Any]) -> None:
    import torch

    x = np.linspace(-6, 6, 1001)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    module = torch.nn.functional if hasattr(torch.nn.functional, name) else torch
    wanted = getattr(module, name)(leaf, **options)
    wanted.backward(torch.ones_like(leaf))
    y, dx = run(ops, name, options, x, np.ones_like(x))
    assert leaf.grad is not None
    assert_matches(y, wanted.detach().numpy(), 1e-14 * (1 + np.abs(x)), "y")
    assert_matches(dx, leaf.grad.numpy(), 1e-14 * (1 + np.abs(x)), "dx")
