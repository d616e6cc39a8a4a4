"""What the benchmark writes down and makes of it: records, comparisons, targets, tables, pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from seqkern.__main__ import bench_module
from support.bench import record

compare, plot, records, report, targets = map(bench_module, ("compare", "plot", "records", "report", "targets"))


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
