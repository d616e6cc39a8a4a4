"""TransformerMT: the encoder-decoder of "Attention Is All You Need" (Vaswani et al. 2017).

    x = dropout(sqrt(d) E[ids] + P)                P: sinusoids or a table
    memory = encoder(x_src);   y = decoder(x_tgt, memory), causal;   logits = y V^T, V = E if tied

On `nn.Transformer`, so with torch's norm after the last layer of each stack, which the paper lacks,
and torch's parameter names under `transformer.`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..nn import CrossEntropyLoss, Dropout, Embedding, Linear, SinusoidalPositions, Transformer
from ..nn._arrays import Array, array_module
from ..nn._init import check_choice
from ..nn.module import Module, Pullback
from ._beam import Generated, check_decoding, decode, shift_right
from ._files import load_model, restore_model, save_model
from ._pairs import check_ids, check_pair, source_padding
from ._sampling import evaluating
from ._transformer import ModelOutput, as_output_gradient, plus


@dataclass
class TransformerMTConfig:
    """Sizes of a TransformerMT; `base` and `large` are the paper's.

    positions: "sinusoidal" or "learned"; max_positions: the longest source and target.
    tie_weights: the head uses the target's embedding; share_embeddings: so does the source, which
        needs one vocabulary for both.
    label_smoothing: of the loss in `loss_and_grads`.
    """

    src_vocab_size: int
    tgt_vocab_size: int
    d_model: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: str = "relu"
    norm_first: bool = False
    positions: str = "sinusoidal"
    max_positions: int = 1024
    tie_weights: bool = True
    share_embeddings: bool = False
    label_smoothing: float = 0.1
    bos_token_id: int = 1
    eos_token_id: int = 2

    @classmethod
    def base(cls, vocab_size: int, **changes: Any) -> TransformerMTConfig:
        """The paper's base model, one vocabulary and one matrix for both sides and the head."""
        return cls(**{"src_vocab_size": vocab_size, "tgt_vocab_size": vocab_size, "share_embeddings": True, **changes})

    @classmethod
    def large(cls, vocab_size: int, **changes: Any) -> TransformerMTConfig:
        """The paper's big model."""
        sizes = {"d_model": 1024, "num_heads": 16, "dim_feedforward": 4096, "dropout": 0.3}
        return cls.base(vocab_size, **{**sizes, **changes})

    def count_parameters(self) -> int:
        d, inner = self.d_model, self.dim_feedforward
        attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * inner + inner + d, 2 * d
        total = self.num_encoder_layers * (attention + mlp + 2 * norm) + norm
        total += self.num_decoder_layers * (2 * attention + mlp + 3 * norm) + norm
        tables = self.tgt_vocab_size * (1 if self.tie_weights else 2)
        tables += 0 if self.share_embeddings else self.src_vocab_size
        tables += 2 * self.max_positions if self.positions == "learned" else 0
        return total + tables * d


class Embedded(Module):
    """ids `[N, L]` -> dropout(sqrt(d) E[ids] + P[offset : offset + L]), `[N, L, d]`."""

    def __init__(self, vocab_size: int, config: TransformerMTConfig, *, dtype: Any, rng: Any) -> None:
        c, options = config, {"dtype": dtype, "rng": rng}
        self.scale = math.sqrt(c.d_model)
        self.embedding = _table(vocab_size, c.d_model, options)
        learned = check_choice(c.positions, "positions", ("sinusoidal", "learned")) == "learned"
        self.positions = _table(c.max_positions, c.d_model, options) if learned else None
        self.sinusoids = SinusoidalPositions(c.d_model, c.max_positions)
        self.dropout = Dropout(c.dropout)

    def vjp(self, ids: Array, offset: int = 0) -> tuple[Array, Pullback]:
        """The pullback returns (None,)."""
        rows, pull_rows = self.embedding.vjp(ids)
        x, pull_places = rows * self.scale, None
        if self.positions is None:
            x = self.sinusoids(x, offset)
        else:
            places, pull_places = self.positions.vjp(array_module(ids).arange(offset, offset + ids.shape[1]))
            x = x + self.scale * places
        y, pull_dropout = self.dropout.vjp(x)

        def pull(dy: Array) -> tuple[None]:
            (dx,) = pull_dropout(dy)
            pull_rows(dx * self.scale)
            if pull_places is not None:
                pull_places(dx.sum(axis=0) * self.scale)
            return (None,)

        return y, Pullback(pull)


def _table(rows: int, size: int, options: dict[str, Any]) -> Embedding:
    """An embedding of N(0, 1/size), so that sqrt(size) times its rows are of order 1."""
    table = Embedding(rows, size, **options)
    table.weight.data *= table.weight.data.dtype.type(size**-0.5)
    return table


class TransformerMT(Module):
    """`model(src [N, S], tgt [N, T])` -> ModelOutput(logits [N, T, V], last_hidden_state [N, T, d]).

    tgt is what the decoder reads, BoS first (teacher forcing); logits[:, t] are for the token after
    tgt[:, t]. Say where sources are padded by `attention_mask` [N, S], 1 = keep, or `src_lengths` [N].
    The pullback takes dlogits, or a ModelOutput of gradients, and returns (None, None).
    """

    Config = TransformerMTConfig

    def __init__(self, config: TransformerMTConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        options: dict[str, Any] = {"dtype": dtype, "rng": rng}
        self.source = Embedded(c.src_vocab_size, c, **options)
        self.target = Embedded(c.tgt_vocab_size, c, **options)
        self.transformer = Transformer(
            c.d_model, c.num_heads, c.num_encoder_layers, c.num_decoder_layers, c.dim_feedforward,
            c.dropout, c.activation, batch_first=True, norm_first=c.norm_first, **options,
        )  # fmt: skip
        self.head = Linear(c.d_model, c.tgt_vocab_size, False, **options)
        if c.tie_weights:
            self.head.weight = self.target.embedding.weight
        if c.share_embeddings:
            if c.src_vocab_size != c.tgt_vocab_size:
                raise ValueError(
                    "share_embeddings needs src_vocab_size == tgt_vocab_size, got "
                    f"{c.src_vocab_size} and {c.tgt_vocab_size}"
                )
            self.source.embedding.weight = self.target.embedding.weight

    # --- calls ------------------------------------------------------------------------------

    def __call__(self, src: Array, tgt: Array, attention_mask: Any = None, *, src_lengths: Any = None) -> ModelOutput:
        self._check(src, tgt)
        padding = source_padding(attention_mask, src_lengths, tuple(src.shape))
        y = self._decode(tgt, self._encode(src, padding), padding)
        return ModelOutput(logits=self.head(y), last_hidden_state=y)

    def vjp(
        self, src: Array, tgt: Array, attention_mask: Any = None, *, src_lengths: Any = None
    ) -> tuple[ModelOutput, Pullback]:
        self._check(src, tgt)
        padding = source_padding(attention_mask, src_lengths, tuple(src.shape))
        x, pull_source = self.source.vjp(src)
        z, pull_target = self.target.vjp(tgt)
        y, pull_transformer = self.transformer.vjp(
            x, z, tgt_is_causal=True, src_key_padding_mask=padding, memory_key_padding_mask=padding
        )
        logits, saved = ops.linear_forward(y, self.head.weight.data)

        def pull(grad: Any) -> tuple[None, None]:
            given = as_output_gradient(grad, "logits")
            dy = given.last_hidden_state
            if given.logits is not None:
                grads = ops.linear_backward(given.logits, saved)
                self.head.weight.add_grad(grads.dweight)
                dy = plus(dy, grads.dx)
            dx, dz = pull_transformer(dy)
            pull_source(dx)
            pull_target(dz)
            return None, None

        return ModelOutput(logits=logits, last_hidden_state=y), Pullback(pull)

    def loss_and_grads(
        self, src: Array, targets: Array, attention_mask: Any = None, *, src_lengths: Any = None
    ) -> float:
        """Mean cross-entropy, with the config's label smoothing, in nats per target `[N, T]`.

        Targets end in EoS; -100 does not count. Parameter gradients are added to p.grad.
        """
        tgt = shift_right(targets, self.config.bos_token_id, self.config.eos_token_id)
        output, pull = self.vjp(src, tgt, attention_mask, src_lengths=src_lengths)
        criterion = CrossEntropyLoss(label_smoothing=self.config.label_smoothing)
        loss, pull_loss = criterion.vjp(output.logits, targets)
        pull(*pull_loss())
        return float(loss)

    def _check(self, src: Array, tgt: Array) -> None:
        check_pair(src, tgt, self.config)
        for ids, name in ((src, "src"), (tgt, "tgt")):
            self._check_length(ids.shape[1], name)

    def _check_length(self, length: int, name: str) -> None:
        if length > self.config.max_positions:
            raise ValueError(f"{name}: the model has {self.config.max_positions} positions, got {length}")

    def _encode(self, src: Array, padding: Array | None) -> Array:
        return self.transformer.encoder(self.source.vjp(src)[0], src_key_padding_mask=padding)

    def _decode(self, tgt: Array, memory: Array, padding: Array | None, cache: Any = None) -> Array:
        """The decoder's states; with a cache, tgt goes on from what it holds."""
        x, _ = self.target.vjp(tgt, cache[0].self_attn.length if cache else 0)
        options = {"tgt_is_causal": True, "memory_key_padding_mask": padding, "cache": cache}
        return self.transformer.decoder(x, memory, **options)

    # --- generation -------------------------------------------------------------------------

    def generate(
        self, src: Array, max_new_tokens: int, *, attention_mask: Any = None, src_lengths: Any = None,
        beams: int = 1, length_penalty: float = 0.6, temperature: float = 0.0, top_k: int | None = None,
        top_p: float | None = None, seed: int | None = None,
    ) -> Generated:  # fmt: skip
        """Write a target for every source: `Generated(ids [N, T], lengths, scores)`.

        By default the most likely token at every step; temperature > 0 draws (see `GPT2.generate`);
        beams > 1 searches among that many rows for the highest log p / ((5 + length) / 6)^length_penalty
        (the paper: 4 and 0.6). Keys and values are kept, so every step computes one position.
        """
        check_decoding(max_new_tokens, beams, length_penalty, temperature, top_k, top_p)
        check_ids(src, "src", self.config.src_vocab_size)
        self._check_length(src.shape[1], "src")
        self._check_length(max_new_tokens, "max_new_tokens")
        with evaluating(self):
            padding = source_padding(attention_mask, src_lengths, tuple(src.shape))
            steps = _Steps(self, self._encode(src, padding), padding, beams)
            return decode(
                steps, len(src), max_new_tokens, self.config.bos_token_id, self.config.eos_token_id,
                beams=beams, length_penalty=length_penalty, temperature=temperature, top_k=top_k,
                top_p=top_p, seed=seed,
            )  # fmt: skip

    # --- files ------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `folder`, each atomically; a shared matrix once."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], config: TransformerMTConfig | None = None
    ) -> TransformerMT:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`."""
        known, weights = load_model(path, TransformerMTConfig, config)
        names = ["source.embedding.weight"] * known.share_embeddings
        names += ["target.embedding.weight"] + ["head.weight"] * known.tie_weights
        for name in names:  # one matrix under each of these names, saved under the first
            if names[0] in weights:
                weights.setdefault(name, weights[names[0]])
        return restore_model(cls, known, weights, like="target.embedding.weight")


class _Steps:
    """`_beam.Steps` of a TransformerMT, each of the N rows repeated for its beams."""

    def __init__(self, model: TransformerMT, memory: Array, padding: Array | None, beams: int) -> None:
        xp = array_module(memory)
        self.model, self.cache = model, model.transformer.decoder.new_cache()
        self.memory = xp.repeat(memory, beams, axis=0)
        self.padding = None if padding is None else xp.repeat(padding, beams, axis=0)

    def __call__(self, tokens: np.ndarray) -> Array:
        ids = array_module(self.memory).asarray(tokens[:, None])
        return self.model.head(self.model._decode(ids, self.memory, self.padding, self.cache))[:, 0]

    def reorder(self, rows: np.ndarray) -> None:
        for layer in self.cache:  # what it keeps of the memory is the same for every beam of a row
            layer.self_attn.reorder(rows)
