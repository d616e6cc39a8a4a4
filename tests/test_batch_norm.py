"""batch_norm, forward and backward, its running statistics, and BatchNorm1d and 2d."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import nn, reference
from support.cases import ALL_TAILS, BFLOAT16, FLOAT32, FLOAT64, Arrays, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

Array = np.ndarray
EPS, MOMENTUM = 1e-5, 0.3
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
SHAPES: list[tuple[int, ...]] = [
    *((5, n) for n in ALL_TAILS),
    *((3, 2, n) for n in ALL_TAILS),
    *((n, 3) for n in (2, 13, 100)),
    (2, 3, 4, 5),
    (3, 17, 9, 9),
    (2, 3, 2, 3, 4),
    (5, 0),
    (2, 0, 3),
]


def make(shape: tuple[int, ...], dtypes: DTypes, mean: float = 1, std: float = 2) -> Arrays:
    rng = generator("batch_norm", shape, dtypes.name)
    channels = shape[1]
    return {
        "x": (mean + std * rng.standard_normal(shape)).astype(dtypes.x),
        "running_mean": random_array(rng, (channels,), dtypes.cell),
        "running_var": rng.uniform(0.5, 4, channels).astype(dtypes.cell),
        "weight": random_array(rng, (channels,), dtypes.weight),
        "bias": random_array(rng, (channels,), dtypes.bias),
        "dy": random_array(rng, shape, dtypes.x),
    }


def run(ops: ModuleType, a: dict[str, Any], training: bool, backward: bool = True) -> dict[str, Any]:
    """Every output and gradient by name, and the running statistics afterwards."""
    names = ("running_mean", "running_var")
    statistics = {k: None if a.get(k) is None else np.array(a[k]) for k in names}
    parameters = {k: a.get(k) for k in ("weight", "bias")}
    options: Any = {"training": training, "momentum": MOMENTUM, "eps": EPS}
    y, saved = ops.batch_norm_forward(a["x"], **statistics, **parameters, **options)
    again = {k: None if v is None else np.array(a[k]) for k, v in statistics.items()}
    assert_bitwise_equal(ops.batch_norm(a["x"], **again, **parameters, **options), y, "batch_norm")
    return {"y": y, **statistics, **ops.batch_norm_backward(a["dy"], saved)._asdict()}


def rows(array: Array) -> Array:
    """[N, C, ...] as [C, n]."""
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], math.prod(array.shape[:1] + array.shape[2:]))


def check(ops: ModuleType, tolerance: ModuleType, a: Arrays, training: bool, dtypes: DTypes, shift: float = 0) -> None:
    got = run(ops, a, training)
    wide = {k: v.astype(np.float64) for k, v in a.items()}
    want = run(reference, {**wide, "x": wide["x"] - shift}, training)
    column = {k: v[:, None] for k, v in wide.items() if v.ndim == 1}
    ones, zeros = np.ones((a["x"].shape[1], 1)), np.zeros((a["x"].shape[1], 1))
    weight, bias = column.get("weight", ones), column.get("bias", zeros)
    given = None if training else (column["running_mean"], column["running_var"])
    model = tolerance.Norm(rows(wide["x"]), dtypes, EPS, statistics=given, per_row=True)
    bounds = {"y": model.y(weight, bias)}
    bounds |= dict(zip(("dx", "dweight", "dbias"), model.gradients(rows(wide["dy"]), weight), strict=True))
    if training and "running_mean" in a:
        want["running_mean"] += MOMENTUM * shift
        updated = model.running((column["running_mean"], column["running_var"]), MOMENTUM)
        bounds |= dict(zip(("running_mean", "running_var"), updated, strict=True))
    for what, bound in bounds.items():
        if got[what] is None:
            continue
        assert got[what].dtype == (dtypes.x if what in ("y", "dx") else dtypes.cell)
        flat = rows if what in ("y", "dx") else (lambda v: v[:, None])
        assert_matches(flat(got[what]), flat(want[what]), bound, what)
    if not training:
        assert_bitwise_equal(got["running_mean"], a["running_mean"], "running_mean")
        assert_bitwise_equal(got["running_var"], a["running_var"], "running_var")


@DTYPES
@MODES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(
    ops: ModuleType, tolerance: ModuleType, shape: tuple[int, ...], training: bool, dtypes: DTypes
) -> None:
    check(ops, tolerance, make(shape, dtypes), training, dtypes)


@DTYPES
@MODES
@pytest.mark.parametrize("left_out", [("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_without_parameters(
    ops: ModuleType, tolerance: ModuleType, left_out: tuple[str, ...], training: bool, dtypes: DTypes
) -> None:
    arrays = {k: v for k, v in make((4, 3, 5), dtypes).items() if k not in left_out}
    check(ops, tolerance, arrays, training, dtypes)
    got = run(ops, arrays, training)
    assert all(got[f"d{k}"] is None for k in left_out)


@DTYPES
def test_without_running_statistics(ops: ModuleType, tolerance: ModuleType, dtypes: DTypes) -> None:
    arrays = {k: v for k, v in make((4, 3, 5), dtypes).items() if not k.startswith("running")}
    check(ops, tolerance, arrays, True, dtypes)


@DTYPES
@pytest.mark.parametrize("shape", [(64, 19), (8, 3, 100)], ids=str)
def test_mean_far_above_deviation(
    ops: ModuleType, tolerance: ModuleType, shape: tuple[int, ...], dtypes: DTypes
) -> None:
    """Mean 1e4, deviation 1 (100 in bfloat16, whose numbers are 64 apart there): no digit is lost."""
    arrays = make(shape, dtypes, 1e4, 100 if dtypes is BFLOAT16 else 1)
    check(ops, tolerance, arrays, True, dtypes, shift=1e4)


@MODES
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)], ids=str)
def test_no_elements(ops: ModuleType, shape: tuple[int, ...], training: bool) -> None:
    """Nothing to normalise, nothing to learn, and the running statistics stay."""
    arrays = make(shape, FLOAT32)
    got = run(ops, arrays, training)
    assert got["y"].shape == got["dx"].shape == shape
    assert not got["dweight"].any() and not got["dbias"].any()
    for name in ("running_mean", "running_var"):
        assert_bitwise_equal(got[name], arrays[name], name)


@DTYPES
@MODES
@pytest.mark.parametrize("shape", [(5, 17), (2, 3, 17)], ids=str)
def test_layouts(ops: ModuleType, shape: tuple[int, ...], training: bool, dtypes: DTypes) -> None:
    arrays = make(shape, dtypes)
    want = run(ops, arrays, training)
    for layout in LAYOUTS:
        got = run(ops, {k: layout(v) for k, v in arrays.items()}, training)
        assert_bitwise_equal(tuple(got.values()), tuple(want.values()), layout.__name__)


def test_running_statistics_of_a_wrong_layout_are_refused(ops: ModuleType) -> None:
    """They are written in training, so they are not copied."""
    arrays = make((4, 6), FLOAT32)
    locked = arrays["running_mean"].copy()
    locked.flags.writeable = False
    for name in ("running_mean", "running_var"):
        for wrong in (locked, np.ones(12, np.float32)[::2]):
            given = {k: arrays[k].copy() for k in ("running_mean", "running_var")} | {name: wrong}
            before = {k: v.copy() for k, v in given.items()}
            with pytest.raises((ValueError, TypeError), match=f"batch_norm.*{name}"):
                ops.batch_norm(arrays["x"], **given, training=True)
            for key, value in given.items():
                assert_bitwise_equal(value, before[key], key)


def test_one_value_per_channel_is_refused_in_training(ops: ModuleType) -> None:
    x = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"batch_norm.*more than one value"):
        ops.batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match=r"batch_norm.*running_mean"):
        ops.batch_norm(x, None, None)


@DTYPES
@MODES
@pytest.mark.parametrize("shape", [(6, 19), (4, 5, 19)], ids=str)
def test_channels_stay_apart(ops: ModuleType, shape: tuple[int, ...], training: bool, dtypes: DTypes) -> None:
    """NaN in one channel is in no other; in training it fills its own."""
    arrays = make(shape, dtypes)
    clean = run(ops, arrays, training)
    arrays["x"][1, 2, ...] = np.nan
    got = run(ops, arrays, training)
    others = np.arange(shape[1]) != 2
    for what, value in got.items():
        at = (slice(None), others) if what in ("y", "dx") else others
        assert_bitwise_equal(value[at], clean[what][at], what)
    assert np.isnan(got["y"][:, 2]).all() == training
    assert np.isnan(got["y"][1, 2]).all()


def test_none_is_a_zero_gradient(ops: ModuleType) -> None:
    got = run(ops, {**make((4, 3), FLOAT32), "dy": None}, True)
    assert not any(got[k].any() for k in ("dx", "dweight", "dbias"))


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("kind, shape", [("1d", (6, 3)), ("1d", (4, 3, 5)), ("2d", (2, 3, 4, 5))])
def test_modules_agree_with_torch(
    ops: ModuleType, kind: str, shape: tuple[int, ...], affine: bool, tracked: bool, momentum: float | None
) -> None:
    """Three steps of training, then eval: outputs, gradients and the whole state dict."""
    import torch

    name = f"BatchNorm{kind}"
    options: Any = {"momentum": momentum, "affine": affine, "track_running_stats": tracked}
    theirs = getattr(torch.nn, name)(3, **options, dtype=torch.float64)
    ours = getattr(nn, name)(3, **options, dtype=np.float64)
    rng = generator(name, shape)
    if affine:
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
    ours.load_state_dict({k: v.detach().numpy().copy() for k, v in theirs.state_dict().items()})
    for step in range(4):
        if step == 3:
            theirs.eval(), ours.eval()
        x, dy = 1 + rng.standard_normal((2, *shape))
        leaf = torch.from_numpy(x).requires_grad_()
        wanted = theirs(leaf)
        wanted.backward(torch.from_numpy(dy))
        y, pullback = ours.vjp(x)
        (dx,) = pullback(dy)
        assert leaf.grad is not None
        assert_matches(y, wanted.detach().numpy(), 1e-12 * (1 + np.abs(y)), "y")
        assert_matches(dx, leaf.grad.numpy(), 1e-12 * (1 + np.abs(dx)), "dx")
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        for key, value in theirs.state_dict().items():
            assert state[key].dtype == value.numpy().dtype
            np.testing.assert_allclose(state[key], value.numpy(), rtol=1e-13, err_msg=key)
    for key, parameter in theirs.named_parameters():
        grad = dict(ours.named_parameters())[key].grad
        assert_matches(grad, parameter.grad.numpy(), 1e-12 * (1 + np.abs(grad)), key)


def test_the_state_dict_restores_the_statistics() -> None:
    rng = generator("state")
    first, second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    for _ in range(3):
        first(rng.standard_normal((7, 4), np.float32))
    assert int(first.state_dict()["num_batches_tracked"]) == 3
    second.load_state_dict(first.state_dict())
    x = rng.standard_normal((5, 4), np.float32)
    assert_bitwise_equal(first.eval()(x), second.eval()(x), "eval")
    before = {k: np.array(v) for k, v in first.state_dict().items()}
    first.vjp(x)[1](x)
    for key, value in first.state_dict().items():
        assert_bitwise_equal(np.asarray(value), before[key], key)


def test_modules_refuse_a_wrong_rank() -> None:
    for module, shape in ((nn.BatchNorm1d(3), (3,)), (nn.BatchNorm1d(3), (2, 3, 4, 5)), (nn.BatchNorm2d(3), (2, 3))):
        with pytest.raises(ValueError, match=r"BatchNorm.d: input must have"):
            module(np.zeros(shape, np.float32))
