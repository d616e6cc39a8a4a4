"""Attention of a decoder's states over an encoder's: additive (Bahdanau) and Luong's three scores.

    additive  v · tanh(W_q q + W_k k)      (Bahdanau, Cho & Bengio 2015); Luong's concat is the same
    dot       q · k                        with one matrix W = [W_q, W_k] (Luong, Pham & Manning 2015)
    general   q · W k
    weights = softmax over keys;  context = weights · keys
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm, check_array, shape_text
from ._attend import attend_vjp
from ._init import Initializer, check_choice, check_size
from .linear import Linear
from .module import Module, Parameter, Pullback


class _EncoderAttention(Module):
    """Shared call form: query [N, Q] or [N, L, Q], keys [N, S, K] -> context, weights."""

    query_size: int
    key_size: int

    def __call__(self, query: Array, keys: Array, *, lengths: Array | None = None) -> tuple[Array, Array]:
        return self.vjp(query, keys, lengths=lengths)[0]

    def vjp(
        self, query: Array, keys: Array, *, lengths: Array | None = None
    ) -> tuple[tuple[Array, Array], Pullback]:
        single = self._check(query, keys)
        q = query[:, None] if single else query
        context, weights, pull_scores = self._attend(q, keys, lengths)
        forms = [OutputForm.of(x) for x in (context, weights)]

        def outer(x: Array) -> Array:
            return x[:, 0] if single else x

        def pull(grads: Any = None) -> tuple[Array, Array]:
            dcontext, dweights = grads if isinstance(grads, tuple) else (grads, None)
            if single:
                dcontext, dweights = (None if g is None else g[:, None] for g in (dcontext, dweights))
            dq, dkeys = pull_scores(
                forms[0].gradient(dcontext), None if dweights is None else forms[1].gradient(dweights)
            )
            return outer(dq), dkeys

        return (outer(context), outer(weights)), Pullback(pull)

    def _attend(self, q: Array, keys: Array, lengths: Array | None) -> Any:
        """context `[N, L, K]`, weights `[N, L, S]`, and (dcontext, dweights) -> (dq, dkeys)."""
        raise NotImplementedError

    def _check(self, query: Array, keys: Array) -> bool:
        check_array(query, "query")
        if query.ndim not in (2, 3) or query.shape[-1] != self.query_size:
            q = self.query_size
            raise ValueError(f"query must be [N, {q}] or [N, L, {q}], got {shape_text(query.shape)}")
        check_array(keys, "keys")
        steps = keys.shape[1] if keys.ndim == 3 else "S"
        if keys.ndim != 3 or keys.shape[0] != query.shape[0] or keys.shape[2] != self.key_size:
            raise ValueError(f"keys must be [{query.shape[0]}, {steps}, {self.key_size}], got {shape_text(keys.shape)}")
        return bool(query.ndim == 2)


def _head(x: Array | None) -> Array | None:
    return None if x is None else x[:, None]


def _additive(
    q: Array, keys: Array, weights: tuple[Array, Array, Array], lengths: Array | None
) -> tuple[Array, Array, Any]:
    """Attention by v · tanh(W_q q + W_k k); pull gives dq, dkeys and the weights' gradients."""
    w_query, w_key, v = weights
    left, saved_q = ops.linear_forward(q, w_query)
    right, saved_k = ops.linear_forward(keys, w_key)
    bent, saved_tanh = ops.tanh_forward(left[:, :, None] + right[:, None])
    scores, saved_v = ops.linear_forward(bent, v[None])
    blank_q = np.zeros((q.shape[0], 1, q.shape[1], 1), q.dtype)  # the scores are all in the mask
    blank_k = np.zeros((q.shape[0], 1, keys.shape[1], 1), q.dtype)
    mask = _head(scores[..., 0])
    out, probs, pull_attention = attend_vjp(
        blank_q, blank_k, keys[:, None], mask, need_weights=True, kv_lengths=lengths
    )
    assert probs is not None

    def pull(dcontext: Array, dweights: Array | None) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        _, _, dvalue, dscores = pull_attention(_head(dcontext), _head(dweights))
        grad_v = ops.linear_backward(dscores[:, 0, ..., None].astype(scores.dtype, copy=False), saved_v)
        dsum = ops.tanh_backward(grad_v.dx, saved_tanh).dx
        grad_q = ops.linear_backward(dsum.sum(axis=2), saved_q)
        grad_k = ops.linear_backward(dsum.sum(axis=1), saved_k)
        return grad_q.dx, grad_k.dx + dvalue[:, 0], (grad_q.dweight, grad_k.dweight, grad_v.dweight[0])

    return out[:, 0], probs[:, 0], pull


class BahdanauAttention(_EncoderAttention):
    """query [N, Q] or [N, L, Q], keys [N, S, K] -> context [N, (L,) K], weights [N, (L,) S].

    Parameters: query_proj.weight [H, Q], key_proj.weight [H, K] (no biases), v [H], drawn from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)). lengths: int [N], keys past them have weight 0. The pullback
    takes dcontext or (dcontext, dweights) and returns (dquery, dkeys).
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        hidden_size: int,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.query_size, self.key_size = check_size(query_size, "query_size"), check_size(key_size, "key_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.query_proj = Linear(query_size, hidden_size, False, dtype=dtype, rng=rng)
        self.key_proj = Linear(key_size, hidden_size, False, dtype=dtype, rng=rng)
        self.v = Initializer(rng, dtype).uniform(1 / math.sqrt(hidden_size), hidden_size)

    def _attend(self, q: Array, keys: Array, lengths: Array | None) -> Any:
        parameters = (self.query_proj.weight, self.key_proj.weight, self.v)
        w_query, w_key, v = (p.data for p in parameters)
        context, weights, pull_all = _additive(q, keys, (w_query, w_key, v), lengths)

        def pull(dcontext: Array, dweights: Array | None) -> tuple[Array, Array]:
            dq, dkeys, grads = pull_all(dcontext, dweights)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.add_grad(grad)
            return dq, dkeys

        return context, weights, pull


class LuongAttention(_EncoderAttention):
    """As `BahdanauAttention`, with score "dot" (Q = K, no parameters), "general" or "concat".

    Parameters: general: weight [Q, K]; concat: weight [H, Q + K] and v [H], H = hidden_size,
    query_size by default. key_size is query_size by default.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        *,
        score: str = "dot",
        hidden_size: int | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.query_size = check_size(query_size, "query_size")
        self.key_size = query_size if key_size is None else check_size(key_size, "key_size")
        self.score = check_choice(score, "score", ("dot", "general", "concat"))
        if score == "dot" and self.key_size != query_size:
            raise ValueError(f"key_size must be query_size = {query_size} for score='dot', got {key_size}")
        init = Initializer(rng, dtype)
        hidden = check_size(hidden_size or query_size, "hidden_size")
        self.weight: Parameter | None = None
        self.v: Parameter | None = None
        if score == "general":
            self.weight = init.uniform(1 / math.sqrt(self.key_size), query_size, self.key_size)
        elif score == "concat":
            size = query_size + self.key_size
            self.weight = init.uniform(1 / math.sqrt(size), hidden, size)
            self.v = init.uniform(1 / math.sqrt(hidden), hidden)

    def _attend(self, q: Array, keys: Array, lengths: Array | None) -> Any:
        if self.score == "concat":
            return self._concat(q, keys, lengths)
        projected, saved = keys, None
        if self.weight is not None:
            projected, saved = ops.linear_forward(keys, self.weight.data)
        out, probs, pull_attention = attend_vjp(
            q[:, None], projected[:, None], keys[:, None], None, need_weights=True, scale=1.0, kv_lengths=lengths
        )
        assert probs is not None

        def pull(dcontext: Array, dweights: Array | None) -> tuple[Array, Array]:
            dq, dk, dv, _ = pull_attention(_head(dcontext), _head(dweights))
            dk, dv = dk[:, 0], dv[:, 0]
            if self.weight is not None and saved is not None:
                found = ops.linear_backward(dk, saved)
                self.weight.add_grad(found.dweight)
                dk = found.dx
            return dq[:, 0], dk + dv

        return out[:, 0], probs[:, 0], pull

    def _concat(self, q: Array, keys: Array, lengths: Array | None) -> Any:
        weight, v = self.weight, self.v
        assert weight is not None and v is not None
        w_query, w_key = weight.data[:, : self.query_size], weight.data[:, self.query_size :]
        context, probs, pull_all = _additive(q, keys, (w_query, w_key, v.data), lengths)

        def pull(dcontext: Array, dweights: Array | None) -> tuple[Array, Array]:
            dq, dkeys, (dw_query, dw_key, dv) = pull_all(dcontext, dweights)
            weight.add_grad(np.concatenate([dw_query, dw_key], axis=1))
            v.add_grad(dv)
            return dq, dkeys

        return context, probs, pull
