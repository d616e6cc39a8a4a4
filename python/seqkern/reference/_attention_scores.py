"""Which pairs of a query and a key are live, and the softmax over them: the heart of attention.

Everything here works on four dimensions: query `[B, Hq, Lq, D]`, key `[B, Hq, Lk, D]` (key heads
already repeated for their group), scores `[B, Hq, Lq, Lk]`.

    s_ij = scale q_i · k_j
    s_ij = softcap tanh(s_ij / softcap)                     softcap > 0
    s_ij = s_ij - slope_h |i + offset - j|                  alibi_slopes (Press et al. 2022)
    s_ij = s_ij + attn_mask_ij                              a float mask
    p_ij = e^s_ij / (Σ_live e^s_ij + e^sink_h)              0 where the pair is not live

A pair is dead where a bool mask is False or a float mask is -inf, where j lies past the causal
diagonal i + offset or outside the window [i + offset - left, i + offset + right], and where i or j
lies past its length. `offset` places query i among the keys, for causal masks, windows and ALiBi
alike: kv_length - q_length for causal="bottom_right", so that the last query stands at the last
key (flash-attention's convention), otherwise 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array


class AttentionOptions(NamedTuple):
    """What shapes the scores besides query, key and mask; see `scaled_dot_product_attention`.

    scale is the number in use (never None), causal None | "top_left" | "bottom_right", window a
    pair of int or None (None = unlimited), softcap 0.0 for none; the arrays are as given.
    """

    scale: float
    causal: str | None
    window: tuple[int | None, int | None]
    softcap: float
    dropout_p: float
    dropout_seed: int | None
    sinks: Array | None
    alibi_slopes: Array | None
    q_lengths: Array | None
    kv_lengths: Array | None


class Softmax(NamedTuple):
    """`live` bool, `slope` = dscore/d(scale q·k) and `probs` `[B, Hq, Lq, Lk]`; `lse` `[B, Hq, Lq]`.

    lse is the logarithm of the denominator: of the sink alone for a row with no live key, -inf
    without one and for a row past its length.
    """

    live: Array
    slope: Array | float
    probs: Array
    lse: Array


def normalised_window(window: Any) -> tuple[int | None, int | None]:
    """(left, right) with None for every unlimited side; -1 counts as unlimited."""
    left, right = (None, None) if window is None else window
    return (None if left == -1 else left, None if right == -1 else right)


def per_batch(lengths: Array | None, full: int) -> Array:
    """Lengths as `[B, 1, 1, 1]`, or `full` as `[1, 1, 1, 1]` where there are none."""
    return np.asarray(full if lengths is None else lengths, np.int64).reshape(-1, 1, 1, 1)


def positions(options: AttentionOptions, q_len: int, kv_len: int) -> tuple[Array, Array]:
    """Where each query stands among the keys, `[B or 1, 1, Lq, 1]`, and the keys, `[Lk]`."""
    offset = per_batch(options.kv_lengths, kv_len) - per_batch(options.q_lengths, q_len)
    if options.causal != "bottom_right":
        offset = np.zeros_like(offset)
    return np.arange(q_len)[:, None] + offset, np.arange(kv_len)


def live_pairs(shape: tuple[int, ...], mask: Array | None, options: AttentionOptions) -> Array:
    """Which pairs take part: bool `[B, Hq, Lq, Lk]`; `mask` is of that shape already."""
    q_len, kv_len = shape[-2:]
    row, column = positions(options, q_len, kv_len)
    live = np.arange(q_len)[:, None] < per_batch(options.q_lengths, q_len)
    live = live & (column < per_batch(options.kv_lengths, kv_len))
    left, right = options.window
    if options.causal is not None:
        live = live & (column <= row)
    if left is not None:
        live = live & (column >= row - left)
    if right is not None:
        live = live & (column <= row + right)
    if mask is not None:
        live = live & (mask if mask.dtype == bool else mask != -np.inf)
    return np.broadcast_to(live, shape)


def scores(q: Array, k: Array, mask: Array | None, options: AttentionOptions) -> tuple[Array, Any]:
    """The scores of every pair, dead ones included, and their slope against scale q·k."""
    s = q @ np.swapaxes(k, -1, -2) * q.dtype.type(options.scale)
    slope: Any = 1.0
    if options.softcap:
        bent = np.tanh(s / q.dtype.type(options.softcap))
        s, slope = bent * q.dtype.type(options.softcap), 1 - bent * bent
    if options.alibi_slopes is not None:
        slopes = np.asarray(options.alibi_slopes, q.dtype)
        row, column = positions(options, *s.shape[-2:])
        s = s - slopes[..., None, None] * abs(row - column).astype(q.dtype)
    if mask is not None and mask.dtype != bool:
        s = s + mask.astype(q.dtype)
    return s, slope


def softmax_over_live(q: Array, k: Array, mask: Array | None, options: AttentionOptions) -> Softmax:
    """Probabilities and log-sum-exp over the live pairs, before dropout."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are results like any other
        s, slope = scores(q, k, mask, options)
        live = live_pairs(s.shape, mask, options)
        s = np.where(live, s, -np.inf)
        top = s.max(axis=-1, keepdims=True, initial=-np.inf)
        if options.sinks is not None:
            sinks = np.asarray(options.sinks, q.dtype).reshape(-1, 1, 1)
            top = np.maximum(top, sinks)
        top = np.where(top == -np.inf, 0, top)
        exponential = np.where(live, np.exp(s - top), 0)
        total = exponential.sum(axis=-1, keepdims=True)
        if options.sinks is not None:
            row = np.arange(q.shape[-2])[:, None]
            total = total + np.where(row < per_batch(options.q_lengths, len(row)), np.exp(sinks - top), 0)
        some = total != 0
        total = np.where(some, total, 1)
        lse = np.where(some, np.log(total) + top, -np.inf)
        probs = np.where(live, exponential / total, 0)
    return Softmax(live, slope, probs, lse[..., 0])


def live_product(weights: Array, live: Array, x: Array) -> Array:
    """Σ_j weights_ij x_j over the live pairs only: 0 times the NaN of a dead pair is not taken.

    weights (0 where dead) and live `[..., I, J]`, x `[..., J, D]`.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(x).all():
            return weights @ x
        terms = weights[..., None] * x[..., None, :, :]
        total: Array = np.where(live[..., None], terms, 0).sum(axis=-2)
    return total
