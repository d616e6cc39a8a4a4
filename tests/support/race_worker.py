"""Runs kernels of a _hostcuda that was built with ThreadSanitizer, which ends the process at the first race.

usage: race_worker.py MODULE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import seqkern
from hostcuda import build
from support.cases import BFLOAT16, FLOAT32, Recurrent, make_arrays, make_gradients
from support.oracle import run


def attention(dtype: np.dtype, queries: int) -> None:
    rng = np.random.default_rng(0)
    shapes = ((1, 2, queries, 72), (1, 1, 150, 72), (1, 1, 150, 72))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    out, saved = seqkern.scaled_dot_product_attention_forward(*arrays, enable_gqa=True, causal="bottom_right")
    seqkern.scaled_dot_product_attention_backward(out, saved)


def main(path: Path) -> None:
    module = build.load(path)
    build.stand_below_ops(module)
    for order in ("forward", "random"):
        module.configure(order=order, max_cluster=4)
        for case in (Recurrent("rnn", N=9, H=33), Recurrent("rnn", H=33, I=20, lengths="ragged")):
            for dtypes in (FLOAT32, BFLOAT16):
                run(seqkern, case, make_arrays(case, dtypes), make_gradients(case, dtypes))
        x = np.random.default_rng(0).standard_normal((3, 1500)).astype(np.float32)
        y, saved = seqkern.softmax_forward(x)
        seqkern.softmax_backward(y, saved)
        for queries in (40, 2):
            attention(FLOAT32.x, queries)
            attention(BFLOAT16.x, queries)
    print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
