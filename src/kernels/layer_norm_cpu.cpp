// Layer norm and RMS norm: a row at a time, several passes over what is then in L1. Threads share the rows.
//
// The mean m of the first pass is a rounded one. Differences d = x - m are exact where x is close to m, so the
// second pass finds what m lacks, c = mean(d), and the variance mean(d^2) - c^2 without cancellation; the row is
// (d - c) rstd. Data whose mean is far larger than its deviation stays accurate, in backward as well, which finds
// its own c again.
//
// Gradients of the parameters are summed over chunks of rows, then over the chunks: how many there are does not
// depend on the threads.
#include "seqkern/layer_norm.h"

#include <cmath>

#include "passes.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

// The parameter, or a row of `value` in its place.
template <class A>
const A* or_constant(const void* given, A value, index_t columns, Job& job) {
  if (given) return static_cast<const A*>(given);
  A* row = job.take<A>(columns);
  std::fill(row, row + columns, value);
  return row;
}

template <class A>
struct Moments {
  A mean, shift, rstd;  // the row's mean is mean + shift
};

// Of the row s; `sum` its sum.
template <bool kCentred, class T, class A = acc_t<T>>
SEQKERN_INLINE Moments<A> moments(const T* s, index_t columns, A sum, double eps) {
  A mean = kCentred ? sum / A(columns) : A(0), sums[2];
  sum_columns<A>(columns, sums, [&](index_t j, auto n, Vec<A>* out) __attribute__((always_inline)) {
    Vec<A> d = load_n(s + j, n);
    if constexpr (kCentred) d = first_lanes(d - mean, n);
    out[0] = kCentred ? d : Vec<A>{};
    out[1] = d * d;
  });
  A shift = sums[0] / A(columns);
  A variance = sums[1] / A(columns) - shift * shift;
  return {mean, shift, A(1) / std::sqrt(variance + A(eps))};
}

template <bool kCentred, class T>
void forward(const NormForward& p) {
  using A = acc_t<T>;
  index_t C = p.columns;
  Job job;
  const A* weight = or_constant<A>(p.weight, 1, C, job);
  const A* bias = or_constant<A>(p.bias, 0, C, job);
  for_rows(job, p.rows, C, [&](index_t r) {
    auto s = static_cast<const T*>(p.x) + r * C;
    auto y = static_cast<T*>(p.y) + r * C;
    if (p.residual) {
      auto residual = static_cast<const T*>(p.residual) + r * C;
      auto summed = static_cast<T*>(p.summed) + r * C;
      for_columns<A>(C, [&](index_t j, auto n) { store_n(summed + j, load_n(s + j, n) + load_n(residual + j, n), n); });
      s = summed;
    }
    A sum[1] = {};
    if constexpr (kCentred)
      sum_columns<A>(C, sum,
                     [&](index_t j, auto n, Vec<A>* out) __attribute__((always_inline)) { out[0] = load_n(s + j, n); });
    auto m = moments<kCentred>(s, C, sum[0], p.eps);
    static_cast<A*>(p.rstd)[r] = m.rstd;
    if constexpr (kCentred) static_cast<A*>(p.mean)[r] = m.mean + m.shift;
    for_columns<A>(C, [&](index_t j, auto n) {
      Vec<A> h = load_n(s + j, n);
      if constexpr (kCentred) h = (h - m.mean) - m.shift;
      h = h * m.rstd * load_n(weight + j, n);
      store_n(y + j, kCentred ? h + load_n(bias + j, n) : h, n);
    });
  });
}

// One row of backward; adds to the chunk's dweight and dbias.
template <bool kCentred, class T, class A = acc_t<T>>
SEQKERN_INLINE void backward_row(const NormBackward& p, index_t r, const A* weight, A* dweight, A* dbias) {
  index_t C = p.columns;
  auto s = static_cast<const T*>(p.summed) + r * C, dy = static_cast<const T*>(p.dy) + r * C;
  auto dsummed = p.dsummed ? static_cast<const T*>(p.dsummed) + r * C : nullptr;
  auto dx = static_cast<T*>(p.dx) + r * C;
  A mean = kCentred ? static_cast<const A*>(p.mean)[r] : A(0), rstd = static_cast<const A*>(p.rstd)[r];
  A sums[3];
  sum_columns<A>(C, sums, [&](index_t j, auto n, Vec<A>* out) __attribute__((always_inline)) {
    Vec<A> d = load_n(s + j, n), g = load_n(dy + j, n) * load_n(weight + j, n);
    if constexpr (kCentred) d = first_lanes(d - mean, n);
    out[0] = kCentred ? d : Vec<A>{};
    out[1] = kCentred ? g : Vec<A>{};
    out[2] = g * d;
  });
  A shift = sums[0] / A(C), mean_g = sums[1] / A(C), along = (sums[2] - shift * sums[1]) / A(C) * rstd;
  for_columns<A>(C, [&](index_t j, auto n) {
    Vec<A> h = load_n(s + j, n), d = load_n(dy + j, n);
    if constexpr (kCentred) h = (h - mean) - shift;
    h = h * rstd;
    store_n(dweight + j, load_n(dweight + j, n) + d * h, n);
    if constexpr (kCentred) store_n(dbias + j, load_n(dbias + j, n) + d, n);
    Vec<A> ds = rstd * (d * load_n(weight + j, n) - mean_g - h * along);
    if (dsummed) ds = ds + load_n(dsummed + j, n);
    store_n(dx + j, ds, n);
  });
}

// to[j] = the sum over `count` rows of `from`.
template <class A>
void add_up(const A* from, index_t count, index_t columns, void* to) {
  if (!to) return;
  for_columns<A>(columns, [&](index_t j, auto n) {
    Vec<A> sum{};
    for (index_t i = 0; i < count; ++i) sum = sum + load_n(from + i * columns + j, n);
    store_n(static_cast<A*>(to) + j, sum, n);
  });
}

template <bool kCentred, class T>
void backward(const NormBackward& p) {
  using A = acc_t<T>;
  index_t C = p.columns;
  index_t chunk = std::max<index_t>(16, ceil_div(p.rows, 32)), chunks = ceil_div(p.rows, chunk);
  Job job;
  const A* weight = or_constant<A>(p.weight, 1, C, job);
  A* dweight = job.take<A>(chunks * C);
  A* dbias = kCentred ? job.take<A>(chunks * C) : nullptr;
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(chunks, rank, threads);
    for (index_t k = own.begin; k < own.end; ++k) {
      std::fill(dweight + k * C, dweight + (k + 1) * C, A(0));
      if (kCentred) std::fill(dbias + k * C, dbias + (k + 1) * C, A(0));
      for (index_t r = k * chunk; r < std::min((k + 1) * chunk, p.rows); ++r)
        backward_row<kCentred, T>(p, r, weight, dweight + k * C, kCentred ? dbias + k * C : nullptr);
    }
  };
  job.run(int(std::min<index_t>(threads_for(double(p.rows) * double(C), kElementGrain), std::max<index_t>(chunks, 1))),
          body);
  add_up(dweight, chunks, C, p.dweight);
  if (kCentred) add_up(dbias, chunks, C, p.dbias);
}

}  // namespace

void layer_norm_forward(const NormForward& p) {
  for_type(p.dtype, [&]<class T>() { forward<true, T>(p); });
}
void layer_norm_backward(const NormBackward& p) {
  for_type(p.dtype, [&]<class T>() { backward<true, T>(p); });
}
void rms_norm_forward(const NormForward& p) {
  for_type(p.dtype, [&]<class T>() { forward<false, T>(p); });
}
void rms_norm_backward(const NormBackward& p) {
  for_type(p.dtype, [&]<class T>() { backward<false, T>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
