"""Attention against pages with every array next to an unmapped page; see test_attention_paged.

usage: paged_worker.py ISA|MODULE end|start, MODULE as for guard_worker.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import seqkern
from hostcuda import build
from seqkern import _cpu
from support.cases import BFLOAT16, FLOAT32, FLOAT64, random_array
from support.guard import GuardedAllocator

SIZES = [(1, 3, 17, 5), (1, 16, 64, 64), (3, 1, 33, 1), (35, 7, 9, 31), (20, 16, 1, 8)]


def main(isa: str, side: str) -> None:
    """The last page of the pool is in use, to its last row; sizes with tails."""
    GuardedAllocator(end=side == "end").install()
    if isa.endswith(".so"):
        build.stand_below_ops(build.load(Path(isa)))
    else:
        _cpu.set_isa(isa)
    rng = np.random.default_rng(0)
    for dtypes in (FLOAT32, FLOAT64, BFLOAT16):
        for rows, size, dim, value_dim in SIZES:
            query = random_array(rng, (2, 4, rows, dim), dtypes.x)
            key, value = (random_array(rng, (9, size, 2, n), dtypes.x) for n in (dim, value_dim))
            table, lengths = np.array([[8, 0, 7, 4], [1, 2, 8, 9]], np.int32), np.array([4 * size, 3 * size])
            extra = random_array(rng, (2, 4), dtypes.cell)
            for causal in (None, "bottom_right"):
                seqkern.attention_paged(
                    query, key, value, table, lengths, causal=causal, sinks=extra[0], alibi_slopes=extra,
                    return_lse=True)  # fmt: skip
    print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
