"""torch's module masks (True = ignore) as one mask for attention (True = attend, or added)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array, array_module, check_array, shape_text


def _float(mask: Array, dtype: Any) -> Array:
    """An ignore mask as one that is added; a float mask as it is."""
    if mask.dtype != bool:
        return mask.astype(dtype, copy=False)
    return np.where(mask, -np.inf, 0).astype(dtype)


def merged_mask(
    attn_mask: Array | None, key_padding_mask: Array | None, shape: tuple[int, int, int, int], dtype: Any
) -> Array | None:
    """Both masks over `shape` = [N, heads, L, S], as `[N or 1, heads or 1, L or 1, S]`, or None."""
    parts = [_attn_mask(attn_mask, shape), _padding_mask(key_padding_mask, shape)]
    given = [part for part in parts if part is not None]
    if not given:
        return None
    if all(part.dtype == bool for part in given):
        ignored = given[0] if len(given) == 1 else given[0] | given[1]
        return ~ignored
    return sum(_float(part, dtype) for part in given)  # type: ignore[return-value]


def _attn_mask(mask: Array | None, shape: tuple[int, int, int, int]) -> Array | None:
    if mask is None:
        return None
    batch, heads, queries, keys = shape
    _check_kind(mask, "attn_mask")
    if tuple(mask.shape) == (queries, keys):
        return mask[None, None]
    if tuple(mask.shape) == (batch * heads, queries, keys):
        return mask.reshape(shape)
    raise ValueError(
        f"attn_mask must be [L, S] = {shape_text((queries, keys))} or [N * num_heads, L, S] = "
        f"{shape_text((batch * heads, queries, keys))}, got {shape_text(mask.shape)}"
    )


def _padding_mask(mask: Array | None, shape: tuple[int, int, int, int]) -> Array | None:
    if mask is None:
        return None
    batch, _, _, keys = shape
    _check_kind(mask, "key_padding_mask")
    if tuple(mask.shape) != (batch, keys):
        raise ValueError(f"key_padding_mask must be [N, S] = {shape_text((batch, keys))}, got {shape_text(mask.shape)}")
    return mask[:, None, None, :]


def _check_kind(mask: Array, name: str) -> None:
    check_array(mask, name)
    if mask.dtype != bool and mask.dtype.kind not in "fV":
        raise TypeError(f"{name} must be bool or floating point, got {mask.dtype}")


def padded_columns(mask: Array | None, extra: int) -> Array | None:
    """`mask` with `extra` more keys at its end that everybody may attend to."""
    if mask is None or not extra:
        return mask
    fill = mask.dtype == bool
    more = array_module(mask).full((*mask.shape[:-1], extra), fill, dtype=mask.dtype)
    return np.concatenate([mask, more], axis=-1)


def causal_keep(module: Any, queries: int, keys: int, *, bottom_right: bool) -> Array:
    """`[1, 1, L, S]` of an array module: True where key j <= query i; bottom_right: the last query is the last key."""
    return module.tri(queries, keys, keys - queries if bottom_right else 0, dtype=bool)[None, None]
