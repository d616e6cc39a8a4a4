"""Products on AMX with every array next to an unmapped page; see test_amx. Usage: amx_worker.py end|start"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import seqkern
from seqkern import _cpu
from support.calls import LAYERS, recurrent_calls
from support.cases import BFLOAT16, BFLOAT16_WEIGHTS, FLOAT32
from support.guard import GuardedAllocator
from test_linear import make


def main(side: str) -> None:
    GuardedAllocator(end=side == "end").install()
    _cpu.set_isa("amx")
    for dtypes in (FLOAT32, BFLOAT16, BFLOAT16_WEIGHTS):
        for mode in ("highest", "high", "medium"):
            for shape in ((48, 64, 32), (49, 65, 33), (63, 95, 47), (65, 97, 17)):
                rows, wide, out = shape
                arrays = make((rows,), wide, out, dtypes)
                _, saved = seqkern.linear_forward(arrays["x"], arrays["weight"], arrays["bias"], precision=mode)
                seqkern.linear_backward(arrays["dy"], saved)
            for case in LAYERS:
                sized = replace(case, T=2, N=25, I=33, H=67, P=case.P and 65, precision=mode)
                for call in recurrent_calls(sized, dtypes):
                    call.invoke(seqkern, dict(call.arrays()))
    print("done", flush=True)
    os._exit(0)  # see guard_worker


if __name__ == "__main__":
    main(sys.argv[1])
