"""Things that could kill the process, run apart from the tests; see test_threads.

usage: concurrency_worker.py fork|mutate
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import seqkern
from support.calls import LAYERS, arrays_of, plain_calls, recurrent_calls
from support.cases import FLOAT32, Recurrent, generator, make_arrays
from support.compare import assert_bitwise_equal
from support.oracle import call

LIMIT_S = 10.0
INDEXED = ("embedding", "cross_entropy", "linear", "rope")
BIG = Recurrent("lstm", T=20, N=16, I=128, H=128)


def fork() -> None:
    """After the pool has worked, a forked child computes, and so does the parent after it."""
    seqkern.set_num_threads(4)
    arrays = make_arrays(BIG, FLOAT32)
    want = tuple(call(seqkern, BIG, arrays).values())
    for _ in range(5):
        child = os.fork()
        if child == 0:
            got = tuple(call(seqkern, BIG, arrays).values())
            os._exit(0 if all(map(np.array_equal, got, want)) else 1)
        deadline = time.monotonic() + LIMIT_S
        while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                raise SystemExit("the child did not return in time")
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(status[1]) == 0, "the child computed something else"
        assert_bitwise_equal(tuple(call(seqkern, BIG, arrays).values()), want, "parent")


def mutate() -> None:
    """Another thread scribbles over every input while calls run: any result, but no crash.

    Indices jump between good and far out of range, so a kernel that reads them twice would leave
    its arrays.
    """
    calls = [c for case in LAYERS for c in recurrent_calls(case, FLOAT32)]
    calls += [c for op in INDEXED for c in plain_calls(op, FLOAT32)]
    targets = [array for c in calls for array in c.arrays().values()]
    stop = threading.Event()

    def scribble() -> None:
        rng = generator("scribble")
        while not stop.is_set():
            for array in targets:
                if array.dtype.kind in "iu":
                    array[...] = rng.choice([0, 1, 2**40, -(2**40)])
                    array[...] = 0
                else:
                    array.view(np.uint32)[...] = rng.integers(2**32, dtype=np.uint32)

    thread = threading.Thread(target=scribble)
    thread.start()
    finished = 0
    deadline = time.monotonic() + 5
    with np.errstate(all="ignore"):
        while time.monotonic() < deadline:
            for c in calls:
                try:
                    finished += len(arrays_of(c.invoke(seqkern, dict(c.arrays()))))
                except ValueError:
                    continue
    stop.set()
    thread.join()
    assert finished, "every call was refused"


if __name__ == "__main__":
    {"fork": fork, "mutate": mutate}[sys.argv[1]]()
    print("done")
