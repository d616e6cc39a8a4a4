"""linear with activation and residual, `out`, and linear_int8: against float64 with derived bounds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import _cpu, nn, reference
from support.cases import BF16, BFLOAT16, F32, F64, FLOAT32, TAILS, Array, Arrays, DTypes, generator, random_array
from support.compare import assert_bitwise_equal, assert_matches

ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh")
SHAPES = [  # rows, in_features, out_features: either side of the packed product, and its tails
    *((n, 5, 33) for n in (0, 1, 2, 3, 4, 5, 13)),
    *((3, 9, n) for n in TAILS),
    *((17, 9, n) for n in TAILS),
    (40, 801, 50),  # several slabs of K
    (430, 800, 35),  # several groups of rows
]
SLOPE = {"relu": 1.0, "silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13}  # max |act'|
BEND = {"relu": 0.0, "silu": 0.5, "gelu": 0.8, "gelu_tanh": 0.8}  # max |act''|


def make(rows: int, wide: int, out: int, dtypes: DTypes) -> Arrays:
    rng = generator("fused", rows, wide, out, dtypes.name)
    return {
        "x": random_array(rng, (rows, wide), dtypes.x),
        "weight": random_array(rng, (out, wide), dtypes.weight),
        "bias": random_array(rng, (out,), dtypes.bias),
        "residual": random_array(rng, (rows, out), dtypes.x),
        "dy": random_array(rng, (rows, out), dtypes.x),
    }


def gamma(terms: int, dtypes: DTypes) -> float:
    return terms * dtypes.unit / (1 - terms * dtypes.unit)


def close(actual: Array, want: Array, bound: Array, dtypes: DTypes, what: str) -> None:
    """`bound` and the rounding to a narrower dtype; the reference's own error where both are float64."""
    if actual.dtype == BF16:
        bound = bound + dtypes.storage * (np.abs(want) + bound)
    assert_matches(actual, want, bound * (2 if actual.dtype == F64 else 1) + 1e-36, what)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(ops: ModuleType, shape: tuple[int, ...], activation: str, dtype: DTypes) -> None:
    """|act(z + e) - act(z)| <= SLOPE |e|; an activation is within 8 ulp; the residual rounds once.

    Backward starts from z as it was saved, so dz is off by a few ulp and, in bfloat16, its storage.
    """
    arrays = make(*shape, dtype)
    x, weight, bias, residual, dy = (a.astype(np.float64) for a in arrays.values())
    given = {k: v for k, v in arrays.items() if k != "dy"}
    y, saved = ops.linear_forward(**given, activation=activation)
    assert_bitwise_equal(ops.linear(**given, activation=activation), y, "linear")
    ax, aw = np.abs(x), np.abs(weight)
    z = x @ weight.T + bias
    z_err = gamma(shape[1] + 2, dtype) * (ax @ aw.T + np.abs(bias))
    close(saved.z, z, z_err, dtype, "z")
    act = reference.linear(x, weight, bias, activation=activation)
    few = 8 * 2 * dtype.unit
    bound = (
        SLOPE[activation] * z_err + few * (np.abs(act) + np.abs(z)) + gamma(2, dtype) * (np.abs(act) + np.abs(residual))
    )
    close(y, act + residual, bound, dtype, "y")

    exact = reference.linear_forward(x, weight, bias, activation=activation, residual=residual)[1]
    exact = exact._replace(z=saved.z.astype(np.float64))
    want = reference.linear_backward(dy, exact)
    got = ops.linear_backward(arrays["dy"], saved)
    assert_bitwise_equal(got.dresidual, arrays["dy"], "dresidual")
    ag = (SLOPE[activation] + 1) * np.abs(dy)
    rows, out = shape[0], shape[2]
    relative = few + dtype.storage
    sums = {
        "dx": (ag @ aw, out),
        "dweight": (ag.T @ ax, rows),
        "dbias": (ag.sum(0), rows),
    }
    for name, (size, terms) in sums.items():
        close(getattr(got, name), getattr(want, name), (relative + gamma(terms + 2, dtype)) * size, dtype, name)


@pytest.mark.parametrize("shape", [(2, 7, 9), (6, 7, 40)], ids=str)
def test_out(ops: ModuleType, shape: tuple[int, ...], dtype: DTypes) -> None:
    arrays = make(*shape, dtype)
    del arrays["dy"]
    want = ops.linear(**arrays, activation="relu")
    out = np.empty_like(want)
    assert ops.linear(**arrays, activation="relu", out=out) is out
    assert_bitwise_equal(out, want, "out")
    with pytest.raises(ValueError, match=r"linear: out .*overlap"):
        ops.linear(**arrays, out=arrays["residual"])
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"linear: out .*writable"):
        ops.linear(**arrays, out=out)
    with pytest.raises(ValueError, match="linear: out"):
        ops.linear(**arrays, out=np.empty(shape, want.dtype))


@pytest.mark.parametrize("option", ["tanh", "", 3, b"relu"])
def test_wrong_activation(ops: ModuleType, option: Any) -> None:
    arrays = make(4, 5, 6, FLOAT32)
    del arrays["dy"]
    with pytest.raises(ValueError, match="linear: activation"):
        ops.linear(**arrays, activation=option)


@pytest.mark.parametrize("wrong", [np.zeros((4, 5), np.float32), np.zeros((4, 6)), np.zeros(6, np.float32), 1.0])
def test_wrong_residual(ops: ModuleType, wrong: Any) -> None:
    arrays = make(4, 5, 6, FLOAT32)
    with pytest.raises((ValueError, TypeError), match="linear: residual"):
        ops.linear(arrays["x"], arrays["weight"], residual=wrong)
    arrays["weight"], scale = reference.quantize_int8(arrays["weight"])
    with pytest.raises((ValueError, TypeError), match="linear_int8: residual"):
        ops.linear_int8(arrays["x"], arrays["weight"], scale, residual=wrong)


def test_saved_z_is_checked(ops: ModuleType) -> None:
    arrays = make(4, 5, 6, FLOAT32)
    _, saved = ops.linear_forward(arrays["x"], arrays["weight"], activation="silu")
    for wrong in (None, saved.z[:3], saved.z.astype(np.float64)):
        with pytest.raises((ValueError, TypeError), match=r"linear: z\b"):
            ops.linear_backward(arrays["dy"], saved._replace(z=wrong))


@pytest.mark.parametrize("weight_dtype", [F32, F64, BF16], ids=str)
def test_quantize(ops: ModuleType, weight_dtype: Any) -> None:
    rng = generator("quantize")
    weight = (rng.standard_normal((9, 31)) * 10.0 ** rng.integers(-20, 20, (9, 1))).astype(weight_dtype)
    weight[4] = 0
    q, scale = ops.quantize_int8(weight)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and scale[4] == 0 and not q[4].any()
    error = np.abs(weight.astype(np.float64) - q * scale[:, None].astype(np.float64))
    assert (error <= scale[:, None] * (0.5 + 256 * 2.0**-24)).all()
    for bad in (np.nan, np.inf):
        weight[1, 2] = bad
        with pytest.raises(ValueError, match="quantize_int8: weight must be finite"):
            ops.quantize_int8(weight)
    for wrong in (weight[0], [[1.0]], np.ones((2, 3), np.int32)):
        with pytest.raises((ValueError, TypeError), match="quantize_int8: weight"):
            ops.quantize_int8(wrong)


@pytest.mark.parametrize("dtypes", [FLOAT32, BFLOAT16], ids=lambda d: d.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8(ops: ModuleType, shape: tuple[int, ...], dtypes: DTypes) -> None:
    """A float32 sum of x q, one product by the scale: K + 3 roundings of Σ|x q| scale + |bias|."""
    arrays = make(*shape, dtypes)
    q, scale = ops.quantize_int8(arrays["weight"])
    bias, residual = arrays["bias"].astype(np.float32), arrays["residual"]
    x, wide = arrays["x"].astype(np.float64), q * scale[:, None].astype(np.float64)
    y = ops.linear_int8(arrays["x"], q, scale, bias)
    assert y.dtype == dtypes.x
    size = np.abs(x) @ np.abs(wide).T + np.abs(bias)
    z, z_err = x @ wide.T + bias, gamma(shape[1] + 3, dtypes) * size
    close(y, z, z_err, dtypes, "y")
    y = ops.linear_int8(arrays["x"], q, scale, bias, activation="relu", residual=residual)
    want = np.maximum(z, 0) + residual.astype(np.float64)
    close(y, want, z_err + 2 * dtypes.unit * (np.abs(want) + z_err), dtypes, "fused")
    strided = np.asfortranarray(q)
    assert_bitwise_equal(
        ops.linear_int8(arrays["x"], strided, scale, bias, activation="relu", residual=residual), y, "q"
    )


def test_int8_rejections(ops: ModuleType) -> None:
    x, q, scale = np.ones((4, 5), np.float32), np.ones((6, 5), np.int8), np.ones(6, np.float32)
    for name, value in {
        "x": x.astype(np.float64),
        "q": q.astype(np.int32),
        "scale": scale.astype(np.float64),
        "bias": scale[:5],
    }.items():
        with pytest.raises((TypeError, ValueError), match=rf"linear_int8: {name}\b"):
            ops.linear_int8(**{"x": x, "q": q, "scale": scale, name: value})
    for name, value in {"x": x[:, :4], "q": q[0], "scale": scale[:5]}.items():
        with pytest.raises(ValueError, match=rf"linear_int8: {name}\b"):
            ops.linear_int8(**{"x": x, "q": q, "scale": scale, name: value})
    with pytest.raises(TypeError, match=r"linear_int8: q\b"):
        ops.linear_int8(x, [[1]], scale)


@pytest.mark.parametrize("rows", [1, 3, 70, 500])
def test_threads_do_not_matter(ops: ModuleType, rows: int) -> None:
    """Every grid of threads, with more than one group of rows and chunk of panels: the same bits."""
    arrays = make(rows, 900, 320, FLOAT32)
    q, scale = ops.quantize_int8(arrays["weight"])

    def run() -> tuple[Array, ...]:
        y, saved = ops.linear_forward(*list(arrays.values())[:3], activation="gelu")
        return (y, ops.linear_int8(arrays["x"], q, scale), *ops.linear_backward(arrays["dy"], saved)[:3])

    before = _cpu.get_num_threads()
    want = run()
    try:
        for threads in (1, 2, 3, 6, 7, 16):
            _cpu.set_num_threads(threads)
            assert_bitwise_equal(run(), want, f"{threads} threads")
    finally:
        _cpu.set_num_threads(before)


def test_int8_module(ops: ModuleType) -> None:
    linear = nn.Linear(33, 20, rng=np.random.default_rng(0))
    module = nn.Int8Linear.from_linear(linear)
    x = generator("module").standard_normal((2, 5, 33)).astype(np.float32)
    assert isinstance(linear.bias, nn.Parameter)
    assert_bitwise_equal(module(x), ops.linear_int8(x, module.q.data, module.scale.data, linear.bias.data), "module")
    step = np.abs(x).sum(-1, keepdims=True) * module.scale.data * 0.51
    assert (np.abs(module(x) - linear(x)) <= step).all()
    assert nn.Int8Linear.from_linear(nn.Linear(3, 4, bias=False)).bias is None
    assert repr(module) == "Int8Linear(33, 20, bias=True)"


@pytest.mark.parametrize("module", [nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh")], ids=repr)
def test_modules_fuse_what_they_name(ops: ModuleType, module: Any) -> None:
    linear = nn.Linear(20, 33, rng=np.random.default_rng(0))
    x, r = (generator("fuse", n).standard_normal((7, n)).astype(np.float32) for n in (20, 33))
    want = r + module(linear(x))
    assert_bitwise_equal(linear(x, activation=module.fused, residual=r), want, "call")
    assert_bitwise_equal(linear.vjp(x, activation=module.fused, residual=r)[0], want, "vjp")


def test_quantising_a_tree_of_modules(ops: ModuleType) -> None:
    rng = np.random.default_rng(0)
    linears = [nn.Linear(8, 8, rng=rng) for _ in range(2)]
    tree = nn.quantize_int8_(nn.Sequential(linears[0], nn.ReLU(), nn.Sequential(linears[1])))
    x = rng.standard_normal((3, 8)).astype(np.float32)
    want = x
    for k, linear in enumerate(linears):
        want = nn.Int8Linear.from_linear(linear)(want if k == 0 else np.maximum(want, 0))
    y, pullback = tree.vjp(x)
    assert_bitwise_equal(y, want, "y")
    assert_bitwise_equal(tree(x), want, "call")
    with pytest.raises(TypeError, match="int8 weights have no gradient"):
        pullback(y)
