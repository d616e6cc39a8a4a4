"""The host's emulation of the PTX wrappers against what a GPU recorded of them (tests/conformance/*.json).

`bench/gpu.sh` makes a record. Sums inside a matrix instruction may be rounded as the hardware likes: they are compared
within one unit in the last place of the terms; everything else bit by bit.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hostcuda import build

HERE = Path(__file__).parent
RECORDS = sorted((HERE / "conformance").glob("*.json"))


@pytest.fixture(scope="module")
def hostcuda_record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the emulation does."""
    if build.compiler() is None:
        pytest.skip("hostcuda needs a C++ compiler and pybind11")
    program = tmp_path_factory.mktemp("conformance") / "record"
    sources = [HERE / "hostcuda/runtime.cpp", HERE / "hostcuda/wgmma.cpp", "-x", "c++", HERE / "conformance/record.cu"]
    build._run([*build._command(), *build.FLAGS, *build._includes(), *map(str, sources), "-o", str(program)])
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return {name: np.array(words, np.uint32) for name, words in json.loads(done.stdout).items()}


def test_hostcuda_keeps_a_record(hostcuda_record: dict[str, np.ndarray]) -> None:
    """The program itself: a warp matrix product against NumPy, and what the blocks of a cluster told each other."""
    words = hostcuda_record["matrices f16"]
    a, b, d = (words[i * 128 : i * 128 + 128].reshape(4, 32) for i in range(3))
    lane, A, B, want = np.arange(32), np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    for i in range(4):
        pair = np.ascontiguousarray(a[i]).view(np.float16).reshape(32, 2).astype(np.float64)
        for j in range(2):
            A[lane // 4 + i % 2 * 8, lane % 4 * 2 + j + i // 2 * 8] = pair[:, j]
    for i in range(2):
        pair = np.ascontiguousarray(b[i]).view(np.float16).reshape(32, 2).astype(np.float64)
        for j in range(2):
            B[lane % 4 * 2 + j + i * 8, lane // 4] = pair[:, j]
    start = (0.5, -0.25, lane, 1)
    for i in range(4):
        want[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = start[i]
    want += A @ B
    got = np.ascontiguousarray(d).view(np.float32)
    for i in range(4):
        np.testing.assert_allclose(got[i], want[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(
        hostcuda_record["clusters"][:12].reshape(4, 3), [[103, 203, 4], [100, 200, 4], [101, 201, 4], [102, 202, 4]]
    )


@pytest.mark.skipif(not RECORDS, reason="no GPU has recorded the wrappers yet")
@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_hostcuda_agrees_with_the_record(hostcuda_record: dict[str, np.ndarray], file: Path) -> None:
    for name, words in json.loads(file.read_text()).items():
        want, got = np.array(words, np.uint32), hostcuda_record[name]
        if name == "powers":
            np.testing.assert_allclose(got.view(np.float32), want.view(np.float32), rtol=2**-22, atol=2.0**-126)
            continue
        if name.startswith("matrices"):
            sums, want_sums = got[256:384].view(np.float32), want[256:384].view(np.float32)
            np.testing.assert_allclose(sums, want_sums, rtol=0, atol=16 * 16 * 2.0**-23, err_msg=name)
            got, want = np.delete(got, np.s_[256:384]), np.delete(want, np.s_[256:384])
        np.testing.assert_array_equal(got, want, err_msg=name)
