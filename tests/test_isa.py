"""Choosing the instruction set: detection, the SEQKERN_ISA cap, and that results agree."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest
import seqkern
from seqkern import _cpu
from support.cases import FLOAT32, Recurrent
from support.compare import assert_matches
from support.oracle import call, expected
from support.process import run_python


def test_available_isas() -> None:
    names = _cpu.available_isas()
    assert names and len(set(names)) == len(names)
    assert _cpu.active_isa() in names
    assert set(names) <= {"scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon"}


@pytest.mark.parametrize("name", _cpu.available_isas())
def test_environment_caps_the_isa(name: str) -> None:
    code = "from seqkern import _cpu; print(_cpu.active_isa())"
    assert run_python(code, SEQKERN_ISA=name) == name


@pytest.mark.parametrize("name", ["sse", "AVX2", "avx2 "])
def test_unknown_isa_in_the_environment_is_refused(name: str) -> None:
    """At the first call, with the names that would do; importing is still fine."""
    code = (
        "import numpy as np, seqkern\n"
        "try: seqkern.softmax(np.zeros((1, 2)))\n"
        "except ValueError as error: print(error)\n"
    )
    shown = run_python(code, SEQKERN_ISA=name)
    assert shown.startswith("SEQKERN_ISA must be one of ") and shown.endswith(f", got '{name}'")


def test_empty_isa_in_the_environment_is_none() -> None:
    code = "from seqkern import _cpu; print(_cpu.active_isa())"
    assert run_python(code, SEQKERN_ISA="") == _cpu.available_isas()[-1]


def test_isa_beyond_the_machine_caps_at_its_best() -> None:
    """A known name that this machine or build lacks is a cap like any other."""
    best = {"x86_64": "amx", "AMD64": "amx", "aarch64": "neon", "arm64": "neon"}.get(platform.machine(), "scalar")
    code = "from seqkern import _cpu; print(_cpu.active_isa())"
    assert run_python(code, SEQKERN_ISA=best) == _cpu.available_isas()[-1]


@pytest.mark.skipif("SEQKERN_ISA" in os.environ, reason="SEQKERN_ISA caps the ISA of this run")
def test_best_isa_is_the_default() -> None:
    code = "from seqkern import _cpu; print(_cpu.active_isa())"
    assert run_python(code) == _cpu.available_isas()[-1]


@pytest.mark.parametrize("name", ["", "sse", "AVX2", "avx2 "])
def test_unknown_isa_is_refused(name: str) -> None:
    before = _cpu.active_isa()
    with pytest.raises(ValueError, match="isa must be one of"):
        _cpu.set_isa(name)
    assert _cpu.active_isa() == before


def test_show_config_names_isa_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    seqkern.show_config()
    shown = capsys.readouterr().out
    assert _cpu.active_isa() in shown
    assert str(seqkern.get_num_threads()) in shown


@pytest.mark.parametrize("op", ["rnn", "lstm", "gru"])
def test_isas_agree(op: str) -> None:
    """Two instruction sets differ by no more than the sum of their errors."""
    case = Recurrent(op, T=7, N=5, I=33, H=37)
    want = expected(case, FLOAT32)
    before, results = _cpu.active_isa(), {}
    try:
        for name in _cpu.available_isas():
            _cpu.set_isa(name)
            results[name] = call(seqkern, case, want.arrays)["y"]
    finally:
        _cpu.set_isa(before)
    first, *rest = results.values()
    for y in rest:
        assert_matches(y, first.astype(np.float64), 2 * want.output_bounds["y"], op)
