"""Seq2Seq: an encoder-decoder of LSTMs or GRUs (Sutskever, Vinyals & Le 2014; Cho et al. 2014).

    memory, h_S = encoder(E_src[x]);   decoder starts from h_S and writes y_1, y_2, ... until EoS

Without attention the decoder knows the source by h_S alone, a vector of fixed size. With it, every
step also reads the memory: see `_decoder.py` for the equations of both kinds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..nn import CrossEntropyLoss, Embedding
from ..nn._arrays import Array, array_module
from ..nn.module import Module, Pullback
from ._beam import Generated, shift_right
from ._decoder import RecurrentDecoder, decoder_parameters
from ._files import load_model, restore_model, save_model
from ._pairs import check_ids, check_pair, source_lengths
from ._recurrent import core_parameters, make_core
from ._sampling import evaluating


@dataclass
class Seq2SeqConfig:
    """Sizes of a Seq2Seq.

    hidden_size: units of the decoder's layers and features of the memory; the two directions of a
        bidirectional encoder have half each.
    cell: "lstm" or "gru".
    reverse_source: the encoder reads every row from its end, which helps without attention.
    attention: "none", "bahdanau" or "luong"; score: Luong's, "dot", "general" or "concat".
    dropout: probability, between layers and before the head, in training only.
    bos_token_id, eos_token_id: the target's start and end.
    """

    src_vocab_size: int
    tgt_vocab_size: int
    embedding_size: int = 128
    hidden_size: int = 256
    num_layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = False
    reverse_source: bool = False
    attention: str = "none"
    score: str = "general"
    dropout: float = 0.0
    bos_token_id: int = 1
    eos_token_id: int = 2

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def count_parameters(self) -> int:
        width = self.hidden_size // self.directions
        encoder = core_parameters(self.cell, self.embedding_size, width, self.num_layers, self.directions)
        decoder = decoder_parameters(self.tgt_vocab_size, self.hidden_size, self)
        return self.src_vocab_size * self.embedding_size + encoder + decoder


@dataclass
class Seq2SeqOutput:
    """logits `[N, T, V]`; attentions `[N, T, S]`, what each target token looked at, or None."""

    logits: Array
    attentions: Array | None = None


class Seq2Seq(Module):
    """`model(src [N, S], tgt [N, T])` -> Seq2SeqOutput(logits [N, T, V], attentions).

    tgt is what the decoder reads, BoS first (teacher forcing); logits[:, t] are for the token after
    tgt[:, t]. Sources are padded on the right: say where by `attention_mask` [N, S], 1 = keep, or by
    `src_lengths` [N]. The pullback takes dlogits and returns (None, None): ids have no gradient.
    """

    Config = Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        if c.hidden_size % c.directions:
            raise ValueError(f"hidden_size must be even for a bidirectional encoder, got {c.hidden_size}")
        options: dict[str, Any] = {"dtype": dtype, "rng": rng}
        self.embedding = Embedding(c.src_vocab_size, c.embedding_size, **options)
        narrow = replace(c, hidden_size=c.hidden_size // c.directions)
        self.encoder = make_core(c.cell, c.embedding_size, narrow, bidirectional=c.bidirectional, **options)
        self.decoder = RecurrentDecoder(c.tgt_vocab_size, c.hidden_size, c, **options)

    # --- calls ------------------------------------------------------------------------------

    def __call__(self, src: Array, tgt: Array, attention_mask: Any = None, *, src_lengths: Any = None) -> Seq2SeqOutput:
        return self.vjp(src, tgt, attention_mask, src_lengths=src_lengths)[0]

    def vjp(
        self, src: Array, tgt: Array, attention_mask: Any = None, *, src_lengths: Any = None
    ) -> tuple[Seq2SeqOutput, Pullback]:
        check_pair(src, tgt, self.config)
        src, lengths, order = self._source(src, attention_mask, src_lengths)
        memory, hx, pull_encoder = self._encode(src, lengths)
        logits, weights, _, pull_decoder = self.decoder.vjp(tgt, hx, memory, lengths)

        def pull(dlogits: Any) -> tuple[None, None]:
            if isinstance(dlogits, Seq2SeqOutput):
                if dlogits.attentions is not None:
                    raise ValueError("gradient: attentions take no gradient, pass None")
                dlogits = dlogits.logits
            pull_encoder(*pull_decoder(dlogits))
            return None, None

        return Seq2SeqOutput(logits, _as_given(weights, order)), Pullback(pull)

    def loss_and_grads(
        self, src: Array, targets: Array, attention_mask: Any = None, *, src_lengths: Any = None
    ) -> float:
        """Mean cross-entropy in nats per target `[N, T]`, which ends in EoS; -100 does not count.

        Parameter gradients are added to p.grad.
        """
        tgt = shift_right(targets, self.config.bos_token_id, self.config.eos_token_id)
        output, pull = self.vjp(src, tgt, attention_mask, src_lengths=src_lengths)
        loss, pull_loss = CrossEntropyLoss().vjp(output.logits, targets)
        pull(*pull_loss())
        return float(loss)

    def _source(self, src: Array, mask: Any, lengths: Any) -> tuple[Array, Array | None, Array | None]:
        """The source as the encoder reads it, its lengths, and, if reversed, where each place went."""
        lengths = source_lengths(mask, lengths, tuple(src.shape))
        if not self.config.reverse_source:
            return src, lengths, None
        xp = array_module(src)
        place = xp.broadcast_to(xp.arange(src.shape[1]), src.shape)
        if lengths is None:
            order = place[:, ::-1]
        else:
            order = xp.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
        return xp.take_along_axis(src, order, 1), lengths, order

    def _encode(self, src: Array, lengths: Array | None) -> tuple[Array, Any, Any]:
        """memory [N, S, H], the decoder's first state, and (dhx, dmemory) -> None."""
        x, pull_embedding = self.embedding.vjp(src.swapaxes(0, 1))
        (y, hx), pull_encoder = self.encoder.vjp(x, lengths=lengths)

        def pull(dhx: Any, dmemory: Array | None) -> None:
            dy = None if dmemory is None else dmemory.swapaxes(0, 1)
            dx, _ = pull_encoder((dy, self._sided(dhx, self._by_direction)))
            pull_embedding(dx)

        return y.swapaxes(0, 1), self._sided(hx, self._joined), pull

    def _sided(self, hx: Any, change: Any) -> Any:
        if self.config.directions == 1:
            return hx
        return tuple(change(h) for h in hx) if isinstance(hx, tuple) else change(hx)

    @staticmethod
    def _joined(h: Array) -> Array:
        """Both directions' states [L*2, N, H/2] side by side, [L, N, H]."""
        rows, batch, half = h.shape
        return h.reshape(rows // 2, 2, batch, half).swapaxes(1, 2).reshape(rows // 2, batch, 2 * half)

    @staticmethod
    def _by_direction(h: Array) -> Array:
        """The inverse of `_joined`."""
        layers, batch, size = h.shape
        return h.reshape(layers, batch, 2, size // 2).swapaxes(1, 2).reshape(2 * layers, batch, size // 2)

    # --- generation -------------------------------------------------------------------------

    def generate(
        self, src: Array, max_new_tokens: int, *, attention_mask: Any = None, src_lengths: Any = None,
        beams: int = 1, length_penalty: float = 0.0, temperature: float = 0.0, top_k: int | None = None,
        top_p: float | None = None, seed: int | None = None, output_attentions: bool = False,
    ) -> Generated:  # fmt: skip
        """Write a target for every source: `Generated(ids [N, T], lengths, scores, attentions)`.

        By default the most likely token at every step; temperature > 0 draws (see `GPT2.generate`);
        beams > 1 searches among that many rows for the highest log p / ((5 + length) / 6)^length_penalty.
        """
        check_ids(src, "src", self.config.src_vocab_size)
        with evaluating(self):
            read, lengths, order = self._source(src, attention_mask, src_lengths)
            memory, hx, _ = self._encode(read, lengths)
            result = self.decoder.write(
                hx, memory, lengths, max_new_tokens, output_attentions, beams=beams, length_penalty=length_penalty,
                temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
            )  # fmt: skip
        result.attentions = _as_given(result.attentions, order)
        return result

    # --- files ------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `folder`, each atomically."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], config: Seq2SeqConfig | None = None) -> Seq2Seq:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`."""
        known, weights = load_model(path, Seq2SeqConfig, config)
        return restore_model(cls, known, weights, like="decoder.head.weight")


def _as_given(weights: Array | None, order: Array | None) -> Array | None:
    """Attention `[N, T, S]` over the source as the caller has it, where the encoder read it in another order."""
    if weights is None or order is None:
        return weights
    return array_module(weights).take_along_axis(weights, order[:, None], 2)
