// Linear layer on the CPU. Few rows read the weights in place and are bound by that; more rows pack them.
#include "seqkern/linear.h"

#include "dot.h"
#include "gemm.h"
#include "layer.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T, class W>
void forward(const LinearForward& p) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  index_t M = p.rows, I = p.in_features, O = p.out_features;
  auto x = static_cast<const T*>(p.x);
  auto weight = static_cast<const W*>(p.weight);
  auto bias = static_cast<const A*>(p.bias);
  auto y = static_cast<T*>(p.y);
  Job job;
  if (packs(M)) return Gemm<T, W, T>(M, O, I, {x, I, 1}, {weight, 1, I}, y, O, bias).in(p.precision).run(job);
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(ceil_div(O, L), rank, threads);
    for (index_t b = own.begin; b < own.end; ++b) {
      index_t u = b * L;
      int n = int(std::min<index_t>(L, O - u));
      A sums[kPackRows * L];
      dot_product(M, x, I, weight + u * I, I, n, I, sums, L);
      for (index_t m = 0; m < M; ++m) store_n(y + m * O + u, load_n(sums + m * L, n) + load_or_zero(bias, u, n), n);
    }
  };
  job.run(threads_for(double(M * O) * double(I), kThreadGrain), body);
}

template <class T, class W>
void backward(const LinearBackward& p) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  index_t M = p.rows, I = p.in_features, O = p.out_features;
  auto x = static_cast<const T*>(p.x);
  auto weight = static_cast<const W*>(p.weight);
  auto dy = static_cast<const T*>(p.dy);
  Job job;
  if (p.dx && packs(M))
    Gemm<T, W, T>(M, I, O, {dy, O, 1}, {weight, I, 1}, static_cast<T*>(p.dx), I).in(p.precision).run(job);
  if (p.dx && !packs(M)) {
    A* columns = job.take<A>(O * M);
    for (index_t m = 0; m < M; ++m)
      for (index_t o = 0; o < O; ++o) columns[o * M + m] = from_storage(dy[m * O + o]);
    A* sums = job.take<A>(M * I);
    auto body = [&](int rank, int threads, Barrier&) {
      Range own = share(ceil_div(I, L), rank, threads);
      index_t begin = own.begin * L, end = std::min(own.end * L, I);
      row_product(M, columns, weight + begin, I, O, end - begin, sums + begin, I);
      for (index_t m = 0; m < M; ++m)
        for (index_t i = begin; i < end; ++i) static_cast<T*>(p.dx)[m * I + i] = to_storage<T>(sums[m * I + i]);
    };
    job.run(threads_for(double(M * O) * double(I), kThreadGrain), body);
  }
  if (p.dweight) Gemm<T, T, A>(O, I, M, {dy, 1, O}, {x, I, 1}, static_cast<A*>(p.dweight), I).in(p.precision).run(job);
  if (p.dbias) {
    auto dbias = static_cast<A*>(p.dbias);
    auto body = [&](int rank, int threads, Barrier&) {
      Range own = share(ceil_div(O, L), rank, threads);
      for (index_t u = own.begin * L; u < std::min(own.end * L, O); u += L) {
        int n = int(std::min<index_t>(L, O - u));
        Vec<A> sum{};
        for (index_t m = 0; m < M; ++m) sum = sum + load_n(dy + m * O + u, n);
        store_n(dbias + u, sum, n);
      }
    };
    job.run(threads_for(double(M * O), kThreadGrain), body);
  }
}

}  // namespace

void linear_forward(const LinearForward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { forward<T, W>(p); });
}
void linear_backward(const LinearBackward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { backward<T, W>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
