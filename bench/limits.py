"""What the machine can do at most, measured in the same rounds as the rows themselves.

The two probes are compiled code (`seqkern._cpu`): the rate of fused multiply-adds held in
registers, and the rate at which each thread streams its share of a buffer of a given size. With
the second, "how long would merely reading these weights take, from where they lie" has an answer
for every footprint: L2, L3 or memory.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .shapes import Read

FMA = "fma"
PROBE_SECONDS = 0.02


def probes(threads: int, reads: Sequence[Read] = ()) -> dict[str, Callable[[], float]]:
    """Probes by name, for `Harness.measure`; empty where the compiled module has none."""
    module = _compiled()
    found: dict[str, Callable[[], float]] = {}
    if hasattr(module, "probe_fma"):
        found[FMA] = functools.partial(module.probe_fma, PROBE_SECONDS, threads)
    if hasattr(module, "probe_read"):
        for read in reads:
            found[read_name(read)] = functools.partial(
                module.probe_read, read.footprint, PROBE_SECONDS, threads
            )
    return found


def read_name(read: Read) -> str:
    """The probe's name for this footprint."""
    return f"read {read.footprint}"


def read_seconds(reads: Sequence[Read], rates: Mapping[str, float]) -> float | None:
    """Time of merely reading, from measured bytes per second; None when one was not measured."""
    names = {read_name(read) for read in reads}
    if not names or not names <= rates.keys():
        return None
    return sum(read.total / rates[read_name(read)] for read in reads)


def _compiled() -> Any:
    try:
        return importlib.import_module("seqkern._cpu")
    except ImportError:
        return None
