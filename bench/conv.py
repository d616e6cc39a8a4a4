"""`bench conv`: convolution layers of ViT, VGG and wav2vec 2.0, float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import seqkern

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowSpec, Session, peer_candidate
from .targets import NO_TARGET
from .tasks import Array, Entry


@dataclass(frozen=True)
class ConvRow:
    """x `[1, channels, *size]`, weight `[out_channels, channels / groups, *kernel]`."""

    name: str
    channels: int
    size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size, self.out_channels, *self.kernel, self.stride, self.padding, self.groups)

    @property
    def label(self) -> str:
        size, kernel = "x".join(map(str, self.size)), "x".join(map(str, self.kernel))
        return f"{self.name} ({self.channels},{size})->{self.out_channels} k{kernel} s{self.stride}"

    def flops(self) -> int:
        pairs = zip(self.size, self.kernel, strict=True)
        out = prod((n + 2 * self.padding - k) // self.stride + 1 for n, k in pairs)
        return 2 * out * self.out_channels * self.channels // self.groups * prod(self.kernel)


@dataclass(frozen=True)
class ConvTask:
    """x, weight and bias `[out_channels]`, float32."""

    row: ConvRow
    x: Array
    weight: Array
    bias: Array


ROWS = (
    ConvRow("ViT-B/16 patches", 3, (224, 224), 768, (16, 16), stride=16),
    ConvRow("VGG", 64, (112, 112), 128, (3, 3), padding=1),
    ConvRow("wav2vec 0", 1, (16000,), 512, (10,), stride=5),
    ConvRow("wav2vec 1", 512, (3199,), 512, (3,), stride=2),
    ConvRow("wav2vec positions", 768, (49,), 768, (128,), padding=64, groups=16),
)


def run(session: Session) -> None:
    """Our functions against the peers' float32."""
    results = session.run(session.wanted([row_spec(session, row) for row in ROWS]), "conv")
    if results:
        print(f"\nconvolution, batch 1, float32, {session.options.threads} threads; {LEGEND}\n")
        print(rows_table(results, session.names(), [NO_TARGET] * len(results)))


def row_spec(session: Session, row: ConvRow) -> RowSpec:
    """One row."""
    return RowSpec(
        family="conv",
        group="conv",
        label=row.label,
        mode="fp32",
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, row),
        flops=row.flops(),
    )


def candidates(session: Session, row: ConvRow) -> list[Candidate]:
    """Ours first, then the peers that have a convolution."""
    task, threads = conv_task(row), session.options.threads
    return [
        Candidate(ours.NAME, partial(our_entry, task), ours.settings(threads)),
        *(peer_candidate(peer, threads, "conv", task) for peer in session.peers),
    ]


def conv_task(row: ConvRow) -> ConvTask:
    """Weight and bias uniform in ±1/√(fan in), x standard normal."""
    rng = np.random.default_rng(0)
    shape = (row.out_channels, row.channels // row.groups, *row.kernel)
    bound = prod(shape[1:]) ** -0.5
    weight = rng.uniform(-bound, bound, shape).astype(np.float32)
    bias = rng.uniform(-bound, bound, row.out_channels).astype(np.float32)
    return ConvTask(row, rng.standard_normal((1, row.channels, *row.size), np.float32), weight, bias)


def our_entry(task: ConvTask) -> Entry:
    """`seqkern.conv1d` or `conv2d`; results: y."""
    function = seqkern.conv1d if len(task.row.size) == 1 else seqkern.conv2d

    def call() -> Array:
        row = task.row
        return np.asarray(function(task.x, task.weight, task.bias, row.stride, row.padding, 1, row.groups))

    def results() -> Sequence[Array]:
        return [call()]

    return Entry(call, results)
