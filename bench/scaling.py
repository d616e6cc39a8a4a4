"""`bench threads`: the same work on one thread and on all that were asked for."""

from __future__ import annotations

from functools import partial

from . import ours
from .report import LEGEND, rows_table
from .rnn import MODES
from .session import Candidate, RowResult, RowSpec, Session
from .shapes import RECURRENT_ROWS, RecurrentRow
from .targets import NO_TARGET, THREADS, Verdict, at_least
from .tasks import recurrent_task

SINGLE = "ours 1 thread"
WORTHWHILE_SECONDS = 200e-6  # below, handing work to a second thread costs a visible share of it


def run(session: Session) -> None:
    """Forward, then forward + backward, over all rows of `bench rnn`."""
    if session.options.threads < 2:
        session.note("threads: nothing to compare with --threads 1")
        return
    for mode in ("fp32", "train"):
        specs = [row_spec(session, row, mode) for row in RECURRENT_ROWS]
        results = session.run(session.wanted(specs), f"threads {mode}")
        if results:
            title = f"{session.options.threads} threads against 1, {MODES[mode].title}"
            print(f"\n{title}; {LEGEND}\n")
            print(rows_table(results, (SINGLE,), [judge(result) for result in results]))


def row_spec(session: Session, row: RecurrentRow, mode: str) -> RowSpec:
    """One row in one mode."""
    return RowSpec(
        family="threads",
        group=row.group,
        label=row.label,
        mode=mode,
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=2,
        candidates=partial(candidates, session, row, mode),
        flops=row.flops(train=mode == "train"),
    )


def candidates(session: Session, row: RecurrentRow, mode: str) -> list[Candidate]:
    """Two modules over the same weights, so that neither inherits the other's packed copies."""
    task = recurrent_task(row)
    entry = ours.recurrent_train if mode == "train" else ours.recurrent_forward
    return [
        Candidate(ours.NAME, partial(entry, task), ours.settings(session.options.threads)),
        Candidate(SINGLE, partial(entry, task), ours.settings(1)),
    ]


def judge(result: RowResult) -> Verdict:
    """Two threads; work worth sharing; streaming rows are bound by the bandwidth both share."""
    worthwhile = result.measurement.timings[SINGLE].median > WORTHWHILE_SECONDS
    if result.spec.threads != 2 or not worthwhile or result.spec.group == "streaming":
        return NO_TARGET
    bound = at_least(result.measurement.ratio(SINGLE), THREADS)
    return Verdict(f">= {THREADS:g}x one thread", bound)
