"""`python -m seqkern info | selftest | bench`: help, exit statuses, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import selftest
from seqkern.__main__ import bench_module, main


def exit_status(*arguments: str) -> int:
    """The status a shell would see."""
    try:
        return main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)


class TestHelp:
    def test_as_a_command(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "seqkern", "--help"], capture_output=True, text=True, check=True
        )
        for command in ("info", "selftest", "bench"):
            assert command in done.stdout
        assert "python -m seqkern bench --quick" in done.stdout

    @pytest.mark.parametrize("command", ["info", "selftest", "bench"])
    def test_of_each_command(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_status(command, "--help") == 0
        assert f"python -m seqkern {command}" in capsys.readouterr().out

    def test_bench_lists_families_peers_and_modes(self, capsys: pytest.CaptureFixture[str]) -> None:
        exit_status("bench", "--help")
        text = capsys.readouterr().out
        for word in ("rnn", "ragged", "onnxruntime", "bf16w", "--threads", "--plot", "A/A"):
            assert word in text

    def test_no_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_status() == 2
        assert "COMMAND" in capsys.readouterr().err

    def test_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_status("benhc") == 2
        assert "invalid choice: 'benhc'" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("info") == 0
    text = capsys.readouterr().out
    for word in (seqkern.__version__, np.__version__, "isa", "threads", "cuda", "torch:"):
        assert word in text


def public_kernels() -> set[str]:
    """Everything with a forward and backward, and the in-place updates."""
    names = set(seqkern.ops.__all__)
    kernels = {name.removesuffix("_forward") for name in names if name.endswith("_forward")}
    return kernels | {name for name in names if name.endswith("_update")}


class TestSelftest:
    def test_registry_covers_all_public_kernels(self) -> None:
        assert set(selftest.REGISTRY) == public_kernels()

    def test_all_kernels_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_status("selftest", "--quick") == 0
        captured = capsys.readouterr()
        assert "all ok" in captured.out
        for kernel in selftest.REGISTRY:
            assert f"\n{kernel} " in captured.out
        assert "selftest" in captured.err  # the progress bar

    def test_one_kernel(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_status("selftest", "--quick", "--only", "embedding") == 0
        assert "softmax" not in capsys.readouterr().out

    def test_no_such_kernel(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_status("selftest", "--only", "nonsense") == 2
        assert "no kernel's name contains 'nonsense'" in capsys.readouterr().out

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "bf16w"])
    def test_swapped_gates_are_found(self, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
        right = seqkern.lstm_forward

        def swapped(x: Any, weight_ih: Any, *rest: Any, **options: Any) -> Any:
            return right(x, np.roll(weight_ih, weight_ih.shape[0] // 4, axis=0), *rest, **options)

        monkeypatch.setattr(seqkern, "lstm_forward", swapped)
        case = next(iter(selftest.REGISTRY["lstm"]("lstm", True)))
        assert not selftest.check("lstm", case, dtype).ok

    @pytest.mark.parametrize("factor", [1 + 1e-4, float("nan")])
    def test_a_wrong_gradient_fails(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float
    ) -> None:
        right = seqkern.linear_backward

        def wrong(dy: Any, saved: Any) -> Any:
            gradients = right(dy, saved)
            return gradients._replace(dx=gradients.dx * factor)

        monkeypatch.setattr(seqkern, "linear_backward", wrong)
        assert exit_status("selftest", "--quick", "--only", "linear") == 1
        assert "FAILED linear (5,7,17) float32: dx is off by" in capsys.readouterr().out

    def test_a_raising_kernel_fails_and_the_others_are_still_checked(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*arguments: Any, **options: Any) -> Any:
            raise ValueError("softmax: out of order")

        monkeypatch.setattr(seqkern, "softmax_forward", broken)
        assert exit_status("selftest", "--quick", "--only", "softmax") == 1
        text = capsys.readouterr().out
        assert "ValueError: softmax: out of order" in text
        assert "\nlog_softmax     float32" in text

    def test_a_missing_gradient_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = seqkern.linear_backward
        monkeypatch.setattr(
            seqkern, "linear_backward", lambda dy, saved: right(dy, saved)._replace(dbias=None)
        )
        case = next(iter(selftest.REGISTRY["linear"]("linear", True)))
        assert "None" in selftest.check("linear", case, "float32").problem


class TestBenchUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nonsense"], "unknown family 'nonsense'; there are rnn"),
            (["rnn", "--against", "tensorflow"], "unknown peer 'tensorflow'; there are torch"),
            (["rnn", "--modes", "fp8"], "unknown mode 'fp8'"),
            (["rnn", "--threads", "none"], "--threads must be a number from 1 or 'all'"),
            (["rnn", "--threads", "0"], "--threads must be a number from 1 or 'all'"),
            (["rnn", "--rounds", "-1"], "--rounds must be at least 1"),
            (["rnn", "--against", "none", "--rows", "nonsense"], "no row matches"),
            (["--compare", "absent.json", "absent.json"], "absent.json"),
            (["rnn", "--against", "none", "--json", "absent/out.json"], "absent/out.json"),
        ],
    )
    def test_refused(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert exit_status("bench", *arguments) == 2
        assert message in capsys.readouterr().err

    def test_plot_without_matplotlib(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert exit_status("bench", "rnn", "--plot", "out.png") == 2
        assert "--plot needs matplotlib" in capsys.readouterr().err

    def test_a_missing_peer_is_reported_and_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        peers = bench_module("peers")
        monkeypatch.setattr(peers, "find_spec", lambda name: None)
        loaded, skipped = peers.load(["torch", "openvino"], 2)
        assert loaded == []
        assert skipped == {
            "torch": "not installed: torch",
            "openvino": "not installed: openvino, onnx",
        }

    def test_threads(self) -> None:
        cli = bench_module("cli")
        chosen = [
            cli.options_from(cli.build_parser().parse_args(["rnn", "--threads", text])).threads
            for text in ("1", "7", "all")
        ]
        assert chosen[:2] == [1, 7]
        assert chosen[2] >= 1


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """A plan that takes no time; the figures mean nothing."""
    plan = bench_module("harness").Plan(rounds=1, pause=0, warm_up=0, burst=0, min_calls=1)
    monkeypatch.setattr(bench_module("session").Options, "plan", lambda self: plan)
    monkeypatch.setattr(bench_module("limits"), "PROBE_SECONDS", 1e-4)


@pytest.mark.usefixtures("short_turns")
class TestBench:
    def test_rnn_without_any_peer_installed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "out.json"
        command = ["bench", "rnn", "--quick", "--against", "numpy", "--rows", "rnn (25,1"]
        assert exit_status(*command, "--rounds", "1", "--json", str(path)) == 0
        captured = capsys.readouterr()
        assert "forward + backward" in captured.out
        assert "rnn (25,1,65,100,1)" in captured.out
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert {(line["mode"], line["contender"]) for line in found} == {
            (mode, name) for mode in ("fp32", "train") for name in ("ours", "numpy", "A/A")
        }
        assert all(line["median_s"] > 0 and line["ratio"] > 0 for line in found)
        assert all(line["fma_peak"] > 0 for line in found)

    def test_quick_checks_the_kernels_first(self, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["bench", "--quick", "--against", "none", "--rows", "rnn (25,1"]
        assert exit_status(*command, "--modes", "fp32") == 0
        text = capsys.readouterr().out
        assert text.index("all ok") < text.index("forward, float32")

    def test_quick_stops_when_a_kernel_is_wrong(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(selftest, "main", lambda **options: 1)
        assert exit_status("bench", "--quick", "--against", "none") == 1
        assert "forward" not in capsys.readouterr().out

    @pytest.mark.parametrize("mode", ["high", "bf16w", "bf16"])
    def test_other_modes(self, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["bench", "rnn", "--against", "none", "--rows", "rnn (1,1", "--modes", mode]
        assert exit_status(*command) == 0
        assert "rnn (1,1,512,512,1)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("family", "row"),
        [
            ("cells", "gru_cell (1,128,128)"),
            ("linear", "linear (197,768,768)"),
            ("norms", "layer_norm (4096,768)"),
            ("threads", "rnn (25,1,65,100,1)"),
            ("ragged", "rnn (200,16,256,256,2 bi)"),
        ],
    )
    def test_other_families(
        self, family: str, row: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["bench", family, "--against", "none", "--rows", row, "--threads", "2"]
        assert exit_status(*command) == 0
        assert row in capsys.readouterr().out

    def test_compare_a_run_with_itself(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "out.json"
        command = ["bench", "cells", "--against", "none", "--json", str(path)]
        assert exit_status(*command) == 0
        assert exit_status("bench", "--compare", str(path), str(path)) == 0
        assert "0 slower, of 3 rows" in capsys.readouterr().out
