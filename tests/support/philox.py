"""Philox4x32-10 in plain integers (Salmon et al., 2011): dropout's documented stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Ten rounds on a counter of four 32-bit words under a key of two."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (second >> 32) ^ b ^ k0, second & MASK, (first >> 32) ^ d ^ k1, first & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return a, b, c, d


def words(size: int, seed: int, offset: int) -> np.ndarray:
    """Element e uses word e % 4 of the block with counter (e // 4, offset) under key `seed`."""
    key = (seed & MASK, seed >> 32)
    blocks = [philox((block & MASK, block >> 32, offset & MASK, offset >> 32), key) for block in range(-(-size // 4))]
    return np.array(blocks, np.uint64).reshape(-1)[:size]
