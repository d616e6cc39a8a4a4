"""`bench cells`: one call of a cell from Python, B = 1, I = H = 128, one thread."""

from __future__ import annotations

from functools import partial

import numpy as np

from . import ours, peers
from .harness import A_A
from .report import drop_empty, microseconds, table, times
from .session import Candidate, RowResult, RowSpec, Session, peer_candidate
from .shapes import GATES, KINDS, Read
from .targets import CELL_SECONDS
from .tasks import Array

BATCH, INPUT, HIDDEN = 1, 128, 128
MODULE = "ours nn"


def run(session: Session) -> None:
    """Measure and print; the function is `ours`, the module (`seqkern.nn.LSTMCell`) beside it."""
    specs = [row_spec(session, kind) for kind in KINDS]
    results = session.run(session.wanted(specs), "cells")
    if results:
        print("\ncells, one call from Python, float32, one thread; microseconds (theirs / ours)\n")
        print(results_table(results, (MODULE, *(peer.name for peer in contending(session)))))


def contending(session: Session) -> list[peers.Peer]:
    """The session's peers and always plain NumPy: a cell by hand is what people write."""
    if peers.NUMPY in session.names():
        return session.peers
    return [*session.peers, *peers.load((peers.NUMPY,), 1)[0]]


def row_spec(session: Session, kind: str) -> RowSpec:
    """One kind of cell."""
    weights = GATES[kind] * HIDDEN * (INPUT + HIDDEN)
    return RowSpec(
        family="cells",
        group="cell",
        label=f"{kind}_cell ({BATCH},{INPUT},{HIDDEN})",
        mode="fp32",
        shape=(BATCH, INPUT, HIDDEN),
        dtype="float32",
        threads=1,
        width=2 + len(contending(session)),
        candidates=partial(candidates, session, kind),
        flops=2 * BATCH * weights,
        reads=(Read(4 * weights, 4 * weights),),
    )


def candidates(session: Session, kind: str) -> list[Candidate]:
    """All with the same weights, input and state."""
    job = cell_inputs(kind)
    enter = ours.settings(threads=1)
    return [
        Candidate(ours.NAME, partial(ours.cell_function, kind, *job), enter),
        Candidate(MODULE, partial(ours.cell, kind, *job), enter),
        *(peer_candidate(peer, 1, "cell", kind, *job) for peer in contending(session)),
    ]


def cell_inputs(kind: str, seed: int = 0) -> tuple[dict[str, Array], Array, list[Array]]:
    """Weights by name, x `[N, I]`, and the state: h, and c for an LSTM, each `[N, H]`."""
    rng = np.random.default_rng(seed)
    width, bound = GATES[kind] * HIDDEN, HIDDEN**-0.5
    shapes = {
        "weight_ih": (width, INPUT),
        "weight_hh": (width, HIDDEN),
        "bias_ih": (width,),
        "bias_hh": (width,),
    }
    weights = {
        name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()
    }
    states = 2 if kind == "lstm" else 1
    x, *state = (
        rng.standard_normal((BATCH, size), np.float32) for size in (INPUT, *[HIDDEN] * states)
    )
    return weights, x, state


def results_table(results: list[RowResult], others: tuple[str, ...]) -> str:
    """Microseconds per call."""
    headers = ["row", "ours", *others, A_A, "read bw"]
    headers += ["target", "met"]
    lines = []
    for result in results:
        measured, share = result.measurement, result.read_share
        cells = [result.spec.label, microseconds(result.seconds)]
        for name in others:
            timing = measured.timings.get(name)
            cells.append(
                ""
                if timing is None
                else f"{microseconds(timing.median)} ({times(measured.ratio(name))})"
            )
        cells += [f"{measured.ratio(A_A):.2f}", "" if share is None else f"{share:.0%}"]
        if result.spec.label.startswith("lstm"):
            met = "yes" if result.seconds <= CELL_SECONDS else "NO"
            cells += [f"<= {CELL_SECONDS * 1e6:g} us", met]
        else:
            cells += ["", ""]
        lines.append(cells)
    return table(*drop_empty(headers, lines))
