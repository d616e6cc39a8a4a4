"""Fixtures for the tests of the NumPy reference itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
GradientCheck = Callable[[Callable[[], Any], Mapping[str, tuple[Array, Array]]], None]

STEP = 1e-6
RTOL = 1e-3


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "torch: compares with torch, a second independent oracle")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def _central_difference(loss: Callable[[], Any], argument: Array) -> Array:
    """dloss/dargument, element by element; `argument` is changed in place and restored."""
    gradient = np.zeros_like(argument)
    for index in np.ndindex(argument.shape):
        value = argument[index]
        argument[index] = value + STEP
        above = loss()
        argument[index] = value - STEP
        below = loss()
        argument[index] = value
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


@pytest.fixture
def assert_gradients() -> GradientCheck:
    """Compare gradients with central differences in float64.

    Takes a scalar function of no arguments and, by name, pairs (array that it reads, gradient).
    The absolute tolerance is the rounding noise of the loss divided by the step.
    """

    def check(loss: Callable[[], Any], pairs: Mapping[str, tuple[Array, Array]]) -> None:
        noise = 16 * np.finfo(np.float64).eps * (1 + abs(float(loss()))) / STEP
        for name, (argument, gradient) in pairs.items():
            assert argument.dtype == gradient.dtype == np.float64, name
            assert argument.shape == gradient.shape, name
            expected = _central_difference(loss, argument)
            np.testing.assert_allclose(
                gradient, expected, rtol=RTOL, atol=noise, err_msg=f"gradient of {name}"
            )

    return check
