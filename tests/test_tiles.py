"""Products of bf16 parts (AMX, AVX512-BF16) within the bounds of the modes, for every tail and every value.

They run where the machine has either, those of AMX also in the build of `.ci/amx`, which carries its instructions out
in software (tests/amx/emulator.cpp), checks their use as the hardware does, and counts them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import seqkern
from seqkern import _cpu, reference
from support import tolerance
from support.cases import (
    BFLOAT16,
    BFLOAT16_WEIGHTS,
    DTYPES,
    FLOAT32,
    Array,
    DTypes,
    Recurrent,
    generator,
    make_arrays,
    make_gradients,
    random_array,
)
from support.compare import assert_bitwise_equal, assert_matches
from support.oracle import call, call_backward, call_forward, run
from support.process import run_worker
from support.recurrent_suite import check_backward, check_forward
from test_linear import check, make
from test_threads import check_thread_counts

ISAS = [isa for isa in ("avx512_bf16", "amx") if isa in _cpu.available_isas()]
if not ISAS:
    pytest.skip("no bf16 products; `.ci/amx python -m pytest tests/test_tiles.py` has them", allow_module_level=True)
MODES = ("highest", "high", "medium")
SHORT = [d for d in DTYPES if d.name != "float64"]
each_mode = pytest.mark.parametrize("mode", MODES)
each_dtype = pytest.mark.parametrize("dtypes", SHORT, ids=lambda d: d.name)


@pytest.fixture(autouse=True, params=ISAS)
def tiled(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.active_isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture
def counts() -> Callable[[], tuple[int, int, int]]:
    """Tile products, configurations loaded and configurations given back so far, as the emulator saw them."""
    library = ctypes.CDLL(_cpu.__file__)
    if not hasattr(library, "seqkern_amx_counts"):
        pytest.skip("only the emulator of AMX counts")
    numbers = (ctypes.c_long * 3)()

    def read() -> tuple[int, int, int]:
        library.seqkern_amx_counts(numbers)
        return numbers[0], numbers[1], numbers[2]

    return read


# ---- linear ----

WIDE, DEEP = 70, 300  # columns and terms where the tails of the others are swept
SHAPES = [
    *((rows, 97, 65) for rows in (8, 15, 16, 17, 23, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65)),
    *((65, depth, WIDE) for depth in (31, 32, 33, 34, 47, 62, 63, 64, 65, 66, 95, 96, 97, 128, 255, 256, 257)),
    *((65, 130, out) for out in (15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65)),
    *((rows, 64, 88) for rows in (8, 9, 15, 16, 17, 31, 32, 33, 48, 49)),  # fewer rows than columns, whole chunks
    *((20, 96, out) for out in (24, 25, 31, 32, 33, 40, 63, 64, 65)),
    (50, 900, 40),  # more than one slab
    (300, DEEP, 33),  # more than one group of rows
]


@each_mode
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape: tuple[int, int, int], dtypes: DTypes, mode: str) -> None:
    rows, wide, out = shape
    check(seqkern, tolerance, make((rows,), wide, out, dtypes), dtypes, mode)


@each_mode
@pytest.mark.parametrize("shape", [(50, 900, 40), (70, 97, 33)], ids=str)
def test_linear_with_all_that_follows_the_product(shape: tuple[int, int, int], mode: str) -> None:
    """Activation and residual fused into the product equal the two steps apart, to the bit; int8 weights."""
    arrays = make(shape[:1], *shape[1:], FLOAT32)
    x, weight, bias = arrays["x"], arrays["weight"], arrays["bias"]
    z = seqkern.linear(x, weight, bias, precision=mode)
    assert_bitwise_equal(
        seqkern.linear(x, weight, bias, activation="relu", residual=z, precision=mode), np.maximum(z, 0) + z, "y"
    )
    q, scale = seqkern.quantize_int8(weight)
    y, want = seqkern.linear_int8(x, q, scale), exact(x, q) * scale
    depth = shape[1] + 2
    assert_matches(
        y, want, depth * 2.0**-24 * (np.abs(x).astype(float) @ np.abs(q).astype(float).T) * scale * 1.01, "int8"
    )


PRODUCTS = {
    FLOAT32: {"medium": 2, "high": 3, "highest": 0},  # by FMA
    BFLOAT16: dict.fromkeys(MODES, 1),
    BFLOAT16_WEIGHTS: {"medium": 1, "high": 2, "highest": 3},
}


@each_mode
@each_dtype
def test_which_products_run(dtypes: DTypes, mode: str, counts: Callable[[], tuple[int, int, int]]) -> None:
    """Squares of 2 x 2 tiles, one product each for every pair of parts and 32 terms; every thread tidies up."""
    arrays = make((96,), 320, 64, dtypes)
    before = counts()
    seqkern.linear(arrays["x"], arrays["weight"], precision=mode)
    dots, loaded, released = (now - then for now, then in zip(counts(), before, strict=True))
    assert dots == 6 * 4 * 10 * PRODUCTS[dtypes][mode]
    assert loaded == released
    assert (loaded > 0) == (dots > 0)


@pytest.mark.parametrize("shape", [(7, 64, 64), (64, 31, 64), (64, 64, 15)], ids=str)
def test_small_products_stay_off_the_unit(
    shape: tuple[int, int, int], counts: Callable[[], tuple[int, int, int]]
) -> None:
    rows, wide, out = shape
    arrays = make((rows,), wide, out, FLOAT32)
    before = counts()
    seqkern.linear(arrays["x"], arrays["weight"], precision="medium")
    assert counts() == before


def exact(x: Array, weight: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(np.float64) @ weight.astype(np.float64).T


@each_mode
@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.39e38, -3.4e38, 2.0**40, 1e30])
@pytest.mark.parametrize("where", ["x", "weight"])
def test_values_the_unit_gets_wrong(dtypes: DTypes, mode: str, bad: float, where: str) -> None:
    """They come out as a float32 product has them, and no other row or column changes by a bit."""
    x, weight = (random_array(generator("bad", s), (50, 300), t) for s, t in ((0, dtypes.x), (1, dtypes.weight)))
    array = {"x": x, "weight": weight}[where]
    array[[5, 40], [3, 290]] = bad
    other = {"x": weight, "weight": x}[where]
    other[:, [3, 290]] = np.where(np.arange(50) % 3 == 0, 0, other[:, [3, 290]].T).T  # infinity times 0
    other[:, [3, 290]] *= 2.0**-20  # no overflow
    clean = array.copy()
    clean[[5, 40], [3, 290]] = 0
    want_clean = seqkern.linear(*((clean, weight) if where == "x" else (x, clean)), precision=mode)
    y = seqkern.linear(x, weight, precision=mode)
    touched = np.zeros((50, 50), bool)
    touched[([5, 40], slice(None)) if where == "x" else (slice(None), [5, 40])] = True
    assert_bitwise_equal(np.where(touched, 0, y), np.where(touched, 0, want_clean), "untouched")
    want, size = exact(x, weight), exact(np.abs(x), np.abs(weight))
    with np.errstate(invalid="ignore"):
        bound = tolerance.product(size, 300, dtypes, result=want, out=dtypes.x, precision=mode)
    assert_matches(y, want, np.where(np.isfinite(bound), bound, 0), "y")


@each_mode
@each_dtype
@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-135, 2.0**-126, 2.0**-112, 2.0**-60])
def test_tiny_values(dtypes: DTypes, mode: str, scale: float) -> None:
    """Subnormals count as zero, and so do tiny parts: as much as `tile_product.h` says and no more."""
    x, weight = (random_array(generator("tiny", s), (50, 300), np.float64) for s in (0, 1))
    x[::2] *= scale
    weight[::3] *= scale
    x, weight = x.astype(dtypes.x), weight.astype(dtypes.weight)
    a, b = np.abs(x.astype(np.float64)), np.abs(weight.astype(np.float64))
    lost = 300 * 2.0**-126 * (3 * a.max() + 3 * b.max() + 6)
    want = exact(x, weight)
    bound = tolerance.product(a @ b.T, 300, dtypes, result=want, out=dtypes.x, precision=mode)
    assert_matches(seqkern.linear(x, weight, precision=mode), want, bound + lost, "y")


@each_mode
def test_worst_case_of_high(mode: str) -> None:
    """All roundings of both factors agree: short sums keep the bound, `highest` and `medium` always do."""
    for terms in (64, 255, 256):
        x = np.full((64, terms), 1 + 2.0**-8 + 2.0**-17 - 2.0**-20, np.float32)
        y, want = seqkern.linear(x, x, precision=mode), exact(x, x)
        split = {"highest": 0, "high": 3 * 2.0**-18, "medium": 2.0**-8}[mode]
        if mode == "high" and terms == 256:
            split = 2.0**-15
        assert np.all(np.abs(y - want) <= (split + terms * 2.0**-24) * want)


@each_mode
@pytest.mark.parametrize("shape", [(65, 300, 200), (300, 300, 20)], ids=["by columns", "by rows"])
def test_threads(shape: tuple[int, int, int], mode: str, threads: None) -> None:
    rows, wide, out = shape
    arrays = make((rows,), wide, out, FLOAT32)

    def outcome(count: int) -> tuple[Array, ...]:
        seqkern.set_num_threads(count)
        y, saved = seqkern.linear_forward(arrays["x"], arrays["weight"], arrays["bias"], precision=mode)
        return (y, *seqkern.linear_backward(arrays["dy"], saved))

    want = outcome(1)
    for count in (2, 3, 7):
        assert_bitwise_equal(outcome(count), want, f"{count} threads")


def test_rows_do_not_depend_on_their_number(threads: None) -> None:
    arrays = make((100,), 100, 50, FLOAT32)
    whole = seqkern.linear(arrays["x"], arrays["weight"], precision="high")
    part = seqkern.linear(arrays["x"][:70], arrays["weight"], precision="high")
    assert_bitwise_equal(part, whole[:70], "rows")


@pytest.mark.parametrize("side", ["start", "end"])
def test_guard_pages(side: str, tiled: str) -> None:
    result = run_worker("tiles_worker.py", side, tiled, "products")
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]


# ---- recurrent layers ----

LAYERS = [
    *(Recurrent(op, T=3, N=N, I=33, H=70) for op in ("rnn", "lstm", "gru") for N in (25, 33)),
    Recurrent("rnn", T=3, N=26, I=5, H=64, nonlinearity="relu", reverse=True),
    Recurrent("lstm", T=3, N=70, I=70, H=65, P=66, peephole=True, lengths="ragged"),
    Recurrent("lstm", T=4, N=26, I=33, H=96, reverse=True, lengths="ragged"),
    Recurrent("gru", T=3, N=40, I=33, H=67, reset_after=False),
    Recurrent("gru", T=2, N=26, I=9, H=257),
]
each_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: f"{case.op}-{case}")


@each_mode
@each_dtype
@each_layer
def test_layer(case: Recurrent, dtypes: DTypes, mode: str) -> None:
    check_forward(seqkern, replace(case, precision=mode), dtypes)
    check_backward(seqkern, replace(case, precision=mode), dtypes)


@pytest.mark.parametrize("mode", ["high", "medium"])
@each_layer
def test_layers_run_on_the_unit(case: Recurrent, mode: str, counts: Callable[[], tuple[int, int, int]]) -> None:
    case = replace(case, precision=mode)
    stages = [counts()]
    outputs, saved = call_forward(seqkern, case, make_arrays(case, FLOAT32))
    stages.append(counts())
    call_backward(seqkern, case, {**make_gradients(case, FLOAT32)}, saved)
    stages.append(counts())
    assert stages[0][0] < stages[1][0] < stages[2][0] and outputs
    loaded, released = (stages[2][i] - stages[0][i] for i in (1, 2))
    assert loaded == released


@each_mode
@pytest.mark.parametrize("N", [4, 8, 12, 16, 17, 20, 23, 24])
@each_dtype
def test_layer_of_few_rows(N: int, dtypes: DTypes, mode: str) -> None:
    case = Recurrent("lstm", T=2, N=N, I=20, H=66, precision=mode)
    check_forward(seqkern, case, dtypes)
    check_backward(seqkern, case, dtypes)


@pytest.mark.parametrize("case", [LAYERS[0], LAYERS[3], LAYERS[7], LAYERS[9]], ids=lambda case: f"{case.op}-{case}")
def test_layer_threads(case: Recurrent, threads: None) -> None:
    check_thread_counts(seqkern, replace(case, precision="high", T=2, H=130), FLOAT32)


@each_mode
@each_dtype
@each_layer
def test_layer_in_chunks(case: Recurrent, dtypes: DTypes, mode: str) -> None:
    """Step by step, the state handed on, equals the whole bit for bit."""
    whole_case = replace(case, T=7, lengths=None, reverse=False, precision=mode)
    arrays = make_arrays(whole_case, dtypes)
    whole, steps = call(seqkern, whole_case, arrays), []
    for cut in (slice(0, 1), slice(1, 3), slice(3, 7)):
        part = call(seqkern, whole_case, {**arrays, "x": arrays["x"][cut]})
        steps.append(part["y"])
        arrays |= {f"{name[0]}0": part[name] for name in whole_case.outputs[1:]}
    assert_bitwise_equal(np.concatenate(steps), whole["y"], "y")


@each_mode
@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -3.3e38, 2.0**41])
@pytest.mark.parametrize("where", ["x", "h0", "dy"])
def test_layer_rows_stay_apart(dtypes: DTypes, mode: str, bad: float, where: str) -> None:
    """A bad value in one row: that row as by FMA, and not a bit of the others changes."""
    case = Recurrent("rnn", T=3, N=30, I=33, H=70, nonlinearity="relu", precision=mode)
    arrays, grads = make_arrays(case, dtypes), make_gradients(case, dtypes)
    clean = run(seqkern, case, arrays, grads)
    group = grads if where == "dy" else arrays
    group[where] = group[where].copy()
    group[where][(..., 11, 3) if where == "h0" else (1, 11, 3)] = bad
    y, h_n, dx, dh0, *_ = run(seqkern, case, arrays, grads)
    others = np.delete(np.arange(30), 11)
    for got, want in ((y, clean[0]), (dx, clean[2])):
        assert_bitwise_equal(got[:, others], want[:, others], "other rows")
    assert_bitwise_equal(h_n[others], clean[1][others], "other rows")
    assert_bitwise_equal(dh0[others], clean[3][others], "other rows")
    with np.errstate(all="ignore"):
        wide = {k: v.astype(np.float64) for k, v in arrays.items()}
        want_y = reference.rnn(**wide, nonlinearity="relu")[0]
    limit = np.finfo(np.float32).max
    certain = np.isfinite(want_y) & (np.abs(want_y) < limit / 4) | np.isnan(want_y)
    assert np.array_equal(np.isnan(y[certain].astype(np.float64)), np.isnan(want_y[certain]))


def test_layer_weights_with_an_infinity() -> None:
    """An infinite weight reaches its own unit alone, as infinity and not as NaN."""
    case = Recurrent("rnn", T=2, N=30, I=40, H=70, nonlinearity="relu", precision="high", state=False)
    arrays = make_arrays(case, FLOAT32)
    arrays["x"] = np.abs(arrays["x"])
    arrays["weight_ih"][7, 5] = np.inf
    y, _ = seqkern.rnn(**arrays, nonlinearity="relu", precision="high")
    assert np.isposinf(y[0, :, 7]).all()
    assert np.isfinite(np.delete(y[0], 7, axis=1)).all()
