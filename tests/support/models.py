"""Models as the tests want them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from seqkern.nn.module import Module

M = TypeVar("M", bound=Module)


def perturbed(model: M, rng: np.random.Generator) -> M:
    """Biases and norms away from 0 and 1, where a wrong formula could hide."""
    for p in model.parameters():
        if len(p.shape) == 1:
            p.data[...] += 0.2 * rng.standard_normal(p.shape)
    return model
