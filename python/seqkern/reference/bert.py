"""BERT, assembled from the reference functions.

    x = LN(words[ids] + positions[0 …] + types);  y = layer_k(… layer_0(x))
    layer:   x = LN(x + MHA(x));  x = LN(x + W_2 gelu(W_1 x))
    pooled = tanh(W y[:, 0]);  heads: masked words LN(gelu(W y)) wordsᵀ + b, classes of the row W pooled,
    classes of each token (without a pooler) and spans W y

`params` maps Hugging Face's names of BERT, without the model's prefix, to arrays; pooler, head and token types are
there if their parameters are. RoBERTa and DistilBERT are this with other position ids, names and the pooler's
activation. No dropout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from .activations import gelu_backward, gelu_forward, relu_backward, relu_forward, tanh_backward, tanh_forward
from .embedding import embedding_backward, embedding_forward
from .linear import linear_backward, linear_forward
from .transformer import Grads, Params, Pull, _add, _linear, _norm, transformer_layer

_POOLERS: dict[str, Any] = {"tanh": (tanh_forward, tanh_backward), "relu": (relu_forward, relu_backward)}
_WORDS, _HEAD = "embeddings.word_embeddings.weight", "cls.predictions"
# The layer's own names, those of torch's TransformerEncoderLayer, in ours.
_LAYER = {
    "self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip


class BERTOutput(NamedTuple):
    """logits and pooler_output `[B, E]` are None without a head or pooler; hidden_states: what enters every layer,
    and last what leaves the last one."""

    logits: Array | None
    last_hidden_state: Array
    pooler_output: Array | None
    hidden_states: tuple[Array, ...]


def _layer(x: Array, params: Params, grads: Grads, prefix: str, **form: Any) -> tuple[Array, Pull]:
    own, parts = {}, [f"{prefix}attention.self.{p}" for p in ("query", "key", "value")]
    for kind in ("weight", "bias"):
        own[f"self_attn.in_proj_{kind}"] = np.concatenate([params[f"{part}.{kind}"] for part in parts])
        own |= {f"{name}.{kind}": params[f"{prefix}{theirs}.{kind}"] for name, theirs in _LAYER.items()}
    found: Grads = {}
    y, pull_layer = transformer_layer(x, own, found, activation="gelu", **form)

    def pull(dy: Array) -> Array:
        (dx,) = pull_layer(dy)
        for kind in ("weight", "bias"):
            for part, grad in zip(parts, np.split(found[f"self_attn.in_proj_{kind}"], 3), strict=True):
                _add(grads, f"{part}.{kind}", grad)
            for name, theirs in _LAYER.items():
                _add(grads, f"{prefix}{theirs}.{kind}", found[f"{name}.{kind}"])
        return dx

    return y, pull


def _embed(ids: Any, params: Params, grads: Grads, padding: tuple[int | None, int | None], eps: float) -> Any:
    """ids: those of words, positions and token types, all [B, S]; padding: rows without gradient, of the first two."""
    names = [_WORDS, "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"]
    rows = [n for n in zip(names, ids, (*padding, None), strict=True) if n[0] in params]
    parts = [embedding_forward(index, params[name], padding_idx=row) for name, index, row in rows]
    total = np.sum([value for value, _ in parts], axis=0)
    y, pull_norm = _norm(total, params, grads, "embeddings.LayerNorm", eps)

    def pull(dy: Array) -> None:
        dx = pull_norm(dy)
        for (name, _, _), (_, saved) in zip(rows, parts, strict=True):
            _add(grads, name, embedding_backward(dx, saved).dweight)

    return y, pull


def _masked_words(y: Array, params: Params, grads: Grads, eps: float) -> tuple[Array, Pull]:
    dense, pull_dense = _linear(y, params, grads, f"{_HEAD}.transform.dense")
    active, saved_gelu = gelu_forward(dense)
    z, pull_norm = _norm(active, params, grads, f"{_HEAD}.transform.LayerNorm", eps)
    logits, saved = linear_forward(z, params[_WORDS], params[f"{_HEAD}.bias"])

    def pull(dlogits: Array) -> Array:
        found = linear_backward(dlogits, saved)
        _add(grads, _WORDS, found.dweight)
        _add(grads, f"{_HEAD}.bias", found.dbias)
        return pull_dense(gelu_backward(pull_norm(found.dx), saved_gelu).dx)

    return logits, pull


def _first(pull: Pull, shape: tuple[int, ...]) -> Pull:
    def pull_first(dy: Array) -> Array:
        dx = np.zeros(shape, dy.dtype)
        dx[:, 0] = pull(dy)
        return dx

    return pull_first


def bert(
    ids: Array, params: Params, grads: Grads, *, num_heads: int, attention_mask: Array | None = None,
    token_type_ids: Array | None = None, position_ids: Array | None = None,
    padding: tuple[int | None, int | None] = (None, None), eps: float = 1e-12, pooler_activation: str = "tanh",
) -> tuple[BERTOutput, Pull]:  # fmt: skip
    """ids `[B, S]` to a BERTOutput, and the gradient function.

    attention_mask `[B, S]`, 1 = keep. padding: the rows of words and of positions that get no gradient (of the
    embedding; the head's tied matrix gets all of its own). The pullback takes a BERTOutput of gradients, None for
    zero (hidden_states may hold None), and adds the parameters' to `grads` under their names.
    """
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if position_ids is None else position_ids
    kinds = np.zeros_like(ids) if token_type_ids is None else token_type_ids
    x, pull_embed = _embed((ids, places, kinds), params, grads, padding, eps)
    mask = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]
    states: list[Array] = [x]
    pulls: list[Pull] = []
    while f"encoder.layer.{len(pulls)}.output.dense.weight" in params:
        prefix = f"encoder.layer.{len(pulls)}."
        x, pull_layer = _layer(x, params, grads, prefix, num_heads=num_heads, options={"attn_mask": mask}, eps=eps)
        states.append(x)
        pulls.append(pull_layer)
    pooled = logits = pull_pooler = pull_head = None
    pooler, pooler_back = _POOLERS[pooler_activation]
    if "pooler.dense.weight" in params:
        dense, pull_dense = _linear(x[:, 0], params, grads, "pooler.dense")
        pooled, saved = pooler(dense)
        pull_pooler = _first(lambda dy: pull_dense(pooler_back(dy, saved).dx), x.shape)
    if f"{_HEAD}.bias" in params:
        logits, pull_head = _masked_words(x, params, grads, eps)
    elif "classifier.weight" in params:
        logits, pull_head = _linear(x if pooled is None else pooled, params, grads, "classifier")
        if pull_pooler is not None:
            pull_class, pull_pool = pull_head, pull_pooler
            pull_head = lambda dlogits: pull_pool(pull_class(dlogits))  # noqa: E731
    elif "qa_outputs.weight" in params:
        logits, pull_head = _linear(x, params, grads, "qa_outputs")

    def pull(grad: BERTOutput) -> None:
        dx = np.zeros_like(x) if grad.last_hidden_state is None else grad.last_hidden_state
        for part, pull_part in ((grad.logits, pull_head), (grad.pooler_output, pull_pooler)):
            if part is not None and pull_part is not None:
                dx = dx + pull_part(part)
        dstates = grad.hidden_states or (None,) * len(states)
        for k in reversed(range(len(states))):
            dx = dx if dstates[k] is None else dx + dstates[k]
            dx = pulls[k - 1](dx) if k else pull_embed(dx)

    return BERTOutput(logits, x, pooled, tuple(states)), pull
