"""rope, forward and backward, and the sinusoidal table."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import reference
from support.cases import BFLOAT16, FLOAT32, FLOAT64, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS
from support.tolerance import finish

Array = np.ndarray
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
PAIRS = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])


def run(ops: ModuleType, x: Array, dy: Array | None, *positions: Array, **options: Any) -> tuple[Array, Array]:
    y, saved = ops.rope_forward(x, *positions, **options)
    (dx,) = ops.rope_backward(dy, saved)
    assert_bitwise_equal(ops.rope(x, *positions, **options), y, "rope")
    return y, dx


def bound(x: Array, size: int, interleaved: bool, dtypes: DTypes, want: Array) -> Array:
    """Cosine and sine rounded once, two products and a sum: 4u (|a| + |b|); the rest is copied."""
    limit = np.zeros(x.shape)
    pairs = np.s_[..., 0:size:2], np.s_[..., 1:size:2]
    if not interleaved:
        pairs = np.s_[..., : size // 2], np.s_[..., size // 2 : size]
    for part in pairs:
        total = 4 * dtypes.unit * (np.abs(x[pairs[0]]) + np.abs(x[pairs[1]]))
        limit[part] = finish(np.abs(want[part]), total, dtypes, dtypes.x)
    return limit


def check(ops: ModuleType, shape: tuple[int, ...], dtypes: DTypes, *positions: Array, **options: Any) -> None:
    rng = generator("rope", shape, dtypes.name)
    x, dy = random_array(rng, shape, dtypes.x), random_array(rng, shape, dtypes.x)
    got = run(ops, x, dy, *positions, **options)
    wide, upstream = x.astype(np.float64), dy.astype(np.float64)
    wanted = run(reference, wide, upstream, *positions, **options)
    size = shape[-1] if options.get("rotary_dim") is None else options["rotary_dim"]
    for value, given, want, what in zip(got, (wide, upstream), wanted, ("y", "dx"), strict=True):
        assert value.dtype == dtypes.x
        limit = bound(given, size, bool(options.get("interleaved")), dtypes, want)
        assert_matches(value, want, limit, what)


@DTYPES
@PAIRS
@pytest.mark.parametrize("dim", [*range(0, 68, 2), 128])
def test_every_dimension(ops: ModuleType, dim: int, interleaved: bool, dtypes: DTypes) -> None:
    check(ops, (2, 3, dim), dtypes, interleaved=interleaved)


@DTYPES
@PAIRS
@pytest.mark.parametrize("rotary_dim", range(0, 36, 2))
@pytest.mark.parametrize("dim", [35, 40])
def test_part_of_the_dimensions(
    ops: ModuleType, dim: int, rotary_dim: int, interleaved: bool, dtypes: DTypes
) -> None:
    check(ops, (4, dim), dtypes, interleaved=interleaved, rotary_dim=rotary_dim)


@DTYPES
@PAIRS
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0, 3, 8), (1, 8), (2, 3, 17, 18)], ids=str)
@pytest.mark.parametrize("base", [10000.0, 2.0, 1e6])
def test_shapes_and_bases(
    ops: ModuleType, shape: tuple[int, ...], base: float, interleaved: bool, dtypes: DTypes
) -> None:
    check(ops, shape, dtypes, interleaved=interleaved, base=base)


@DTYPES
@PAIRS
@pytest.mark.parametrize("kind", ["i8", "i4", "u2"])
@pytest.mark.parametrize("lead", [(), (5,), (1,), (3, 5), (3, 1), (2, 1, 5), (2, 3, 5)], ids=str)
def test_positions(ops: ModuleType, lead: tuple[int, ...], kind: str, interleaved: bool, dtypes: DTypes) -> None:
    """Any that broadcast to the rows of x, far ones too."""
    positions = np.asarray(generator(lead).integers(0, 60000, lead)).astype(kind)
    check(ops, (2, 3, 5, 18), dtypes, positions, interleaved=interleaved)


@DTYPES
@PAIRS
def test_negative_and_strided_positions(ops: ModuleType, interleaved: bool, dtypes: DTypes) -> None:
    check(ops, (2, 5, 18), dtypes, np.arange(-20, 0, 2)[::-2], interleaved=interleaved)


@PAIRS
def test_default_positions_count_the_rows(ops: ModuleType, interleaved: bool) -> None:
    x = random_array(generator("default"), (2, 7, 18), np.float32)
    y = ops.rope(x, interleaved=interleaved)
    assert_bitwise_equal(ops.rope(x, np.arange(7), interleaved=interleaved), y, "0 ... L-1")
    assert_bitwise_equal(ops.rope(x[:, 3:], np.arange(3, 7), interleaved=interleaved), y[:, 3:], "3 ... L-1")
    assert_bitwise_equal(y[:, 0], x[:, 0], "position 0")


@PAIRS
def test_products_depend_on_the_distance_alone(ops: ModuleType, interleaved: bool) -> None:
    """rope(q, m) · rope(k, n) is the same for the same m - n: what the rotation is for."""
    q, k = random_array(generator("distance"), (2, 1, 16), np.float64)

    def product(m: int, n: int) -> float:
        turned = [ops.rope(v, np.array([at]), interleaved=interleaved) for v, at in ((q, m), (k, n))]
        return float(np.vdot(*turned))

    assert product(105, 102) == pytest.approx(product(3, 0), rel=1e-12)
    assert product(3, 0) != pytest.approx(product(4, 0), rel=1e-3)


@DTYPES
@PAIRS
def test_layouts(ops: ModuleType, interleaved: bool, dtypes: DTypes) -> None:
    rng = generator("layouts")
    x, dy = random_array(rng, (3, 4, 18), dtypes.x), random_array(rng, (3, 4, 18), dtypes.x)
    want = run(ops, x, dy, interleaved=interleaved)
    for layout in LAYOUTS:
        assert_bitwise_equal(run(ops, layout(x), layout(dy), interleaved=interleaved), want, layout.__name__)


@DTYPES
@PAIRS
def test_pairs_stay_apart(ops: ModuleType, interleaved: bool, dtypes: DTypes) -> None:
    """NaN in one element reaches its partner and nothing else."""
    x = random_array(generator("nan"), (2, 3, 18), dtypes.x)
    clean, dclean = run(ops, x, x, interleaved=interleaved)
    x[1, 2, 3] = np.nan
    y, dx = run(ops, x, x, interleaved=interleaved)
    hit = np.zeros(x.shape, bool)
    hit[1, 2, [3, 2 if interleaved else 3 + 9]] = True
    for got, before in ((y, clean), (dx, dclean)):
        assert np.array_equal(np.isnan(got), hit)
        assert_bitwise_equal(got[~hit], before[~hit], "others")


def test_none_is_a_zero_gradient(ops: ModuleType) -> None:
    assert not run(ops, np.ones((3, 4), np.float32), None)[1].any()


@pytest.mark.parametrize(
    "shape, options, name",
    [
        ((8,), {}, "x"),
        ((3, 7), {}, "rotary_dim"),
        ((3, 8), {"rotary_dim": 3}, "rotary_dim"),
        ((3, 8), {"rotary_dim": 10}, "rotary_dim"),
        ((3, 8), {"rotary_dim": -2}, "rotary_dim"),
        ((3, 8), {"rotary_dim": 2.0}, "rotary_dim"),
        ((3, 8), {"base": 0.0}, "base"),
        ((3, 8), {"base": np.nan}, "base"),
        ((3, 8), {"base": "10"}, "base"),
        ((3, 8), {"positions": np.arange(4)}, "positions"),
        ((3, 8), {"positions": np.zeros((2, 3), int)}, "positions"),
        ((3, 8), {"positions": np.arange(3.0)}, "positions"),
        ((3, 8), {"positions": [0, 1, 2]}, "positions"),
    ],
    ids=str,
)
def test_refuses(ops: ModuleType, shape: tuple[int, ...], options: dict[str, Any], name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"rope.*{name}"):
        ops.rope(np.ones(shape, np.float32), **options)


@pytest.mark.torch
@PAIRS
def test_agrees_with_torch(ops: ModuleType, interleaved: bool) -> None:
    """Complex numbers for neighbours, and the rotated half of the published models for halves."""
    import torch

    rng = generator("torch")
    x, dy = random_array(rng, (2, 5, 12), np.float64), random_array(rng, (2, 5, 12), np.float64)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    angle = torch.from_numpy(np.arange(5)[:, None] * 10000 ** (-np.arange(0, 12, 2) / 12))
    if interleaved:
        pairs = torch.view_as_complex(leaf.reshape(2, 5, 6, 2)) * torch.polar(torch.ones_like(angle), angle)
        wanted = torch.view_as_real(pairs).reshape(2, 5, 12)
    else:
        whole = torch.cat([angle, angle], -1)
        half = torch.cat([-leaf[..., 6:], leaf[..., :6]], -1)
        wanted = leaf * whole.cos() + half * whole.sin()
    wanted.backward(torch.from_numpy(dy))
    y, dx = run(ops, x, dy, interleaved=interleaved)
    assert leaf.grad is not None
    assert_matches(y, wanted.detach().numpy(), 1e-13 * (1 + np.abs(y)), "y")
    assert_matches(dx, leaf.grad.numpy(), 1e-13 * (1 + np.abs(dx)), "dx")


@pytest.mark.parametrize("length, dim", [(0, 4), (3, 0), (1, 1), (50, 7), (50, 8)])
def test_sinusoidal_positions(ops: ModuleType, length: int, dim: int) -> None:
    want = reference.sinusoidal_positions(length, dim, base=500.0)
    got = ops.sinusoidal_positions(length, dim, base=500.0)
    assert got.dtype == np.float32
    assert_matches(got, want, FLOAT32.unit * np.abs(want) + 1e-45, "table")
    assert_bitwise_equal(ops.sinusoidal_positions(length, dim, base=500.0, dtype=np.float64), want, "float64")
    for bad in ((-1, 4), (4, -1), (1.5, 4)):
        with pytest.raises((ValueError, TypeError), match="sinusoidal_positions"):
            ops.sinusoidal_positions(*bad)
