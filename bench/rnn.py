"""`bench rnn`: whole recurrent modules, all modes, against every peer that can do them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from . import ours
from .report import LEGEND, means_table, rows_table
from .session import Candidate, RowResult, RowSpec, Session, peer_candidate
from .shapes import QUICK_ROWS, RECURRENT_ROWS, RecurrentRow
from .targets import NO_TARGET, Score, best_peer, judge
from .tasks import recurrent_task

OWN_FP32 = "ours fp32"


@dataclass(frozen=True)
class Mode:
    """One way of running a row.

    dtype is that of weights and, unless x_dtype differs, of x. groups: the classes it applies to.
    """

    title: str
    dtype: str = "float32"
    precision: str = "highest"
    train: bool = False
    x_dtype: str | None = None
    groups: tuple[str, ...] = ("small", "streaming", "batched")

    @property
    def dtype_text(self) -> str:
        """What the records call it: weights' dtype, or x's and the weights'."""
        return self.dtype if self.x_dtype is None else f"x {self.x_dtype}, weights {self.dtype}"


MODES = {
    "fp32": Mode("forward, float32, precision highest"),
    "high": Mode("forward, float32, precision high, against the peers' float32", precision="high"),
    "bf16w": Mode(
        "forward, float32 with bfloat16 weights, against our own float32",
        dtype="bfloat16",
        x_dtype="float32",
        groups=("streaming",),
    ),
    "bf16": Mode("forward, bfloat16", dtype="bfloat16"),
    "train": Mode("forward + backward, float32", train=True),
}
QUICK_MODES = ("fp32", "train")


def run(session: Session) -> None:
    """Measure and print mode after mode."""
    rows = QUICK_ROWS if session.options.quick else RECURRENT_ROWS
    default = QUICK_MODES if session.options.quick else tuple(MODES)
    for name in session.options.modes or default:
        if name not in MODES:
            continue
        specs = [row_spec(session, row, name) for row in rows if row.group in MODES[name].groups]
        results = session.run(session.wanted(specs), f"rnn {name}")
        if results:
            print_mode(results, others(session, name), name, session.options.judged)


def others(session: Session, mode: str) -> tuple[str, ...]:
    """Who stands beside ours in the table."""
    return (OWN_FP32,) if mode == "bf16w" else session.names()


def row_spec(session: Session, row: RecurrentRow, mode_name: str) -> RowSpec:
    """The row in one mode."""
    mode = MODES[mode_name]
    threads = session.options.threads
    itemsize = 4 if mode.dtype == "float32" else 2
    return RowSpec(
        family="rnn",
        group=row.group,
        label=row.label,
        mode=mode_name,
        shape=row.shape,
        dtype=mode.dtype_text,
        threads=threads,
        width=1 + len(others(session, mode_name)),
        candidates=partial(candidates, session, row, mode_name),
        check=mode.dtype,
        flops=row.flops(mode.train),
        reads=() if mode.train else tuple(row.reads(itemsize)),
    )


ROWS = {row.label: row for row in (*QUICK_ROWS, *RECURRENT_ROWS)}


def candidates(session: Session, row: RecurrentRow, mode_name: str) -> list[Candidate]:
    """Ours first, then the peers, all with the same weights."""
    mode = MODES[mode_name]
    task = recurrent_task(row, mode.dtype)
    threads = session.options.threads
    enter = ours.settings(threads, mode.precision)
    if mode.train:
        job, make = "recurrent_train", partial(ours.recurrent_train, task)
    else:
        job, make = "recurrent_forward", partial(ours.recurrent_forward, task, mode.x_dtype)
    mine = Candidate(ours.NAME, make, enter)
    if mode_name == "bf16w":
        same = partial(ours.recurrent_forward, recurrent_task(row))
        return [mine, Candidate(OWN_FP32, same, enter)]
    return [mine, *(peer_candidate(peer, threads, job, task) for peer in session.peers)]


def score(result: RowResult, mode: str, names: Sequence[str]) -> Score:
    """The figures the row's target is about."""
    row, ratios = ROWS[result.spec.label], result.ratios(names)
    return Score(
        kind=row.kind,
        group=row.group,
        mode=mode,
        bidirectional=row.bidirectional,
        best_peer=best_peer(ratios),
        torch=ratios.get("torch"),
        own_fp32=ratios.get(OWN_FP32),
        fma_share=result.fma_share,
        read_share=result.read_share,
    )


def print_mode(results: Sequence[RowResult], names: Sequence[str], mode: str, judged: bool) -> None:
    """The mode's table and its geometric means, with the targets where they apply."""
    verdicts = [judge(score(r, mode, names)) if judged else NO_TARGET for r in results]
    print(f"\n{MODES[mode].title}; {results[0].spec.threads} threads; {LEGEND}\n")
    print(rows_table(results, names, verdicts))
    means = means_table(results, names, mode if judged else "")
    if means:
        print(f"\n{means}")
