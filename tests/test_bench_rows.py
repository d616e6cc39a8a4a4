"""The benchmark's rows: their sizes and counts, and that every contender computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqkern.__main__ import bench_module

cli, limits, peers, shapes, tasks = map(bench_module, ("cli", "limits", "peers", "shapes", "tasks"))
NORMS = dict.fromkeys(row.op for row in shapes.NORM_ROWS)


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

    def test_reads_of_a_norm(self) -> None:
        row = shapes.NormRow("layer_norm", 3, 5)
        assert row.read() == shapes.Read(120, 120)
        assert row.read(train=True) == shapes.Read(240, 300)

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

    @pytest.mark.torch
    @pytest.mark.parametrize(
        "op, job",
        [*((op, "norm_forward") for op in NORMS), *((op, "norm_train") for op in ("layer_norm", "gelu", "softmax"))],
    )
    def test_torch_normalises_what_we_normalise(self, op: str, job: str) -> None:
        (torch,), _ = peers.load(["torch"], threads=1)
        task = tasks.norm_task(shapes.NormRow(op, 5, 19))
        mine = getattr(bench_module("ours"), job)(task).results()
        assert len(mine) == (1 if job == "norm_forward" else 4 if op == "layer_norm" else 2)
        assert tasks.disagreement(mine, torch.entry(job, task).results(), "float32") is None

    @pytest.mark.parametrize("op", NORMS)
    @pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
    def test_peers_normalise_what_we_normalise(self, peer: str, op: str) -> None:
        if peers.missing(peer):
            pytest.skip(f"not installed: {', '.join(peers.missing(peer))}")
        (loaded,), _ = peers.load([peer], threads=1)
        task = tasks.norm_task(shapes.NormRow(op, 5, 19))
        mine = bench_module("ours").norm_forward(task).results()
        assert tasks.disagreement(mine, loaded.entry("norm_forward", task).results(), "float32") is None

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("mode", ["fp32", "bf16", "train", "train bf16"])
    @pytest.mark.parametrize(
        "peer", [pytest.param("torch", marks=pytest.mark.torch), "onnxruntime", "openvino"]
    )
    def test_peers_attend_as_we_do(self, peer: str, mode: str, causal: bool) -> None:
        if peers.missing(peer):
            pytest.skip(f"not installed: {', '.join(peers.missing(peer))}")
        (loaded,), _ = peers.load([peer], threads=1)
        attention = bench_module("attention")
        way = attention.MODES[mode]
        task = attention.attention_task(attention.AttentionRow(2, 3, 20, 20, 16, causal), way.dtype)
        mine = (attention.train_entry if way.train else attention.forward_entry)(task).results()
        try:
            theirs = loaded.entry("attention_train" if way.train else "attention", task).results()
        except tasks.UnsupportedError as reason:
            pytest.skip(str(reason))
        assert tasks.disagreement(mine, theirs, way.dtype) is None

    @pytest.mark.torch
    @pytest.mark.parametrize(
        "peer", ["torch", "onnxruntime", "openvino", pytest.param("torch.compile", marks=pytest.mark.slow)]
    )
    def test_peers_run_the_encoder_layer_we_run(self, peer: str) -> None:
        if peers.missing(peer):
            pytest.skip(f"not installed: {', '.join(peers.missing(peer))}")
        (loaded,), _ = peers.load([peer], threads=1)
        models = bench_module("models")
        task = models.ModelRow(bench_module("zoo").LAYER, 2, 3).task(models.MODES["fp32"])
        mine = models.forward_entry(task).results()
        assert tasks.disagreement(mine, loaded.entry("model", task).results(), "float32") is None

    @pytest.mark.torch
    @pytest.mark.parametrize("model", ["LAYER", "LSTM"])
    def test_torch_trains_the_model_we_train(self, model: str) -> None:
        (torch,), _ = peers.load(["torch"], threads=1)
        models = bench_module("models")
        task = models.ModelRow(getattr(bench_module("zoo"), model), 2, 3, "train").task(models.MODES["train"])
        mine = models.train_entry(task).results()
        assert tasks.disagreement(mine, torch.entry("model_train", task).results(), "float32") is None

    @pytest.mark.slow
    @pytest.mark.torch
    @pytest.mark.parametrize("row", [("GPT2", 2, 5, "forward"), ("GPT2", 1, 1, "decode")])
    def test_ctranslate2_runs_the_models_we_run(self, row: Any) -> None:
        pytest.importorskip("ctranslate2")
        models, zoo = bench_module("models"), bench_module("zoo")
        (loaded,), _ = peers.load(["ctranslate2"], threads=1)
        name, *sizes, kind = row
        for mode in ("fp32", "int8") if kind == "decode" else ("fp32",):
            task = models.ModelRow(getattr(zoo, name), *sizes, kind).task(models.MODES[mode])
            mine = models.entry_of(kind)(task).results()
            theirs = loaded.entry("model_decode" if kind == "decode" else "model", task).results()
            assert tasks.disagreement(mine, theirs, "float32" if mode == "fp32" else "bfloat16") is None

    @pytest.mark.torch
    @pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
    def test_torch_takes_the_training_step_we_take(self, cell: str) -> None:
        (torch,), _ = peers.load(["torch"], threads=1)
        charrnn = bench_module("charrnn")
        task = charrnn.char_task(cell, 8)
        mine, theirs = charrnn.our_step(task), torch.entry("charrnn_train", task)
        assert tasks.disagreement(mine.results(), theirs.results(), "float32") is None
        for entry in (mine, theirs):
            first, *_, last = (entry.call() for _ in range(20))
            assert last < first

    def test_where_the_time_goes_leaves_the_kernels_as_they_were(self) -> None:
        import seqkern
        from seqkern import _cpu

        before, totals = _cpu.linear_forward, {}
        with bench_module("models").timed_kernels(totals):
            x = np.ones((2, 3), np.float32)
            seqkern.linear(x, x)
        assert totals["linear_forward"][1] == 1 and totals["linear_forward"][0] > 0
        assert _cpu.linear_forward is before

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


def test_every_mode_can_be_asked_for() -> None:
    families = [bench_module(name) for name in ("rnn", "linear", "norms", "attention", "models")]
    assert set(cli.MODES) == {name for family in families for name in family.MODES}


def test_every_family_can_be_run() -> None:
    for family in cli.FAMILIES.values():
        assert callable(bench_module(family.module.removeprefix(".")).run)


class TestMemory:
    def test_counts(self) -> None:
        """A layer's 12 E^2 and some weights; 9 E + 2 inner floats per token, of one layer or of all."""
        memory, models, zoo = bench_module("memory"), bench_module("models"), bench_module("zoo")
        weights, activations = memory.counted(models.ModelRow(zoo.LAYER, 2, 128), 4, False, 0)
        assert weights == 4 * sum(p.data.size for p in zoo.bare_module(zoo.LAYER).parameters())
        assert activations == 4 * 256 * (9 * 768 + 2 * 3072)
        weights, activations = memory.counted(models.ModelRow(zoo.GPT2, 4, 64, "train"), 4, False, 0)
        assert weights == 2 * 4 * 124_439_808
        assert activations == 4 * 256 * (13 * (9 * 768 + 2 * 3072) + 2 * 50257)
        whole, _ = memory.counted(models.ModelRow(zoo.GPT2, 1, 1, "decode"), 2, False, 128)
        assert whole == 2 * 124_439_808
        int8, cache = memory.counted(models.ModelRow(zoo.GPT2, 1, 1, "decode"), 4, True, 128)
        assert int8 == 124_439_808 + 4 * (50257 + 1024) * 768 and cache > 4 * 12 * 2 * 768 * 129
        swin, _ = memory.counted(models.ModelRow(zoo.SWIN, 1), 4, False, 0)
        assert swin == 4 * 28_288_354
        assert zoo.parameters(zoo.LSTM) == sum(p.data.size for p in zoo.bare_module(zoo.LSTM).parameters())

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
    @pytest.mark.parametrize("kind", ["forward", "train"])
    def test_measured_is_what_was_counted(self, kind: str) -> None:
        """Up to a few MiB for the code loaded on the way and the kernels' scratch."""
        memory, models, zoo = bench_module("memory"), bench_module("models"), bench_module("zoo")
        row, mode = models.ModelRow(zoo.LAYER, 8, 128, kind), models.MODES["fp32" if kind == "forward" else "train"]
        total = sum(memory.counted(row, 4, False, 0))
        assert 0.8 * total < memory.measured(row, mode) < total + (32 << 20)
