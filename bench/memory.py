"""Memory of whole models: the weights and activations of a formula, and the peak of a process that has nothing else.

Floats per token that a Transformer layer makes, E wide and `inner` in the middle: x, two norms, query, key and value,
the heads' output, x after attention and y are 9 E, the middle before and after its activation 2 inner. A forward pass
holds one layer's; training holds all layers', their gradients one layer at a time, and a gradient of every weight.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seqkern

from . import zoo
from .report import table

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Stack(NamedTuple):
    """Layers over so many tokens: E wide, `inner` in the middle."""

    layers: int
    tokens: int
    width: int
    inner: int


def counted(row: Any, itemsize: int, int8: bool, context: int) -> tuple[int, int]:
    """Bytes of weights and activations of a row."""
    count = zoo.parameters(row.model)
    train, decode = row.kind == "train", row.kind == "decode"
    weights = count * (2 if train else 1) * itemsize
    if int8:  # a byte for each, and the tables that are looked up in
        config = seqkern.models.GPT2Config()
        weights = count + (config.vocab_size + config.n_positions) * config.n_embd * 4
    stacks = stacks_of(row)
    layer = max(s.tokens * (9 * s.width + 2 * s.inner) for s in stacks)
    logits = zoo.VOCABULARY[row.model] if row.model in (zoo.GPT2, zoo.LSTM) else 0
    floats = stacks[-1].tokens * logits * (2 if train else 1)
    if train:
        floats += sum(s.layers * s.tokens * (9 * s.width + 2 * s.inner) for s in stacks)
    if decode:
        floats += sum(2 * s.layers * s.width * row.batch * (context + 1) for s in stacks)
    if not row.length:
        floats += row.batch * int(np.prod(zoo.IMAGE))
    return weights, (layer + floats) * itemsize


def stacks_of(row: Any) -> list[Stack]:
    """The layers of a row's model."""
    tokens = row.batch * row.length
    if row.model == zoo.SWIN:
        c = seqkern.models.SwinConfig()
        sides = [zoo.IMAGE[1] // (4 << k) for k in range(len(c.depths))]
        widths = [c.embed_dim << k for k in range(len(c.depths))]
        stages = zip(c.depths, sides, widths, strict=True)
        return [Stack(depth, row.batch * side * side, width, 4 * width) for depth, side, width in stages]
    if row.model == zoo.VIT:
        tokens = row.batch * (1 + (zoo.IMAGE[1] // 16) ** 2)
    if row.model == zoo.LSTM:  # a recurrent layer is 4 gates, c and h; its input is narrower
        return [Stack(1, tokens, 0, 5 * zoo.UNITS)]
    return [Stack(1 if row.model == zoo.LAYER else 12, tokens, 768, 3072)]


def measured(row: Any, mode: Any) -> int | None:
    """Bytes that holding and calling the model takes at the most, in a process of its own; None: it cannot be told."""
    if not STATUS.exists():
        return None
    fields = json.dumps([[row.model, row.batch, row.length, row.kind], [mode.dtype, mode.int8, mode.precision]])
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom seqkern.__main__ import bench_module\n"
    code += f"bench_module('memory').child({fields!r}, {seqkern.get_num_threads()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the memory of {row.label} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def child(fields: str, threads: int) -> None:
    """Print how far the memory of this process rises above what it has before the model is there."""
    from . import models

    (name, batch, length, kind), (dtype, int8, precision) = json.loads(fields)
    row = models.ModelRow(name, batch, length, kind)
    mode = models.Mode("", dtype=dtype, int8=int8)
    seqkern.set_num_threads(threads)
    seqkern.set_matmul_precision(precision)
    task = row.task(mode)
    seqkern.linear(*np.ones((2, 64, 64), np.float32))  # the threads and their scratch
    before = _status("VmRSS")
    entry = models.entry_of(row.kind)(task, zoo.filled_module(task))
    gc.collect()
    if RESET.exists():
        RESET.write_text("5", encoding="ascii")  # the peak so far, which is that of making the weights, is forgotten
    for _ in range(2):
        entry.call()
    print(_status("VmHWM") - before)


def _status(key: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def print_table(rows: Sequence[tuple[Any, str, Any]], context: int) -> None:
    """One line per (row, mode's name, mode): weights, activations, their sum, the measured peak."""
    lines = []
    for row, name, mode in rows:
        weights, activations = counted(row, 2 if mode.dtype == "bfloat16" else 4, mode.int8, context)
        peak, total = measured(row, mode), weights + activations
        cells = [f"{size / 2**20:.0f}" for size in (weights, activations, total)]
        cells += ["?", ""] if peak is None else [f"{peak / 2**20:.0f}", f"{peak / total:.2f}x"]
        lines.append([row.label, name, *cells])
    print("\npeak memory in MiB: weights (training: and their gradients) and activations by count, and measured\n")
    print(table(["row", "mode", "weights", "activations", "counted", "measured", "over count"], lines, left=2))
