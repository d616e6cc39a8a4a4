"""Attention of a decoder's states over an encoder's: additive (Bahdanau) and Luong's three scores.

    additive  v · tanh(W_q q + W_k k)      (Bahdanau, Cho & Bengio 2015); Luong's concat is the same
    dot       q · k                        with one matrix W = [W_q, W_k] (Luong, Pham & Manning 2015)
    general   q · W k
    weights = softmax over keys;  context = weights · keys
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm, array_module, check_array, shape_text
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
    projected, saved = ops.linear_forward(keys, w_key)
    context, probs, pull_projected = _additive_projected(q, keys, projected, (w_query, v), lengths)

    def pull(dcontext: Array, dweights: Array | None) -> tuple[Array, Array, tuple[Array, Array, Array]]:
        dq, dkeys, dprojected, (dw_query, dv) = pull_projected(dcontext, dweights)
        grads = ops.linear_backward(dprojected, saved)
        return dq, grads.dx + dkeys, (dw_query, grads.dweight, dv)

    return context, probs, pull


def _additive_projected(
    q: Array, keys: Array, projected: Array, weights: tuple[Array, Array], lengths: Array | None
) -> tuple[Array, Array, Any]:
    """`_additive` from projected = W_k k; pull gives dq, dkeys, dprojected and (dW_q, dv)."""
    w_query, v = weights
    left, saved_q = ops.linear_forward(q, w_query)
    bent, saved_tanh = ops.tanh_forward(left[:, :, None] + projected[:, None])
    scores, saved_v = ops.linear_forward(bent, v[None])
    zeros = array_module(q).zeros
    blank_q = zeros((q.shape[0], 1, q.shape[1], 1), dtype=q.dtype)  # the scores are all in the mask
    blank_k = zeros((q.shape[0], 1, keys.shape[1], 1), dtype=q.dtype)
    mask = _head(scores[..., 0])
    out, probs, pull_attention = attend_vjp(
        blank_q, blank_k, keys[:, None], mask, need_weights=True, kv_lengths=lengths
    )
    assert probs is not None

    def pull(dcontext: Array, dweights: Array | None) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        _, _, dvalue, dscores = pull_attention(_head(dcontext), _head(dweights))
        grad_v = ops.linear_backward(dscores[:, 0, ..., None].astype(scores.dtype, copy=False), saved_v)
        dsum = ops.tanh_backward(grad_v.dx, saved_tanh).dx
        grad_q = ops.linear_backward(dsum.sum(axis=2), saved_q)
        return grad_q.dx, dvalue[:, 0], dsum.sum(axis=1), (grad_q.dweight, grad_v.dweight[0])

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

    def bind(self, keys: Array, lengths: Array | None = None) -> BoundAttention:
        """This attention over keys that stay the same while the queries come one by one."""
        return BoundAttention(self, keys, lengths)


class BoundAttention:
    """`BahdanauAttention` over the same keys `[N, S, K]` many times: they are projected once.

    `context, weights, pull = bound(query)` for a query `[N, Q]`; pull takes dcontext and returns
    dquery. Once every pull has run, `bound.pull()` returns dkeys.
    """

    def __init__(self, attention: BahdanauAttention, keys: Array, lengths: Array | None) -> None:
        self.attention, self.keys, self.lengths = attention, keys, lengths
        self.projected, self._pull_projected = attention.key_proj.vjp(keys)
        self._dkeys: Array | None = None
        self._dprojected: Array | None = None

    def __call__(self, query: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        parameters = (self.attention.query_proj.weight, self.attention.v)
        w_query, v = (p.data for p in parameters)
        context, weights, pull_all = _additive_projected(
            query[:, None], self.keys, self.projected, (w_query, v), self.lengths
        )

        def pull(dcontext: Array) -> Array:
            dq, dkeys, dprojected, grads = pull_all(dcontext[:, None], None)
            self._dkeys = dkeys if self._dkeys is None else self._dkeys + dkeys
            self._dprojected = dprojected if self._dprojected is None else self._dprojected + dprojected
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.add_grad(grad)
            return dq[:, 0]

        return context[:, 0], weights[:, 0], pull

    def pull(self) -> Array:
        """dkeys, the sum over the uses whose pulls have run."""
        return self._pull_projected(self._dprojected)[0] + self._dkeys


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
