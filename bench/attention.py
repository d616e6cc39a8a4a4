"""`bench attention`: scaled dot-product attention, forward and with its gradients, float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import seqkern

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowSpec, Session, peer_candidate
from .shapes import Read
from .targets import NO_TARGET
from .tasks import Array, Entry

MODES = {"fp32": "forward", "train": "forward + backward"}


@dataclass(frozen=True)
class AttentionRow:
    """query `[batch, heads, queries, head_dim]` against `keys` keys and values."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, self.heads, self.queries, self.keys, self.head_dim)

    @property
    def label(self) -> str:
        sizes = f"({self.batch},{self.heads},{self.queries},{self.head_dim})"
        return f"decode {self.shape}" if self.queries == 1 else f"{sizes}{' causal' if self.causal else ''}"

    def flops(self, train: bool = False) -> int:
        """Products only, half of them under a causal mask; backward counts two and a half times more."""
        full = 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim
        return int(full * (0.5 if self.causal else 1) * (3.5 if train else 1))

    def reads(self) -> list[Read]:
        """A decoding step cannot avoid reading every key and value once."""
        size = 2 * 4 * self.batch * self.heads * self.keys * self.head_dim
        return [Read(size, size)] if self.queries == 1 else []


@dataclass(frozen=True)
class AttentionTask:
    """Standard normal arrays, float32; dout for the backward pass."""

    row: AttentionRow
    query: Array
    key: Array
    value: Array
    dout: Array


ROWS = (
    AttentionRow(1, 12, 128, 128, 64),
    *(AttentionRow(1, 12, n, n, 64, causal) for n in (512, 1024) for causal in (False, True)),
    AttentionRow(8, 12, 197, 197, 64),
    *(AttentionRow(1, 16, 4096, 4096, 64, causal) for causal in (False, True)),
    *(AttentionRow(1, 32, 2048, 2048, 128, causal) for causal in (False, True)),
    AttentionRow(1, 32, 1, 4096, 128),
)


def run(session: Session) -> None:
    """Forward, then forward and backward, against the peers."""
    for mode, what in MODES.items():
        rows = [row for row in ROWS if mode == "fp32" or row.queries > 1]
        results = session.run(session.wanted([row_spec(session, row, mode) for row in rows]), f"attention {mode}")
        if results:
            print(f"\nattention (B,H,L,D), {what}, float32, {session.options.threads} threads; {LEGEND}\n")
            print(rows_table(results, session.names(), [NO_TARGET] * len(results)))


def row_spec(session: Session, row: AttentionRow, mode: str) -> RowSpec:
    """One row in one mode."""
    return RowSpec(
        family="attention",
        group="attention",
        label=row.label,
        mode=mode,
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, row, mode),
        flops=row.flops(mode == "train"),
        reads=tuple(row.reads()),
    )


def candidates(session: Session, row: AttentionRow, mode: str) -> list[Candidate]:
    """Ours first, then the peers that have attention."""
    task, threads = attention_task(row), session.options.threads
    mine, op = (train_entry, "attention_train") if mode == "train" else (forward_entry, "attention")
    return [
        Candidate(ours.NAME, partial(mine, task), ours.settings(threads)),
        *(peer_candidate(peer, threads, op, task) for peer in session.peers),
    ]


def attention_task(row: AttentionRow) -> AttentionTask:
    rng = np.random.default_rng(0)
    lengths = (row.queries, row.keys, row.keys, row.queries)
    arrays = (rng.standard_normal((row.batch, row.heads, n, row.head_dim), np.float32) for n in lengths)
    return AttentionTask(row, *arrays)


def forward_entry(task: AttentionTask) -> Entry:
    """`seqkern.scaled_dot_product_attention` into a kept output; results: out."""
    out = np.empty_like(task.query)

    def call() -> Array:
        seqkern.scaled_dot_product_attention(task.query, task.key, task.value, is_causal=task.row.causal, out=out)
        return out

    return Entry(call, lambda: [call().copy()])


def train_entry(task: AttentionTask) -> Entry:
    """Forward and backward; results: out, dquery, dkey, dvalue."""

    def call() -> Sequence[Array]:
        out, saved = seqkern.scaled_dot_product_attention_forward(
            task.query, task.key, task.value, is_causal=task.row.causal
        )
        return [out, *seqkern.scaled_dot_product_attention_backward(task.dout, saved)[:3]]

    return Entry(call, call)
