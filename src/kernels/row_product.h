// Few rows times a matrix stored [depth, columns], read where it lies:
//
//   out[m][j] = sum_k a[k][m] w[k][j]        a packed k-major, at most 3 rows
//
// This is the step of back-propagation at batch 1. A few rows of w at a time are read from end to end, each one
// stream, while the sums stay in L1; walking down columns instead would meet a new page with every row. The sum
// over k runs in order.
#pragma once
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {

template <int MR, int KB, class W, class A = acc_t<W>>
SEQKERN_INLINE void row_sweep(const A* a, const W* w, index_t ldw, index_t columns, A* out, index_t ldo, bool add) {
  constexpr int L = kLanes<A>;
  Vec<A> av[KB][MR];
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) av[k][m] = splat(a[k * MR + m]);
  auto column = [&](index_t j, auto read, auto read_sum, auto write) {
    Vec<A> sum[MR];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) sum[m] = add ? read_sum(out + m * ldo + j) : Vec<A>{};
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) {
      Vec<A> wv = read(w + k * ldw + j);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) sum[m] = av[k][m] * wv + sum[m];
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) write(out + m * ldo + j, sum[m]);
  };
  index_t j = 0;
  for (; j + L <= columns; j += L)
    column(
        j, [](const W* p) { return load(p); }, [](const A* p) { return load(p); }, [](A* p, Vec<A> v) { store(p, v); });
  if (int tail = int(columns - j))
    column(
        j, [tail](const W* p) { return load_n(p, tail); }, [tail](const A* p) { return load_n(p, tail); },
        [tail](A* p, Vec<A> v) { store_n(p, v, tail); });
}

template <int MR, class W, class A = acc_t<W>>
void row_product(const A* a, const W* w, index_t ldw, index_t depth, index_t columns, A* out, index_t ldo) {
  constexpr int KB = MR == 1 ? 8 : MR == 2 ? 4 : 2;  // KB * MR splats fit the registers
  index_t k = 0;
  for (; k + KB <= depth; k += KB) row_sweep<MR, KB>(a + k * MR, w + k * ldw, ldw, columns, out, ldo, k > 0);
  for (; k < depth; ++k) row_sweep<MR, 1>(a + k * MR, w + k * ldw, ldw, columns, out, ldo, k > 0);
}

inline constexpr index_t kRowProductRows = 3;

template <class W, class A = acc_t<W>>
void row_product(index_t rows, const A* a, const W* w, index_t ldw, index_t depth, index_t columns, A* out,
                 index_t ldo) {
  if (rows == 1) row_product<1>(a, w, ldw, depth, columns, out, ldo);
  if (rows == 2) row_product<2>(a, w, ldw, depth, columns, out, ldo);
  if (rows == 3) row_product<3>(a, w, ldw, depth, columns, out, ldo);
}

}  // namespace seqkern::SEQKERN_ISA
