"""Cases of the activations, the norms and the rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._check import Case, label

_SIZES = ((1,), (7,), (5, 33), (0, 4))


def _activation(kernel: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in _SIZES[1:2] if quick else _SIZES:
        for options in ({}, {"approximate": "tanh"}) if kernel == "gelu" else ({},):
            yield Case(label(shape, options), (4 * rng.standard_normal(shape),), 16, 1, options)


def _norm(kernel: str, quick: bool) -> Iterator[Case]:
    """x, the residual of the fused forms, the shape, weight and, for layer norm, bias."""
    rng = np.random.default_rng(0)
    for lead, shape in (((3,), (5,)), ((2, 3), (33,)), ((9,), (4, 6)), ((0,), (3,)))[: 1 if quick else 4]:
        given = (1 + rng.standard_normal((2, *lead, *shape)))[: 2 if kernel.startswith("add") else 1]
        parameters = rng.standard_normal((2, *shape))[: 2 if "layer" in kernel else 1]
        # a row's own mean and variance enter each of its elements: sums of sums
        terms = 8 * max(int(np.prod(shape)), int(np.prod(lead)))
        options = {"eps": 1e-5}
        yield Case(f"{lead}+{shape}", (*given, shape, *parameters), terms, 1, options)
        yield Case(f"{lead}+{shape} bare", (*given, shape), terms, 1, options)


def _batch_norm(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((5, 3), (4, 17), (3, 2, 33), (2, 3, 4, 5))[: 2 if quick else 4]:
        channels = shape[1]
        statistics = (rng.standard_normal(channels), 1 + rng.uniform(0, 1, channels))
        parameters = tuple(rng.standard_normal((2, channels)))
        x, terms = 1 + rng.standard_normal(shape), 8 * int(np.prod(shape))
        yield Case(f"{shape}", (x, *statistics, *parameters), terms)
        yield Case(f"{shape} training", (x, None, None, *parameters, True), terms)
        yield Case(f"{shape} bare", (x, None, None, None, None, True), terms)


def _rope(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((3, 4), (2, 5, 18), (2, 3, 4, 32))[: 2 if quick else 3]:
        x, positions = rng.standard_normal(shape), rng.integers(0, 1000, shape[-2])
        for options in ({}, {"interleaved": True}, {"rotary_dim": 2, "base": 500.0}):
            yield Case(label(shape, options), (x,), 4, 1, options)
            yield Case(label(shape, options) + " at", (x, positions), 4, 1, options)


CASES = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "silu", "gelu"), _activation),
    "batch_norm": _batch_norm,
    "rope": _rope,
    **dict.fromkeys(("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"), _norm),
}
