"""`bench norms`: norms, GELU, softmax and embedding of large arrays, which cost what memory costs."""

from __future__ import annotations

from functools import partial

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowSpec, Session, peer_candidate
from .shapes import NORM_ROWS, NormRow
from .targets import NO_TARGET
from .tasks import norm_task

MODES = {"fp32": "forward", "train": "forward + backward"}


def run(session: Session) -> None:
    """Forward, then forward + backward of the rows that have one."""
    for mode, title in MODES.items():
        rows = [row for row in (NORM_ROWS[:2] if session.options.quick else NORM_ROWS) if mode in row.modes]
        specs = [row_spec(session, row, mode) for row in rows]
        results = session.run(session.wanted(specs), f"norms {mode}")
        if results:
            threads = session.options.threads
            print(f"\nnorms (rows,columns), {title}, float32, {threads} threads; {LEGEND}")
            print("read bw: the time of reading as many bytes as are read and written, over ours\n")
            print(rows_table(results, session.names(), [NO_TARGET] * len(results)))


def row_spec(session: Session, row: NormRow, mode: str) -> RowSpec:
    """One row, forward or with its backward."""
    return RowSpec(
        family="norms",
        group="norms",
        label=row.label,
        mode=mode,
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, row, mode),
        reads=(row.read(train=mode == "train"),),
    )


def candidates(session: Session, row: NormRow, mode: str) -> list[Candidate]:
    """Ours first, then the peers that can do the row."""
    task, job = norm_task(row), "norm_train" if mode == "train" else "norm_forward"
    threads = session.options.threads
    return [
        Candidate(ours.NAME, partial(getattr(ours, job), task), ours.settings(threads)),
        *(peer_candidate(peer, threads, job, task) for peer in session.peers),
    ]
