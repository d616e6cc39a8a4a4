"""Cases of linear, embedding, softmax and cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._check import PRECISIONS, Case, Cases, label


def _linear(_: str, quick: bool) -> Iterator[Case]:
    shapes = ((1, 1, 1), (5, 7, 17), (0, 3, 4), (33, 65, 100), (64, 256, 96))
    rng = np.random.default_rng(0)
    for m, k, n in shapes[:2] if quick else shapes:
        x, weight = rng.standard_normal((m, k)), rng.uniform(-1, 1, (n, k)) * k**-0.5
        name, longest = f"({m},{k},{n})", max(m, k, n)
        yield Case(name, (x, weight, rng.uniform(-1, 1, n)), longest)
        yield Case(f"{name} bare", (x, weight), longest)
        yield Case(f"{name} 3-d", (x[:, None], weight), longest)
        for activation in ("relu", "silu", "gelu", "gelu_tanh"):
            fused = {"activation": activation, "residual": rng.standard_normal((m, n))}
            yield Case(f"{name} {activation}", (x, weight, rng.uniform(-1, 1, n)), 4 * longest, 1, fused)
        for precision in PRECISIONS:
            options = {"precision": precision}
            yield Case(label((m, k, n), options), (x, weight), longest, 1, options, ("float32",))


def _embedding(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((4, 3), (0,), (7,)):
        ids = rng.integers(0, 11, shape)  # fewer rows than ids: their gradients add up
        for options in ({}, {"padding_idx": 2}):
            yield Case(label(shape, options), (ids, rng.standard_normal((11, 19))), 12, 1, options)


def _softmax(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((3, 1), (5, 17), (2, 3, 65), (0, 4)):
        for dim in (-1, 0):
            if shape[dim] and (dim == -1 or not quick):
                x = 4 * rng.standard_normal(shape)
                yield Case(f"{shape} dim={dim}", (x,), 4 * shape[dim], 1, {"dim": dim})


def _cross_entropy(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((1, 2), (7, 17), (3, 5, 33)):
        logits, target = 4 * rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:-1])
        target.flat[0] = 0 if target.size == 1 else -100  # one target that is ignored
        for reduction in ("mean", "sum", "none"):
            for smoothing in (0.0, 0.1):
                options = {"reduction": reduction, "label_smoothing": smoothing}
                terms = 4 * shape[-1] * max(target.size, 1)
                yield Case(label(shape, options), (logits, target), terms, 1, options)


CASES: dict[str, Cases] = {
    "linear": _linear,
    "embedding": _embedding,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "cross_entropy": _cross_entropy,
}
