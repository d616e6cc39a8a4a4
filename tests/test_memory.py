"""Memory: no byte beyond any array is touched, and a failed allocation is only a MemoryError."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import seqkern
from seqkern import _cpu
from support.calls import LAYERS, Call, all_calls, arrays_of, recurrent_calls
from support.cases import BFLOAT16, Recurrent
from support.compare import assert_bitwise_equal
from support.process import run_worker

SIDES = pytest.mark.parametrize("side", ["start", "end"])


@SIDES
def test_guard_pages(isa: str, side: str) -> None:
    """Every function, every dtype, arrays that end flush against (or start right after) a page."""
    result = run_worker("guard_worker.py", isa, side)
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]


@SIDES
def test_guard_pages_catch_one_element(side: str) -> None:
    result = run_worker("guard_worker.py", _cpu.active_isa(), side, "plant")
    assert result.returncode == -signal.SIGSEGV, (result.returncode, result.stderr[-2000:])


@pytest.fixture
def allocations() -> Iterator[None]:
    yield
    _cpu.fail_allocation(0)


CALLS = [*all_calls(), *(c for case in LAYERS for c in recurrent_calls(case, BFLOAT16))]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_failing_allocation(call: Call, allocations: None) -> None:
    """The nth allocation fails, n = 1 … 50: MemoryError, and the next call is right."""
    strided = {k: np.stack([v, v], -1)[..., 0] for k, v in call.arrays().items()}
    want = arrays_of(call.invoke(seqkern, dict(strided)))
    failures = []
    for nth in range(1, 51):
        _cpu.fail_allocation(nth)
        try:
            got = call.invoke(seqkern, dict(strided))
        except MemoryError:
            failures.append(nth)
            _cpu.fail_allocation(0)
            got = call.invoke(seqkern, dict(strided))
        assert_bitwise_equal(tuple(arrays_of(got)), tuple(want), f"after failure {nth}")
    assert failures, "no allocation of this function was made to fail"
    assert failures == list(range(1, len(failures) + 1))


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("case", LAYERS[:4:2], ids=lambda case: case.op)
def test_failing_allocations_do_not_leak(case: Recurrent, allocations: None) -> None:
    """Two thousand failed calls of about 1 MB each leave the process no larger."""
    forward, backward = recurrent_calls(replace(case, T=16, N=32, H=128), BFLOAT16)
    for call in (forward, backward):
        arrays = call.arrays()
        call.invoke(seqkern, dict(arrays))
        before = resident_bytes()
        for nth in range(2000):
            _cpu.fail_allocation(1 + nth % 8)
            try:
                call.invoke(seqkern, dict(arrays))
            except MemoryError:
                continue
        _cpu.fail_allocation(0)
        assert resident_bytes() - before < 200 * 2**20
