"""Attention of a decoder's states q over encoder states k: additive (Bahdanau) and Luong's scores.

    additive  s = v · tanh(W_q q + W_k k)     dot  s = q · k     general  s = q · W k
    concat    s = v · tanh(W [q; k]), which is additive with W = [W_q, W_k]
    p = softmax over the keys before each row's length, 0 past it;  context = Σ p k

    dp = dcontext · k + dweights;  ds = p ⊙ (dp - Σ dp ⊙ p);  dk = pᵀ dcontext + what s gives
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._arrays import Array, or_zeros


class EncoderAttentionSaved(NamedTuple):
    """The inputs, `weights` `[N, L, S]`, and `bent`, the tanh `[N, L, S, H]` (None without one)."""

    query: Array
    keys: Array
    score: str
    parameters: tuple[Array, ...]
    lengths: Array | None
    weights: Array
    bent: Array | None


class EncoderAttentionGradients(NamedTuple):
    """dquery, dkeys and, in their order, the gradients of the score's parameters."""

    dquery: Array
    dkeys: Array
    dparameters: tuple[Array, ...]


def _live_keys(keys: Array, lengths: Array | None) -> tuple[Array, Array]:
    """Which keys count, bool `[N, 1, S]`, and the keys with 0 past their length."""
    n, s, _ = keys.shape
    live = np.arange(s) < (np.full(n, s) if lengths is None else np.asarray(lengths))[:, None]
    return live[:, None], np.where(live[:, :, None], keys, 0)


def encoder_attention_forward(
    query: Array,
    keys: Array,
    score: str = "dot",
    parameters: tuple[Array, ...] = (),
    *,
    lengths: Array | None = None,
) -> tuple[Array, Array, EncoderAttentionSaved]:
    """query `[N, L, Q]`, keys `[N, S, K]` to context `[N, L, K]`, weights `[N, L, S]`, saved.

    parameters by score: "additive" (W_q `[H, Q]`, W_k `[H, K]`, v `[H]`); "dot" none;
    "general" (W `[Q, K]`,); "concat" (W `[H, Q + K]`, v `[H]`). A row of no keys gives 0.
    """
    live, k = _live_keys(keys, lengths)
    bent = None
    if score in ("additive", "concat"):
        *_, v = parameters
        w_query, w_key = _split_weights(score, parameters, query.shape[-1])
        bent = np.tanh((query @ w_query.T)[:, :, None] + (k @ w_key.T)[:, None])
        s = bent @ v
    else:
        projected = k @ parameters[0].T if score == "general" else k
        s = query @ np.swapaxes(projected, 1, 2)
    s = np.where(live, s, -np.inf)
    top = s.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(s - np.where(top == -np.inf, 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    saved = EncoderAttentionSaved(query, keys, score, parameters, lengths, weights, bent)
    return weights @ k, weights, saved


def _split_weights(score: str, parameters: tuple[Array, ...], size: int) -> tuple[Array, Array]:
    if score == "additive":
        return parameters[0], parameters[1]
    return parameters[0][:, :size], parameters[0][:, size:]


def encoder_attention_backward(
    dcontext: Array | None, dweights: Array | None, saved: EncoderAttentionSaved
) -> EncoderAttentionGradients:
    """Gradients from dcontext `[N, L, K]` and dweights `[N, L, S]`; None stands for zero."""
    query, keys, score, parameters, lengths, weights, bent = saved
    live, k = _live_keys(keys, lengths)
    dcontext = or_zeros(dcontext, (*query.shape[:2], keys.shape[2]), weights.dtype)
    dp = dcontext @ np.swapaxes(k, 1, 2) + or_zeros(dweights, weights.shape, weights.dtype)
    ds = weights * (dp - (dp * weights).sum(axis=-1, keepdims=True))
    dkeys = np.swapaxes(weights, 1, 2) @ dcontext
    if bent is not None:
        *_, v = parameters
        w_query, w_key = _split_weights(score, parameters, query.shape[-1])
        da = ds[..., None] * v * (1 - bent**2)
        left, right = da.sum(axis=2), da.sum(axis=1)
        dw_query = np.einsum("nlh,nlq->hq", left, query)
        dw_key = np.einsum("nsh,nsk->hk", right, k)
        dquery, dkeys = left @ w_query, dkeys + right @ w_key
        dv = np.einsum("nls,nlsh->h", ds, bent)
        split = score == "additive"
        joined = (dw_query, dw_key) if split else (np.concatenate([dw_query, dw_key], axis=1),)
        dparameters: tuple[Array, ...] = (*joined, dv)
    elif score == "general":
        (weight,) = parameters
        dprojected = np.swapaxes(ds, 1, 2) @ query
        dquery, dkeys = ds @ k @ weight.T, dkeys + dprojected @ weight
        dparameters = (np.einsum("nsq,nsk->qk", dprojected, k),)
    else:
        dquery, dkeys = ds @ k, dkeys + np.swapaxes(ds, 1, 2) @ query
        dparameters = ()
    return EncoderAttentionGradients(dquery, np.where(live.swapaxes(1, 2), dkeys, 0), dparameters)
