"""`bench linear`: y = x Wᵀ + b in every precision, forward + backward, and few rows (decoding)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowSpec, Session, peer_candidate
from .shapes import DECODE_ROWS, LINEAR_ROWS, LinearRow
from .targets import NO_TARGET
from .tasks import Entry, LinearTask, linear_task

OWN_FP32 = "ours fp32"
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Mode:
    """One way of running the rows. weight: its dtype; job: the peers' name for it, None for no peers."""

    title: str
    rows: tuple[LinearRow, ...]
    mine: Callable[[LinearTask], Entry] = ours.linear
    job: str | None = "linear"
    weight: str = "float32"
    dtype: str = "float32"
    precision: str = "highest"

    @property
    def train(self) -> bool:
        return self.job == "linear_train"


MODES = {
    "fp32": Mode("float32, precision highest", (*LINEAR_ROWS, *DECODE_ROWS)),
    "high": Mode("float32, precision high, against the peers' float32", LINEAR_ROWS, precision="high"),
    "bf16": Mode("bfloat16", LINEAR_ROWS, weight="bfloat16", dtype="bfloat16"),
    "bf16w": Mode(
        "float32 with bfloat16 weights, against our own float32",
        DECODE_ROWS,
        mine=partial(ours.linear, x_dtype="float32"),
        job=None,
        weight="bfloat16",
    ),
    "int8": Mode(
        "float32 with int8 weights, against our own float32",
        (*DECODE_ROWS, *LINEAR_ROWS),
        mine=ours.linear_int8,
        job=None,
        weight="int8",
    ),
    "train": Mode("forward + backward, float32", LINEAR_ROWS, mine=ours.linear_train, job="linear_train"),
}


def run(session: Session) -> None:
    """Measure and print mode after mode."""
    for name, mode in MODES.items():
        specs = [row_spec(session, row, name) for row in mode.rows]
        results = session.run(session.wanted(specs), f"linear {name}")
        if results:
            threads = session.options.threads
            print(f"\nlinear (M,K,N), {mode.title}, {threads} threads; {LEGEND}\n")
            print(rows_table(results, others(session, mode), [NO_TARGET] * len(results)))


def others(session: Session, mode: Mode) -> tuple[str, ...]:
    """Who stands beside ours in the table."""
    return (OWN_FP32,) if mode.job is None else session.names()


def row_spec(session: Session, row: LinearRow, name: str) -> RowSpec:
    """One row in one mode."""
    mode = MODES[name]
    return RowSpec(
        family="linear",
        group="decode" if row in DECODE_ROWS else "linear",
        label=row.label,
        mode=name,
        shape=row.shape,
        dtype=mode.dtype if mode.weight == mode.dtype else f"x {mode.dtype}, weights {mode.weight}",
        threads=session.options.threads,
        width=1 + len(others(session, mode)),
        candidates=partial(candidates, session, row, mode),
        check="float32" if mode.weight == "float32" else "bfloat16",
        flops=row.flops(mode.train),
        reads=row.reads(BYTES[mode.weight]),
    )


def candidates(session: Session, row: LinearRow, mode: Mode) -> list[Candidate]:
    """Ours first, then the peers that have a linear layer."""
    threads = session.options.threads
    enter = ours.settings(threads, mode.precision)
    task = linear_task(row, "float32" if mode.weight == "int8" else mode.weight)
    mine = Candidate(ours.NAME, partial(mode.mine, task), enter)
    if mode.job is None:
        return [mine, Candidate(OWN_FP32, partial(ours.linear, linear_task(row)), enter)]
    return [mine, *(peer_candidate(peer, threads, mode.job, task) for peer in session.peers)]
