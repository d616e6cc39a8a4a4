"""Attention against keys and values in pages: gathered, then `scaled_dot_product_attention` with kv_lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array
from .attention import scaled_dot_product_attention


def attention_paged(
    query: Array, key_pages: Array, value_pages: Array, block_table: Array, kv_lengths: Array, **options: Any
) -> Any:
    """query `[B, Hq, L, D]`, pages `[pages, page_size, Hkv, D or Dv]`, block_table `[B, max_pages]`.

    Key j of sequence b is `key_pages[block_table[b, j // page_size], j % page_size]`, for j < kv_lengths[b]; entries
    of the table past that count for nothing. The options of `scaled_dot_product_attention`, without mask and dropout.
    """
    size, lengths = key_pages.shape[1], np.asarray(kv_lengths, np.int64)
    longest = int(lengths.max(initial=0))
    at = np.arange(longest)
    pages = np.where(at < lengths[:, None], np.asarray(block_table)[:, at // size if size else at], 0)
    key, value = (np.swapaxes(p[pages, at % size if size else at], 1, 2) for p in (key_pages, value_pages))
    return scaled_dot_product_attention(query, key, value, enable_gqa=True, kv_lengths=lengths, **options)
