// Products of attention: blocks of rows that lie in a buffer of constant row length against packed panels, and the
// packing of a head's keys and values.
#pragma once
#include "attention_score.h"
#include "cpu/thread_pool.h"
#include "products.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr int kKeyBlock = 128;                                             // keys that are worked on together
inline constexpr int kQueryBlock = kMaxTileRows * (kVecRegisters == 32 ? 4 : 8);  // rows of queries

// c[MR, panel] += a[MR, depth] b[depth, panel], element (m, k) of a at a[m * M + k * K].
template <int MR, int M, int K, class A>
SEQKERN_INLINE void block_tile(const A* a, const A* b, index_t depth, A* c, index_t ldc) {
  constexpr int L = kLanes<A>, NV = kPanelVecs;
  Vec<A> acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[m][v] = load(c + m * ldc + v * L);
  for (index_t k = 0; k < depth; ++k, a += K, b += kPanel<A>) {
    Vec<A> bv[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      Vec<A> am = splat(a[m * M]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[m][v] = am * bv[v] + acc[m][v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(c + m * ldc + v * L, acc[m][v]);
}

// The same for any height up to kMaxTileRows.
template <int M, int K, class A, int MR = kMaxTileRows>
SEQKERN_INLINE void block_product(int rows, const A* a, const A* b, index_t depth, A* c, index_t ldc) {
  if (rows == MR) block_tile<MR, M, K>(a, b, depth, c, ldc);
  else if constexpr (MR > 1) block_product<M, K, A, MR - 1>(rows, a, b, depth, c, ldc);
}

// c += P b for P in rows of kKeyBlock values, and c += P' b for its transpose.
template <class A>
__attribute__((noinline)) void rows_product(int rows, const A* a, const A* b, index_t depth, A* c, index_t ldc) {
  block_product<kKeyBlock, 1>(rows, a, b, depth, c, ldc);
}
template <class A>
__attribute__((noinline)) void columns_product(int columns, const A* a, const A* b, index_t depth, A* c, index_t ldc) {
  block_product<1, kKeyBlock>(columns, a, b, depth, c, ldc);
}

// Keys (or values) as the right factor of a product over their width: panels of keys, [key panel][width][panel].
template <class T, class A = acc_t<T>>
void pack_keys(const T* from, index_t stride, index_t width, index_t keys, Range panels, A* out) {
  constexpr int P = kPanel<A>;
  for (index_t j = panels.begin; j < panels.end; ++j)
    pack_panel_transposed(from + j * P * stride, stride, std::min<index_t>(P, keys - j * P), width,
                          out + j * P * width);
}

// Rows as the right factor of a product over the rows: panels of columns, [panel][padded][panel's columns]. Rows
// [keys, padded) are 0.
template <class T, class A = acc_t<T>>
void pack_columns(const T* from, index_t stride, index_t width, index_t keys, index_t padded, Range rows, A* out) {
  constexpr int P = kPanel<A>;
  index_t end = std::min(rows.end, keys);
  for (index_t p = 0; p * P < width; ++p) {
    A* panel = out + p * padded * P;
    if (rows.begin < end)
      pack_panel(from + rows.begin * stride + p * P, stride, std::min<index_t>(P, width - p * P), end - rows.begin,
                 panel + rows.begin * P);
    for (index_t r = std::max(end, rows.begin); r < rows.end; ++r)
      for (int v = 0; v < kPanelVecs; ++v) store(panel + r * P + v * kLanes<A>, Vec<A>{});
  }
}

}  // namespace seqkern::SEQKERN_ISA
