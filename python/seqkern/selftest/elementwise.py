"""Cases of dropout and the optimisers' updates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._check import DTYPES, Case, Cases, label


def _dropout(_: str, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for shape in ((1,), (5, 17), (3, 1001)):
        for p in (0.0, 0.3, 1.0):
            options = {"seed": 2**40 + 7, "offset": 3}
            yield Case(f"{shape} p={p}", (rng.standard_normal(shape), p), 1, 1, options)


def _update_cases(settings: list[dict[str, Any]], states: int) -> Cases:
    """Cases of an optimiser's update: parameter, gradient, and so many state arrays (>= 0)."""

    def cases(_: str, quick: bool) -> Iterator[Case]:
        rng = np.random.default_rng(0)
        for size in (1, 37) if quick else (0, 1, 37, 1003):
            for options in settings:
                wanted = states if options.get("momentum", 1) else 0
                state = [np.abs(rng.standard_normal(size)) for _ in range(wanted)]
                arguments = (*rng.standard_normal((2, size)), *state, *[None] * (states - wanted))
                yield Case(
                    label((size,), options), arguments, 8, 1, options, DTYPES[:2], in_place=True
                )

    return cases


_SGD = [
    {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]
_ADAMW = {"step": 3, "lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}

CASES: dict[str, Cases] = {
    "dropout": _dropout,
    "sgd_update": _update_cases(_SGD, 1),
    "adagrad_update": _update_cases([{"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.01}], 1),
    "adamw_update": _update_cases([_ADAMW], 2),
}
