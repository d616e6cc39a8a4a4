"""Scaled dot-product attention: out = dropout(softmax(scale q kᵀ, masked)) v.

With p the probabilities of `_attention_scores`, m the dropout mask over 1 - dropout_p (1 without):

    out_i = Σ_j m_ij p_ij v_j                      over the live pairs only
    dv_j  = Σ_i m_ij p_ij dout_i                   dp_ij = m_ij dout_i · v_j
    D_i   = Σ_j p_ij dp_ij  (= dout_i · out_i)     ds_ij = p_ij (dp_ij - D_i)
    dq_i  = scale Σ_j c_ij ds_ij k_j               dk_j  = scale Σ_i c_ij ds_ij q_i
    dattn_mask = ds, summed over broadcast dims    dsink_h = -Σ e^(sink_h - lse_i) D_i

where c is the slope of the soft cap, 1 without one. `torch.nn.functional`'s function of this name
is the model; the options beyond it follow flash-attention (window, softcap, ALiBi) and gpt-oss
(sinks). A row with no live key (masked out, or past its length) gives 0 and zero gradients; its lse
is -inf, or the sink's logit if it lies within its length. A NaN in a dead pair never leaks, not into
the scores, the output or a gradient; a live NaN propagates, and so does that of a value whose
probability was dropped.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen_all
from ._attention_scores import (
    AttentionOptions,
    live_product,
    normalised_window,
    softmax_over_live,
)
from .dropout import dropout_mask


class ScaledDotProductAttentionSaved(NamedTuple):
    """The inputs as given, `out` as returned, `lse` `[..., Hq, Lq]`, and the options in use.

    The dropout mask and the probabilities are computed anew from these.
    """

    query: Array
    key: Array
    value: Array
    attn_mask: Array | None
    out: Array
    lse: Array
    options: AttentionOptions


class _Pinned(NamedTuple):
    dquery: Array
    dkey: Array
    dvalue: Array
    dattn_mask: Array | None


class ScaledDotProductAttentionGradients(_Pinned):
    """dquery, dkey, dvalue and dattn_mask (None unless the mask is a float one), a tuple of four.

    The first three in the dtype of their arrays, dattn_mask and the attribute `dsinks` `[Hq]`
    (None without sinks) as wide as the arithmetic, like the gradient of any parameter.
    """

    dsinks: Array | None = None


def _four_dims(x: Array) -> Array:
    """`[..., H, L, D]` as `[B, H, L, D]`; missing dims count 1."""
    shape = (1,) * (4 - x.ndim) + x.shape
    return x.reshape(math.prod(shape[:-3]), *shape[-3:])


def _repeat_heads(x: Array, heads: int) -> Array:
    """Each key or value head once for every query head of its group."""
    return np.repeat(x, heads // x.shape[1], axis=1) if x.shape[1] != heads else x


def _sum_groups(dx: Array, like: Array) -> Array:
    """The gradient of `_repeat_heads`, in the shape of the argument it was given, `like`."""
    heads = like.shape[-3] if like.ndim > 2 else 1
    batch, repeated, *rest = dx.shape
    total = dx.reshape(batch, heads, repeated // heads if heads else 0, *rest).sum(axis=2)
    return total.reshape(like.shape)


def _sum_broadcast(dx: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of broadcasting from `shape`."""
    dx = dx.sum(axis=tuple(range(dx.ndim - len(shape))))
    return dx.sum(axis=tuple(d for d, n in enumerate(shape) if n == 1), keepdims=True)


def _operands(query: Array, key: Array, value: Array, attn_mask: Array | None) -> Any:
    """query, key, value and mask, widened, in four dims, with as many key as query heads."""
    q, k, v = map(_four_dims, widen_all(compute_dtype(query), query, key, value))
    k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    if attn_mask is not None:
        full = (*query.shape[:-1], key.shape[-2])
        attn_mask = _four_dims(np.broadcast_to(attn_mask, full))
    return q, k, v, attn_mask


def _dropout_factor(shape: tuple[int, ...], options: AttentionOptions, dtype: Any) -> Any:
    """What dropout multiplies each probability by: 0 or 1/(1-p), `[B, Hq, Lq, Lk]`.

    The mask of `dropout` on an array of that shape, with dropout_seed and offset 0.
    """
    p, seed = options.dropout_p, options.dropout_seed
    if not p:
        return dtype.type(1)
    if seed is None:
        raise ValueError("scaled_dot_product_attention: dropout_p > 0 needs a dropout_seed")
    return dropout_mask(shape, p, seed=seed).astype(dtype) * dtype.type(1 / (1 - p) if p < 1 else 0)


def _attend(query: Array, key: Array, value: Array, mask: Array | None, options: Any) -> Any:
    """out `[..., Lq, Dv]`, lse `[..., Lq]` and the probabilities before dropout `[..., Lq, Lk]`."""
    q, k, v, mask = _operands(query, key, value, mask)
    softmax = softmax_over_live(q, k, mask, options)
    probs = softmax.probs * _dropout_factor(softmax.probs.shape, options, q.dtype)
    out = live_product(probs, softmax.live, v)
    rows = query.shape[:-1]
    return (
        narrow(out.reshape(*rows, value.shape[-1]), query),
        softmax.lse.reshape(rows),
        narrow(softmax.probs.reshape(*rows, key.shape[-2]), query),
    )


def scaled_dot_product_attention_forward(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = 0.0,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    q_lengths: Array | None = None,
    kv_lengths: Array | None = None,
    dropout_seed: int | None = None,
    precision: str | None = None,
) -> tuple[Array, ScaledDotProductAttentionSaved]:
    """As `scaled_dot_product_attention`, and what its backward needs: out, saved."""
    options = AttentionOptions(
        scale=1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale,
        causal=causal or ("top_left" if is_causal else None),
        window=normalised_window(window),
        softcap=softcap or 0.0,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        q_lengths=q_lengths,
        kv_lengths=kv_lengths,
    )
    out, lse, _ = _attend(query, key, value, attn_mask, options)
    saved = ScaledDotProductAttentionSaved(query, key, value, attn_mask, out, lse, options)
    return out, saved


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    return_lse: bool = False,
    return_probs: bool = False,
    out: Array | None = None,
    **options: Any,
) -> Any:
    """Attention of query `[..., Hq, Lq, D]` over key `[..., Hkv, Lk, D]`, value `[..., Hkv, Lk, Dv]`.

    attn_mask: bool (True = attend) or float (added to the scores; -inf = never attend),
    broadcastable to `[..., Hq, Lq, Lk]`. scale: 1/√D by default. enable_gqa: Hkv divides Hq, query
    head h uses key head h // (Hq/Hkv). is_causal means causal="top_left". The options, by keyword:

    - causal: "top_left", query i sees keys up to i, or "bottom_right", the last sees the last.
    - window: (left, right) keys seen on either side of a query's own; None or -1 is unlimited.
    - softcap: bounds the scores, softcap tanh(s / softcap); 0 or None for none.
    - sinks `[Hq]`: one more score per head that takes probability and gives no value.
    - alibi_slopes `[Hq]` or `[B, Hq]`: the score falls by the slope per key of distance.
    - q_lengths, kv_lengths int `[B]`: what lies past them is padding; B counts all leading dims.
    - dropout_seed: the seed of `dropout`'s generator, over `[B, Hq, Lq, Lk]`; dropout_p needs it.

    Returns out `[..., Hq, Lq, Dv]`; with return_lse or return_probs a tuple of out, then lse
    `[..., Hq, Lq]`, then the probabilities `[..., Hq, Lq, Lk]` before dropout. `precision` is
    ignored; `out` is written to and returned.
    """
    y, saved = scaled_dot_product_attention_forward(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, **options
    )
    if out is not None:
        out[...] = y
        y = out
    results = (y, saved.lse) if return_lse else (y,)
    if return_probs:
        results += (_attend(query, key, value, attn_mask, saved.options)[2],)
    return results if len(results) > 1 else y


def scaled_dot_product_attention_backward(
    dout: Array | None, saved: ScaledDotProductAttentionSaved
) -> ScaledDotProductAttentionGradients:
    """Gradients from dout `[..., Hq, Lq, Dv]`; None stands for zero."""
    query, key, value, attn_mask, _, _, options = saved
    q, k, v, mask = _operands(query, key, value, attn_mask)
    do = _four_dims(or_zeros(dout, (*query.shape[:-1], value.shape[-1]), q.dtype))
    live, slope, probs, lse = softmax_over_live(q, k, mask, options)
    factor = _dropout_factor(probs.shape, options, q.dtype)
    transposed = np.swapaxes(live, -1, -2)

    dv = live_product(np.swapaxes(probs * factor, -1, -2), transposed, do)
    with np.errstate(invalid="ignore", over="ignore"):
        dp = np.where(live, do @ np.swapaxes(v, -1, -2) * factor, 0)
        total = (probs * dp).sum(axis=-1, keepdims=True)
        ds = np.where(live, probs * (dp - total), 0)
        dproduct = np.where(live, ds * slope, 0) * q.dtype.type(options.scale)
    dq = live_product(dproduct, live, k)
    dk = live_product(np.swapaxes(dproduct, -1, -2), transposed, q)

    dmask = None
    if attn_mask is not None and attn_mask.dtype != bool:
        dmask = _sum_broadcast(ds.reshape(*query.shape[:-1], key.shape[-2]), attn_mask.shape)
    gradients = ScaledDotProductAttentionGradients(
        narrow(dq.reshape(query.shape), query),
        narrow(_sum_groups(dk, key), key),
        narrow(_sum_groups(dv, value), value),
        dmask,
    )
    if options.sinks is not None:
        gradients.dsinks = _sink_gradient(options.sinks, lse, total[..., 0])
    return gradients


def _sink_gradient(sinks: Array, lse: Array, total: Array) -> Array:
    """dsink_h = -Σ e^(sink_h - lse_i) D_i; lse, D `[B, Hq, Lq]`."""
    some = lse != -np.inf
    share = np.where(some, np.exp(np.asarray(sinks, lse.dtype)[:, None] - np.where(some, lse, 0)), 0)
    gradient: Array = -(share * total).sum(axis=(0, 2))
    return gradient
