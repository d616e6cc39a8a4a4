"""What the recurrent models share: the choice of core, and what their calls return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..nn import GRU, LSTM, RNN
from ..nn._arrays import Array
from ..nn._init import check_choice

CORES: dict[str, Any] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


@dataclass
class RecurrentOutput:
    """Result of a recurrent model; also unpacks, `logits, hx = model(...)`.

    logits: what the head gives: class scores, or the values themselves in a regression.
    hx: final state of the core, the array h or the tuple (h, c), to pass in again.
    """

    logits: Array
    hx: Any

    def __iter__(self) -> Iterator[Any]:
        return iter((self.logits, self.hx))


def make_core(cell: str, input_size: int, config: Any, **options: Any) -> Any:
    """A stacked RNN, LSTM or GRU with the config's hidden_size, num_layers and dropout."""
    core = CORES[check_choice(cell, "cell", tuple(CORES))]
    return core(
        input_size,
        config.hidden_size,
        config.num_layers,
        dropout=config.dropout,
        **options,
    )


def split_gradient(grad: Any) -> tuple[Any, Any]:
    """(dlogits, dhx) from a bare dlogits, a tuple, a RecurrentOutput or None."""
    if isinstance(grad, RecurrentOutput):
        return grad.logits, grad.hx
    if isinstance(grad, tuple):
        if len(grad) != 2:
            raise ValueError(f"gradient must be dlogits or (dlogits, dhx), got {len(grad)} items")
        return grad
    return grad, None


def hidden(hx: Any) -> Array:
    """h of a state h or (h, c)."""
    return hx[0] if isinstance(hx, tuple) else hx


def core_parameters(cell: str, inputs: int, size: int, layers: int, directions: int = 1) -> int:
    """Parameters of a core with `size` units per direction, both biases counted."""
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[cell] * size
    widths = [inputs] + [directions * size] * (layers - 1)
    return sum(directions * gates * (width + size + 2) for width in widths)
