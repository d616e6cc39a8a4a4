"""Fixtures of the kernel tests: backend x ISA x dtype, and the one source of tolerances.

`ops` is the functional API on the backend under test: `cpu` once per ISA, `hostcuda`, the CUDA kernels' own text
executed on the host (tests/hostcuda), and `cuda`, the same on a GPU, marked `gpu`. Long sweeps are marked `slow`,
tests that ask torch for a second opinion `torch`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `support`, under every import mode
pytest.register_assert_rewrite("support")

from support import tolerance as tolerances  # noqa: E402 - needs the path above
from support.cases import DTYPES, DTypes  # noqa: E402

# The modules whose kernels have a CUDA twin: their tests run on hostcuda too.
CUDA_TWINS = {
    "rnn", "lstm", "gru", "cells", "softmax", "cross_entropy", "embedding", "layer_norm", "activations", "dropout",
    "rope", "attention", "attention_paged", "attention_shapes", "attention_varlen",
}  # fmt: skip
ORDERS = ("forward", "reverse", "random")
# A thread is a fiber there, and the kernels know one precision: what takes long and shows little that is not shown by
# its shorter neighbours is a long sweep on hostcuda.
HOSTCUDA_SLOW = re.compile(
    r"test_precision\[|test_threads_and_repeats|test_memory_grows|test_streaming\[.*(33-None-None|high|medium)\]"
    r"|test_(forward|backward)\[(?!float32-).*T(3N130|2N3I785|90N9)"
)
# What these instruction sets leave to avx512 (`owns` in types_cpu.h) is tested there.
LEFT_TO_AVX512 = {"avx512_bf16": ("float32", "float64"), "amx": ("float64",)}
DEVICES = ((227 * 1024, 8), (163 * 1024, 1), (6 * 1024, 8))  # bytes of shared memory, blocks of a cluster


def isa_names() -> list[str]:
    """The ISAs to test: all this machine has, or the one SEQKERN_ISA caps the process to."""
    from seqkern import _cpu

    return [_cpu.active_isa()] if os.environ.get("SEQKERN_ISA") else list(_cpu.available_isas())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `case` and `variant` what the test's class lists, and the backends and ISAs there are."""
    for name in ("case", "variant", "torch_variant"):
        values = getattr(metafunc.cls, f"{name}s", None)
        if values is not None and name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=str)
    if "backend" in metafunc.fixturenames:
        pairs: list[Any] = [pytest.param("cpu", isa, id=f"cpu-{isa}") for isa in isa_names()]
        if metafunc.module.__name__.rpartition("test_")[2] in CUDA_TWINS:
            pairs.append(pytest.param("hostcuda", "", id="hostcuda"))
            pairs.append(pytest.param("cuda", "", id="cuda", marks=pytest.mark.gpu))
        metafunc.parametrize(("backend", "isa"), pairs, indirect=True)
    elif "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", isa_names(), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out kernels met on avx512 already and, unless a marker expression names them (`-m slow`), long sweeps."""
    again = [item for item in items if _met_on_avx512(item)] if "avx512" in isa_names() else []
    config.hook.pytest_deselected(items=again)
    kept = set(items).difference(again)
    items[:] = [item for item in items if item in kept]
    for item in items:
        if "hostcuda" in item.name and HOSTCUDA_SLOW.search(item.name):
            item.add_marker("slow")
    if "slow" in config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)


def _met_on_avx512(item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    return getattr(params.get("dtypes"), "name", None) in LEFT_TO_AVX512.get(params.get("isa"), ())


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if "slow" in config.getoption("-m") else "long sweeps: left out, see -m slow"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch, the second oracle, is not installed")
    if item.get_closest_marker("gpu"):
        from seqkern import _gpu

        if reason := _gpu.missing():
            pytest.skip(reason)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each ISA of this machine in turn, switched on in this process and put back afterwards."""
    from seqkern import _cpu

    before = _cpu.active_isa()
    _cpu.set_isa(request.param or before)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(scope="session")
def hostcuda() -> ModuleType:
    """The CUDA kernels executed on the host, built once; skipped where nothing can build them.

    With SEQKERN_HOSTCUDA_SANITIZE=address,undefined under those sanitizers.
    """
    from hostcuda import build

    if build.compiler() is None:
        pytest.skip("hostcuda needs a C++ compiler and pybind11")
    return build.load(build.build(sanitize=os.environ.get("SEQKERN_HOSTCUDA_SANITIZE", "")))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """`cpu`, `cuda`, or `hostcuda` in a thread order, copy mode and device drawn from the test's name."""
    if request.param == "cuda":
        from hostcuda.build import stand_below_ops
        from support.on_gpu import Kernels

        stand_below_ops(Kernels(), request.getfixturevalue("monkeypatch").setattr)
    if request.param == "hostcuda":
        from hostcuda.build import stand_below_ops

        module = request.getfixturevalue("hostcuda")
        stand_below_ops(module, request.getfixturevalue("monkeypatch").setattr)
        draw = zlib.crc32(request.node.name.encode())
        shared, cluster = DEVICES[draw // 6 % 3]
        module.configure(
            order=ORDERS[draw % 3], deferred=bool(draw // 3 % 2), max_shared=shared, max_cluster=cluster
        )
    return str(request.param)


@pytest.fixture
def ops(backend: str, isa: str) -> ModuleType:
    """The functional API, `seqkern`, running on one backend and one ISA."""
    import seqkern

    return seqkern


@pytest.fixture(params=DTYPES, ids=lambda dtypes: dtypes.name)
def dtype(request: pytest.FixtureRequest) -> DTypes:
    """float32, float64, bfloat16 throughout, and float32 with bfloat16 weights."""
    return DTypes._make(request.param)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of its own for every test, the same in every run."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back after a test that changes it."""
    import seqkern

    before = seqkern.get_num_threads()
    yield
    seqkern.set_num_threads(before)


@pytest.fixture(scope="session")
def tolerance() -> ModuleType:
    """The one source of tolerances: all are derived here, none is tuned.

    Every comparison is with the NumPy reference in float64 on the already rounded inputs. u is the
    unit roundoff of the arithmetic (2^-24, or 2^-53 for float64), u_out that of a bfloat16 result
    (2^-8), gamma_K = K·u / (1 - K·u), and p the relative error of one product of the precision
    mode: 0 for highest, 3·2^-18 for high, 2^-8 for medium.

    - One product of K terms: |y - ref| <= (p + gamma_K)·Σ|a||b| + u_out·|y| (`product`).
    - An elementwise function: 4 ulp, that is 8u·|f| (`ulp_error` measures it).
    - A recurrent step: a product of K = I + H + 2 terms per gate; its error times the steepest
      slope of the activation within that error, plus 4 ulp; u for each elementwise operation; u_out
      for a state stored in bfloat16.
    - T steps, and the gradients: the same rules applied along the whole computation
      (`support.running_error`). The error a step inherits is multiplied by |weight_hh| and the
      slopes it really meets, so a contracting network keeps a bound that does not grow with T.
    - Softmax, cross-entropy and the norms likewise (`Softmax`, `CrossEntropy`, `Norm`).
    - To every bound: twice for float64, where the reference rounds just as much, and 64 times the
      smallest normal number for what may underflow.
    """
    return tolerances


@pytest.fixture(autouse=True)
def _torch_is_seeded(request: pytest.FixtureRequest) -> None:
    """torch draws its modules' weights from a generator of its own."""
    if request.node.get_closest_marker("torch"):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
