// C = A B of few rows, or of few products to a sum, B as it lies, [depth, columns]: packing would take longer than
// multiplying. What a recurrent or linear layer's gradients are at batch 1 and one step. The sums run over k in order,
// as in Gemm, with the same bits.
#pragma once
#include "passes.h"
#include "row_product.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr double kSmallGrain = 1.0e5;  // multiply-adds of a thread

// Both of these: whether it has been done this way.
template <class SA, class SB, class SC>
bool few_rows(const Gemm<SA, SB, SC>& g, Job& job) {
  using A = acc_t<SC>;
  if constexpr (!std::is_same_v<SB, std::int8_t>) {
    if (g.rows > kRowProductRows || g.a.column_stride != 1 || g.b.column_stride != 1 || g.accumulate ||
        g.epilogue.any() || g.depth == 0)
      return false;
    A* left = job.take<A>(g.depth * g.rows);
    A* sums = job.take<A>(g.rows * g.columns);
    for (index_t k = 0; k < g.depth; ++k)
      for (index_t m = 0; m < g.rows; ++m) left[k * g.rows + m] = from_storage(g.a.data[m * g.a.row_stride + k]);
    auto body = [&](int rank, int threads, Barrier&) {
      Range own = share(ceil_div(g.columns, kLanes<A>), rank, threads);
      index_t begin = own.begin * kLanes<A>, end = std::min(own.end * kLanes<A>, g.columns);
      row_product(g.rows, left, g.b.data + begin, g.b.row_stride, g.depth, end - begin, sums + begin, g.columns);
      for (index_t m = 0; m < g.rows; ++m)
        for (index_t j = begin; j < end; ++j) g.c[m * g.ldc + j] = to_storage<SC>(sums[m * g.columns + j]);
    };
    job.run(threads_for(double(g.rows * g.columns) * double(g.depth), kSmallGrain), body);
    return true;
  }
  return false;
}

// Some rows of C, of a sum of kDepth products.
template <int kDepth, class SA, class SB, class SC>
SEQKERN_INLINE void shallow_rows(const Gemm<SA, SB, SC>& g, Range own) {
  using A = acc_t<SC>;
  const SB* right[kDepth + 1];
  for (int k = 0; k < kDepth; ++k) right[k] = g.b.data + k * g.b.row_stride;
  for (index_t i = own.begin; i < own.end; ++i) {
    A* out = g.c + i * g.ldc;
    Vec<A> left[kDepth + 1];
    for (int k = 0; k < kDepth; ++k)
      left[k] = splat(A(from_storage(g.a.data[i * g.a.row_stride + k * g.a.column_stride])));
    auto row = [&](auto start) __attribute__((always_inline)) {
      for_columns<A>(g.columns, [&](index_t j, auto n) __attribute__((always_inline)) {
        Vec<A> sum = start(out + j, n);
#pragma GCC unroll 4
        for (int k = 0; k < kDepth; ++k) sum = left[k] * load_n(right[k] + j, n) + sum;
        store_n(out + j, sum, n);
      });
    };
    if (g.accumulate) row([](const A* p, auto n) { return load_n(p, n); });
    else row([](const A*, auto) { return Vec<A>{}; });
  }
}

template <class SA, class SB, class SC>
bool shallow(const Gemm<SA, SB, SC>& g, Job& job) {
  if constexpr (std::is_same_v<SC, acc_t<SC>>) {
    if (g.depth > 3 || g.b.column_stride != 1 || g.epilogue.any()) return false;
    auto body = [&](int rank, int threads, Barrier&) {
      Range own = share(g.rows, rank, threads);
      if (g.depth == 0) shallow_rows<0>(g, own);
      if (g.depth == 1) shallow_rows<1>(g, own);
      if (g.depth == 2) shallow_rows<2>(g, own);
      if (g.depth == 3) shallow_rows<3>(g, own);
    };
    job.run(threads_for(double(g.rows * g.columns) * double(g.depth + 1), kSmallGrain), body);
    return true;
  }
  return false;
}

}  // namespace seqkern::SEQKERN_ISA
