"""The library's random generator: parameter initialisation and dropout seeds come from here.

`manual_seed(seed)` makes both repeatable. Every initialiser also takes `rng=`, a
`numpy.random.Generator`, for code that wants its own stream.
"""

from __future__ import annotations

from operator import index

import numpy as np

# Made on first use: numpy.random is slow to import, and `import seqkern` should not pay for it.
_generator: np.random.Generator | None = None


def manual_seed(seed: int) -> None:
    """Restart the library's generator from `seed`, an integer >= 0."""
    global _generator
    try:
        value = index(seed)
    except TypeError:
        raise TypeError(
            f"manual_seed: seed must be an integer, got {type(seed).__name__}"
        ) from None
    if value < 0:
        raise ValueError(f"manual_seed: seed must be >= 0, got {value}")
    _generator = np.random.default_rng(value)


def default_rng() -> np.random.Generator:
    """The library's generator; seeded from the operating system until `manual_seed` is called."""
    global _generator
    if _generator is None:
        _generator = np.random.default_rng()
    return _generator


def draw_seed() -> int:
    """The next dropout seed, a uniform integer in [0, 2**63)."""
    return int(default_rng().integers(2**63 - 1, endpoint=True))
