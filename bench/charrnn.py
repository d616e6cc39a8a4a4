"""`bench charrnn`: one training step of examples/char_rnn.py, against the same in torch.

Forward, cross-entropy, backward, gradient clipping and AdamW on a window of text, the state carried over from
step to step. Dropout is on while timing and off while the results are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import seqkern

from . import ours
from .report import LEGEND, rows_table
from .session import Candidate, RowResult, RowSpec, Session, peer_candidate
from .shapes import GATES
from .targets import CHARRNN, NO_TARGET, Verdict, at_least
from .tasks import Array, Entry

# examples/char_rnn.py's defaults
BATCH, LENGTH, EMBEDDING, HIDDEN, DROPOUT = 32, 50, 64, 512, 0.4
LEARNING_RATE, BETAS, CLIP = 3e-3, (0.9, 0.98), 1.0
CELLS = ("lstm", "gru", "rnn")
QUICK_HIDDEN = 128


@dataclass(frozen=True)
class CharTask:
    """A window of text, ids and targets `[batch, length]`, and the model's weights by name."""

    cell: str
    vocabulary: int
    hidden: int
    ids: Array
    targets: Array
    weights: dict[str, Array]

    @property
    def flops(self) -> int:
        """Products only, backward counting twice: the layer's and the head's."""
        layer = GATES[self.cell] * self.hidden * (EMBEDDING + self.hidden)
        return 6 * self.ids.size * (layer + self.hidden * self.vocabulary)


def char_task(cell: str, hidden: int) -> CharTask:
    """The first characters of Python's help topics, cut into streams."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    vocab = {character: k for k, character in enumerate(sorted(set(text)))}
    ids = np.array([vocab[c] for c in text[: BATCH * (LENGTH + 1)]]).reshape(BATCH, LENGTH + 1)
    weights = make_model(cell, len(vocab), hidden).state_dict()
    return CharTask(cell, len(vocab), hidden, ids[:, :-1].copy(), ids[:, 1:].copy(), weights)


def make_model(cell: str, vocabulary: int, hidden: int) -> Any:
    seqkern.manual_seed(0)
    config = seqkern.models.RNNLMConfig(vocabulary, EMBEDDING, hidden, cell=cell, dropout=DROPOUT)
    return seqkern.models.RNNLM(config)


def our_step(task: CharTask) -> Entry:
    """Results: the loss and the gradient of weight_hh, without dropout."""
    model = make_model(task.cell, task.vocabulary, task.hidden)
    model.load_state_dict(task.weights)
    optimizer = seqkern.optim.AdamW(model.named_parameters(), lr=LEARNING_RATE, betas=BETAS)
    state = None

    def call() -> float:
        nonlocal state
        model.train().zero_grad()
        loss, state = model.loss_and_grads(task.ids, task.targets, state)
        seqkern.optim.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss)

    def results() -> Sequence[Array]:
        model.eval().zero_grad()
        loss, _ = model.loss_and_grads(task.ids, task.targets)
        return [np.array([loss], np.float32), model.rnn.weight_hh_l0.grad]

    return Entry(call, results)


def run(session: Session) -> None:
    """Measure and print, a row for each kind of cell."""
    cells = CELLS[:1] if session.options.quick else CELLS
    results = session.run(session.wanted([row_spec(session, cell) for cell in cells]), "charrnn")
    if results:
        print(f"\ncharrnn, one training step, float32, {session.options.threads} threads; {LEGEND}\n")
        verdicts = [judge(result) if session.options.judged else NO_TARGET for result in results]
        print(rows_table(results, session.names(), verdicts))


def row_spec(session: Session, cell: str) -> RowSpec:
    """One kind of cell."""
    hidden = QUICK_HIDDEN if session.options.quick else HIDDEN
    task = char_task(cell, hidden)
    return RowSpec(
        family="charrnn",
        group="charrnn",
        label=f"{cell} {hidden}, {BATCH} x {LENGTH} characters",
        mode="train",
        shape=(LENGTH, BATCH, EMBEDDING, hidden, 1),
        dtype="float32",
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, task),
        flops=task.flops,
    )


def candidates(session: Session, task: CharTask) -> list[Candidate]:
    threads = session.options.threads
    return [
        Candidate(ours.NAME, partial(our_step, task), ours.settings(threads)),
        *(peer_candidate(peer, threads, "charrnn_train", task) for peer in session.peers),
    ]


def judge(result: RowResult) -> Verdict:
    """Against torch."""
    return Verdict(f">= {CHARRNN:g}x torch", at_least(result.ratios(("torch",)).get("torch"), CHARRNN))
