// Keys and values in pages: decoding reads them where they lie, everything else packs them first.
#pragma once
#include "attention_tile.cuh"
#include "cuda/rows.cuh"

namespace seqkern::cuda {

// Rows of k or v as KeyRows gives them, each from the page that the table names. There are fewer than 2^31.
template <class T>
struct PageRows {
  const T* base;
  const index_t* table;  // of the sequence
  const AttentionStrides& strides;
  unsigned size, first;
  int count;

  SEQKERN_INLINE PageRows(const void* data, const AttentionStrides& s, const AttentionForward& p, index_t b,
                          index_t head, index_t first_)
      : base(static_cast<const T*>(data) + head * s.head),
        table(p.block_table + b * p.max_pages),
        strides(s),
        size(unsigned(p.page_size)),
        first(unsigned(first_)),
        count(int(p.keys(b) - first_)) {}
  SEQKERN_INLINE const T* operator()(int r) const { return r < count ? at(r, true, strides) : nullptr; }
  SEQKERN_INLINE const T* at(int r, bool there, const AttentionStrides& s) const {
    if (!there) return base;
    unsigned j = first + unsigned(r);
    return base + table[j / size] * s.batch + index_t(j % size) * s.row;
  }
  SEQKERN_INLINE void skip(int rows, const AttentionStrides&) { first += unsigned(rows); }
};

// to [batch, kv_heads, key_len, width]: rows of k or v side by side, as far as their sequences go.
template <class T>
__global__ void pack_pages_kernel(const __grid_constant__ AttentionForward p, const void* pages,
                                  AttentionStrides strides, index_t width, T* to) {
  for_rows(p.batch * p.kv_heads * p.key_len, [&](index_t i) {
    index_t pair = i / p.key_len, key = i % p.key_len;
    const T* row = PageRows<T>(pages, strides, p, pair / p.kv_heads, pair % p.kv_heads, key)(0);
    for (index_t c = threadIdx.x; row && c < width; c += blockDim.x) to[i * width + c] = row[c];
  });
}

inline index_t packed_bytes(const AttentionForward& p, index_t width) {
  constexpr index_t kAligned = 256;
  index_t item = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  return round_up(p.batch * p.kv_heads * p.key_len * width * item, kAligned);
}
inline std::size_t packed_bytes(const AttentionForward& p) {
  return p.block_table ? std::size_t(packed_bytes(p, p.head_dim) + packed_bytes(p, p.value_dim)) : 0;
}

// The call over what `pack` leaves in `memory`.
inline AttentionForward side_by_side(AttentionForward p, void* memory) {
  if (!p.block_table) return p;
  auto strides = [&](index_t width) {
    return AttentionStrides{p.kv_heads * p.key_len * width, p.key_len * width, width};
  };
  p.k = memory, p.v = reinterpret_cast<void*>(std::uintptr_t(memory) + std::uintptr_t(packed_bytes(p, p.head_dim)));
  p.k_strides = strides(p.head_dim), p.v_strides = strides(p.value_dim);
  p.block_table = nullptr;
  return p;
}
template <class T>
void pack(const AttentionForward& p, const AttentionForward& to, cudaStream_t stream) {
  auto run = [&](const void* pages, const AttentionStrides& strides, index_t width, const void* memory) {
    launch_rows(p.batch * p.kv_heads * p.key_len, width, stream, pack_pages_kernel<T>, p, pages, strides, width,
                static_cast<T*>(const_cast<void*>(memory)));
  };
  run(p.k, p.k_strides, p.head_dim, to.k);
  run(p.v, p.v_strides, p.value_dim, to.v);
}

}  // namespace seqkern::cuda
