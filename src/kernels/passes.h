// How elementwise and row-wise kernels walk over arrays, alone and shared out over threads.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cpu/thread_pool.h"
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {

// f(begin, end) over every thread's part, cut at multiples of 64 elements.
template <class F>
void for_ranges(index_t count, F f) {
  Job job;
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(ceil_div(count, 64), rank, threads);
    f(own.begin * 64, std::min(own.end * 64, count));
  };
  job.run(threads_for(double(count), 5.0e4), body);
}

constexpr double kElementGrain = 1.0e4;

// f(row) over every thread's rows.
template <class F>
void for_rows(Job& job, index_t rows, index_t columns, F f) {
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(rows, rank, threads);
    for (index_t r = own.begin; r < own.end; ++r) f(r);
  };
  job.run(
      int(std::min<index_t>(threads_for(double(rows) * double(columns), kElementGrain), std::max<index_t>(rows, 1))),
      body);
}
template <class F>
void for_rows(index_t rows, index_t columns, F f) {
  Job job;
  for_rows(job, rows, columns, f);
}

// f(column, lanes) over a row: `lanes` is a constant of the compiler's but for the last columns.
template <class A, class F>
SEQKERN_INLINE void for_columns(index_t columns, F f) {
  constexpr int L = kLanes<A>;
  index_t j = 0;
  for (; j + L <= columns; j += L) f(j, std::integral_constant<int, L>());
  if (j < columns) f(j, int(columns - j));
}

// Sums over a row of each value that f(column, lanes) returns as an array of registers, missing lanes being 0.
// Four chains of additions run side by side; always the same tree.
template <class A, int Count, class F>
SEQKERN_INLINE void sum_columns(index_t columns, A (&sums)[Count], F f) {
  constexpr int L = kLanes<A>, kChains = 4;
  struct Terms {
    Vec<A> v[Count];
  };
  Terms acc[kChains] = {};
  auto add = [&](Terms& to, const Terms& terms) __attribute__((always_inline)) {
    for (int i = 0; i < Count; ++i) to.v[i] = to.v[i] + terms.v[i];
  };
  auto at = [&](index_t j, auto n) __attribute__((always_inline)) {
    Terms t;
    f(j, n, t.v);
    return t;
  };
  constexpr std::integral_constant<int, L> all{};
  index_t j = 0;
  for (; j + kChains * L <= columns; j += kChains * L)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) add(acc[c], at(j + c * L, all));
  for (; j + L <= columns; j += L) add(acc[0], at(j, all));
  if (j < columns) add(acc[1], at(j, int(columns - j)));
  add(acc[0], acc[1]), add(acc[2], acc[3]), add(acc[0], acc[2]);
  for (int i = 0; i < Count; ++i) sums[i] = sum_lanes(acc[0].v[i]);
}

// Lanes from n on are set to 0.
template <class V, class N>
SEQKERN_INLINE V first_lanes(V v, N n) {
  if constexpr (std::is_same_v<N, int>)
    for (int i = n; i < int(sizeof(V) / sizeof(v[0])); ++i) v[i] = 0;
  return v;
}

}  // namespace seqkern::SEQKERN_ISA
