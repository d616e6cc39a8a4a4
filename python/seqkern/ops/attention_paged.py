"""Attention against a cache of keys and values in pages (Kwon et al., PagedAttention, 2023). Inference only.

Pages ``[pages, page_size, Hkv, D]`` belong to no sequence: `block_table` says which pages, in order, hold the keys of
each. The layout and names are those of vLLM and of flash-attention's `flash_attn_with_kvcache`; query and out keep
torch's ``[B, Hq, L, D]``.
"""

from __future__ import annotations

from typing import Any

from seqkern import _cpu
from seqkern._dispatch import public

from .attention import Array, Window, _options

__all__ = ["attention_paged"]

_OP = "attention_paged"


@public
def attention_paged(
    query: Array, key_pages: Array, value_pages: Array, block_table: Array, kv_lengths: Array, *,
    is_causal: bool = False, scale: float | None = None, causal: str | None = None, window: Window | None = None,
    softcap: float | None = None, sinks: Array | None = None, alibi_slopes: Array | None = None,
    q_lengths: Array | None = None, return_lse: bool = False, precision: str | None = None, out: Array | None = None,
) -> Any:  # fmt: skip
    """`scaled_dot_product_attention` with key j of sequence b in ``key_pages[block_table[b, j // size], j % size]``.

    query ``[B, Hq, L, D]``, key_pages ``[pages, page_size, Hkv, D]``, value_pages ``[pages, page_size, Hkv, Dv]``, Hq a
    multiple of Hkv; block_table, integers ``[B, max_pages]``; kv_lengths ``[B]``: keys of each sequence, at most
    max_pages · page_size. A page may serve any number of sequences. Only entries that kv_lengths reach are looked at:
    they must lie in [0, pages), the others may hold anything. Options as in `scaled_dot_product_attention`; new
    tokens whose keys are already in the pages take causal="bottom_right". Up to eight query rows for a key-value head
    are a decoding step: keys and values are read once, where they lie. More rows pack them first.
    On a GPU, which nobody waits for, block_table's width stands for the longest sequence: work is shared out and memory
    to pack is taken for max_pages · page_size keys, so give the columns that are in use. What is out of range is moved
    into it there.

    Returns out ``[B, Hq, L, Dv]``, with lse ``[B, Hq, L]`` if asked for: bit for bit those of the keys and values side
    by side, but where the processor multiplies these in bfloat16 (64 keys and 8 rows or more). Pages are read by stride
    where their last dimension is adjacent; anything else is copied, all of it.
    ValueError or TypeError for arguments that do not fit, a page number out of range among them; no page is then read.
    """
    options = _options(_OP, query, scale, is_causal, causal, window, softcap, 0.0, None, precision)
    result, lse = _cpu.attention_paged(
        query, key_pages, value_pages, block_table, kv_lengths, q_lengths, sinks, alibi_slopes, options, return_lse,
        out)  # fmt: skip
    return (result, lse) if return_lse else result
