"""The benchmark's arithmetic, on fake contenders and a fake clock: nothing here depends on time."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqkern.__main__ import bench_module

cli, compare, harness, limits, peers, plot, progress = map(
    bench_module, ("cli", "compare", "harness", "limits", "peers", "plot", "progress")
)
records, report, rnn, session, shapes, targets, tasks = map(
    bench_module, ("records", "report", "rnn", "session", "shapes", "targets", "tasks")
)


class FakeTime:
    """A clock that only moves when a fake contender works or somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call

    def harness(self, **plan: Any) -> Any:
        return harness.Harness(harness.Plan(**plan), self.clock, self.sleep)


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


class TestHarness:
    def test_medians_and_ratios_are_exact(self, fake: FakeTime) -> None:
        ours = harness.Contender("ours", fake.work(0.001))
        theirs = harness.Contender("theirs", fake.work(0.0025))
        measured = fake.harness(rounds=3).measure([ours, theirs])
        assert measured.base.name == "ours"
        assert measured.base.median == pytest.approx(0.001)
        assert measured.ratio("theirs") == pytest.approx(2.5)
        assert measured.ratio(harness.A_A) == pytest.approx(1)
        assert measured.base.spread == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("seconds", [1e-7, 3e-5, 0.02, 0.2, 4.0])
    def test_any_speed_is_measured(self, fake: FakeTime, seconds: float) -> None:
        measured = fake.harness(rounds=2).measure([harness.Contender("a", fake.work(seconds))])
        assert measured.base.median == pytest.approx(seconds)

    def test_every_turn_starts_with_a_pause(self, fake: FakeTime) -> None:
        contenders = [harness.Contender(name, fake.work(0.01)) for name in "abc"]
        run = fake.harness(rounds=5, pause=0.06)
        turns = 0

        def on_turn() -> None:
            nonlocal turns
            turns += 1

        run.measure(contenders, on_turn=on_turn)
        assert turns == run.turns(len(contenders)) == len(fake.sleeps) == 20
        assert min(fake.sleeps) >= 0.06

    def test_entering_is_not_timed_but_happens_before_each_turn(self, fake: FakeTime) -> None:
        entered = []

        def enter() -> None:
            entered.append(fake.now)
            fake.now += 5

        contender = harness.Contender("a", fake.work(0.001), enter)
        measured = fake.harness(rounds=3).measure([contender])
        assert len(entered) == 6  # three rounds, A/A included
        assert measured.base.median == pytest.approx(0.001)

    def test_one_bad_turn_does_not_move_the_median(self, fake: FakeTime) -> None:
        turn = 0

        def enter() -> None:
            nonlocal turn
            turn += 1

        def call() -> None:
            fake.now += 1.0 if turn == 3 else 0.1

        measured = fake.harness(rounds=5).measure([harness.Contender("a", call, enter)])
        assert measured.base.median == pytest.approx(0.1)

    def test_spread_is_the_interquartile_range_over_the_median(self) -> None:
        assert harness.Timing("a", (1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)
        assert harness.Timing("a", (1.0,)).spread == 0

    def test_order_rotates_and_turns_around(self) -> None:
        entries = [harness.Contender(name, print) for name in "abcd"]
        orders = [
            "".join(entry.name for entry in harness.turn_order(entries, number))
            for number in range(5)
        ]
        assert orders == ["abcd", "adcb", "cdab", "cbad", "abcd"]

    def test_probes_are_asked_once_per_round(self, fake: FakeTime) -> None:
        rates = iter([3.0, 1.0, 2.0])
        contender = harness.Contender("a", fake.work(0.01))
        measured = fake.harness(rounds=3).measure([contender], {"fma": lambda: next(rates)})
        assert measured.rates == {"fma": 2.0}
        assert next(rates, None) is None

    @pytest.mark.parametrize("names", ["", "aa"])
    def test_names_must_be_distinct(self, fake: FakeTime, names: str) -> None:
        contenders = [harness.Contender(name, fake.work(1)) for name in names]
        with pytest.raises(ValueError, match="distinct names"):
            fake.harness().measure(contenders)

    def test_a_failing_contender_leaves_the_garbage_collector_on(self, fake: FakeTime) -> None:
        def fail() -> None:
            assert not gc.isenabled()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fake.harness().measure([harness.Contender("a", fail)])
        assert gc.isenabled()

    @pytest.mark.parametrize(
        ("estimate", "expected"), [(0.01, (1, 5)), (0.04, (1, 3)), (0.05, (1, 1)), (9.0, (1, 1))]
    )
    def test_burst_of_long_calls(self, estimate: float, expected: tuple[int, int]) -> None:
        assert harness.burst_shape(estimate, harness.Plan()) == expected

    @pytest.mark.parametrize("estimate", [0.0, 1e-9, 1e-6, 7e-6])
    def test_burst_of_short_calls(self, estimate: float) -> None:
        calls, samples = harness.burst_shape(estimate, harness.Plan())
        seconds = max(estimate, 1e-9) * calls
        assert harness.SAMPLE_SECONDS <= seconds < 1.5 * harness.SAMPLE_SECONDS
        assert seconds * samples == pytest.approx(0.05, rel=0.01)


class TestShapes:
    def test_every_kind_has_the_eight_rows(self) -> None:
        for kind in shapes.KINDS:
            rows = [row for row in shapes.RECURRENT_ROWS if row.kind == kind]
            assert [row.group for row in rows].count("small") == 2
            assert [row.group for row in rows].count("streaming") == 3
            assert [row.group for row in rows].count("batched") == 3

    def test_labels_are_distinct(self) -> None:
        labels = [row.label for row in shapes.RECURRENT_ROWS]
        assert len(set(labels)) == len(labels) == 24

    def test_flops(self) -> None:
        row = shapes.RecurrentRow("lstm", 100, 32, 512, 512, 1, False, "batched")
        assert row.flops() == 2 * 100 * 32 * 4 * 512 * (512 + 512)
        assert row.flops(train=True) == 3 * row.flops()

    def test_flops_of_stacked_bidirectional_layers(self) -> None:
        row = shapes.RecurrentRow("gru", 200, 16, 256, 256, 2, True, "batched")
        first, second = 3 * 256 * (256 + 256), 3 * 256 * (512 + 256)
        assert row.flops() == 2 * 200 * 16 * 2 * (first + second)

    def test_reads_of_a_sequence(self) -> None:
        row = shapes.RecurrentRow("rnn", 100, 1, 32, 16, 1, False, "streaming")
        assert row.reads(4) == [
            shapes.Read(4 * (16 * 32 + 16 * 16), 4 * 16 * 32),
            shapes.Read(4 * 16 * 16, 100 * 4 * 16 * 16),
        ]

    def test_reads_of_one_step(self) -> None:
        row = shapes.RecurrentRow("lstm", 1, 1, 512, 512, 1, False, "streaming")
        assert row.reads(2) == [shapes.Read(2 * 4 * 512 * 1024, 2 * 4 * 512 * 1024)]

    def test_time_of_reading(self) -> None:
        reads = [shapes.Read(100, 1000), shapes.Read(10, 50)]
        rates = {limits.read_name(reads[0]): 10.0, limits.read_name(reads[1]): 5.0}
        assert limits.read_seconds(reads, rates) == pytest.approx(110)
        assert limits.read_seconds(reads, {}) is None
        assert limits.read_seconds([], rates) is None


def tiny_row(kind: str, bidirectional: bool = False) -> Any:
    return shapes.RecurrentRow(kind, 4, 3, 5, 6, 2, bidirectional, "small")


class TestAgreement:
    def test_rounding_agrees_and_a_swapped_gate_does_not(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.standard_normal((4, 8)).astype(np.float32)
        assert tasks.disagreement([y], [y * np.float32(1 + 1e-6)], "float32") is None
        assert "differs" in tasks.disagreement([y], [np.roll(y, 2, axis=1)], "bfloat16")

    def test_nan_and_shapes_do_not_agree(self) -> None:
        y = np.ones((2, 3), np.float32)
        assert "differs" in tasks.disagreement([y], [y * np.nan], "float32")
        assert "shape" in tasks.disagreement([y], [y.T], "float32")

    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
    @pytest.mark.parametrize(
        "peer", [pytest.param("torch", marks=pytest.mark.torch), "onnxruntime", "openvino", "numpy"]
    )
    def test_peers_compute_what_we_compute(self, peer: str, kind: str, bidirectional: bool) -> None:
        if peers.missing(peer):
            pytest.skip(f"not installed: {', '.join(peers.missing(peer))}")
        (loaded,), skipped = peers.load([peer], threads=1)
        assert not skipped
        task = tasks.recurrent_task(tiny_row(kind, bidirectional))
        mine = bench_module("ours").recurrent_forward(task).results()
        theirs = loaded.entry("recurrent_forward", task).results()
        assert tasks.disagreement(mine, theirs, "float32") is None

    @pytest.mark.torch
    @pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
    def test_torch_trains_what_we_train(self, kind: str) -> None:
        (torch,), _ = peers.load(["torch"], threads=1)
        task = tasks.recurrent_task(tiny_row(kind))
        mine = bench_module("ours").recurrent_train(task).results()
        theirs = torch.entry("recurrent_train", task).results()
        assert tasks.disagreement(mine, theirs, "float32") is None

    @pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
    def test_a_cell_by_hand_computes_our_cell(self, kind: str) -> None:
        (numpy,), _ = peers.load(["numpy"], threads=1)
        job = bench_module("cells").cell_inputs(kind)
        ours = bench_module("ours")
        mine = ours.cell_function(kind, *job).results()
        for entry in (ours.cell(kind, *job), numpy.entry("cell", kind, *job)):
            assert tasks.disagreement(mine, entry.results(), "float32") is None

    def test_ragged_and_padded_agree_on_full_rows(self) -> None:
        task = tasks.recurrent_task(tiny_row("gru", bidirectional=True))
        ours = bench_module("ours")
        padded = ours.ragged(task, None).results()
        full = ours.ragged(task, np.full(3, 4)).results()
        assert tasks.disagreement(padded, full, "float32") is None

    def test_a_peer_without_a_job_says_so(self) -> None:
        (numpy,), _ = peers.load(["numpy"], threads=1)
        with pytest.raises(tasks.UnsupportedError, match="packed sequences"):
            numpy.entry("ragged")

    def test_onnx_gate_order(self) -> None:
        pytest.importorskip("onnx")
        model = bench_module("peers.onnx_model")
        assert model.reorder_gates(np.arange(8), "lstm").tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
        assert model.reorder_gates(np.arange(3), "gru").tolist() == [1, 0, 2]


def record(contender: str = "ours", **changed: Any) -> Any:
    values: dict[str, Any] = {
        "commit": "abc",
        "version": "0",
        "cpu": "a cpu",
        "isa": "avx2",
        "threads": 2,
        "family": "rnn",
        "group": "small",
        "row": "lstm (1,1,1,1,1)",
        "shape": [1, 1, 1, 1, 1],
        "dtype": "float32",
        "mode": "fp32",
        "contender": contender,
        "contender_version": None,
        "rounds": 3,
        "median_s": 1.0,
        "spread": 0.0,
        "ratio": 1.0,
        "flops": 16,
        "fma_peak": None,
        "read_s": None,
    }
    return records.Record(**{**values, **changed})


class TestRecords:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "out.json"
        written = [record(), record("torch", ratio=2.0)]
        writer = records.Writer(path)
        writer.write(written)
        writer.close()
        assert records.read(path) == writer.records == written

    def test_a_line_is_one_json_object_with_every_field(self, tmp_path: Path) -> None:
        path = tmp_path / "out.json"
        writer = records.Writer(path)
        writer.write([record()])
        writer.close()
        (line,) = path.read_text().splitlines()
        required = {"commit", "cpu", "isa", "threads", "shape", "dtype", "mode", "contender"}
        required |= {"median_s", "spread", "ratio"}
        names = {field.name for field in dataclasses.fields(records.Record)}
        assert json.loads(line).keys() == names > required

    def test_without_a_path_nothing_is_written(self) -> None:
        writer = records.Writer(None)
        writer.write([record()])
        writer.close()
        assert writer.records == [record()]

    @pytest.mark.parametrize("line", ["nonsense", "[1]", '{"commit": "abc"}'])
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "bad.json"
        path.write_text(f"{json.dumps(dataclasses.asdict(record()))}\n{line}\n")
        with pytest.raises(ValueError, match="line 2: not a benchmark record"):
            records.read(path)


class TestCompare:
    def change(self, ours: tuple[float, float], torch: tuple[float, float] | None) -> Any:
        pairs = {"ours": ours} | ({"torch": torch} if torch else {})
        old = [record(name, median_s=times[0]) for name, times in pairs.items()]
        new = [record(name, median_s=times[1]) for name, times in pairs.items()]
        (change,) = compare.changes(old, new)
        return change

    def test_a_slower_machine_is_no_change(self) -> None:
        change = self.change((1.0, 2.0), (3.0, 6.0))
        assert change.factor == pytest.approx(1)
        assert change.word(0.05) == ""

    def test_faster_and_slower(self) -> None:
        assert self.change((1.0, 0.8), (1.0, 1.0)).word(0.05) == "faster"
        assert self.change((1.0, 1.2), (1.0, 1.0)).word(0.05) == "SLOWER"

    def test_without_peers_the_drift_is_unknown(self) -> None:
        change = self.change((1.0, 2.0), None)
        assert change.drift is None
        assert change.factor == pytest.approx(2)

    def test_a_wide_spread_excuses(self) -> None:
        old, new = [record(spread=0.5)], [record(median_s=1.2)]
        assert compare.changes(old, new)[0].word(0.05) == ""

    def test_rows_in_one_file_only_are_passed_over(self) -> None:
        assert compare.changes([record()], [record(row="another")]) == []


class TestTargets:
    @pytest.mark.parametrize(
        ("score", "met"),
        [
            ({"mode": "fp32", "group": "small", "best_peer": 1.3}, True),
            ({"mode": "fp32", "group": "small", "best_peer": 1.2}, False),
            ({"mode": "fp32", "group": "small"}, None),
            ({"mode": "fp32", "group": "streaming", "best_peer": 2, "read_share": 0.8}, True),
            ({"mode": "fp32", "group": "streaming", "best_peer": 2, "read_share": 0.7}, False),
            ({"mode": "fp32", "group": "streaming", "best_peer": 0.9, "read_share": 1}, False),
            ({"mode": "fp32", "group": "streaming", "read_share": 1}, None),
            ({"mode": "fp32", "group": "batched", "best_peer": 1, "fma_share": 0.8}, True),
            ({"mode": "fp32", "group": "batched", "best_peer": 1.3, "fma_share": 0.5}, True),
            ({"mode": "fp32", "group": "batched", "best_peer": 1, "fma_share": 0.5}, False),
            ({"mode": "high", "group": "batched", "best_peer": 1.8}, True),
            ({"mode": "bf16w", "group": "streaming", "own_fp32": 1.5}, False),
            ({"mode": "bf16", "group": "small", "best_peer": 1.0}, True),
            ({"mode": "train", "group": "small", "torch": 7}, True),
            ({"mode": "train", "group": "small", "kind": "gru", "torch": 7}, False),
            ({"mode": "train", "group": "batched", "torch": 1.5}, True),
            ({"mode": "train", "group": "batched", "torch": 1.5, "bidirectional": True}, False),
        ],
    )
    def test_verdicts(self, score: dict[str, Any], met: bool | None) -> None:
        assert targets.judge(targets.Score(**{"kind": "lstm", **score})).met is met

    def test_high_has_no_target_on_small_rows(self) -> None:
        assert targets.judge(targets.Score("lstm", "small", "high")).target == ""

    def test_best_peer_is_a_framework(self) -> None:
        assert targets.best_peer({"torch": 3.0, "openvino": 2.0, "numpy": 1.0}) == 2.0
        assert targets.best_peer({"numpy": 1.0}) is None

    def test_geometric_mean(self) -> None:
        assert targets.geometric_mean([1.0, 4.0]) == pytest.approx(2)
        assert targets.geometric_mean([]) is None


class TestReport:
    def test_columns_align(self) -> None:
        text = report.table(["name", "ms"], [["a", "1.00"], ["longer", "23"]])
        assert text.splitlines() == ["name      ms", "------  ----", "a       1.00", "longer    23"]

    @pytest.mark.parametrize(
        ("seconds", "text"), [(37.1e-6, "0.0371"), (3.52e-3, "3.52"), (0.182, "182"), (2.5, "2500")]
    )
    def test_milliseconds(self, seconds: float, text: str) -> None:
        assert report.milliseconds(seconds) == text

    def test_empty_columns_go(self) -> None:
        assert report.drop_empty(["a", "b"], [["1", ""], ["2", ""]]) == (["a"], [["1"], ["2"]])


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


class TestPlot:
    def test_draws_a_picture(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        drawn = [record(), record("torch", ratio=2.5), record("numpy", ratio=0.4, mode="train")]
        plot.draw(drawn, tmp_path / "out.png")
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

    def test_nothing_to_draw(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        with pytest.raises(plot.PlotError, match="nothing to draw"):
            plot.draw([record()], tmp_path / "out.png")

    def test_an_unknown_format(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        with pytest.raises(plot.PlotError, match="cannot write"):
            plot.draw([record("torch", ratio=2.0)], tmp_path / "out.nonsense")


def test_every_family_can_be_run() -> None:
    for family in cli.FAMILIES.values():
        if family.module is not None:
            assert callable(bench_module(family.module.removeprefix(".")).run)
