"""PyTorch's side of `bench charrnn`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import charrnn
from ..charrnn import CharTask
from ..tasks import Array, Entry


def charrnn_train(task: CharTask) -> Entry:
    """Its own layers and its fused AdamW; results: the loss and the gradient of weight_hh, without dropout."""
    layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(task.vocabulary, charrnn.EMBEDDING),
            "rnn": layers[task.cell](charrnn.EMBEDDING, task.hidden),
            "head": torch.nn.Linear(task.hidden, task.vocabulary),
        }
    )
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in task.weights.items()})
    dropout = torch.nn.functional.dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=charrnn.LEARNING_RATE, betas=charrnn.BETAS, fused=True)
    ids, targets = (torch.from_numpy(a.T.copy()) for a in (task.ids, task.targets))
    state = None

    def backward(probability: float) -> torch.Tensor:
        nonlocal state
        optimizer.zero_grad()
        y, state = model["rnn"](model["embedding"](ids), state)
        state = tuple(h.detach() for h in state) if isinstance(state, tuple) else state.detach()
        logits = model["head"](dropout(y, probability))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        torch.autograd.backward(loss)
        return loss.detach()

    def call() -> float:
        loss = backward(charrnn.DROPOUT)
        torch.nn.utils.clip_grad_norm_(model.parameters(), charrnn.CLIP)
        optimizer.step()
        return float(loss)

    def results() -> Sequence[Array]:
        nonlocal state
        state = None
        loss = backward(0.0)
        gradient = model.get_parameter("rnn.weight_hh_l0").grad
        assert gradient is not None
        return [loss.numpy()[None], gradient.numpy().copy()]

    return Entry(call, results)
