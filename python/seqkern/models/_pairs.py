"""What a model that reads one sequence and writes another checks: ids, and where the source ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..nn._arrays import Array, array_module, check_array, check_shape, shape_text


def check_ids(ids: Any, name: str, vocab_size: int) -> None:
    """ids must be integers `[N, T]`, T >= 1, in the vocabulary."""
    check_array(ids, name)
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"{name} must be [N, length] with length >= 1, got {shape_text(ids.shape)}")
    if np.dtype(ids.dtype).kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"{name} must lie in [0, {vocab_size}), got {int(ids.min())} to {int(ids.max())}")


def check_pair(src: Any, tgt: Any, config: Any) -> None:
    """Both sides of a call, under the config's vocabularies."""
    check_ids(src, "src", config.src_vocab_size)
    check_ids(tgt, "tgt", config.tgt_vocab_size)
    if len(tgt) != len(src):
        raise ValueError(f"tgt must have src's {len(src)} rows, got {len(tgt)}")


def source_padding(attention_mask: Any, src_lengths: Any, shape: tuple[int, int]) -> Array | None:
    """What attention shall ignore, bool `[N, S]`, from a mask (1 = keep) or lengths; None keeps all."""
    if attention_mask is not None and src_lengths is None:
        check_shape(attention_mask, shape, "attention_mask", "[N, S]")
        return attention_mask == 0
    lengths = source_lengths(attention_mask, src_lengths, shape)
    return None if lengths is None else array_module(lengths).arange(shape[1]) >= lengths[:, None]


def source_lengths(attention_mask: Any, src_lengths: Any, shape: tuple[int, int]) -> Array | None:
    """Lengths `[N]` from themselves or from a mask `[N, S]` of ones and then zeros; None keeps all."""
    if attention_mask is None and src_lengths is None:
        return None
    if attention_mask is not None and src_lengths is not None:
        raise ValueError("give attention_mask or src_lengths, not both")
    if src_lengths is not None:
        check_shape(src_lengths, shape[:1], "src_lengths", "[N]")
        if np.dtype(src_lengths.dtype).kind not in "iu":
            raise TypeError(f"src_lengths must be integers, got {src_lengths.dtype}")
        if src_lengths.size and (src_lengths.min() < 0 or src_lengths.max() > shape[1]):
            raise ValueError(f"src_lengths must lie in [0, {shape[1]}]")
        return src_lengths
    check_shape(attention_mask, shape, "attention_mask", "[N, S]")
    keep = attention_mask != 0
    lengths = keep.sum(axis=1)
    if not (keep == (array_module(keep).arange(shape[1]) < lengths[:, None])).all():
        raise ValueError("attention_mask must pad on the right: no 1 after a 0")
    return lengths
