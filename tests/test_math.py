"""exp, tanh, sigmoid and erf in float32 on every ISA: at most 4 ulp; bfloat16 rounding exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from seqkern import _cpu
from support.running_error import ACTIVATION_ULPS, sigmoid64
from support.tolerance import ulp_error

Array = np.ndarray
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": sigmoid64,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}
EVERY = pytest.mark.parametrize("name", list(FUNCTIONS))


def bits(pattern: Array) -> Array:
    return pattern.astype(np.uint32).view(np.float32)


def check(name: str, x: Array) -> None:
    """No element of `name`(x) is off by more than 4 ulp."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64))
    error = ulp_error(_cpu.math_eval(name, x), exact)
    worst = int(np.argmax(error)) if x.size else 0
    assert x.size == 0 or error[worst] <= ACTIVATION_ULPS, (
        f"{name}({x[worst]!r} = {x.view(np.uint32)[worst]:#010x}): {error[worst]:.3g} ulp"
    )


def exponent_edges() -> Array:
    """Both signs of the first and last 64 numbers, and the middle, of every exponent."""
    offsets = np.concatenate([np.arange(64), np.arange(2**23 - 64, 2**23), [2**22]])
    magnitudes = (np.arange(256)[:, None] * 2**23 + offsets).ravel()
    return bits(np.concatenate([magnitudes, magnitudes + 2**31]))


def sweep(count: int, chunk: int = 2**20) -> Iterator[Array]:
    """`count` patterns spread evenly over all of float32."""
    step = 2**32 // count
    for start in range(0, count, chunk):
        yield bits(np.arange(start, min(start + chunk, count), dtype=np.uint64) * step + 1)


@EVERY
def test_exponent_edges(isa: str, name: str) -> None:
    check(name, exponent_edges())


@EVERY
def test_sample_of_everything(isa: str, name: str) -> None:
    for x in sweep(2**18):
        check(name, x)


@EVERY
def test_where_the_results_change(isa: str, name: str) -> None:
    """Around overflow, underflow, saturation and the multiples of ln 2 / 2."""
    centres = [88.722839, -87.336545, -103.27893, -103.97208, 9.01, 10.0, 17.33, 0.0, 1e-4]
    centres += [k * np.log(2) / 2 for k in range(-300, 258)]
    near = np.array(centres)[:, None] * (1 + np.linspace(-1e-4, 1e-4, 101))
    check(name, np.concatenate([near, -near]).astype(np.float32).ravel())


@EVERY
@pytest.mark.parametrize("size", range(35))
def test_every_length(isa: str, name: str, size: int) -> None:
    check(name, np.linspace(-3, 3, size, dtype=np.float32))


@pytest.mark.slow
@EVERY
def test_sixteen_million_points(isa: str, name: str) -> None:
    for x in sweep(2**24):
        check(name, x)


@pytest.mark.slow
@EVERY
def test_every_number_between_1_and_16(isa: str, name: str) -> None:
    for exponent in range(127, 131):
        for sign in (0, 2**31):
            check(name, bits(np.arange(2**23, dtype=np.uint32) + (exponent * 2**23 + sign)))


@pytest.mark.parametrize(
    "name, x, exact",
    [
        ("exp", [0.0, -0.0, np.inf, -np.inf, 100.0, -200.0], [1, 1, np.inf, 0, np.inf, 0]),
        ("tanh", [0.0, -0.0, np.inf, -np.inf, 20.0, -20.0], [0.0, -0.0, 1, -1, 1, -1]),
        ("sigmoid", [0.0, -0.0, np.inf, -np.inf, 20.0, -200.0], [0.5, 0.5, 1, 0, 1, 0]),
        ("erf", [0.0, -0.0, np.inf, -np.inf, 20.0, -20.0], [0.0, -0.0, 1, -1, 1, -1]),
    ],
)
def test_exact_values(isa: str, name: str, x: list[Any], exact: list[Any]) -> None:
    got = _cpu.math_eval(name, np.array(x, np.float32))
    assert np.array_equal(got, np.array(exact, np.float32))
    assert np.array_equal(np.signbit(got), np.signbit(exact))
    assert np.isnan(_cpu.math_eval(name, np.array([np.nan, -np.nan], np.float32))).all()


@EVERY
def test_every_bfloat16_number(isa: str, name: str) -> None:
    check(name, bits(np.arange(2**16, dtype=np.uint32) << 16))


def test_bfloat16_values_stay_what_they_are(isa: str) -> None:
    """All 65,536 of them (NaN stays NaN)."""
    values = bits(np.arange(2**16, dtype=np.uint32) << 16)
    got = _cpu.math_eval("round_bf16", values)
    assert np.array_equal(np.isnan(got), np.isnan(values))
    real = ~np.isnan(values)
    assert np.array_equal(got.view(np.uint32)[real], values.view(np.uint32)[real])


def test_bfloat16_rounds_to_nearest_even(isa: str) -> None:
    """Just below, at and just above the midpoint after each of the 65,536 values, and the rest."""
    lower = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    low_bits = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x4000, 0xC000], np.uint32)
    values = bits((lower | low_bits).ravel())
    got = _cpu.math_eval("round_bf16", values)
    with np.errstate(over="ignore", invalid="ignore"):
        want = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(values))
    real = ~np.isnan(values)
    assert np.array_equal(got.view(np.uint32)[real], want.view(np.uint32)[real])
