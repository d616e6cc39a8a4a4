"""Attention over packed sequences of different lengths, `[total, heads, head_dim]`.

Sequence b owns the rows cu_seqlens[b] … cu_seqlens[b+1] - 1 of its packed array. The result is, by
definition, that of `scaled_dot_product_attention` on the padded `[B, heads, max_len, head_dim]`
arrays with `q_lengths` and `kv_lengths`, packed again; this also fixes what a mask, ALiBi slopes
`[B, Hq]` and the dropout stream mean: they belong to `[B, Hq, max_q, max_kv]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from .attention import (
    ScaledDotProductAttentionSaved,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_forward,
)
from .attention import scaled_dot_product_attention as _padded_attention


class AttentionVarlenSaved(NamedTuple):
    """`padded`: what the padded call saved; the packed `lse` `[Hq, total_q]`; the row borders."""

    padded: ScaledDotProductAttentionSaved
    lse: Array
    cu_seqlens_q: Array
    cu_seqlens_kv: Array


class AttentionVarlenGradients(NamedTuple):
    """Gradients of the packed arrays, dsinks `[Hq]` (None without sinks) and dattn_mask (None without a float one)."""

    dquery: Array
    dkey: Array
    dvalue: Array
    dsinks: Array | None
    dattn_mask: Array | None = None


def _pad(packed: Array, cu_seqlens: Array) -> Array:
    """`[total, H, D]` to `[B, H, max_len, D]`, 0 in the padding."""
    lengths = np.diff(cu_seqlens)
    shape = (len(lengths), int(lengths.max(initial=0)), *packed.shape[1:])
    padded = np.zeros(shape, packed.dtype)
    for b, (start, length) in enumerate(zip(cu_seqlens, lengths, strict=False)):
        padded[b, :length] = packed[start : start + length]
    return np.swapaxes(padded, 1, 2)


def _pack(padded: Array, cu_seqlens: Array) -> Array:
    """`[B, H, max_len, ...]` to `[total, H, ...]`."""
    rows = np.swapaxes(padded, 1, 2)
    return np.concatenate([rows[:0, 0], *(rows[b, :n] for b, n in enumerate(np.diff(cu_seqlens)))])


def attention_varlen_forward(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Array,
    cu_seqlens_kv: Array,
    **options: Any,
) -> tuple[Array, AttentionVarlenSaved]:
    """As `attention_varlen`, and what its backward needs: out, saved."""
    borders_q, borders_kv = (np.asarray(c, np.int64) for c in (cu_seqlens_q, cu_seqlens_kv))
    padded_out, padded = scaled_dot_product_attention_forward(
        _pad(query, borders_q),
        _pad(key, borders_kv),
        _pad(value, borders_kv),
        **options,
        q_lengths=np.diff(borders_q),
        kv_lengths=np.diff(borders_kv),
    )
    lse = _pack(padded.lse, borders_q).T
    saved = AttentionVarlenSaved(padded, lse, cu_seqlens_q, cu_seqlens_kv)
    return _pack(padded_out, borders_q), saved


def attention_varlen(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Array,
    cu_seqlens_kv: Array,
    *,
    return_lse: bool = False,
    return_probs: bool = False,
    out: Array | None = None,
    **options: Any,
) -> Any:
    """query `[total_q, Hq, D]`, key `[total_kv, Hkv, D]`, value `[total_kv, Hkv, Dv]`, packed.

    cu_seqlens int `[B + 1]`, from 0 to the total, not falling. The options of
    `scaled_dot_product_attention` apply, without its lengths. Returns out `[total_q, Hq, Dv]`;
    lse is `[Hq, total_q]`, the probabilities are padded, `[B, Hq, max_q, max_kv]`.
    """
    y, saved = attention_varlen_forward(query, key, value, cu_seqlens_q, cu_seqlens_kv, **options)
    if out is not None:
        out[...] = y
        y = out
    results: tuple[Array, ...] = (y, saved.lse) if return_lse else (y,)
    if return_probs:
        query, key, value = saved.padded[:3]
        options |= {"q_lengths": np.diff(cu_seqlens_q), "kv_lengths": np.diff(cu_seqlens_kv)}
        probs = _padded_attention(query, key, value, return_probs=True, **options)[1]
        results += (probs,)
    return results if len(results) > 1 else y


def attention_varlen_backward(dout: Array | None, saved: AttentionVarlenSaved) -> AttentionVarlenGradients:
    """Gradients from dout `[total_q, Hq, Dv]`: dquery, dkey, dvalue packed; None stands for zero."""
    borders_q, borders_kv = (np.asarray(c, np.int64) for c in saved[2:])
    gradients = scaled_dot_product_attention_backward(None if dout is None else _pad(dout, borders_q), saved.padded)
    return AttentionVarlenGradients(
        _pack(gradients.dquery, borders_q),
        _pack(gradients.dkey, borders_kv),
        _pack(gradients.dvalue, borders_kv),
        gradients.dsinks,
        gradients.dattn_mask,
    )
