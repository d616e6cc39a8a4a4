"""`bench threads`: one thread, all that were asked for, and those beside a busy process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from . import ours
from .report import LEGEND, rows_table
from .rnn import MODES
from .session import Candidate, RowResult, RowSpec, Session
from .shapes import RECURRENT_ROWS, RecurrentRow
from .targets import NO_TARGET, THREADS, Verdict, at_least
from .tasks import recurrent_task

SINGLE, CROWDED = "ours 1 thread", "ours crowded"
WORTHWHILE_SECONDS = 200e-6  # below, handing work to a second thread costs a visible share of it


def run(session: Session) -> None:
    """Forward, then forward + backward, over all rows of `bench rnn`."""
    if session.options.threads < 2:
        session.note("threads: nothing to compare with --threads 1")
        return
    for mode in ("fp32", "train"):
        with busy_neighbour() as neighbour:
            specs = [row_spec(session, row, mode, neighbour) for row in RECURRENT_ROWS]
            results = session.run(session.wanted(specs), f"threads {mode}")
        if results:
            title = f"{session.options.threads} threads against 1, {MODES[mode].title}"
            print(f"\n{title}; {LEGEND}\ncrowded: beside a process that keeps one core busy\n")
            print(rows_table(results, (SINGLE, CROWDED), [judge(result) for result in results]))


@contextmanager
def busy_neighbour() -> Iterator[Callable[[bool], None]]:
    """A process that computes while it is told to; stopped at first."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def work(on: bool) -> None:
        process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    try:
        work(False)
        yield work
    finally:
        process.kill()
        process.wait()


def row_spec(
    session: Session, row: RecurrentRow, mode: str, neighbour: Callable[[bool], None]
) -> RowSpec:
    """One row in one mode."""
    return RowSpec(
        family="threads",
        group=row.group,
        label=row.label,
        mode=mode,
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=3,
        candidates=partial(candidates, session, row, mode, neighbour),
        flops=row.flops(train=mode == "train"),
    )


def candidates(
    session: Session, row: RecurrentRow, mode: str, neighbour: Callable[[bool], None]
) -> list[Candidate]:
    """Modules of their own over the same weights, so that none inherits another's packed copies."""
    task = recurrent_task(row)
    entry = ours.recurrent_train if mode == "train" else ours.recurrent_forward

    def candidate(name: str, threads: int, crowded: bool) -> Candidate:
        def enter() -> None:
            ours.settings(threads)()
            neighbour(crowded)

        return Candidate(name, partial(entry, task), enter)

    threads = session.options.threads
    return [candidate(ours.NAME, threads, False), candidate(SINGLE, 1, False), candidate(CROWDED, threads, True)]


def judge(result: RowResult) -> Verdict:
    """Two threads; work worth sharing; streaming rows are bound by the bandwidth both share."""
    worthwhile = result.measurement.timings[SINGLE].median > WORTHWHILE_SECONDS
    if result.spec.threads != 2 or not worthwhile or result.spec.group == "streaming":
        return NO_TARGET
    bound = at_least(result.measurement.ratio(SINGLE), THREADS)
    return Verdict(f">= {THREADS:g}x one thread", bound)
