"""RNNLM: the recurrent language model. Embedding, stacked RNN, LSTM or GRU, linear head.

    x = E[ids];  y, h' = core(x, h);  logits = y W^T + b

Truncated back-propagation through time: call `loss_and_grads` on one window after the other and
hand each the state of the one before; the state carries over, the gradient does not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..nn import CrossEntropyLoss, Dropout, Embedding, Linear
from ..nn._arrays import Array, array_module, check_array, shape_text, to_numpy
from ..nn.module import Module, Pullback
from ._files import load_model, restore_model, save_model
from ._recurrent import RecurrentOutput, core_parameters, make_core, split_gradient
from ._sampling import check_sampling, evaluating, sample


@dataclass
class RNNLMConfig:
    """Sizes of an RNNLM.

    embedding_size: 0 feeds one-hot vectors, that is, no embedding matrix.
    cell: "rnn", "lstm" or "gru".
    dropout: probability, between layers and before the head, in training only.
    tie_weights: the head uses the embedding matrix; needs embedding_size == hidden_size.
    """

    vocab_size: int
    embedding_size: int = 128
    hidden_size: int = 512
    num_layers: int = 1
    cell: str = "lstm"
    dropout: float = 0.0
    tie_weights: bool = False

    def count_parameters(self) -> int:
        embedded = self.embedding_size or 0
        core = core_parameters(self.cell, embedded or self.vocab_size, self.hidden_size, self.num_layers)
        head = self.vocab_size * (1 + self.hidden_size * (not self.tie_weights))
        return self.vocab_size * embedded + core + head


class RNNLM(Module):
    """Language model over integer ids [N, S].

    `model(ids, hx=None)` -> RecurrentOutput(logits [N, S, V], hx). Parameters: embedding.weight,
    rnn.*, head.weight, head.bias. The pullback takes dlogits, or (dlogits, dhx), and returns
    `(None, dhx)`: ids have no gradient.
    """

    Config = RNNLMConfig

    def __init__(self, config: RNNLMConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        self.config = config
        options: dict[str, Any] = {"dtype": dtype, "rng": rng}
        vocab, embedded = config.vocab_size, config.embedding_size or 0
        if config.tie_weights and embedded != config.hidden_size:
            raise ValueError(
                f"tie_weights needs embedding_size == hidden_size = {config.hidden_size}, "
                f"got {embedded}"
            )
        self.embedding = Embedding(vocab, embedded, **options) if embedded else None
        self.rnn = make_core(config.cell, embedded or vocab, config, **options)
        self.dropout = Dropout(config.dropout)
        self.head = Linear(config.hidden_size, vocab, **options)
        if config.tie_weights and self.embedding is not None:
            # N(0, 1) rows would start the head with huge logits: torch's range for a head.
            self.embedding.weight.data /= math.sqrt(config.hidden_size)
            self.head.weight = self.embedding.weight

    # --- calls ------------------------------------------------------------------------------

    def __call__(self, ids: Array, hx: Any = None) -> RecurrentOutput:
        ids = _time_first(ids)
        x = self._one_hot(ids) if self.embedding is None else self.embedding(ids)
        y, hx = self.rnn(x, hx)
        return RecurrentOutput(self.head(self.dropout(y)).swapaxes(0, 1), hx)

    def vjp(self, ids: Array, hx: Any = None) -> tuple[RecurrentOutput, Pullback]:
        (logits, hx), pull_time_first = self._vjp_time_first(_time_first(ids), hx)

        def pull(grad: Any) -> tuple[None, Any]:
            dlogits, dhx = split_gradient(grad)
            dlogits = None if dlogits is None else dlogits.swapaxes(0, 1)
            return None, pull_time_first(dlogits, dhx)

        return RecurrentOutput(logits.swapaxes(0, 1), hx), Pullback(pull)

    def _vjp_time_first(self, ids: Array, hx: Any) -> tuple[tuple[Array, Any], Pullback]:
        """As `vjp` on ids [S, N]; the pullback takes (dlogits [S, N, V], dhx), returns dhx."""
        pull_embedding = None
        if self.embedding is None:
            x = self._one_hot(ids)
        else:
            x, pull_embedding = self.embedding.vjp(ids)
        (y, hx), pull_rnn = self.rnn.vjp(x, hx)
        y, pull_dropout = self.dropout.vjp(y)
        logits, pull_head = self.head.vjp(y)

        def pull(dlogits: Array | None, dhx: Any) -> Any:
            (dy,) = pull_head(dlogits)
            (dy,) = pull_dropout(dy)
            dx, dhx = pull_rnn((dy, dhx))
            if pull_embedding is not None:
                pull_embedding(dx)
            return dhx

        return (logits, hx), Pullback(pull)

    def _one_hot(self, ids: Array) -> Array:
        weight = self.head.weight.data
        rows = array_module(weight).eye(self.config.vocab_size, dtype=weight.dtype)
        return ops.embedding(ids, rows)

    def loss_and_grads(self, ids: Array, targets: Array, hx: Any = None) -> tuple[float, Any]:
        """Mean cross-entropy in nats per target, and the state after the window.

        ids, targets: integers [N, S]; a target of -100 does not count. Parameter gradients are
        added to p.grad; nothing flows into hx.
        """
        (logits, hx), pull = self._vjp_time_first(_time_first(ids), hx)
        loss, pull_loss = CrossEntropyLoss().vjp(logits, _time_first(targets, "targets"))
        pull(*pull_loss(), None)
        return float(loss), hx

    # --- generation -------------------------------------------------------------------------

    def generate(
        self,
        ids: Array,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        stream: bool = False,
    ) -> Any:
        """Continue ids [N, S], S >= 1, by sampling; returns [N, S + max_new_tokens].

        stream=True returns an iterator over the new tokens instead, one array [N] at a time.
        seed: of the draws; None takes one from the operating system. Dropout is off throughout.
        """
        check_sampling(max_new_tokens, temperature, top_k)
        prompt = to_numpy(_time_first(ids), "ids").swapaxes(0, 1)
        if prompt.shape[1] == 0:
            raise ValueError("ids must hold at least one token per row, got [N, 0]")
        rng = np.random.default_rng(seed)
        tokens = self._stream(ids, max_new_tokens, temperature, top_k, rng)
        if stream:
            return tokens
        return np.concatenate([prompt, *(token[:, None] for token in tokens)], axis=1)

    def _stream(
        self,
        ids: Array,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        rng: np.random.Generator,
    ) -> Iterator[np.ndarray]:
        hx = None
        for _ in range(max_new_tokens):
            with evaluating(self):
                logits, hx = self(ids, hx)
            token = sample(
                to_numpy(logits[:, -1], "logits"), temperature=temperature, top_k=top_k, rng=rng
            )
            yield token
            ids = array_module(ids).asarray(token[:, None])

    # --- files ------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `folder`, each atomically."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], config: RNNLMConfig | None = None
    ) -> RNNLM:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`."""
        known, weights = load_model(path, RNNLMConfig, config)
        if known.tie_weights and "embedding.weight" in weights:
            weights.setdefault("head.weight", weights["embedding.weight"])
        like = "embedding.weight" if known.tie_weights else "head.weight"
        return restore_model(cls, known, weights, like=like)


def _time_first(ids: Array, name: str = "ids") -> Array:
    """[N, S] to [S, N]."""
    check_array(ids, name)
    if ids.ndim != 2:
        raise ValueError(f"{name} must be [N, S], got {shape_text(ids.shape)}")
    return ids.swapaxes(0, 1)
