"""cross_entropy from logits, forward and backward, with every reduction."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.cases import BFLOAT16, FLOAT32, FLOAT64, TAILS, DTypes, generator
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

Array = np.ndarray
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
REDUCTIONS = ("mean", "sum", "none")
SHAPES = [
    *(((4,), n) for n in (*TAILS, 65, 1000)),
    *(((n,), 7) for n in (1, 2, 13, 33, 100)),
    ((), 5),
    ((2, 3), 5),
    ((2, 3, 4), 17),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"ignore_index": 1},
    {"ignore_index": 0, "label_smoothing": 0.3},
]


def make(shape: tuple[int, ...], classes: int, dtypes: DTypes) -> tuple[Array, Array]:
    rng = generator("cross_entropy", shape, classes, dtypes.name)
    logits = (4 * rng.standard_normal((*shape, classes))).astype(dtypes.x)
    target = rng.integers(0, classes, shape)
    return logits, np.asarray(target)


def make_dloss(shape: tuple[int, ...], reduction: str, dtypes: DTypes) -> Array:
    rng = generator("dloss", shape)
    return np.asarray(rng.uniform(0.5, 2, shape if reduction == "none" else ())).astype(dtypes.cell)


def run(ops: ModuleType, logits: Array, target: Array, dloss: Array, **options: Any) -> tuple[Any, ...]:
    loss, saved = ops.cross_entropy_forward(logits, target, **options)
    assert_bitwise_equal(ops.cross_entropy(logits, target, **options), loss, "cross_entropy")
    return loss, ops.cross_entropy_backward(dloss, saved).dlogits


def distribution(target: Array, classes: int, smoothing: float, ignored: int) -> Array:
    """The target distribution [M, C]: smoothed one-hot rows, all 0 where ignored."""
    flat = target.reshape(-1)
    weights = np.full((flat.size, classes), smoothing / classes)
    weights[np.arange(flat.size), np.clip(flat, 0, classes - 1)] += 1 - smoothing
    weights[flat == ignored] = 0
    return weights


def check(
    ops: ModuleType,
    tolerance: ModuleType,
    logits: Array,
    target: Array,
    dtypes: DTypes,
    reduction: str,
    **options: Any,
) -> None:
    from seqkern import reference

    dloss = make_dloss(target.shape, reduction, dtypes)
    loss, dlogits = run(ops, logits, target, dloss, reduction=reduction, **options)
    wide, upstream = logits.astype(np.float64), dloss.astype(np.float64)
    wanted = run(reference, wide, target, upstream, reduction=reduction, **options)
    classes = logits.shape[-1]
    weights = distribution(target, classes, options.get("label_smoothing", 0.0), options.get("ignore_index", -100))
    count = int(weights.any(-1).sum())
    per_row = np.broadcast_to(upstream, target.shape).reshape(-1)
    per_row = per_row / count if reduction == "mean" else per_row
    rows = wide.reshape(-1, classes)
    model = tolerance.CrossEntropy(rows, weights, per_row, dtypes)
    bounds = model.bounds(reduction, count, dtypes.x)
    assert loss.dtype == dtypes.cell and dlogits.dtype == dtypes.x
    assert_matches(loss, wanted[0], bounds[0].reshape(wanted[0].shape), "loss")
    assert_matches(dlogits, wanted[1], bounds[1].reshape(wide.shape), "dlogits")


@DTYPES
@pytest.mark.parametrize("shape, classes", SHAPES, ids=str)
def test_against_reference(
    ops: ModuleType, tolerance: ModuleType, shape: tuple[Any, ...], classes: int, dtypes: DTypes
) -> None:
    for reduction in REDUCTIONS:
        check(ops, tolerance, *make(shape, classes, dtypes), dtypes, reduction)


@DTYPES
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options(
    ops: ModuleType, tolerance: ModuleType, options: dict[str, Any], reduction: str, dtypes: DTypes
) -> None:
    logits, target = make((12,), 9, dtypes)
    target[:4] = (0, 1, 2, 1)
    check(ops, tolerance, logits, target, dtypes, reduction, **options)


@DTYPES
def test_large_logits_do_not_overflow(ops: ModuleType, tolerance: ModuleType, dtypes: DTypes) -> None:
    logits, target = make((6,), 9, dtypes)
    check(ops, tolerance, (logits * 1000).astype(dtypes.x), target, dtypes, "mean")


@DTYPES
def test_ignored_targets(ops: ModuleType, dtypes: DTypes) -> None:
    """The default ignore_index, -100, is no class; such rows have no loss and no gradient."""
    logits, target = make((6,), 9, dtypes)
    target[[1, 4]] = -100
    logits[1] = np.nan
    dloss = make_dloss((6,), "none", dtypes)
    loss, dlogits = run(ops, logits, target, dloss, reduction="none")
    assert not loss[[1, 4]].any() and not dlogits[[1, 4]].any()
    others = [0, 2, 3, 5]
    want = run(ops, logits[others], target[others], dloss[others], reduction="none")
    assert_bitwise_equal((loss[others], dlogits[others]), want, "other rows")
    mean = ops.cross_entropy(logits, target)
    assert mean == pytest.approx(loss.sum() / 4, rel=1e-5)


@DTYPES
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_but_ignored(ops: ModuleType, dtypes: DTypes, rows: int) -> None:
    """The mean over no target is NaN, the sum 0, the gradient 0."""
    logits, _ = make((rows,), 9, dtypes)
    target = np.full(rows, -100)
    one = np.ones((), dtypes.cell)
    loss, dlogits = run(ops, logits, target, one, reduction="mean")
    assert np.isnan(loss) and not dlogits.any()
    loss, dlogits = run(ops, logits, target, one, reduction="sum")
    assert loss == 0 and not dlogits.any()


@DTYPES
def test_layouts(ops: ModuleType, dtypes: DTypes) -> None:
    logits, target = make((4, 6), 17, dtypes)
    dloss = make_dloss((4, 6), "none", dtypes)
    want = run(ops, logits, target, dloss, reduction="none")
    for layout in LAYOUTS:
        got = run(ops, layout(logits), layout(target), layout(dloss), reduction="none")
        assert_bitwise_equal(got, want, layout.__name__)


@DTYPES
def test_rows_stay_apart(ops: ModuleType, dtypes: DTypes) -> None:
    logits, target = make((5,), 19, dtypes)
    dloss = make_dloss((5,), "none", dtypes)
    clean = run(ops, logits, target, dloss, reduction="none")
    logits[2, 7] = np.nan
    loss, dlogits = run(ops, logits, target, dloss, reduction="none")
    others = [0, 1, 3, 4]
    assert_bitwise_equal((loss[others], dlogits[others]), tuple(a[others] for a in clean), "rows")
    assert np.isnan(loss[2]) and np.isnan(dlogits[2].astype(np.float64)).all()


@pytest.mark.parametrize("kind", ["i1", "i4", "i8", "u1", "u8"])
def test_targets_of_any_integer_dtype(ops: ModuleType, kind: str) -> None:
    logits, target = make((7,), 9, FLOAT32)
    want = ops.cross_entropy(logits, target)
    assert_bitwise_equal(ops.cross_entropy(logits, target.astype(kind)), want, kind)


@pytest.mark.torch
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_agrees_with_torch(ops: ModuleType, options: dict[str, Any], reduction: str) -> None:
    """torch puts the classes second; for [N, C] that is where ours are."""
    import torch

    logits, target = make((12,), 9, FLOAT64)
    target[:4] = (0, 1, 2, 1)
    dloss = make_dloss((12,), reduction, FLOAT64)
    leaf = torch.from_numpy(logits.copy()).requires_grad_()
    wanted = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(target), reduction=reduction, **options)
    wanted.backward(torch.from_numpy(dloss))  # type: ignore[no-untyped-call]
    loss, dlogits = run(ops, logits, target, dloss, reduction=reduction, **options)
    assert leaf.grad is not None
    assert_matches(loss, wanted.detach().numpy(), 1e-12 * (1 + np.abs(loss)), "loss")
    assert_matches(dlogits, leaf.grad.numpy(), 1e-13, "dlogits")


@DTYPES
def test_gradient_of_none_is_zero(ops: ModuleType, dtypes: DTypes) -> None:
    logits, target = make((5,), 9, dtypes)
    saved = ops.cross_entropy_forward(logits, target)[1]
    assert not ops.cross_entropy_backward(None, saved).dlogits.any()
