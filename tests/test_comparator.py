"""The comparator and the bounds themselves: they accept what is right and can fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from seqkern import reference
from support.bounds import recurrent_estimates
from support.cases import BFLOAT16, FLOAT32, FLOAT64, Recurrent, option_cases
from support.compare import assert_bitwise_equal, assert_matches
from support.oracle import as_float64, call_backward, call_forward, expected
from support.tolerance import product, ulp_error

nan, inf = np.nan, np.inf
VARIANTS = [
    Recurrent("rnn"),
    Recurrent("rnn", nonlinearity="relu"),
    Recurrent("lstm", P=4, peephole=True),
    Recurrent("gru"),
    Recurrent("gru", reset_after=False),
]


@pytest.mark.parametrize(
    "actual, reference, bound",
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.5, 2.0], 0.5),
        ([nan, inf, -inf], [nan, inf, -inf], 0.0),
        ([1.0, nan], [1.0, nan], [0.0, nan]),
        ([], [], 0.0),
        ([0.0], [-0.0], 0.0),
    ],
)
def test_accepts(actual: list[Any], reference: list[Any], bound: Any) -> None:
    assert_matches(np.array(actual), np.array(reference), bound)


@pytest.mark.parametrize(
    "actual, reference, bound",
    [
        ([1.0, 2.0], [1.0, 2.5], 0.4),
        ([1.0, 2.0], [1.0, 2.5], [1.0, 0.0]),
        ([nan], [1.0], inf),
        ([nan], [1.0], 1.0),
        ([1.0], [nan], 1.0),
        ([inf], [-inf], 1.0),
        ([inf], [1e300], 1.0),
        ([1.0], [inf], 1.0),
        ([nan], [inf], 1.0),
        ([inf], [nan], 1.0),
        ([1.0], [1.0], nan),
        ([1.0], [1.0], inf),
        ([1.0], [1.0], -1.0),
        ([[1.0]], [1.0], 1.0),
        ([1.0, 1.0], [1.0], 1.0),
    ],
)
def test_rejects(actual: list[Any], reference: list[Any], bound: Any) -> None:
    with pytest.raises(AssertionError):
        assert_matches(np.array(actual), np.array(reference), bound)


def test_message_names_the_worst_element() -> None:
    with pytest.raises(AssertionError, match=r"dx: 2 of 3 .* worst at \[2\]: got .*9"):
        assert_matches(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 1.0]), 0.5, "dx")


@pytest.mark.parametrize(
    "actual, expected_",
    [
        (np.array([0.0]), np.array([-0.0])),
        (np.array([1.0]), np.array([1.0], np.float32)),
        (np.array([1.0]), np.array([[1.0]])),
        ((np.array([1.0]), None), (np.array([1.0]), np.array([1.0]))),
        ((np.array([1.0]),), (np.array([1.0]), None)),
        (np.array([1.0, np.nextafter(1.0, 2)]), np.array([1.0, 1.0])),
    ],
)
def test_bitwise_rejects(actual: object, expected_: object) -> None:
    with pytest.raises(AssertionError):
        assert_bitwise_equal(actual, expected_)


def test_bitwise_accepts() -> None:
    values = (np.array([nan, -0.0, 1.0]), None, (np.zeros((0, 3)),))
    assert_bitwise_equal(values, values)


def test_product_bound_by_hand() -> None:
    """(p + gamma_3)·Σ|a||b|, and 2^-8 of the result for bfloat16."""
    gamma = 3 * 2.0**-24 / (1 - 3 * 2.0**-24)
    size, result = np.array([10.0]), np.array([5.0])
    got = product(size, 3, FLOAT32, result=result)
    assert got == pytest.approx(10 * gamma, rel=1e-12)
    got = product(size, 3, FLOAT32, result=result, precision="high")
    assert got == pytest.approx(10 * (gamma + 3 * 2.0**-18), rel=1e-12)
    got = product(size, 3, FLOAT32, result=result, precision="medium")
    assert got == pytest.approx(10 * (gamma + 2.0**-8), rel=1e-12)
    got = product(size, 3, BFLOAT16, result=result, out=BFLOAT16.x)
    assert got == pytest.approx(10 * gamma + 2.0**-8 * (5 + 10 * gamma), rel=1e-12)


def test_ulp_error() -> None:
    exact = np.array([1.0, 1.0, 2.0**-149, 0.0, 1e39, inf, nan])
    actual = np.array([1.0, 1 + 2.0**-22, 0.0, 0.0, inf, inf, nan], np.float32)
    assert np.array_equal(ulp_error(actual, exact), [0, 2, 1, 0, 0, 0, 0])
    wrong = np.array([nan, inf, -inf, 1.0], np.float32)
    assert np.isinf(ulp_error(wrong, np.array([1.0, 1.0, inf, nan]))).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_bounds_describe_the_reference(variant: Recurrent) -> None:
    """The tape's outputs and its automatic gradients are the reference's: two derivations agree."""
    for case in option_cases(variant):
        want = expected(case, FLOAT64)
        arrays, grads = as_float64(want.arrays), as_float64(want.grad_outputs)
        outputs, gradients = recurrent_estimates(case, FLOAT64, arrays, grads)
        for name, (value, _) in outputs.items():
            assert_matches(want.outputs[name], value, 1e-12 * (1 + np.abs(value)), f"{case} {name}")
        for name, (value, _) in gradients.items():
            scale = 1 + np.abs(value).max(initial=0)
            assert_matches(np.asarray(want.gradients[name]), value, 1e-12 * scale, f"{case} {name}")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_bounds_hold_and_are_tight(variant: Recurrent) -> None:
    """The float32 reference meets the bounds; a relative error of 2^-12 in one input does not."""
    case = replace(variant, T=2, H=9)
    want = expected(case, FLOAT32)
    outputs, saved = call_forward(reference, case, want.arrays)
    gradients = call_backward(reference, case, {**want.grad_outputs}, saved)
    for name in case.outputs:
        assert_matches(outputs[name], want.outputs[name], want.output_bounds[name], name)
    for name, bound in want.gradient_bounds.items():
        assert_matches(np.asarray(gradients[name]), np.asarray(want.gradients[name]), bound, name)
    for name in ("x", "weight_ih", "weight_hh", "h0"):
        nudged = {**want.arrays, name: want.arrays[name] * np.float32(1 + 2.0**-12)}
        off, _ = call_forward(reference, case, nudged)
        with pytest.raises(AssertionError):
            assert_matches(off["y"], want.outputs["y"], want.output_bounds["y"], name)
