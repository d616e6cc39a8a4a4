"""The recurrent language model: embedding, stacked recurrent layers, linear head, cross-entropy.

    x = E[ids];  x = layer_k(x) for k = 0 … num_layers - 1;  logits = x W_headᵀ + b_head

`params` maps torch's state-dict names to arrays: `embedding.weight` `[V, E]`,
`rnn.weight_ih_l{k}`, `rnn.weight_hh_l{k}`, optionally `rnn.bias_ih_l{k}`, `rnn.bias_hh_l{k}` and,
for an LSTM with projection, `rnn.weight_hr_l{k}`; `head.weight` `[V, H]`, optionally `head.bias`
`[V]`. `cell` is "rnn" (tanh), "lstm" or "gru" (reset after the product). States are laid out as
torch's: `[num_layers, N, H]`, for the LSTM the pair (h, c). No dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ._arrays import Array
from .cross_entropy import cross_entropy_backward, cross_entropy_forward
from .embedding import EmbeddingSaved, embedding_backward, embedding_forward
from .gru import gru_backward, gru_forward
from .linear import LinearSaved, linear_backward, linear_forward
from .lstm import lstm_backward, lstm_forward
from .rnn import rnn_backward, rnn_forward

Params: TypeAlias = Mapping[str, Array]
States: TypeAlias = Array | tuple[Array, Array]

_FORWARD: dict[str, Any] = {"rnn": rnn_forward, "lstm": lstm_forward, "gru": gru_forward}
_BACKWARD: dict[str, Any] = {"rnn": rnn_backward, "lstm": lstm_backward, "gru": gru_backward}
_LAYER_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class RNNLanguageModelSaved(NamedTuple):
    """The `saved` of each part, layers from the first to the last, and the cell's name."""

    embedding: EmbeddingSaved
    layers: tuple[Any, ...]
    head: LinearSaved
    cell: str


def _layer_arguments(params: Params, k: int, states: States | None) -> dict[str, Array]:
    """Keyword arguments of layer k: those of its parameters that exist, and its initial state."""
    named = {name: params.get(f"rnn.{name}_l{k}") for name in _LAYER_PARAMETERS}
    if isinstance(states, tuple):
        named |= {"h0": states[0][k], "c0": states[1][k]}
    elif states is not None:
        named["h0"] = states[k]
    return {name: array for name, array in named.items() if array is not None}


def rnn_language_model_forward(
    ids: Array, params: Params, *, cell: str, num_layers: int, states: States | None = None
) -> tuple[Array, States, RNNLanguageModelSaved]:
    """As `rnn_language_model`, and what its backward needs: logits, states, saved."""
    x, embedding_saved = embedding_forward(ids, params["embedding.weight"])
    final, layers = [], []
    for k in range(num_layers):
        x, state, saved = _FORWARD[cell](x, **_layer_arguments(params, k, states))
        final.append(state)
        layers.append(saved)
    logits, head_saved = linear_forward(x, params["head.weight"], params.get("head.bias"))
    if cell == "lstm":
        new_states: States = (np.stack([h for h, _ in final]), np.stack([c for _, c in final]))
    else:
        new_states = np.stack(final)
    return (
        logits,
        new_states,
        RNNLanguageModelSaved(embedding_saved, tuple(layers), head_saved, cell),
    )


def rnn_language_model(
    ids: Array, params: Params, *, cell: str, num_layers: int, states: States | None = None
) -> tuple[Array, States]:
    """ids int `[T, N]` to logits `[T, N, V]` and the states after the last step."""
    logits, new_states, _ = rnn_language_model_forward(
        ids, params, cell=cell, num_layers=num_layers, states=states
    )
    return logits, new_states


def rnn_language_model_backward(
    dlogits: Array | None, saved: RNNLanguageModelSaved
) -> dict[str, Array]:
    """The gradient of every parameter, under its name in `params`, from dlogits `[T, N, V]`.

    The final states receive no gradient: back-propagation is truncated there.
    """
    head = linear_backward(dlogits, saved.head)
    gradients: dict[str, Array | None] = {"head.weight": head.dweight, "head.bias": head.dbias}
    dx = head.dx
    for k in reversed(range(len(saved.layers))):
        layer = _BACKWARD[saved.cell](dx, None, saved.layers[k])
        dx = layer.dx
        for name in _LAYER_PARAMETERS:
            gradients[f"rnn.{name}_l{k}"] = getattr(layer, f"d{name}", None)
    gradients["embedding.weight"] = embedding_backward(dx, saved.embedding).dweight
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def rnn_language_model_loss(
    ids: Array,
    targets: Array,
    params: Params,
    *,
    cell: str,
    num_layers: int,
    states: States | None = None,
) -> tuple[Array, dict[str, Array], States]:
    """Mean cross-entropy in nats per target, its parameter gradients, and the new states.

    ids and targets int `[T, N]`; a target of -100 does not count. Pass the states on to the next
    window for truncated back-propagation through time: they carry over, the gradient does not.
    """
    logits, new_states, saved = rnn_language_model_forward(
        ids, params, cell=cell, num_layers=num_layers, states=states
    )
    loss, loss_saved = cross_entropy_forward(logits, targets)
    dlogits = cross_entropy_backward(1.0, loss_saved).dlogits
    return loss, rnn_language_model_backward(dlogits, saved), new_states
