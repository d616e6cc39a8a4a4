"""What GPT-2, BERT and ViT share: the layer, the stack of layers, and what a call returns.

    pre-norm:   x = x + Attention(LN1(x));  x = x + W2 act(W1 LN2(x))
    post-norm:  x = LN1(x + Attention(x));  x = LN2(x + W2 act(W1 x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _random
from ..nn import GELU, Dropout, LayerNorm, Linear, ModuleList, ReLU, SiLU
from ..nn._arrays import Array, array_module, check_array, shape_text
from ..nn._attend import KVCache, attend_vjp
from ..nn._residual import feed_forward_vjp, linear_plus_vjp, residual_vjp
from ..nn.module import Module

NO_DROPOUT = Dropout(0.0)
ACTIVATIONS: dict[str, Any] = {
    "gelu": GELU,
    "gelu_new": lambda: GELU("tanh"),
    "gelu_pytorch_tanh": lambda: GELU("tanh"),
    "relu": ReLU,
    "silu": SiLU,
}


@dataclass
class ModelOutput:
    """Result of a model; a field that was not asked for, or that the model lacks, is None.

    logits: of the head, if the model has one.
    last_hidden_state: `[B, S, E]`, after the final norm where there is one.
    hidden_states: what enters every layer, and last what leaves the stack.
    attentions: per layer, the probabilities `[B, heads, S, S]`.
    pooler_output: `[B, E]` (BERT, RoBERTa).
    cache: keys and values so far, one entry per layer (GPT-2).
    """

    logits: Array | None = None
    last_hidden_state: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    pooler_output: Array | None = None
    cache: list[KVCache] | None = None


class Layer(Module):
    """One layer over x `[B, S, E]`; `fused`: one matrix `[3E, E]` for query, key and value."""

    def __init__(
        self, hidden: int, heads: int, inner: int, *, activation: str, eps: float, norm_first: bool,
        fused: bool = False, causal: bool = False, qkv_bias: bool = True, dropout: float = 0.0,
        attention_dropout: float = 0.0, dtype: Any = np.float32, rng: Any = None,
    ) -> None:  # fmt: skip
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
        if hidden % heads:
            raise ValueError(f"hidden size must be a multiple of the number of heads, got {hidden} and {heads}")
        options: dict[str, Any] = {"dtype": dtype, "rng": rng}
        self.heads, self.norm_first, self.causal, self.fused = heads, norm_first, causal, fused
        self.attention_dropout = attention_dropout
        if fused:
            self.qkv = Linear(hidden, 3 * hidden, qkv_bias, **options)
        else:
            self.query, self.key, self.value = (Linear(hidden, hidden, qkv_bias, **options) for _ in range(3))
        self.out = Linear(hidden, hidden, **options)
        self.norm1, self.norm2 = LayerNorm(hidden, eps, dtype=dtype), LayerNorm(hidden, eps, dtype=dtype)
        self.fc1, self.fc2 = Linear(hidden, inner, **options), Linear(inner, hidden, **options)
        self.act, self.dropout = ACTIVATIONS[activation](), Dropout(dropout)

    def run(
        self, x: Array, mask: Array | None, cache: KVCache | None = None, need_weights: bool = False
    ) -> tuple[Array, Array | None, Any]:
        """y, the probabilities if asked for, and the gradient function dy -> (dx,)."""
        kept: list[Any] = []

        def attend(z: Array, residual: Array) -> tuple[Array, Any]:
            y, weights, pull = self._attend(z, residual, mask, cache, need_weights)
            kept.append(weights)
            return y, pull

        x, pull_attention = residual_vjp(x, attend, self.norm1, self.norm_first)
        parts = (self.fc1, self.act, NO_DROPOUT, self.fc2, self.dropout)
        y, pull_mlp = residual_vjp(x, lambda z, r: feed_forward_vjp(z, r, *parts), self.norm2, self.norm_first)
        return y, kept[0], lambda dy: pull_attention(*pull_mlp(dy))

    def _attend(
        self, x: Array, residual: Array, mask: Array | None, cache: KVCache | None, need_weights: bool
    ) -> tuple[Array, Array | None, Any]:
        """residual + dropout of self-attention over x, the probabilities if asked for, the gradient function."""
        (query, key, value), pull_in = self._project(x)
        if cache is not None:
            key, value = cache.append(key, value)
        options: dict[str, Any] = {"causal": "bottom_right"} if self.causal else {}
        if self.training and self.attention_dropout:
            options |= {"dropout_p": self.attention_dropout, "dropout_seed": _random.draw_seed()}
        out, weights, pull_heads = attend_vjp(query, key, value, mask, need_weights=need_weights, **options)
        y, pull_out = linear_plus_vjp(_join(out), residual, self.out, self.dropout)

        def pull(dy: Array) -> tuple[Array]:
            dheads = pull_heads(_split(pull_out(dy)[0], self.heads), None)[:3]
            return (pull_in(dheads),)

        return y, weights, pull

    def _project(self, x: Array) -> tuple[Any, Any]:
        """Views `[B, heads, S, D]` of query, key and value, and the gradient function to dx."""
        if not self.fused:
            parts = [m.vjp(x) for m in (self.query, self.key, self.value)]

            def pull_parts(dheads: Any) -> Array:
                dq, dk, dv = (pull(_join(d))[0] for (_, pull), d in zip(parts, dheads, strict=True))
                return dq + dk + dv

            return [_split(y, self.heads) for y, _ in parts], pull_parts
        y, pull_qkv = self.qkv.vjp(x)
        shape = (*x.shape[:2], 3, self.heads, -1)
        views = [y.reshape(shape)[:, :, k].swapaxes(1, 2) for k in range(3)]

        def pull_fused(dheads: Any) -> Array:
            dy = array_module(y).empty(y.shape, dtype=y.dtype)
            for k, d in enumerate(dheads):
                dy.reshape(shape)[:, :, k] = d.swapaxes(1, 2)
            return pull_qkv(dy)[0]

        return views, pull_fused


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def _join(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def run_layers(
    layers: ModuleList, x: Array, mask: Array | None, *, caches: Any = None, states: bool, weights: bool,
    gradients: bool,
) -> tuple[Array, list[Array], list[Array], Any]:  # fmt: skip
    """The stack: y, what entered each layer, the probabilities, and (dy, dstates) -> dx."""
    entered, probs, pulls = [], [], []
    layer: Any
    for k, layer in enumerate(layers):
        if states:
            entered.append(x)
        x, p, pull = layer.run(x, mask, None if caches is None else caches[k], weights)
        probs.append(p)
        if gradients:
            pulls.append(pull)

    def back(dy: Array, dstates: Any = None) -> Array:
        for k in reversed(range(len(pulls))):
            (dy,) = pulls[k](dy)
            if dstates is not None and dstates[k] is not None:
                dy = dy + dstates[k]
        return dy

    return x, entered, probs, back


def plus(a: Array | None, b: Array | None) -> Array | None:
    """The sum of two gradients, None being zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def as_output_gradient(grad: Any, bare: str) -> ModelOutput:
    """The gradient of a call as a ModelOutput; an array is that of the field `bare`."""
    if not isinstance(grad, ModelOutput):
        return ModelOutput(**{bare: grad})
    if grad.attentions is not None or grad.cache is not None:
        raise ValueError("gradient: attentions and cache take no gradient, pass None")
    return grad


def check_ids(ids: Any, vocab: int, positions: int, past: int = 0) -> None:
    """ids must be integers `[B, S]`, S >= 1, in the vocabulary and within the position table."""
    check_array(ids, "ids")
    if ids.ndim != 2:
        raise ValueError(f"ids must be [B, S], got {shape_text(ids.shape)}")
    if np.dtype(ids.dtype).kind not in "iu":
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    if ids.shape[1] == 0:
        raise ValueError(f"ids must hold at least one token per row, got {shape_text(ids.shape)}")
    if past + ids.shape[1] > positions:
        raise ValueError(f"ids: the model has {positions} positions, got a sequence of {past + ids.shape[1]}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
        raise ValueError(f"ids must lie in [0, {vocab}), got {int(ids.min())} to {int(ids.max())}")


def key_mask(mask: Any, shape: tuple[int, int]) -> Array | None:
    """attention_mask `[B, keys]`, 1 = keep, as `[B, 1, 1, keys]` for attention; None keeps all."""
    if mask is None:
        return None
    check_array(mask, "attention_mask")
    if tuple(mask.shape) != shape:
        raise ValueError(f"attention_mask must be [B, S] = {shape_text(shape)}, got {shape_text(mask.shape)}")
    keep = mask != 0
    return None if keep.all() else keep[:, None, None, :]
