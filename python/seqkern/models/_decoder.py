"""The recurrent decoder of Seq2Seq and Captioner: words from a state and, with attention, a memory.

    none      h_t = core(E[y_{t-1}], h_{t-1});                          logits = V h_t + c
    luong     the same core; context over the memory by h_t;            a_t = tanh(W [context; h_t])
    bahdanau  context over the memory by h_{t-1}, top layer;  h_t = core([E[y_{t-1}]; context], h_{t-1});
              a_t likewise;                                             logits = V a_t + c

Luong's attention does not feed the recurrence, so the core and the attention run over the whole
sequence at once (no input feeding); Bahdanau's does, and the core runs step by step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nn import BahdanauAttention, Dropout, Embedding, Linear, LuongAttention, Tanh
from ..nn._arrays import Array, array_module
from ..nn._init import check_choice
from ..nn._residual import chain_vjp
from ..nn.encoder_attention import BoundAttention
from ..nn.module import Module
from ._beam import Generated, decode, shift_right
from ._recurrent import core_parameters, hidden, make_core

ATTENTIONS = ("none", "bahdanau", "luong")


class RecurrentDecoder(Module):
    """ids `[N, T]`, a state hx and a memory `[N, S, K]` -> logits `[N, T, V]`.

    config: gives embedding_size, hidden_size, num_layers, cell, dropout, attention, score and the ids of BoS and EoS.
    """

    def __init__(self, vocab_size: int, memory_size: int, config: Any, *, dtype: Any, rng: Any) -> None:
        c, options = config, {"dtype": dtype, "rng": rng}
        kind = check_choice(c.attention, "attention", ATTENTIONS)
        check_choice(c.cell, "cell", ("lstm", "gru"))
        size, self.ends = c.hidden_size, (c.bos_token_id, c.eos_token_id)
        self.embedding = Embedding(vocab_size, c.embedding_size, **options)
        self.rnn = make_core(c.cell, c.embedding_size + memory_size * (kind == "bahdanau"), c, **options)
        self.attention: Any = None
        if kind == "bahdanau":
            self.attention = BahdanauAttention(size, memory_size, size, **options)
        elif kind == "luong":
            self.attention = LuongAttention(size, memory_size, score=c.score, **options)
        self.combine = None if kind == "none" else Linear(memory_size + size, size, False, **options)
        self.tanh, self.dropout = Tanh(), Dropout(c.dropout)
        self.head = Linear(size, vocab_size, **options)

    def vjp(  # type: ignore[override]
        self, ids: Array, hx: Any, memory: Any = None, lengths: Array | None = None
    ) -> tuple[Array, Array | None, Any, Any]:
        """logits, attention weights `[N, T, S]` or None, the final state, and the gradient function.

        memory: keys, or what `bind` made of them. The gradient function takes dlogits and returns
        (dhx, dmemory).
        """
        x, pull_embedding = self.embedding.vjp(ids.swapaxes(0, 1))
        stepwise = isinstance(self.attention, BahdanauAttention)
        run = self._step_by_step if stepwise else self._whole
        features, weights, hx, pull_body = run(x, hx, memory, lengths)
        before = () if self.combine is None else (self.combine, self.tanh)
        logits, pull_head = chain_vjp(features, *before, self.dropout, self.head)

        def pull(dlogits: Array) -> tuple[Any, Array | None]:
            (dfeatures,) = pull_head(dlogits)
            dx, dhx, dmemory = pull_body(dfeatures)
            pull_embedding(dx)
            return dhx, dmemory

        return logits, weights, hx, pull

    def bind(self, memory: Array, lengths: Array | None) -> Any:
        """The memory in the form that repeated calls work with fastest."""
        return self.attention.bind(memory, lengths) if isinstance(self.attention, BahdanauAttention) else memory

    def write(
        self, hx: Any, memory: Array, lengths: Array | None, max_new_tokens: int, output_attentions: bool, *,
        beams: int = 1, **options: Any,
    ) -> Generated:  # fmt: skip
        """`decode` from this state with these options, and on request what every token looked at."""
        bos, eos = self.ends
        steps = DecoderSteps(self, hx, memory, lengths, beams)
        result = decode(steps, len(memory), max_new_tokens, bos, eos, beams=beams, **options)
        if output_attentions:
            read = shift_right(array_module(memory).asarray(result.ids), bos, eos)
            result.attentions = self.vjp(read, hx, memory, lengths)[1]
        return result

    def _whole(self, x: Array, hx: Any, memory: Any, lengths: Array | None) -> Any:
        (y, hx), pull_rnn = self.rnn.vjp(x, hx)
        y = y.swapaxes(0, 1)
        if self.attention is None:
            return y, None, hx, lambda dy: (*pull_rnn(dy.swapaxes(0, 1)), None)
        (context, weights), pull_attention = self.attention.vjp(y, memory, lengths=lengths)
        size = context.shape[-1]

        def pull(dfeatures: Array) -> tuple[Array, Any, Array]:
            dquery, dmemory = pull_attention(dfeatures[..., :size])
            dy = dfeatures[..., size:] + dquery
            return (*pull_rnn(dy.swapaxes(0, 1)), dmemory)

        return array_module(y).concatenate((context, y), axis=-1), weights, hx, pull

    def _step_by_step(self, x: Array, hx: Any, memory: Any, lengths: Array | None) -> Any:
        bound = memory if isinstance(memory, BoundAttention) else self.attention.bind(memory, lengths)
        xp, features, weights, pulls = array_module(x), [], [], []
        for step in x:
            context, looked_at, pull_context = bound(hidden(hx)[-1])
            (y, hx), pull_rnn = self.rnn.vjp(xp.concatenate((step, context), axis=-1)[None], hx)
            features.append(xp.concatenate((context, y[0]), axis=-1))
            weights.append(looked_at)
            pulls.append((pull_context, pull_rnn))
        words, size = x.shape[-1], context.shape[-1]

        def pull(dfeatures: Array) -> tuple[Array, Any, Array]:
            dx, dhx = xp.empty(x.shape, dtype=x.dtype), None
            for t in reversed(range(len(pulls))):
                pull_context, pull_rnn = pulls[t]
                dinput, dhx = pull_rnn((dfeatures[None, :, t, size:], dhx))
                dx[t] = dinput[0, :, :words]
                dquery = pull_context(dfeatures[:, t, :size] + dinput[0, :, words:])
                hidden(dhx)[-1] += dquery
            return dx, dhx, bound.pull()

        return xp.stack(features, axis=1), xp.stack(weights, axis=1), hx, pull


class DecoderSteps:
    """`_beam.Steps` of a RecurrentDecoder, each of the N rows repeated for its beams."""

    def __init__(self, decoder: RecurrentDecoder, hx: Any, memory: Array, lengths: Array | None, beams: int) -> None:
        xp = array_module(memory)
        self.decoder, self.template = decoder, memory
        self.hx = _each(hx, lambda h: xp.repeat(h, beams, axis=1))
        self.lengths = None if lengths is None else xp.repeat(lengths, beams)
        self.memory = decoder.bind(xp.repeat(memory, beams, axis=0), self.lengths)

    def __call__(self, tokens: np.ndarray) -> Array:
        ids = array_module(self.template).asarray(tokens[:, None])
        logits, _, self.hx, _ = self.decoder.vjp(ids, self.hx, self.memory, self.lengths)
        return logits[:, 0]

    def reorder(self, rows: np.ndarray) -> None:
        self.hx = _each(self.hx, lambda h: h[:, array_module(h).asarray(rows)])


def _each(hx: Any, change: Any) -> Any:
    return tuple(change(h) for h in hx) if isinstance(hx, tuple) else change(hx)


def decoder_parameters(vocab_size: int, memory_size: int, config: Any) -> int:
    """Parameters of a RecurrentDecoder, counted."""
    c, h, k = config, config.hidden_size, memory_size
    inputs = c.embedding_size + k * (c.attention == "bahdanau")
    total = vocab_size * c.embedding_size + core_parameters(c.cell, inputs, h, c.num_layers) + (h + 1) * vocab_size
    if c.attention == "none":
        return total
    concat = (h + k) * h + h
    score = {"dot": 0, "general": h * k, "concat": concat}[c.score]
    return total + (h + k) * h + (concat if c.attention == "bahdanau" else score)
