"""Products of bf16 parts with every array next to an unmapped page; see test_tiles. end|start ISA products|attention"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import seqkern
from seqkern import _cpu
from support.calls import LAYERS, recurrent_calls
from support.cases import BFLOAT16, BFLOAT16_WEIGHTS, FLOAT32, random_array
from support.guard import GuardedAllocator
from test_linear import make


def attention() -> None:
    rng = np.random.default_rng(0)
    for dtypes in (FLOAT32, BFLOAT16):
        for mode in ("highest", "high", "medium"):
            for rows, keys, dim, value_dim in ((48, 64, 64, 16), (49, 65, 65, 33), (95, 161, 97, 40)):
                sizes = ((4, rows, dim), (2, keys, dim), (2, keys, value_dim))
                query, key, value = (random_array(rng, (1, *size), dtypes.x) for size in sizes)
                for causal in (False, True):
                    seqkern.scaled_dot_product_attention(
                        query, key, value, is_causal=causal, enable_gqa=True, precision=mode
                    )


def main(side: str, isa: str, what: str) -> None:
    GuardedAllocator(end=side == "end").install()
    _cpu.set_isa(isa)
    if what == "attention":
        attention()
    else:
        products()
    print("done", flush=True)
    os._exit(0)  # see guard_worker


def products() -> None:
    for dtypes in (FLOAT32, BFLOAT16, BFLOAT16_WEIGHTS):
        for mode in ("highest", "high", "medium"):
            for shape in ((48, 64, 32), (49, 65, 33), (63, 95, 47), (65, 97, 17), (20, 64, 36), (20, 96, 40)):
                rows, wide, out = shape
                arrays = make((rows,), wide, out, dtypes)
                _, saved = seqkern.linear_forward(arrays["x"], arrays["weight"], arrays["bias"], precision=mode)
                seqkern.linear_backward(arrays["dy"], saved)
            for case in LAYERS:
                sized = replace(case, T=2, N=25, I=33, H=67, P=case.P and 65, precision=mode)
                for call in recurrent_calls(sized, dtypes):
                    call.invoke(seqkern, dict(call.arrays()))


if __name__ == "__main__":
    main(*sys.argv[1:])
