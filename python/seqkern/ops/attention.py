"""Scaled dot-product attention, padded and packed, forward and backward.

Shapes: query ``[..., Hq, Lq, D]``, key ``[..., Hkv, Lk, D]``, value ``[..., Hkv, Lk, Dv]``, out
``[..., Hq, Lq, Dv]``; any head_dim from 1. B counts all dimensions before the heads, 1 where there are none.
float32, float64 or bfloat16 storage (float32 arithmetic). Rows whose elements are adjacent are read where they lie,
whatever the other strides; anything else is copied once. Memory grows with the lengths, never with their product,
unless the probabilities are asked for.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import integer, number, saved_by
from seqkern._dispatch import public
from seqkern._precision import check_precision

__all__ = [
    "AttentionVarlenGradients", "AttentionVarlenSaved", "ScaledDotProductAttentionGradients",
    "ScaledDotProductAttentionSaved", "attention_varlen", "attention_varlen_backward", "attention_varlen_forward",
    "scaled_dot_product_attention", "scaled_dot_product_attention_backward", "scaled_dot_product_attention_forward",
]  # fmt: skip

Array = Any
Window = tuple[int | None, int | None]
_FINITE = float(np.finfo(np.float32).max)
_OP, _PACKED = "scaled_dot_product_attention", "attention_varlen"


class ScaledDotProductAttentionSaved(NamedTuple):
    """The inputs as given, out, lse (natural log of every row's denominator, of out's shape without its last
    dimension), and stats ``[2, B, Hq, Lq]``: the largest score, in powers of two for float32, and 1 / denominator."""

    query: Array
    key: Array
    value: Array
    attn_mask: Array | None
    out: Array
    lse: Array
    stats: Array
    enable_gqa: bool
    sinks: Array | None
    alibi_slopes: Array | None
    q_lengths: Array | None
    kv_lengths: Array | None
    options: tuple[Any, ...]


class _Gradients(NamedTuple):
    dquery: Array
    dkey: Array
    dvalue: Array
    dattn_mask: Array | None


class ScaledDotProductAttentionGradients(_Gradients):
    """dquery, dkey, dvalue and dattn_mask (None unless the mask was additive): a tuple of four.

    The attribute `dsinks` ``[Hq]`` (None without sinks) and dattn_mask are float32 (float64 for float64).
    """

    dsinks: Array | None = None


class AttentionVarlenSaved(NamedTuple):
    """The inputs as given, out, lse ``[Hq, total_q]`` and stats ``[2, Hq, total_q]`` as in the padded form."""

    query: Array
    key: Array
    value: Array
    cu_seqlens_q: Array
    cu_seqlens_kv: Array
    out: Array
    lse: Array
    stats: Array
    attn_mask: Array | None
    sinks: Array | None
    alibi_slopes: Array | None
    options: tuple[Any, ...]


class AttentionVarlenGradients(NamedTuple):
    """Gradients of the packed arrays, and of the sinks and an additive mask where there are any."""

    dquery: Array
    dkey: Array
    dvalue: Array
    dsinks: Array | None
    dattn_mask: Array | None = None


def _options(
    op: str, query: Array, scale: float | None, is_causal: bool, causal: str | None, window: Window | None,
    softcap: float | None, dropout_p: float, dropout_seed: int | None, precision: str | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Checked scalars, in the order the kernel's border takes them."""
    if causal not in (None, "top_left", "bottom_right"):
        raise ValueError(f"{op}: causal must be 'top_left', 'bottom_right' or None, got {causal!r}")
    if is_causal and causal == "bottom_right":
        raise ValueError(f"{op}: is_causal=True means causal='top_left', got causal='bottom_right' as well")
    dropout_p = number(op, "dropout_p", dropout_p, 0.0, 1.0)
    if dropout_p and dropout_seed is None:
        raise ValueError(f"{op}: dropout_seed must be an integer when dropout_p is not 0, got None")
    seed = 0 if dropout_seed is None else integer(op, "dropout_seed", dropout_seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"{op}: dropout_seed must lie in [0, 2**64), got {seed}")
    if scale is None:
        head_dim = query.shape[-1] if getattr(query, "ndim", 0) else 1
        scale = 1 / math.sqrt(max(head_dim, 1))
    return (
        number(op, "scale", scale, -_FINITE, _FINITE),
        number(op, "softcap", 0.0 if softcap is None else softcap, 0.0, _FINITE),
        dropout_p,
        "top_left" if is_causal else causal or "",
        *_window(op, window),
        seed,
        check_precision(op, precision),
    )


def _window(op: str, window: Window | None) -> tuple[int, int]:
    if window is None:
        return -1, -1
    if not isinstance(window, tuple) or len(window) != 2:
        raise TypeError(f"{op}: window must be a tuple (left, right), got {window!r}")
    left, right = (-1 if side is None else integer(op, "window", side) for side in window)
    if left < -1 or right < -1:
        raise ValueError(f"{op}: window must be (left, right) with sides >= 0, or None or -1 for open, got {window!r}")
    return left, right


def _heads(x: Array) -> Array:
    """An array as [B, H, L, D], a missing dimension 1; other types and 1-d arrays are left for the kernel to refuse."""
    if not isinstance(x, np.ndarray) or x.ndim < 2 or x.ndim == 4:
        return x
    shape = (1,) * (4 - x.ndim) + x.shape
    return x.reshape(math.prod(shape[:-3]), *shape[-3:])


def _check_leading(query: Array, key: Array, value: Array, enable_gqa: bool) -> None:
    for name, other in (("key", key), ("value", value)):
        shape, want = getattr(other, "shape", None), getattr(query, "shape", ())
        if shape is None or len(want) < 2 or len(shape) < 2:
            continue
        grouped = enable_gqa and len(want) >= 3
        cut = -3 if grouped else -2
        if len(shape) != len(want) or shape[:cut] != want[:cut]:
            hint = "" if enable_gqa or len(want) < 3 else " (fewer key-value heads need enable_gqa=True)"
            raise ValueError(
                f"{_OP}: {name} must have the leading dimensions {list(want[:cut])} of query, "
                f"got shape {list(shape)}{hint}"
            )


def _mask(query: Array, key: Array, mask: Array | None) -> Array | None:
    """The mask as a view [B, H, Lq, Lk]."""
    usable = isinstance(mask, np.ndarray) and all(isinstance(x, np.ndarray) and x.ndim >= 2 for x in (query, key))
    if mask is None or not usable:
        return mask
    want = (*query.shape[:-1], key.shape[-2])
    try:
        return _heads(np.broadcast_to(mask, want))
    except ValueError:
        raise ValueError(
            f"{_OP}: attn_mask must be broadcastable to [..., query_len, key_len] = {list(want)}, "
            f"got {list(mask.shape)}"
        ) from None


def _run(
    query: Array, key: Array, value: Array, attn_mask: Array | None, enable_gqa: bool, options: tuple[Any, ...],
    sinks: Array | None, alibi_slopes: Array | None, q_lengths: Array | None, kv_lengths: Array | None,
    with_lse: bool, with_stats: bool, with_probs: bool, out: Array | None,
) -> tuple[Array, Array | None, Array | None, Array | None]:  # fmt: skip
    _check_leading(query, key, value, enable_gqa)
    shape = (*query.shape[:-1], value.shape[-1]) if hasattr(query, "shape") and hasattr(value, "shape") else ()
    out, lse, stats, probs = _cpu.attention_forward(
        False, _heads(query), _heads(key), _heads(value), _mask(query, key, attn_mask), sinks, alibi_slopes,
        q_lengths, kv_lengths, options, with_lse, with_stats, with_probs, out, shape)  # fmt: skip
    if lse is not None:
        lse = lse.reshape(query.shape[:-1])
    if probs is not None:
        probs = probs.reshape(*query.shape[:-1], key.shape[-2])
    return out, lse, stats, probs


@public
def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *, causal: str | None = None,
    window: Window | None = None, softcap: float | None = None, sinks: Array | None = None,
    alibi_slopes: Array | None = None, q_lengths: Array | None = None, kv_lengths: Array | None = None,
    dropout_seed: int | None = None, return_lse: bool = False, return_probs: bool = False,
    precision: str | None = None, out: Array | None = None,
) -> Any:  # fmt: skip
    """softmax(scale · Q Kᵀ + mask) V, with torch's arguments and meaning (Vaswani et al. 2017).

    attn_mask, broadcast to ``[..., Hq, Lq, Lk]``: bool (True = attend) or of query's dtype, added. is_causal: j <= i.
    scale: 1/√D by default. enable_gqa: Hq may be a multiple of Hkv. Beyond torch:
    causal "top_left" or "bottom_right" (j <= i + Lk - Lq); window (left, right): i + offset - left <= j <= i + offset
    + right, offset = Lk - Lq for bottom_right, else 0, None for an open side; softcap: scores become
    c·tanh(s/c); alibi_slopes ``[Hq]`` or ``[B, Hq]``: -slope·\\|i + offset - j\\| is added (Press et al. 2022); sinks
    ``[Hq]``: one more logit per head that takes probability but has no value; q_lengths, kv_lengths ``[B]``:
    rows and keys past them are padding (lengths count for bottom_right). Dropout draws element e of
    ``[B, Hq, Lq, Lk]`` as `dropout` does with seed=dropout_seed.

    Returns out, or a tuple of out and, as asked for, lse ``[..., Lq]`` (natural log of the denominator) and the
    probabilities before dropout. A row that sees nothing gives 0 and lse -inf (with a sink, its logit, unless the row
    is padding). What is masked may hold NaN.
    precision: of the two products of the forward pass where the machine has AMX, for blocks of rows. Elsewhere, while
    decoding, and backward, every mode is "highest". bfloat16 arrays take one product of their own values and of
    probabilities (backward: their gradients, too) rounded to it where there is AMX or AVX512-BF16, as GPUs do.
    ValueError or TypeError for arguments that do not fit, naming the one.
    """
    options = _options(_OP, query, scale, is_causal, causal, window, softcap, dropout_p, dropout_seed, precision)
    out, lse, _, probs = _run(query, key, value, attn_mask, enable_gqa, options, sinks, alibi_slopes, q_lengths,
                              kv_lengths, return_lse, False, return_probs, out)  # fmt: skip
    extras = [extra for extra in (lse, probs) if extra is not None]
    return (out, *extras) if extras else out


@public
def scaled_dot_product_attention_forward(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *, causal: str | None = None,
    window: Window | None = None, softcap: float | None = None, sinks: Array | None = None,
    alibi_slopes: Array | None = None, q_lengths: Array | None = None, kv_lengths: Array | None = None,
    dropout_seed: int | None = None, precision: str | None = None, out: Array | None = None,
) -> tuple[Array, ScaledDotProductAttentionSaved]:  # fmt: skip
    """`scaled_dot_product_attention`, and what `scaled_dot_product_attention_backward` needs."""
    options = _options(_OP, query, scale, is_causal, causal, window, softcap, dropout_p, dropout_seed, precision)
    out, lse, stats, _ = _run(query, key, value, attn_mask, enable_gqa, options, sinks, alibi_slopes, q_lengths,
                              kv_lengths, True, True, False, out)  # fmt: skip
    return out, ScaledDotProductAttentionSaved(
        query, key, value, attn_mask, out, lse, stats, enable_gqa, sinks, alibi_slopes, q_lengths, kv_lengths,
        options)  # fmt: skip


@public
def scaled_dot_product_attention_backward(
    dout: Array | None, saved: ScaledDotProductAttentionSaved
) -> ScaledDotProductAttentionGradients:
    """Gradients from dout ``[..., Hq, Lq, Dv]`` (None = zero).

    An additive mask gets its gradient in its own shape, float32 (float64 for float64), summed where it was broadcast.
    """
    s = saved
    saved_by(_OP, s, ScaledDotProductAttentionSaved)
    if dout is None:
        dout = np.zeros_like(s.out)
    mask, shape = _mask(s.query, s.key, s.attn_mask), None
    if mask is not None and mask.dtype.kind != "b":
        shape = tuple(n if step else 1 for n, step in zip(mask.shape, _heads_steps(s), strict=True))
    dq, dk, dv, dmask, dsinks = _cpu.attention_backward(
        False, _heads(dout), _heads(s.query), _heads(s.key), _heads(s.value), mask, s.sinks, s.alibi_slopes,
        s.q_lengths, s.kv_lengths, s.options, _heads(s.out), s.stats, shape)  # fmt: skip
    gradients = ScaledDotProductAttentionGradients(
        dq.reshape(s.query.shape), dk.reshape(s.key.shape), dv.reshape(s.value.shape),
        None if dmask is None else _unbroadcast(dmask, s))  # fmt: skip
    gradients.dsinks = dsinks
    return gradients


def _mask_shape(s: ScaledDotProductAttentionSaved) -> tuple[int, ...]:
    return () if s.attn_mask is None else tuple(s.attn_mask.shape)


def _full_rank(s: ScaledDotProductAttentionSaved) -> tuple[int, ...]:
    """The mask's shape with a 1 for every dimension it lacks."""
    shape = _mask_shape(s)
    return (1,) * (s.query.ndim - len(shape)) + shape


def _heads_steps(s: ScaledDotProductAttentionSaved) -> tuple[bool, bool, bool, bool]:
    """Which dimensions of [B, H, Lq, Lk] the mask really has."""
    full = _full_rank(s)
    wide = (1,) * (4 - len(full)) + full
    batch = any(n != 1 for n in wide[:-3])
    return batch, wide[-3] != 1, wide[-2] != 1, wide[-1] != 1


def _unbroadcast(dmask: Array, s: ScaledDotProductAttentionSaved) -> Array:
    """The kernel's gradient [B or 1, H or 1, Lq or 1, Lk or 1] in the mask's own shape."""
    if s.query.ndim <= 4:
        return dmask.reshape(_mask_shape(s))
    # More than one batch dimension: the kernel saw them as one, so sum over those the mask lacks.
    lead = s.query.shape[:-3] if dmask.shape[0] > 1 else (1,) * (s.query.ndim - 3)
    wide = dmask.reshape(*lead, *dmask.shape[1:])
    axes = tuple(i for i, n in enumerate(_full_rank(s)) if n == 1 and wide.shape[i] > 1)
    return wide.sum(axes, keepdims=True, dtype=wide.dtype).reshape(_mask_shape(s))


@public
def attention_varlen(
    query: Array, key: Array, value: Array, cu_seqlens_q: Array, cu_seqlens_kv: Array, *,
    attn_mask: Array | None = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = True, causal: str | None = None, window: Window | None = None, softcap: float | None = None,
    sinks: Array | None = None, alibi_slopes: Array | None = None, dropout_seed: int | None = None,
    return_lse: bool = False, return_probs: bool = False, precision: str | None = None, out: Array | None = None,
) -> Any:  # fmt: skip
    """Attention within packed sequences: query ``[total_q, Hq, D]``, key and value ``[total_kv, Hkv, D or Dv]``.

    cu_seqlens_q, cu_seqlens_kv: integers ``[sequences + 1]``, 0 first, the totals last; sequence s has rows
    cu[s] .. cu[s + 1]. Hq may be a multiple of Hkv unless enable_gqa is False. Options as in
    `scaled_dot_product_attention`; slopes ``[Hq]`` or ``[sequences, Hq]``. attn_mask (broadcast to it), dropout's
    elements and the probabilities are those of ``[sequences, Hq, longest query, longest key]``.
    Returns out ``[total_q, Hq, Dv]`` or a tuple of it and, as asked for, lse ``[Hq, total_q]`` and the probabilities
    before dropout, 0 past a sequence's rows and keys.
    """
    options = _options(_PACKED, query, scale, is_causal, causal, window, softcap, dropout_p, dropout_seed, precision)
    out, lse, _, probs = _run_packed(
        query, key, value, cu_seqlens_q, cu_seqlens_kv, attn_mask, enable_gqa, options, sinks, alibi_slopes,
        return_lse, False, return_probs, out)  # fmt: skip
    extras = [extra for extra in (lse, probs) if extra is not None]
    return (out, *extras) if extras else out


def _run_packed(
    query: Array, key: Array, value: Array, cu_q: Array, cu_kv: Array, attn_mask: Array | None, enable_gqa: bool,
    options: tuple[Any, ...], sinks: Array | None, alibi_slopes: Array | None, with_lse: bool, with_stats: bool,
    with_probs: bool, out: Array | None,
) -> tuple[Array, Array | None, Array | None, Array | None]:  # fmt: skip
    ranked = all(getattr(x, "ndim", 0) == 3 for x in (query, key))
    if ranked and not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError(
            f"{_PACKED}: key must have query's {query.shape[1]} heads when enable_gqa is False, got {key.shape[1]}"
        )
    shape = (*query.shape[:-1], value.shape[-1]) if hasattr(query, "shape") and hasattr(value, "shape") else ()
    mask = _packed_mask(query, cu_q, cu_kv, attn_mask)
    out, lse, stats, probs = _cpu.attention_forward(
        True, query, key, value, mask, sinks, alibi_slopes, cu_q, cu_kv, options, with_lse, with_stats, with_probs,
        out, shape)  # fmt: skip
    return out, lse, stats, probs


def _packed_mask(query: Array, cu_q: Array, cu_kv: Array, mask: Array | None) -> Array | None:
    """The mask as a view [sequences, Hq, longest query, longest key]; what is no such thing is left to the kernel."""
    if not isinstance(mask, np.ndarray) or getattr(query, "ndim", 0) != 3:
        return mask
    borders = [cu for cu in (cu_q, cu_kv) if isinstance(cu, np.ndarray) and cu.ndim == 1 and cu.dtype.kind in "iu"]
    if len(borders) < 2 or not all(map(len, borders)):
        return mask
    longest = (int(np.diff(cu.astype(np.int64)).max(initial=0)) for cu in borders)
    want = (len(cu_q) - 1, query.shape[1], *longest)
    try:
        return np.broadcast_to(mask, want)
    except ValueError:
        raise ValueError(
            f"{_PACKED}: attn_mask must be broadcastable to [sequences, heads, longest query, longest key] = "
            f"{list(want)}, got {list(mask.shape)}"
        ) from None


@public
def attention_varlen_forward(
    query: Array, key: Array, value: Array, cu_seqlens_q: Array, cu_seqlens_kv: Array, *,
    attn_mask: Array | None = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = True, causal: str | None = None, window: Window | None = None, softcap: float | None = None,
    sinks: Array | None = None, alibi_slopes: Array | None = None, dropout_seed: int | None = None,
    precision: str | None = None, out: Array | None = None,
) -> tuple[Array, AttentionVarlenSaved]:  # fmt: skip
    """`attention_varlen`, and what `attention_varlen_backward` needs."""
    options = _options(_PACKED, query, scale, is_causal, causal, window, softcap, dropout_p, dropout_seed, precision)
    out, lse, stats, _ = _run_packed(
        query, key, value, cu_seqlens_q, cu_seqlens_kv, attn_mask, enable_gqa, options, sinks, alibi_slopes, True,
        True, False, out)  # fmt: skip
    return out, AttentionVarlenSaved(
        query, key, value, cu_seqlens_q, cu_seqlens_kv, out, lse, stats, attn_mask, sinks, alibi_slopes,
        options)  # fmt: skip


@public
def attention_varlen_backward(dout: Array | None, saved: AttentionVarlenSaved) -> AttentionVarlenGradients:
    """Gradients of `attention_varlen` from dout ``[total_q, Hq, Dv]`` (None = zero)."""
    s = saved
    saved_by(_PACKED, s, AttentionVarlenSaved)
    if dout is None:
        dout = np.zeros_like(s.out)
    mask, shape = _packed_mask(s.query, s.cu_seqlens_q, s.cu_seqlens_kv, s.attn_mask), None
    own = () if s.attn_mask is None else tuple(getattr(s.attn_mask, "shape", ()))
    if isinstance(mask, np.ndarray) and mask.dtype.kind != "b":
        shape = (1,) * (4 - len(own)) + own
    dq, dk, dv, dmask, dsinks = _cpu.attention_backward(
        True, dout, s.query, s.key, s.value, mask, s.sinks, s.alibi_slopes, s.cu_seqlens_q, s.cu_seqlens_kv,
        s.options, s.out, s.stats, shape)  # fmt: skip
    dattn_mask = None if dmask is None else dmask.reshape(own)
    return AttentionVarlenGradients(dq, dk, dv, dsinks, dattn_mask)
