// The register tile every packed product is made of, and the packing it expects.
//
//   C[MR, NV vectors] (+)= A[MR, K] B[K, NV vectors]
//
// A is packed k-major, MR values side by side per k, so that every broadcast is at a constant offset; B is
// packed in panels of NV vectors per k. The sum over k runs strictly in order in one accumulator per element:
// a result does not depend on the tile height, on blocking, or on the number of threads.
#pragma once
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr int kPanelVecs = 2;
inline constexpr int kMaxTileRows = kVecRegisters == 32 ? 14 : 6;  // rows * 2 + 2 + 1 registers

template <class T>
inline constexpr int kPanel = kPanelVecs * kLanes<T>;  // columns of a packed panel

template <int MR, int NV, class A>
SEQKERN_INLINE void tile(const A* __restrict a, const A* __restrict b, index_t ldb, index_t depth, A* __restrict c,
                         index_t ldc, bool accumulate) {
  constexpr int L = kLanes<A>;
  for (int m = 0; m < MR; ++m) __builtin_prefetch(c + m * ldc, 1, 3);
  Vec<A> acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[m][v] = accumulate ? load(c + m * ldc + v * L) : Vec<A>{};
#pragma GCC unroll 8
  for (index_t k = 0; k < depth; ++k, a += MR, b += ldb) {
    Vec<A> bv[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      Vec<A> am = splat(a[m]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[m][v] = am * bv[v] + acc[m][v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(c + m * ldc + v * L, acc[m][v]);
}

// A block of mr <= kMaxTileRows rows against one packed panel.
template <class A>
__attribute__((noinline)) void panel_product(int mr, const A* a, const A* b, index_t depth, A* c, index_t ldc,
                                             bool accumulate) {
  switch (mr) {
#define SEQKERN_TILE(MR) \
  case MR:               \
    if constexpr (MR <= kMaxTileRows) return tile<MR, kPanelVecs>(a, b, kPanel<A>, depth, c, ldc, accumulate)
    SEQKERN_TILE(1);
    break;
    SEQKERN_TILE(2);
    break;
    SEQKERN_TILE(3);
    break;
    SEQKERN_TILE(4);
    break;
    SEQKERN_TILE(5);
    break;
    SEQKERN_TILE(6);
    break;
    SEQKERN_TILE(7);
    break;
    SEQKERN_TILE(8);
    break;
    SEQKERN_TILE(9);
    break;
    SEQKERN_TILE(10);
    break;
    SEQKERN_TILE(11);
    break;
    SEQKERN_TILE(12);
    break;
    SEQKERN_TILE(13);
    break;
    SEQKERN_TILE(14);
    break;
#undef SEQKERN_TILE
  }
}

// Rows cut into the fewest blocks of nearly equal height.
struct RowBlocks {
  index_t rows, count;
  explicit RowBlocks(index_t rows_) : rows(rows_), count(ceil_div(rows_, kMaxTileRows)) {}
  index_t begin(index_t i) const { return rows * i / count; }
  int height(index_t i) const { return int(begin(i + 1) - begin(i)); }
};

// out[k][m] = rows[m][k] for m < mr, k < depth: registers are transposed square by square.
template <class S, class A = acc_t<S>>
void pack_rows(const S* rows, index_t stride, int mr, index_t depth, A* out) {
  constexpr int L = kLanes<A>;
  for (index_t k = 0; k < depth; k += L) {
    int width = int(depth - k < L ? depth - k : L);
    for (int m0 = 0; m0 < mr; m0 += L) {
      int height = mr - m0 < L ? mr - m0 : L;
      Vec<A> square[L];
      for (int m = 0; m < L; ++m) {
        const S* row = rows + (m0 + (m < height ? m : 0)) * stride + k;
        square[m] = width == L ? load(row) : load_n(row, width);
      }
      transpose<A>(square);
      for (int j = 0; j < width; ++j)
        store_over(out + (k + j) * mr + m0, square[j], height, mr <= L && (k + j) * mr + L <= depth * mr);
    }
  }
}

// One panel of B^T for a weight stored [columns, depth]: out[k][j] = weight[j][k]; absent columns are 0.
template <class S, class A = acc_t<S>>
void pack_panel_transposed(const S* weight, index_t stride, index_t columns, index_t depth, A* out) {
  constexpr int L = kLanes<A>;
  for (index_t k = 0; k < depth; k += L) {
    int width = int(depth - k < L ? depth - k : L);
    for (int v = 0; v < kPanelVecs; ++v) {
      Vec<A> square[L];
      for (int j = 0; j < L; ++j) {
        index_t column = v * L + j;
        if (column >= columns) square[j] = Vec<A>{};
        else square[j] = width == L ? load(weight + column * stride + k) : load_n(weight + column * stride + k, width);
      }
      transpose<A>(square);
      for (int i = 0; i < width; ++i) store(out + (k + i) * kPanel<A> + v * L, square[i]);
    }
  }
}

// One panel of B stored [depth, columns]: a copy.
template <class S, class A = acc_t<S>>
void pack_panel(const S* matrix, index_t stride, index_t columns, index_t depth, A* out) {
  constexpr int L = kLanes<A>;
  for (index_t k = 0; k < depth; ++k, matrix += stride, out += kPanel<A>)
    for (int v = 0; v < kPanelVecs; ++v) {
      index_t left = columns - v * L;
      Vec<A> x = left >= L ? load(matrix + v * L) : left > 0 ? load_n(matrix + v * L, int(left)) : Vec<A>{};
      store(out + v * L, x);
    }
}

}  // namespace seqkern::SEQKERN_ISA
