// Where the keys and values of a sequence lie: a constant stride apart, or page by page.
#pragma once
#include "seqkern/attention.h"
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {

// Row j of k or v (`base`, `strides`) of a head.
template <class T>
SEQKERN_INLINE const T* row_at(const AttentionForward& p, const void* base, const AttentionStrides& strides, index_t b,
                               index_t head, index_t j) {
  auto rows = static_cast<const T*>(base) + head * strides.head;
  if (!p.block_table) return rows + b * strides.batch + ((p.cu_k ? p.cu_k[b] : 0) + j) * strides.row;
  index_t page = p.block_table[b * p.max_pages + j / p.page_size];
  return rows + page * strides.batch + j % p.page_size * strides.row;
}

// f(first, end) for stretches of [low, high) whose rows are a constant stride apart.
template <class F>
SEQKERN_INLINE void stretches(const AttentionForward& p, index_t low, index_t high, F f) {
  if (!p.block_table) return f(low, high);
  for (index_t end; low < high; low = end) {
    end = (low / p.page_size + 1) * p.page_size;
    if (end > high) end = high;
    f(low, end);
  }
}

}  // namespace seqkern::SEQKERN_ISA
