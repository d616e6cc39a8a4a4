"""Starting values of parameters: torch's distributions, drawn from a NumPy generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _random
from ._arrays import LINE, aligned_copy
from .module import Parameter, is_floating


class Initializer:
    """Draws parameters of one dtype from one generator.

    rng: a numpy.random.Generator; None means the library's own (`seqkern.manual_seed`).
    dtype: a floating dtype, e.g. numpy.float32, numpy.float64 or ml_dtypes.bfloat16.
    """

    def __init__(self, rng: np.random.Generator | None, dtype: Any) -> None:
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
        self.dtype = np.dtype(dtype)
        if not is_floating(self.dtype):
            raise ValueError(f"dtype must be floating point, got {self.dtype}")
        self.rng = _random.default_rng() if rng is None else rng

    def uniform(self, bound: float, *shape: int) -> Parameter:
        """U(-bound, bound)."""
        values = self.rng.uniform(-bound, bound, shape).astype(self.dtype)
        return Parameter(values if values.ctypes.data % LINE == 0 else aligned_copy(values))

    def normal(self, *shape: int) -> Parameter:
        """N(0, 1)."""
        return Parameter(self.rng.standard_normal(shape).astype(self.dtype))

    def constant(self, value: float, *shape: int) -> Parameter:
        """`value` everywhere."""
        return Parameter(np.full(shape, value, self.dtype))


def check_size(value: Any, name: str, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`; TypeError or ValueError names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_probability(p: Any, name: str) -> float:
    """`p` as a float in [0, 1]."""
    if isinstance(p, bool) or not isinstance(p, int | float | np.floating | np.integer):
        raise TypeError(f"{name} must be a number, got {type(p).__name__}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {p}")
    return float(p)


def check_choice(value: Any, name: str, choices: tuple[Any, ...]) -> Any:
    """`value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


PRECISIONS = (None, "highest", "high", "medium")
