// Products of attention: blocks of rows that lie in a buffer of constant row length against packed panels, and the
// packing of a head's keys and values.
#pragma once
#include "attention_score.h"
#include "cpu/thread_pool.h"
#include "products.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr int kKeyBlock = 128;                                             // keys that are worked on together
inline constexpr int kQueryBlock = kMaxTileRows * (kVecRegisters == 32 ? 4 : 8);  // rows of queries

// c[MR, NV registers] (+)= a[MR, depth] b[depth, those of a panel], element (m, k) of a at a[m * M + k * K].
template <int MR, int M, int K, int NV, class A>
SEQKERN_INLINE void block_tile(const A* a, const A* b, index_t depth, A* c, index_t ldc, bool add) {
  constexpr int L = kLanes<A>;
  Vec<A> acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[m][v] = add ? load(c + m * ldc + v * L) : Vec<A>{};
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
template <int M, int K, int NV = kPanelVecs, int MR = kMaxTileRows, class A>
SEQKERN_INLINE void block_product(int rows, const A* a, const A* b, index_t depth, A* c, index_t ldc, bool add = true) {
  if (rows == MR) block_tile<MR, M, K, NV>(a, b, depth, c, ldc, add);
  else if constexpr (MR > 1) block_product<M, K, NV, MR - 1>(rows, a, b, depth, c, ldc, add);
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

// Rows of queries are kept in parts of kQueryPart values a constant distance apart, no power of two: rows would share
// few sets of L1.
inline constexpr index_t kQueryPart = 256, kQueryStride = kQueryPart + 16;
inline index_t query_size(index_t width) { return ceil_div(width, kQueryPart) * kQueryBlock * kQueryStride; }

template <class T, class A = acc_t<T>>
void copy_query(const T* from, index_t width, A* row) {
  constexpr int L = kLanes<A>;
  for (index_t d = 0; d < width; d += L) {
    A* to = row + d / kQueryPart * (kQueryBlock * kQueryStride) + d % kQueryPart;
    store(to, load_n(from + d, int(std::min<index_t>(L, width - d))));
  }
}

// c = q k' of rows of queries and a panel of keys, of which the first `seen` are needed.
template <class A>
__attribute__((noinline)) void query_product(int rows, const A* query, const A* keys, index_t width, index_t seen, A* c,
                                             index_t ldc) {
  constexpr int M = int(kQueryStride);
  for (index_t d = 0; d < width; d += kQueryPart) {
    const A* q = query + d / kQueryPart * (kQueryBlock * kQueryStride);
    index_t depth = std::min(kQueryPart, width - d);
    if (seen <= kLanes<A>) block_product<M, 1, 1>(rows, q, keys + d * kPanel<A>, depth, c, ldc, d > 0);
    else block_product<M, 1>(rows, q, keys + d * kPanel<A>, depth, c, ldc, d > 0);
  }
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
