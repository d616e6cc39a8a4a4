"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019): a post-norm encoder.

    x = LN(words[ids] + positions + types);  y = layers(x);  pooled = tanh(y_0 W + b)
    masked_lm:  logits = LN(act(y W + b)) wordsᵀ + bias        span, token:  logits = y W + b
    sequence:   logits = pooled W + b     (DistilBERT pools with relu in place of tanh)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import _random, ops
from ..nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, ReLU, Tanh
from ..nn._arrays import Array, array_module, check_array, shape_text
from ..nn._init import Initializer, check_choice
from ..nn._residual import chain_vjp
from ..nn.module import Parameter, Pullback
from ._bert_config import ENCODER, HEADS, BERTConfig
from ._files import blank
from ._images import wide_sum
from ._pretrained import PretrainedModel
from ._transformer import ACTIVATIONS, Layer, ModelOutput, as_output_gradient, check_ids, key_mask, plus, run_layers


class BERTEmbeddings(Module):
    """LayerNorm of the sum of word, position and token-type embeddings, `[B, S, E]`, with dropout."""

    def __init__(self, c: BERTConfig, options: dict[str, Any]) -> None:
        e, padded = c.hidden_size, c.pad_token_id if c.model_type == "roberta" else None
        self.words = Embedding(c.vocab_size, e, c.pad_token_id, **options)
        self.positions = Embedding(c.max_position_embeddings, e, padded, **options)
        self.types = Embedding(c.type_vocab_size, e, **options) if c.type_vocab_size else None
        self.norm = LayerNorm(e, c.layer_norm_eps, dtype=options["dtype"])
        self.dropout = Dropout(c.hidden_dropout_prob)

    def vjp(self, ids: Array, position_ids: Array, token_type_ids: Array) -> tuple[Array, Any]:
        """position_ids and token_type_ids may be [1, S] and [1, 1], for all rows and tokens alike."""
        used = [(self.words, ids), (self.positions, position_ids), (self.types, token_type_ids)]
        parts = [table.vjp(rows) for table, rows in used if table is not None]
        x = parts[0][0]
        for part, _ in parts[1:]:
            x = x + part
        y, pull = chain_vjp(x, self.norm, self.dropout)

        def back(dy: Array) -> None:
            (dx,) = pull(dy)
            for part, pull_part in parts:
                alike = tuple(k for k in (0, 1) if part.shape[k] < dx.shape[k])
                pull_part(wide_sum(dx, alike).reshape(part.shape).astype(dx.dtype) if alike else dx)

        return y, back


class MaskedLMHead(Module):
    """x `[B, S, E]` -> logits `[B, S, V]`; the last product is with the word embeddings."""

    def __init__(self, c: BERTConfig, options: dict[str, Any]) -> None:
        self.dense = Linear(c.hidden_size, c.hidden_size, **options)
        self.act = ACTIVATIONS["gelu" if c.model_type == "roberta" else c.hidden_act]()
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps, dtype=options["dtype"])
        self.bias = Initializer(blank(), options["dtype"]).constant(0, c.vocab_size)

    def vjp(self, x: Array, words: Parameter) -> tuple[Array, Any]:
        z, pull = chain_vjp(x, self.dense, self.act, self.norm)
        logits, saved = ops.linear_forward(z, words.data, self.bias.data)

        def back(dlogits: Array) -> tuple[Array]:
            grads = ops.linear_backward(dlogits, saved)
            words.add_grad(grads.dweight)
            self.bias.add_grad(grads.dbias)
            return pull(grads.dx)

        return logits, back


class BERT(PretrainedModel):
    """`model(ids [B, S])` -> ModelOutput(logits, last_hidden_state, pooler_output, ...).

    logits: `[B, S, vocab]` (masked_lm), `[B, num_labels]` (sequence), `[B, S, num_labels]` (token) or `[B, S, 2]`
    (span: start and end), None without a head. Names and files are those of transformers, where a head's model
    writes the encoder's names behind "bert.", "roberta." or "distilbert."; both are read, as are the old gamma
    and beta of the norms. The next-sentence head of a pretraining checkpoint is passed over. The pullback takes
    dlogits (without a head: dlast_hidden_state), or a ModelOutput of gradients, and returns (None,): ids have none.
    In training, DistilBERT drops out after attention too, as the others do.
    """

    Config = BERTConfig
    model_types: ClassVar[tuple[str, ...]] = tuple(ENCODER)
    ignored: ClassVar[str] = r"embeddings\.position_ids$|^cls\.seq_relationship\."
    tied: Mapping[str, str] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: BERTConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        self.prefix = f"{c.model_type}."
        options: dict[str, Any] = {"dtype": dtype, "rng": blank()}
        self.embeddings = BERTEmbeddings(c, options)
        self.layers = ModuleList(
            Layer(c.hidden_size, c.num_attention_heads, c.intermediate_size, activation=c.hidden_act,
                  eps=c.layer_norm_eps, norm_first=False, dropout=c.hidden_dropout_prob,
                  attention_dropout=c.attention_probs_dropout_prob, **options)
            for _ in range(c.num_hidden_layers)
        )  # fmt: skip
        self.pooler = Linear(c.hidden_size, c.hidden_size, **options) if c.is_pooled else None
        self.pooler_act = ReLU() if c.model_type == "distilbert" else Tanh()
        self.head_dropout = Dropout(c.head_dropout)
        self.head: Any = None
        if c.head is not None:
            masked = c.head == "masked_lm"
            self.head = MaskedLMHead(c, options) if masked else Linear(c.hidden_size, c.num_labels, **options)
        self.initialise(c.initializer_range, _random.default_rng() if rng is None else rng)
        for table in (self.embeddings.words, self.embeddings.positions):
            if table.padding_idx is not None:
                table.weight.data[table.padding_idx] = 0

    def _names(self) -> dict[str, str]:
        names, c = ENCODER[self.config.model_type], self.config
        if c.head is None:
            return names
        return {ours: self.prefix + theirs for ours, theirs in names.items()} | HEADS[c.model_type][c.head]

    def _alias(self, key: str) -> str:
        return re.sub(r"(?<=LayerNorm\.)beta$", "bias", re.sub(r"(?<=LayerNorm\.)gamma$", "weight", key))

    def _accepted(self, state: Mapping[str, Any]) -> dict[str, Any]:
        if self.config.model_type == "roberta" and self.config.head == "sequence":  # old files keep an unused pooler
            state = {key: value for key, value in state.items() if not re.match(r"(roberta\.)?pooler\.", key)}
        return super()._accepted(state)

    @classmethod
    def _fitted(cls, config: BERTConfig, weights: Mapping[str, Any]) -> BERTConfig:
        return config.fitted(weights)

    # --- calls ------------------------------------------------------------------------------

    def __call__(
        self, ids: Array, attention_mask: Array | None = None, token_type_ids: Array | None = None, *,
        position_ids: Array | None = None, output_hidden_states: bool = False, output_attentions: bool = False,
    ) -> ModelOutput:  # fmt: skip
        """attention_mask `[B, S]`, 1 = keep. token_type_ids, position_ids `[B, S]`: by default 0, and 0, 1, ..."""
        flags = (output_hidden_states, output_attentions)
        return self._run(ids, attention_mask, token_type_ids, position_ids, *flags, gradients=False)[0]

    def vjp(
        self, ids: Array, attention_mask: Array | None = None, token_type_ids: Array | None = None, *,
        position_ids: Array | None = None, output_hidden_states: bool = False, output_attentions: bool = False,
    ) -> tuple[ModelOutput, Pullback]:  # fmt: skip
        flags = (output_hidden_states, output_attentions)
        return self._run(ids, attention_mask, token_type_ids, position_ids, *flags, gradients=True)

    def embed(
        self, ids: Array, attention_mask: Array | None = None, token_type_ids: Array | None = None, *,
        pooling: str = "mean", normalise: bool = False,
    ) -> Array:  # fmt: skip
        """One vector per row, `[B, E]`.

        pooling: "mean" of the last hidden states that attention_mask keeps (0 where it keeps none), "cls", the
        first of them, or "pooler", the pooler's output. normalise: to length 1.
        """
        check_choice(pooling, "pooling", ("mean", "cls", "pooler"))
        if pooling == "pooler" and not self.config.has_pooler:
            raise ValueError("pooling must be 'mean' or 'cls': the model has no pooler")
        output = self(ids, attention_mask, token_type_ids)
        y: Array = output.last_hidden_state
        if pooling == "mean":
            keep = array_module(ids).ones(ids.shape, dtype=bool) if attention_mask is None else attention_mask != 0
            total = wide_sum(array_module(y).where(keep[:, :, None], y, 0), 1)
            vectors = total / array_module(y).maximum(keep.sum(1, keepdims=True), 1).astype(total.dtype)
        else:
            vectors = y[:, 0] if pooling == "cls" else output.pooler_output
        if normalise:
            size = wide_sum(vectors.astype(wide_sum(vectors[:0], 0).dtype) ** 2, 1)[:, None] ** 0.5
            vectors = vectors / array_module(y).maximum(size, 1e-12)
        return vectors.astype(y.dtype, copy=False)

    def _run(
        self, ids: Array, attention_mask: Array | None, token_type_ids: Array | None, position_ids: Array | None,
        states: bool, weights: bool, *, gradients: bool,
    ) -> tuple[ModelOutput, Pullback]:  # fmt: skip
        c = self.config
        check_ids(ids, c.vocab_size, c.positions)
        mask = key_mask(attention_mask, tuple(ids.shape))
        kinds = self._types(ids, token_type_ids)
        places = self._positions(ids) if position_ids is None else position_ids
        _check_like(places, ids, "position_ids", c.max_position_embeddings, position_ids is not None)
        x, pull_embeddings = self.embeddings.vjp(ids, places, kinds)
        y, entered, probs, pull_layers = run_layers(
            self.layers, x, mask, states=states, weights=weights, gradients=gradients
        )
        output = ModelOutput(last_hidden_state=y, hidden_states=(*entered, y) if states else None)
        output.attentions = tuple(probs) if weights else None
        pull_pooler = pull_head = None
        if self.pooler is not None:
            first = [self.head_dropout] if c.is_pooled and not c.has_pooler and c.model_type == "roberta" else []
            pooled, pull_pooler = chain_vjp(y[:, 0], *first, self.pooler, self.pooler_act)
            output.pooler_output = pooled if c.has_pooler else None
        if c.head == "masked_lm":
            output.logits, pull_head = self.head.vjp(y, self.embeddings.words.weight)
        elif c.head is not None:
            output.logits, pull_head = chain_vjp(pooled if c.head == "sequence" else y, self.head_dropout, self.head)

        def pull(grad: Any) -> tuple[None]:
            given = as_output_gradient(grad, "logits" if c.head else "last_hidden_state")
            for name, there in (("logits", c.head), ("pooler_output", c.has_pooler)):
                if getattr(given, name) is not None and not there:
                    raise ValueError(f"gradient: the model gives no {name}, so there is none to take, pass None")
            dy, dpooled = given.last_hidden_state, given.pooler_output
            if pull_head is not None and given.logits is not None:
                (dz,) = pull_head(given.logits)
                dy, dpooled = (dy, plus(dpooled, dz)) if c.head == "sequence" else (plus(dy, dz), dpooled)
            if pull_pooler is not None and dpooled is not None:
                dfirst = array_module(y).zeros(y.shape, dtype=y.dtype)
                (dfirst[:, 0],) = pull_pooler(dpooled)
                dy = plus(dy, dfirst)
            dstates = [None] * (len(self.layers) + 1) if given.hidden_states is None else list(given.hidden_states)
            dy = plus(dy, dstates[-1])
            pull_embeddings(pull_layers(array_module(y).zeros(y.shape, dtype=y.dtype) if dy is None else dy, dstates))
            return (None,)

        return output, Pullback(pull)

    def _positions(self, ids: Array) -> Array:
        """0, 1, ... for every row; in RoBERTa, tokens that are no padding count on from it."""
        if self.config.model_type != "roberta":
            return array_module(ids).arange(ids.shape[1])[None]
        kept = ids != self.config.pad_token_id
        return kept.cumsum(1) * kept + self.config.pad_token_id

    def _types(self, ids: Array, given: Array | None) -> Array:
        if given is None:
            return array_module(ids).zeros((1, 1), dtype=ids.dtype)
        if not self.config.type_vocab_size:
            raise ValueError(f"token_type_ids must be None: this {self.config.model_type} has no token types")
        _check_like(given, ids, "token_type_ids", self.config.type_vocab_size, True)
        return given


def _check_like(value: Array, ids: Array, name: str, count: int, given: bool) -> None:
    """What the caller gave must be integers in [0, count), of the shape of ids."""
    if not given:
        return
    check_array(value, name)
    if tuple(value.shape) != tuple(ids.shape):
        raise ValueError(f"{name} must be [B, S] = {shape_text(ids.shape)}, got {shape_text(value.shape)}")
    if np.dtype(value.dtype).kind not in "iu":
        raise TypeError(f"{name} must be integers, got {value.dtype}")
    if value.size and (value.min() < 0 or value.max() >= count):
        raise ValueError(f"{name} must lie in [0, {count}), got {int(value.min())} to {int(value.max())}")
