// Products with few rows: the weights are read once, where they lie, and nothing is packed.
//
//   out[m][u] = sum_k a[m][k] weight[u][k]        a [M, K], weight [U, K], both k-contiguous
//
// This is what a recurrent step at batch 1 is: bound by reading the weights. Lanes run along k; one register
// holds as many (row, unit) sums as it has lanes and they are reduced together by one tree, so the order of
// summation is the same for every M and every split of the units over threads.
#pragma once
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {

// MR rows times lanes / MR units. With fewer units than that the missing ones repeat the last, unstored.
template <int MR, bool Whole, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE Vec<A> dot_square(const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth) {
  constexpr int L = kLanes<A>, NU = L / MR;
  Vec<A> acc[L] = {};
  // A pointer for every fourth unit: sixteen would not fit the registers.
  constexpr int kSpan = Whole && NU % 4 == 0 ? 4 : 1;
  const W* rows[NU / kSpan];
#pragma GCC unroll 16
  for (int u = 0; u < NU; u += kSpan) rows[u / kSpan] = weight + (Whole || u < units ? u : units - 1) * ldw;
  auto step = [&](index_t k, auto read) {
    Vec<A> av[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) av[m] = read(a + m * lda + k);
#pragma GCC unroll 16
    for (int u = 0; u < NU; ++u) {
      Vec<A> w = read(rows[u / kSpan] + u % kSpan * ldw + k);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) acc[m * NU + u] = av[m] * w + acc[m * NU + u];
    }
  };
  index_t k = 0;
  for (; k + L <= depth; k += L) step(k, [](const auto* p) { return load(p); });
  if (int tail = int(depth - k)) step(k, [tail](const auto* p) { return load_n(p, tail); });
  return sum_each<A>(acc);
}

// MR rows times up to lanes units: out[m * ldo + u].
template <int MR, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE void dot_rows(const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                             index_t ldo) {
  constexpr int L = kLanes<A>, NU = L / MR;
  for (int u = 0; u < units; u += NU) {
    int here = units - u < NU ? units - u : NU;
    Vec<A> sums = here == NU ? dot_square<MR, true>(a, lda, weight + u * ldw, ldw, here, depth)
                             : dot_square<MR, false>(a, lda, weight + u * ldw, ldw, here, depth);
    if constexpr (MR == 1) {
      store_n(out, sums, here);
    } else {
      A flat[L];
      store(flat, sums);
      for (int m = 0; m < MR; ++m)
        for (int j = 0; j < here; ++j) out[m * ldo + u + j] = flat[m * NU + j];
    }
  }
}

// Any number of rows, in blocks of at most four.
template <class S, class W, class A = acc_t<W>>
void dot_product(index_t rows, const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                 index_t ldo) {
  index_t m = 0;
  if constexpr (kLanes<A> >= 4)
    for (; m + 4 <= rows; m += 4) dot_rows<4>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  if constexpr (kLanes<A> >= 4)
    if (rows - m == 3) return dot_rows<3>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  for (; m + 2 <= rows; m += 2) dot_rows<2>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  if (m < rows) dot_rows<1>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
}

}  // namespace seqkern::SEQKERN_ISA
