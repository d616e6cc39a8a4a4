"""`bench ragged`: a batch of sequences of different lengths, uniform in 1 … T.

Ours with `lengths`, against our own padded batch (all T steps of all rows) and against torch's
PackedSequence, packing and padding included: that is what a user with a padded batch has to do.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowResult, RowSpec, Session, peer_candidate
from .shapes import RECURRENT_ROWS, RecurrentRow
from .targets import NO_TARGET, PACKED, Verdict, at_least, both
from .tasks import Array, recurrent_task

PADDED, PACKED_TORCH = "ours padded", "torch packed"
OTHERS = (PADDED, PACKED_TORCH)


def run(session: Session) -> None:
    """Measure and print the batched rows."""
    specs = [row_spec(session, row) for row in RECURRENT_ROWS if row.group == "batched"]
    results = session.run(session.wanted(specs), "ragged")
    if results:
        print(
            f"\nragged batches, lengths uniform in 1..T, forward, float32, "
            f"{session.options.threads} threads; {LEGEND}\n"
        )
        judged = session.options.judged
        verdicts = [judge(result) if judged else NO_TARGET for result in results]
        print(rows_table(results, OTHERS, verdicts))


def row_spec(session: Session, row: RecurrentRow) -> RowSpec:
    """One row; no FLOP count, since it depends on the lengths drawn."""
    return RowSpec(
        family="ragged",
        group=row.group,
        label=row.label,
        mode="fp32",
        shape=row.shape,
        dtype="float32",
        threads=session.options.threads,
        width=2 + sum(peer.name == "torch" for peer in session.peers),
        candidates=partial(candidates, session, row),
    )


def draw_lengths(row: RecurrentRow, seed: int = 0) -> Array:
    """int64 `[N]`, uniform in 1 … T."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, row.seq_len, row.batch, endpoint=True)


def candidates(session: Session, row: RecurrentRow) -> list[Candidate]:
    """The padded batch computes more than the ragged one, so its results are not compared."""
    task, lengths = recurrent_task(row), draw_lengths(row)
    threads = session.options.threads
    enter = ours.settings(threads)
    return [
        Candidate(ours.NAME, partial(ours.ragged, task, lengths), enter),
        Candidate(PADDED, partial(ours.ragged, task, None), enter, checked=False),
        *(
            peer_candidate(peer, threads, "ragged", task, lengths, name=PACKED_TORCH)
            for peer in session.peers
            if peer.name == "torch"
        ),
    ]


def judge(result: RowResult) -> Verdict:
    """Never slower than the padded batch, and three times torch's PackedSequence."""
    ratios = result.ratios(OTHERS)
    met = both(at_least(ratios.get(PADDED), 1.0), at_least(ratios.get(PACKED_TORCH), PACKED))
    return Verdict(f">= 1x padded, {PACKED:g}x packed", met)
