"""A benchmark session on fake contenders: rows, who is left out and why, the progress bar."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from seqkern.__main__ import bench_module
from support.bench import FakeTime

harness, limits, progress, records, report = map(bench_module, ("harness", "limits", "progress", "records", "report"))
rnn, session, targets, tasks = map(bench_module, ("rnn", "session", "targets", "tasks"))


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


def make_session(fake: FakeTime, **options: Any) -> Any:
    chosen = session.Options(families=("rnn",), against=(), threads=2, **options)
    made = session.Session(chosen, records.Writer(None), [])
    made.harness = fake.harness(rounds=chosen.rounds)
    return made


def entry(fake: FakeTime, seconds: float, value: float = 1.0) -> Callable[[], Any]:
    array = np.full(3, value, np.float32)
    return lambda: tasks.Entry(fake.work(seconds), lambda: [array])


def spec(*candidates: Any, **changed: Any) -> Any:
    values = {
        "family": "rnn",
        "group": "small",
        "label": "lstm (25,1,65,100,1)",
        "mode": "fp32",
        "shape": (25, 1, 65, 100, 1),
        "dtype": "float32",
        "threads": 2,
        "width": len(candidates),
        "candidates": lambda: list(candidates),
        "flops": 1000,
    }
    return session.RowSpec(**{**values, **changed})


class TestSession:
    @pytest.fixture(autouse=True)
    def no_probes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "probes", lambda threads, reads: {"fma": lambda: 5e5})

    def test_a_row(self, fake: FakeTime) -> None:
        made = make_session(fake, rounds=3)
        row = spec(
            session.Candidate("ours", entry(fake, 0.01)),
            session.Candidate("torch", entry(fake, 0.03)),
        )
        (result,) = made.run([row], "test")
        assert result.ratios(["torch", "absent"]) == {"torch": pytest.approx(3)}
        assert result.fma_share == pytest.approx(0.2)
        ratios = {r.contender: r.ratio for r in made.writer.records}
        assert ratios == {
            "ours": 1,
            "torch": pytest.approx(3),
            harness.A_A: pytest.approx(1),
        }
        verdict = targets.judge(rnn.score(result, "fp32", ["torch"]))
        text = report.rows_table([result], ["torch"], [verdict])
        assert "3.00x" in text and "yes" in text

    def test_who_cannot_is_noted_and_left_out(self, fake: FakeTime) -> None:
        def refuse() -> Any:
            raise tasks.UnsupportedError("no such thing")

        made = make_session(fake, rounds=1)
        row = spec(session.Candidate("ours", entry(fake, 1)), session.Candidate("b", refuse))
        (result,) = made.run([row, row], "test")[:1]
        assert "b" not in result.measurement.timings
        assert made.notes == ["b skipped in rnn fp32: no such thing"]

    def test_who_computes_something_else_is_noted_and_left_out(self, fake: FakeTime) -> None:
        made = make_session(fake, rounds=1)
        wrong = session.Candidate("b", entry(fake, 1, value=1.5))
        excused = session.Candidate("c", entry(fake, 1, value=1.5), checked=False)
        (result,) = made.run(
            [spec(session.Candidate("ours", entry(fake, 1)), wrong, excused)], "test"
        )
        assert list(result.measurement.timings) == ["ours", "c", harness.A_A]
        assert "computes something else" in made.notes[0]

    @pytest.mark.parametrize(
        ("options", "left"),
        [
            ({}, 1),
            ({"rows": "LSTM (25, 1"}, 1),
            ({"rows": "small"}, 1),
            ({"rows": "gru"}, 0),
            ({"modes": ("fp32", "bf16")}, 1),
            ({"modes": ("train",)}, 0),
        ],
    )
    def test_choosing_rows(self, fake: FakeTime, options: dict[str, Any], left: int) -> None:
        assert len(make_session(fake, **options).wanted([spec()])) == left

    def test_targets_are_for_full_rows_on_two_threads(self) -> None:
        options = session.Options(families=(), against=(), threads=2)
        assert options.judged
        assert not dataclasses.replace(options, quick=True).judged
        assert not dataclasses.replace(options, threads=1).judged


class TestProgress:
    def test_a_line_per_tenth_where_nobody_watches(self) -> None:
        stream = io.StringIO()
        bar = progress.PlainBar(40, "rows", stream)
        for _ in range(40):
            bar.update()
        bar.close()
        lines = stream.getvalue().splitlines()
        assert len(lines) == 10
        assert "40/40" in lines[-1] and "." not in lines[-1].split("]")[0]

    def test_in_place_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        bar = progress.PlainBar(2, "rows", stream)
        bar.update(2)
        bar.close()
        assert stream.getvalue().startswith("\rrows")
        assert stream.getvalue().endswith("\n")

    def test_nothing_to_do(self) -> None:
        with progress.Progress(0, "nothing") as bar:
            bar.update(0)
