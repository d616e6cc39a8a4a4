"""`bench attention`: scaled dot-product attention, forward in every precision and with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import seqkern

from . import ours
from .report import LEGEND, rows_table, times
from .session import Candidate, RowResult, RowSpec, Session, peer_candidate
from .shapes import Read
from .targets import NO_TARGET, best_peer, geometric_mean
from .tasks import Array, Entry


@dataclass(frozen=True)
class Mode:
    """One way of running the rows; the peers run in `dtype` too."""

    title: str
    dtype: str = "float32"
    precision: str = "highest"
    train: bool = False


MODES = {
    "fp32": Mode("forward, float32, precision highest"),
    "high": Mode("forward, float32, precision high, against the peers' float32", precision="high"),
    "bf16": Mode("forward, bfloat16", dtype="bfloat16"),
    "train": Mode("forward + backward, float32", train=True),
    "train bf16": Mode("forward + backward, bfloat16", dtype="bfloat16", train=True),
}


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

    def reads(self, itemsize: int) -> list[Read]:
        """A decoding step cannot avoid reading every key and value once."""
        size = 2 * itemsize * self.batch * self.heads * self.keys * self.head_dim
        return [Read(size, size)] if self.queries == 1 else []


@dataclass(frozen=True)
class AttentionTask:
    """Standard normal arrays, float32; dout for the backward pass. `dtype` is what the contender computes in."""

    row: AttentionRow
    dtype: str
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
    for name, mode in MODES.items():
        rows = [row for row in ROWS if row.queries > 1 or not (mode.train or name == "high")]
        results = session.run(session.wanted([row_spec(session, row, name) for row in rows]), f"attention {name}")
        if results:
            print(f"\nattention (B,H,L,D), {mode.title}, {session.options.threads} threads; {LEGEND}")
            print("read bw: the time of merely reading keys and values, over ours\n")
            print(rows_table(results, session.names(), [NO_TARGET] * len(results)))
            print(f"\n{means(results, session.names())}")


def means(results: Sequence[RowResult], names: Sequence[str]) -> str:
    """The best peer's time over ours, geometric means: all rows, full ones, causal ones."""
    groups = {"all": results}
    groups |= {"full": [r for r in results if not r.spec.label.endswith("causal")]}
    groups |= {"causal": [r for r in results if "causal" in r.spec.label]}
    found = {
        name: geometric_mean(best for row in rows if (best := best_peer(row.ratios(names))) is not None)
        for name, rows in groups.items()
    }
    listed = (f"{group} {times(mean)}" for group, mean in found.items() if mean is not None)
    return "best peer / ours, geometric mean: " + ", ".join(listed)


def row_spec(session: Session, row: AttentionRow, name: str) -> RowSpec:
    """One row in one mode."""
    mode = MODES[name]
    return RowSpec(
        family="attention",
        group="attention",
        label=row.label,
        mode=name,
        shape=row.shape,
        dtype=mode.dtype,
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, row, mode),
        check=mode.dtype,
        flops=row.flops(mode.train),
        reads=tuple(row.reads(ours.ITEMSIZE[mode.dtype])),
    )


def candidates(session: Session, row: AttentionRow, mode: Mode) -> list[Candidate]:
    """Ours first, then the peers that have attention."""
    task, threads = attention_task(row, mode.dtype), session.options.threads
    mine, op = (train_entry, "attention_train") if mode.train else (forward_entry, "attention")
    return [
        Candidate(ours.NAME, partial(mine, task), ours.settings(threads, mode.precision)),
        *(peer_candidate(peer, threads, op, task) for peer in session.peers),
    ]


def attention_task(row: AttentionRow, dtype: str = "float32") -> AttentionTask:
    rng = np.random.default_rng(0)
    lengths = (row.queries, row.keys, row.keys, row.queries)
    arrays = (rng.standard_normal((row.batch, row.heads, n, row.head_dim), np.float32) for n in lengths)
    return AttentionTask(row, dtype, *arrays)


def forward_entry(task: AttentionTask) -> Entry:
    """`seqkern.scaled_dot_product_attention` into a kept output; results: out."""
    query, key, value = (ours.cast(array, task.dtype) for array in (task.query, task.key, task.value))
    out = np.empty_like(query)

    def call() -> Array:
        seqkern.scaled_dot_product_attention(query, key, value, is_causal=task.row.causal, out=out)
        return out

    return Entry(call, lambda: [ours.as_float32(call()).copy()])


def train_entry(task: AttentionTask) -> Entry:
    """Forward and backward; results: out, dquery, dkey, dvalue."""
    arrays = (task.query, task.key, task.value, task.dout)
    query, key, value, dout = (ours.cast(array, task.dtype) for array in arrays)

    def call() -> Sequence[Array]:
        out, saved = seqkern.scaled_dot_product_attention_forward(query, key, value, is_causal=task.row.causal)
        return [out, *seqkern.scaled_dot_product_attention_backward(dout, saved)[:3]]

    return Entry(call, lambda: [ours.as_float32(array) for array in call()])
