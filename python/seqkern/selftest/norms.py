"""Cases of the activations and the norms."""

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


CASES = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "silu", "gelu"), _activation),
    **dict.fromkeys(("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"), _norm),
}
