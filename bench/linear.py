"""`bench linear`: y = x Wᵀ + b with a packed weight."""

from __future__ import annotations

from functools import partial

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowSpec, Session, peer_candidate
from .shapes import LINEAR_ROWS, LinearRow
from .targets import NO_TARGET
from .tasks import linear_task

PRECISIONS = {"fp32": "highest", "high": "high"}


def run(session: Session) -> None:
    """Precision highest, then high, against the peers' float32."""
    for mode, precision in PRECISIONS.items():
        specs = [row_spec(session, row, mode) for row in LINEAR_ROWS]
        results = session.run(session.wanted(specs), f"linear {mode}")
        if results:
            threads = session.options.threads
            print(
                f"\nlinear (M,K,N), float32, precision {precision}, {threads} threads; {LEGEND}\n"
            )
            print(rows_table(results, session.names(), [NO_TARGET] * len(results)))


def row_spec(session: Session, row: LinearRow, mode: str) -> RowSpec:
    """One row in one precision."""
    return RowSpec(
        family="linear",
        group="linear",
        label=row.label,
        mode=mode,
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, row, mode),
        flops=row.flops(),
    )


def candidates(session: Session, row: LinearRow, mode: str) -> list[Candidate]:
    """Ours first, then the peers that have a linear layer."""
    task = linear_task(row)
    threads = session.options.threads
    return [
        Candidate(ours.NAME, partial(ours.linear, task), ours.settings(threads, PRECISIONS[mode])),
        *(peer_candidate(peer, threads, "linear", task) for peer in session.peers),
    ]
