"""layer_norm and rms_norm, alone and after a residual, forward and backward; their modules."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import nn, reference
from support.cases import ALL_TAILS, BFLOAT16, FLOAT32, FLOAT64, Arrays, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS

Array = np.ndarray
EPS = 1e-5
NAMES = ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"]
EVERY = pytest.mark.parametrize("name", NAMES)
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    *(((3,), (n,)) for n in (*ALL_TAILS, 100, 1000)),
    *(((n,), (5,)) for n in (0, 1, 2, 15, 16, 17, 100, 600)),
    ((), (7,)),
    ((2, 3), (4, 5)),
    ((2, 0), (3,)),
    ((2,), (3, 4, 5)),
]


def make(
    name: str, lead: tuple[int, ...], shape: tuple[int, ...], dtypes: DTypes, mean: float = 1, std: float = 2
) -> Arrays:
    """All array arguments of forward and backward."""
    rng = generator(name, lead, shape, dtypes.name)
    arrays: Arrays = {"x": (mean + std * rng.standard_normal((*lead, *shape))).astype(dtypes.x)}
    if name.startswith("add"):
        arrays["residual"] = random_array(rng, (*lead, *shape), dtypes.x)
    arrays["weight"] = random_array(rng, shape, dtypes.weight)
    if "layer" in name:
        arrays["bias"] = random_array(rng, shape, dtypes.bias)
    for grad in ("dy", "dsummed")[: 2 if name.startswith("add") else 1]:
        arrays[grad] = random_array(rng, (*lead, *shape), dtypes.x)
    return arrays


def run(ops: ModuleType, name: str, a: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Array]:
    """Every output and gradient by name."""
    inputs = [a[k] for k in ("x", "residual") if k in a]
    parameters = {k: a[k] for k in ("weight", "bias") if k in a}
    *outputs, saved = getattr(ops, f"{name}_forward")(*inputs, shape, **parameters, eps=EPS)
    plain = getattr(ops, name)(*inputs, shape, **parameters, eps=EPS)
    assert_bitwise_equal(plain if len(inputs) > 1 else (plain,), tuple(outputs), name)
    grads = getattr(ops, f"{name}_backward")(*(a[k] for k in ("dy", "dsummed") if k in a), saved)
    return {**dict(zip(("y", "summed"), outputs, strict=False)), **grads._asdict()}


def check(
    ops: ModuleType, tolerance: ModuleType, name: str, a: Arrays, shape: tuple[int, ...], dtypes: DTypes,
    shift: float = 0,
) -> None:  # fmt: skip
    """Against the reference on the rounded sum. shift: taken off a layer norm's input there."""
    got = run(ops, name, a, shape)
    summed = a["x"]
    if "residual" in a:
        summed = (a["x"].astype(dtypes.cell) + a["residual"].astype(dtypes.cell)).astype(dtypes.x)
        assert_bitwise_equal(got.pop("summed"), summed, "summed")
        assert got.pop("dresidual") is got["dx"]
    wide = {k: v.astype(np.float64) for k, v in {**a, "x": summed}.items()}
    x, dsummed = wide["x"].copy(), wide.pop("dsummed", None)
    wide.pop("residual", None)
    wide["x"] -= shift
    want = run(reference, name.removeprefix("add_"), wide, shape)
    if dsummed is not None:
        want["dx"] = want["dx"] + dsummed
    columns = int(np.prod(shape))
    model = tolerance.Norm(x.reshape(-1, columns), dtypes, EPS, centred="layer" in name)
    weight, bias = (wide.get(k, np.full(shape, v)).reshape(-1) for k, v in (("weight", 1.0), ("bias", 0.0)))
    extra = None if dsummed is None else dsummed.reshape(-1, columns)
    bounds = (model.y(weight, bias), *model.gradients(wide["dy"].reshape(-1, columns), weight, extra))
    for what, bound in zip(("y", "dx", "dweight", "dbias"), bounds, strict=True):
        if got.get(what) is not None:
            assert got[what].dtype == (dtypes.x if what in ("y", "dx") else dtypes.cell)
            assert_matches(got[what], want[what], bound.reshape(want[what].shape), f"{name} {what}")
    assert {k for k, v in got.items() if v is None} == {f"d{k}" for k in ("weight", "bias") if k not in a} & {*got}


@DTYPES
@EVERY
@pytest.mark.parametrize("lead, shape", SHAPES, ids=str)
def test_against_reference(
    ops: ModuleType, tolerance: ModuleType, name: str, lead: Any, shape: Any, dtypes: DTypes
) -> None:
    check(ops, tolerance, name, make(name, lead, shape, dtypes), shape, dtypes)


@DTYPES
@EVERY
@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=str)
def test_without_parameters(
    ops: ModuleType, tolerance: ModuleType, name: str, given: tuple[str, ...], dtypes: DTypes
) -> None:
    arrays = make(name, (4,), (19,), dtypes)
    kept = {k: v for k, v in arrays.items() if k in given or k not in ("weight", "bias")}
    check(ops, tolerance, name, kept, (19,), dtypes)


@DTYPES
@pytest.mark.parametrize("columns", [2, 33, 768])
def test_mean_far_above_deviation(ops: ModuleType, tolerance: ModuleType, dtypes: DTypes, columns: int) -> None:
    """Mean 1e4, deviation 1 (100 in bfloat16, whose numbers are 64 apart there): no digit is lost."""
    arrays = make("layer_norm", (20,), (columns,), dtypes, 1e4, 100 if dtypes is BFLOAT16 else 1)
    arrays["x"][:, 0] += 128  # in no row are all alike
    check(ops, tolerance, "layer_norm", arrays, (columns,), dtypes, shift=1e4)


@DTYPES
@EVERY
def test_layouts(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    arrays = make(name, (3, 4), (17,), dtypes)
    want = run(ops, name, arrays, (17,))
    for layout in LAYOUTS:
        got = run(ops, name, {k: layout(v) for k, v in arrays.items()}, (17,))
        assert_bitwise_equal(tuple(got.values()), tuple(want.values()), layout.__name__)


@DTYPES
@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_stay_apart(ops: ModuleType, name: str, dtypes: DTypes, bad: float) -> None:
    arrays = make(name, (5,), (19,), dtypes)
    clean = run(ops, name, arrays, (19,))
    arrays["x"][2, 7] = bad
    got = run(ops, name, arrays, (19,))
    others = [0, 1, 3, 4]
    for what in ("y", "dx"):
        assert_bitwise_equal(got[what][others], clean[what][others], what)
    row = got["y"][2].astype(np.float64)
    assert np.isnan(row if "layer" in name or np.isnan(bad) else row[7]).all()


@DTYPES
@EVERY
def test_none_is_a_zero_gradient(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    arrays: dict[str, Any] = make(name, (3,), (5,), dtypes)
    for grad in {"dy", "dsummed"} & set(arrays):
        zero = run(ops, name, {**arrays, grad: np.zeros_like(arrays[grad])}, (5,))
        none = run(ops, name, {**arrays, grad: None}, (5,))
        assert_bitwise_equal(tuple(none.values()), tuple(zero.values()), grad)


@EVERY
def test_no_columns(ops: ModuleType, name: str) -> None:
    got = run(ops, name, make(name, (3,), (0,), FLOAT32), (0,))
    assert {v.shape for k, v in got.items() if not k.endswith(("weight", "bias"))} == {(3, 0)}


@pytest.mark.parametrize("name", NAMES[:2])
def test_saved_statistics(ops: ModuleType, name: str) -> None:
    """Mean and reciprocal deviation keep the normalised dimensions as 1."""
    x = make(name, (2, 3), (4, 5), FLOAT64)["x"]
    _, saved = getattr(ops, f"{name}_forward")(x, (4, 5), eps=EPS)
    if name == "layer_norm":
        np.testing.assert_allclose(saved.mean, x.mean((2, 3), keepdims=True), rtol=1e-13)
        np.testing.assert_allclose(saved.rstd, (x.var((2, 3), keepdims=True) + EPS) ** -0.5, rtol=1e-13)
    else:
        np.testing.assert_allclose(saved.rrms, ((x**2).mean((2, 3), keepdims=True) + EPS) ** -0.5, rtol=1e-13)


@EVERY
def test_refuses_a_wrong_shape(ops: ModuleType, name: str) -> None:
    arrays = make(name, (3,), (6,), FLOAT32)
    for shape in (5, (3,), (6, 1), (1, 3, 6), (), -6):
        with pytest.raises(ValueError, match=rf"{name}.*normalized_shape"):
            run(ops, name, {k: v for k, v in arrays.items() if k not in ("weight", "bias")}, shape)  # type: ignore[arg-type]
    inputs = [arrays[k] for k in ("x", "residual") if k in arrays]
    for eps in (-1.0, np.nan, "1"):
        with pytest.raises((ValueError, TypeError), match=rf"{name}.*eps"):
            getattr(ops, name)(*inputs, 6, eps=eps)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("affine", [True, False])
def test_modules_agree_with_torch(ops: ModuleType, name: str, affine: bool) -> None:
    import torch

    kind = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[name]
    arrays = make(name, (2, 3), (4, 5), FLOAT64)
    theirs = getattr(torch.nn, kind)((4, 5), elementwise_affine=affine, dtype=torch.float64)
    ours = getattr(nn, kind)((4, 5), elementwise_affine=affine, dtype=np.float64)
    if affine:
        state = {k: arrays[k] for k in ("weight", "bias") if k in arrays}
        theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        ours.load_state_dict(state)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    leaf = torch.from_numpy(arrays["x"].copy()).requires_grad_()
    wanted = theirs(leaf)
    wanted.backward(torch.from_numpy(arrays["dy"]))
    y, pullback = ours.vjp(arrays["x"])
    assert_bitwise_equal(ours(arrays["x"]), y, kind)
    (dx,) = pullback(arrays["dy"])
    assert leaf.grad is not None
    assert_matches(y, wanted.detach().numpy(), 1e-13 * (1 + np.abs(y)), "y")
    assert_matches(dx, leaf.grad.numpy(), 1e-13 * (1 + np.abs(dx)), "dx")
    for key, parameter in theirs.named_parameters():
        grad = dict(ours.named_parameters())[key].grad
        assert_matches(grad, parameter.grad.numpy(), 1e-12 * (1 + np.abs(grad)), key)
