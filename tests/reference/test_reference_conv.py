"""Convolution and max pooling against central differences."""

from __future__ import annotations

from typing import Any

import pytest
from seqkern import reference


@pytest.mark.parametrize(
    "x_shape, weight_shape, options",
    [
        ((2, 3, 7), (4, 3, 3), {"padding": 1}),
        ((2, 4, 8), (6, 2, 2), {"stride": 2, "groups": 2, "dilation": 2}),
        ((1, 2, 5, 6), (3, 2, 3, 2), {"padding": "same"}),
        ((2, 3, 6, 5), (3, 1, 2, 3), {"stride": (2, 1), "padding": (1, 2), "groups": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "bare"])
def test_conv(
    x_shape: Any, weight_shape: Any, options: dict[str, Any], with_bias: bool, rng: Any, assert_gradients: Any
) -> None:
    op = f"conv{len(x_shape) - 2}d"
    x, weight = rng.standard_normal(x_shape), rng.standard_normal(weight_shape)
    bias = rng.standard_normal(weight_shape[0]) if with_bias else None
    y, saved = getattr(reference, f"{op}_forward")(x, weight, bias, **options)
    dy = rng.standard_normal(y.shape)
    gradients = getattr(reference, f"{op}_backward")(dy, saved)
    pairs = {"x": (x, gradients.dx), "weight": (weight, gradients.dweight)}
    if bias is not None:
        pairs["bias"] = (bias, gradients.dbias)
    assert_gradients(lambda: (dy * getattr(reference, op)(x, weight, bias, **options)).sum(), pairs)
    assert not getattr(reference, f"{op}_backward")(None, saved).dx.any()


@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"ceil_mode": True, "dilation": 2}], ids=str)
def test_max_pool2d(options: dict[str, Any], rng: Any, assert_gradients: Any) -> None:
    x = rng.permutation(2 * 2 * 7 * 6).reshape(2, 2, 7, 6) / 10.0  # no two are close
    y, saved = reference.max_pool2d_forward(x, 2, **options)
    dy = rng.standard_normal(y.shape)
    dx = reference.max_pool2d_backward(dy, saved).dx
    assert_gradients(lambda: (dy * reference.max_pool2d(x, 2, **options)).sum(), {"x": (x, dx)})
