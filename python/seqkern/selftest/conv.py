"""Cases of convolution and max pooling."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from ._check import PRECISIONS, Case, Cases, label

# x, weight, options: the few-row, packed, strided, patch, grouped and depthwise paths.
CASES_1D: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 3, 17), (5, 3, 3), {"padding": 1}),
    ((1, 1, 203), (20, 1, 10), {"stride": 5}),
    ((2, 8, 33), (12, 4, 4), {"groups": 2, "padding": "same", "dilation": 2}),
    ((0, 3, 9), (4, 3, 2), {}),
)
CASES_2D: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 3, 9, 21), (7, 3, 3, 3), {"padding": 1}),
    ((1, 4, 11, 13), (9, 4, 3, 2), {"stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)}),
    ((2, 6, 10, 9), (6, 1, 3, 3), {"groups": 6, "padding": 1, "stride": 2}),
    ((2, 3, 33, 16), (24, 3, 16, 16), {"stride": 16}),
    ((2, 20, 7, 7), (18, 20, 1, 1), {}),
)


def _conv(kernel: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    cases = CASES_1D if kernel == "conv1d" else CASES_2D
    for x_shape, weight_shape, options in cases[:2] if quick else cases:
        terms = max(prod(weight_shape[1:]), prod(weight_shape) // weight_shape[1], x_shape[0] * prod(x_shape[2:]))
        x = rng.standard_normal(x_shape)
        weight = rng.uniform(-1, 1, weight_shape) * prod(weight_shape[1:]) ** -0.5
        name = label((*x_shape, *weight_shape), options)
        yield Case(name, (x, weight, rng.uniform(-1, 1, weight_shape[0])), terms, 1, options)
        yield Case(f"{name} bare", (x, weight), terms, 1, options)
    for precision in PRECISIONS:
        given = {"precision": precision}
        yield Case(label(x_shape, given), (x, weight), terms, 1, {**options, **given}, ("float32",))


def _max_pool2d(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    forms: tuple[dict[str, Any], ...] = (
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": 1, "padding": 1, "dilation": (2, 1)},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    )
    for shape in ((1, 1, 5, 5), (2, 3, 9, 38)):
        for options in forms[:1] if quick else forms:
            yield Case(label(shape, options), (rng.standard_normal(shape),), 16, 1, options)


CASES: dict[str, Cases] = {"conv1d": _conv, "conv2d": _conv, "max_pool2d": _max_pool2d}
