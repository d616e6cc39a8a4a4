"""Memory of large results: kept when they are freed, given out again, and never to two arrays at once."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import seqkern
from seqkern import _cpu
from test_memory import resident_bytes

MEBI = 2**18  # float32 elements


def address(a: np.ndarray) -> int:
    return int(a.__array_interface__["data"][0])


def test_comes_back() -> None:
    """A freed result's memory serves the next one of about its size; a smaller or larger one has its own."""
    x = np.ones(3 * MEBI, np.float32)
    place = address(seqkern.relu(x))
    assert address(seqkern.relu(x)) == place
    assert address(seqkern.relu(x[:-7])) == place
    held = seqkern.relu(x[: 2 * MEBI]), seqkern.relu(np.ones(4 * MEBI, np.float32))
    assert place not in {address(a) for a in held}
    assert address(seqkern.relu(x)) == place


def test_never_shared() -> None:
    """While results live, all their memory is apart, aligned, and holds what was computed."""
    x = np.arange(2 * MEBI, dtype=np.float32)
    kept = [seqkern.relu(x + i) for i in range(8)]
    del kept[::2]
    kept += [seqkern.relu(x - 1 + i * 3) for i in range(8)]
    starts = sorted(address(a) for a in kept)
    assert all(b - a >= x.nbytes for a, b in pairwise(starts))
    assert all(a % 64 == 0 for a in starts)
    for i, a in zip((1, 3, 5, 7), kept[:4], strict=True):
        np.testing.assert_array_equal(a, x + i)
    for i, a in enumerate(kept[4:]):
        np.testing.assert_array_equal(a, np.maximum(x - 1 + i * 3, 0))


def test_an_ordinary_array() -> None:
    """It owns its memory: it can be grown and shrunk in place, and what NumPy makes of it is NumPy's."""
    x = np.arange(MEBI, dtype=np.float32)
    y = seqkern.relu(x)
    assert y.base is None and y.flags.owndata and y.flags.writeable
    other = seqkern.relu(x + 5)
    y.resize(3 * MEBI, refcheck=False)
    np.testing.assert_array_equal(y[:MEBI], x)
    assert not y[MEBI:].any()
    y.resize(10, refcheck=False)
    np.testing.assert_array_equal(y, x[:10])
    np.testing.assert_array_equal(other, x + 5)


def test_too_much() -> None:
    """No memory for a result is a MemoryError, and the next call is right."""
    column = np.ones((2**24, 1), np.float32)
    with pytest.raises(MemoryError):
        seqkern.linear(column, column)
    np.testing.assert_array_equal(seqkern.relu(column), column)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_kept_bytes_are_bounded() -> None:
    """Of 768 MiB of freed results at most 512 are kept, and those that nobody wants go in the end."""
    small, x = np.ones(MEBI, np.float32), np.ones(16 * MEBI, np.float32)

    def outlast() -> None:
        for _ in range(1100):
            seqkern.relu(small)

    def bytes_in_use() -> int:
        _cpu.give_back_memory()
        return resident_bytes()

    outlast()
    before = bytes_in_use()
    held = [seqkern.relu(x) for _ in range(48)]
    assert bytes_in_use() - before > 700 * 2**20
    held.clear()
    assert bytes_in_use() - before < 560 * 2**20
    outlast()
    assert bytes_in_use() - before < 64 * 2**20  # what malloc keeps


def test_threads() -> None:
    """Results made and freed by several Python threads at once are right."""
    wrong = []

    def work(seed: int) -> None:
        for i in range(40):
            x = np.full(MEBI + 1000 * (i % 3), seed * 100 + i, np.float32)
            y = seqkern.relu(x)
            if not np.array_equal(x, y):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_converted_model_takes_what_its_weights_take() -> None:
    """bfloat16 weights half of float32's, int8 ones a quarter: what lay between them goes back to the system."""
    np.ones(2**22)  # from its end on malloc keeps small blocks such as these
    for convert, share in ((lambda m: m.to("bfloat16"), 0.5), (seqkern.nn.quantize_int8_, 0.25)):
        before = resident_bytes()
        layers = seqkern.nn.ModuleList(seqkern.nn.Linear(512, 512) for _ in range(128))
        whole = resident_bytes() - before
        convert(layers)
        assert resident_bytes() - before < (share + 0.15) * whole
