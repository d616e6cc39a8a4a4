"""conv1d and conv2d: against the float64 reference within the bound of a product, and against torch."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from seqkern import nn, reference
from support.cases import FLOAT32, FLOAT64, Arrays, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS


class Conv(NamedTuple):
    """x [N, C, *size], weight [O, C / groups, *kernel]."""

    N: int
    C: int
    O: int  # noqa: E741 - the letter of the docstrings
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def op(self) -> str:
        return f"conv{len(self.size)}d"

    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


CASES = [
    Conv(2, 3, 5, (17,), (3,), padding=1),
    Conv(1, 1, 20, (203,), (10,), stride=5),
    Conv(2, 8, 12, (33,), (4,), padding="same", dilation=2, groups=2),
    Conv(1, 32, 32, (40,), (16,), padding=8, groups=4),
    Conv(3, 4, 6, (9,), (9,)),
    Conv(2, 2, 3, (7,), (2,), stride=9),
    Conv(2, 3, 7, (9, 21), (3, 3), padding=1),
    Conv(1, 4, 9, (11, 13), (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2)),
    Conv(2, 6, 6, (10, 9), (3, 3), stride=2, padding=1, groups=6),
    Conv(1, 5, 10, (12, 70), (5, 5), padding="same", groups=5),
    Conv(2, 3, 24, (33, 49), (16, 16), stride=16),
    Conv(1, 3, 5, (20, 31), (3, 10), stride=(4, 11)),
    Conv(2, 20, 18, (7, 7), (1, 1)),
    Conv(1, 8, 9, (9, 8), (1, 1), stride=2),
    Conv(1, 60, 100, (14, 15), (3, 3), padding=1),  # more than one slab of terms, panel and group of rows
    Conv(1, 3, 2, (20, 300), (3, 3), padding=3),
    Conv(0, 3, 4, (6, 6), (3, 3), padding=1),
    Conv(2, 0, 4, (6, 6), (3, 3)),
    Conv(2, 3, 0, (6, 6), (3, 3)),
]
SWEEP = [
    Conv(2, C, out, (13, 18), (k, k), s, p, d, groups)
    for k in range(1, 8)
    for s in (1, 2, 3)
    for p in range(4)
    for d in (1, 2)
    for C, out, groups in ((4, 7, 1), (4, 10, 2), (5, 5, 5))
    if 13 + 2 * p > d * (k - 1)
]


def make(case: Conv, dtypes: DTypes) -> Arrays:
    """x, weight, bias; a tenth of x are outliers."""
    rng = generator("conv", *map(str, case), dtypes.name)
    x = rng.standard_normal((case.N, case.C, *case.size))
    x = np.where(rng.random(x.shape) < 0.1, 1e3 * x, x)
    weight = (case.O, case.C // case.groups, *case.kernel)
    return {
        "x": x.astype(dtypes.x),
        "weight": random_array(rng, weight, dtypes.weight),
        "bias": random_array(rng, (case.O,), dtypes.bias),
    }


def run(module: ModuleType, case: Conv, arrays: Arrays, dy: Any = None, **more: Any) -> tuple[Any, ...]:
    """y, dx, dweight, dbias, dy; dy is drawn when it is not given."""
    y, saved = getattr(module, f"{case.op}_forward")(**arrays, **case.options(), **more)
    if dy is None:
        dy = random_array(generator("dy", *map(str, case)), y.shape, y.dtype)
    return (y, *getattr(module, f"{case.op}_backward")(dy, saved), dy)


def check(ops: ModuleType, tolerance: ModuleType, case: Conv, dtypes: DTypes, precision: str | None = None) -> None:
    arrays = make(case, dtypes)
    *got, dy = run(ops, case, arrays, precision=precision)
    wide = {k: v.astype(np.float64) for k, v in arrays.items()}
    *want, _ = run(reference, case, wide, dy.astype(np.float64))
    *size, _ = run(reference, case, {k: np.abs(v) for k, v in wide.items()}, np.abs(dy.astype(np.float64)))
    taps, positions = int(np.prod(case.kernel)), case.N * int(np.prod(dy.shape[2:]))
    terms = (case.C // case.groups * taps + 1, case.O // case.groups * taps, positions, positions)
    kinds = (dtypes.x, dtypes.x, dtypes.cell, dtypes.cell)
    for name, g, w, s, t, kind in zip(("y", "dx", "dweight", "dbias"), got, want, size, terms, kinds, strict=True):
        assert g.dtype == kind, name
        assert_matches(g, w, tolerance.product(s, t, dtypes, result=w, out=kind, precision=precision), name)
    plain = getattr(ops, case.op)(**arrays, **case.options(), precision=precision)
    assert_bitwise_equal(plain, got[0], "without saved")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(ops: ModuleType, tolerance: ModuleType, case: Conv, dtype: DTypes) -> None:
    check(ops, tolerance, case, dtype)


@pytest.mark.parametrize("case", SWEEP[::11], ids=str)
def test_sample_of_the_sweep(ops: ModuleType, tolerance: ModuleType, case: Conv) -> None:
    check(ops, tolerance, case, FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_sweep(ops: ModuleType, tolerance: ModuleType, case: Conv, dtype: DTypes) -> None:
    check(ops, tolerance, case, dtype)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_precision(ops: ModuleType, tolerance: ModuleType, precision: str, dtype: DTypes) -> None:
    check(ops, tolerance, CASES[6], dtype, precision)


@pytest.mark.parametrize("case", [CASES[0], CASES[7], CASES[10]], ids=str)
def test_layouts(ops: ModuleType, dtype: DTypes, case: Conv) -> None:
    arrays = make(case, dtype)
    want = run(ops, case, arrays)
    for layout in LAYOUTS:
        got = run(ops, case, {k: layout(v) for k, v in arrays.items()}, layout(want[-1]))
        assert_bitwise_equal(got[:-1], want[:-1], layout.__name__)


@pytest.mark.parametrize("case", CASES[:16], ids=str)
def test_threads_do_not_change_a_bit(ops: ModuleType, threads: None, case: Conv) -> None:
    arrays = make(case, FLOAT32)
    ops.set_num_threads(1)
    want = run(ops, case, arrays)
    for count in (2, 3, 7):
        ops.set_num_threads(count)
        assert_bitwise_equal(run(ops, case, arrays), want, f"{count} threads")


@pytest.mark.parametrize("case", [CASES[6], CASES[8], CASES[10], CASES[12]], ids=str)
def test_images_stay_apart(ops: ModuleType, case: Conv, dtype: DTypes) -> None:
    """A NaN in one image reaches no other, and spare columns of a panel reach nobody."""
    arrays = make(case, dtype)
    clean = run(ops, case, arrays)
    arrays["x"][1] = np.nan
    dirty = run(ops, case, arrays)
    assert_bitwise_equal(dirty[0][0], clean[0][0], "y")
    assert_bitwise_equal(dirty[1], clean[1], "dx")
    assert np.isnan(dirty[0][1].astype(np.float64)).any()


def test_missing_bias_and_gradient(ops: ModuleType, dtype: DTypes) -> None:
    arrays = make(CASES[6], dtype)
    zero = np.zeros_like(arrays["bias"])
    x, weight = arrays["x"], arrays["weight"]
    y, saved = ops.conv2d_forward(x, weight, padding=1)
    with_zeros = ops.conv2d(x, weight, zero, padding=1)
    assert np.array_equal(y, with_zeros)
    gradients = ops.conv2d_backward(None, saved)
    assert not gradients.dx.any() and not gradients.dweight.any() and gradients.dbias is None
    assert gradients.dx.dtype == dtype.x and gradients.dweight.dtype == dtype.cell


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES[:16], ids=str)
def test_agrees_with_torch(ops: ModuleType, tolerance: ModuleType, case: Conv) -> None:
    import torch

    arrays = make(case, FLOAT64)
    *got, dy = run(ops, case, arrays)
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays.values()]
    wanted = getattr(torch.nn.functional, case.op)(*leaves, **case.options())
    wanted.backward(torch.from_numpy(dy))
    *size, _ = run(reference, case, {k: np.abs(v) for k, v in arrays.items()}, np.abs(dy))
    terms = 4096  # above the longest sum of any case
    for name, g, w, s in zip(
        ("y", "dx", "dweight", "dbias"), got, (wanted.detach(), *(t.grad for t in leaves)), size, strict=True
    ):
        assert_matches(g, w.numpy(), tolerance.product(s, terms, FLOAT64, result=w.numpy()), name)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"stride": 0}, "stride must lie in"),
        ({"stride": (1, 2, 3)}, "stride must be an integer or 2"),
        ({"stride": 1.5}, "stride must be an integer"),
        ({"padding": -1}, "padding must lie in"),
        ({"padding": "full"}, "padding must be"),
        ({"padding": "same", "stride": 2}, "padding 'same' needs a stride of 1"),
        ({"dilation": 2**31}, "dilation must lie in"),
        ({"dilation": 9}, "x, with padding, must be at least as large as the kernel"),
        ({"groups": 2}, "x must have C = groups"),
        ({"groups": 0}, "groups must lie in"),
        ({"precision": "fast"}, "precision must be"),
    ],
    ids=str,
)
def test_wrong_options(ops: ModuleType, option: dict[str, Any], message: str) -> None:
    arrays = make(CASES[6], FLOAT32)
    with pytest.raises((TypeError, ValueError), match=f"conv2d: {message}"):
        ops.conv2d(**arrays, **option)


def test_huge_strides_and_gradient_shapes(ops: ModuleType) -> None:
    """A stride beyond the image costs nothing, and dy must have the output's shape."""
    arrays = make(CASES[6], FLOAT32)
    y, saved = ops.conv2d_forward(**arrays, stride=2**31 - 1)
    assert y.shape == (2, 7, 1, 1)
    assert_bitwise_equal(y, np.ascontiguousarray(ops.conv2d(**arrays, stride=30)), "stride")
    assert ops.conv2d_backward(y, saved).dx.shape == arrays["x"].shape
    for shape in ((2, 7, 1, 2), (2, 7, 1), (1, 7, 1, 1), (2, 6, 1, 1)):
        with pytest.raises(ValueError, match="conv2d: dy must be"):
            ops.conv2d_backward(np.zeros(shape, np.float32), saved)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["Conv1d", "Conv2d"])
def test_modules_are_torchs(name: str) -> None:
    """Keys, shapes and results of torch's module; the initial bound is 1/sqrt(fan in)."""
    import torch

    options = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}
    ours, theirs = getattr(nn, name)(4, 6, **options), getattr(torch.nn, name)(4, 6, **options)
    ours.load_state_dict(theirs.state_dict())
    shape = (2, 4, 9) if name == "Conv1d" else (2, 4, 9, 8)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    want = theirs(tensor)
    want.sum().backward()
    y, pullback = ours.vjp(x)
    (dx,) = pullback(np.ones_like(y))
    for got, truth in ((y, want.detach()), (dx, tensor.grad), (ours.weight.grad, theirs.weight.grad)):
        np.testing.assert_allclose(got, truth.numpy(), rtol=1e-4, atol=1e-5)
    bound = 1 / np.sqrt(2 * 3 ** (len(shape) - 2))
    fresh = getattr(nn, name)(4, 6, **options)
    assert 0.5 * bound < np.abs(fresh.weight.data).max() <= bound
    assert np.abs(fresh.bias.data).max() <= bound
