// Linear layer on the CPU. Few rows read the weights in place and are bound by that; more rows pack them.
#include "seqkern/linear.h"

#include "layer.h"
#include "passes.h"

namespace seqkern::SEQKERN_ISA {
namespace {

// sums[m][u] = x[m] . q[u] for up to a register of int8 units, one after the other: their bytes are few, and a stream
// that is read from end to end comes faster than several short ones side by side.
template <int MR, class T>
void int8_units(const T* x, const std::int8_t* q, int units, index_t depth, float* sums) {
  constexpr int L = kLanes<float>, kStreams = 4;
  for (int u = 0; u < units; ++u, q += depth) {
    Vec<float> acc[MR][kStreams] = {};
    index_t k = 0;
    auto add = [&](int i, index_t at, auto read) {
      Vec<float> w = read(q + at);
#pragma GCC unroll 3
      for (int m = 0; m < MR; ++m) acc[m][i] = read(x + m * depth + at) * w + acc[m][i];
    };
    for (; k + kStreams * L <= depth; k += kStreams * L)
#pragma GCC unroll 4
      for (int i = 0; i < kStreams; ++i) add(i, k + i * L, [](const auto* p) { return load(p); });
    for (; k < depth; k += L) {
      int n = int(std::min<index_t>(L, depth - k));
      add(0, k, [n](const auto* p) { return load_n(p, n); });
    }
    for (int m = 0; m < MR; ++m) sums[m * L + u] = sum_lanes((acc[m][0] + acc[m][1]) + (acc[m][2] + acc[m][3]));
  }
}

inline constexpr index_t kFewRows = 8;  // from there on packing them pays

// y = epilogue(x W'), W stored [O, I].
template <class T, class W>
void product(index_t M, index_t I, index_t O, const T* x, const W* weight, T* y, const Epilogue<T>& epilogue,
             Precision precision = Precision::highest) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  Job job;
  if (M >= (std::is_same_v<W, std::int8_t> ? kPackRows : kFewRows))
    return Gemm<T, W, T>(M, O, I, {x, I, 1}, {weight, 1, I}, y, O).then(epilogue).in(precision).run(job);
  constexpr bool kSplit = std::is_same_v<W, bf16> && !kDotPairs<T, W>;
  index_t stride = round_up(I, kDotStep<W>);
  [[maybe_unused]] A* split_x = nullptr;
  if constexpr (kSplit) {
    split_x = job.take<A>(M * stride);
    std::fill_n(split_x, M * stride, A{});
    split_rows<W>(M, x, I, split_x, stride);
  }
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(ceil_div(O, L), rank, threads);
    for (index_t b = own.begin; b < own.end; ++b) {
      index_t u = b * L;
      int n = int(std::min<index_t>(L, O - u));
      A sums[kFewRows * L];
      if constexpr (std::is_same_v<W, std::int8_t>) {
        if (M == 1) int8_units<1>(x, weight + u * I, n, I, sums);
        if (M == 2) int8_units<2>(x, weight + u * I, n, I, sums);
        if (M == 3) int8_units<3>(x, weight + u * I, n, I, sums);
      } else if constexpr (kSplit) {
        dot_blocks<true, false>(M, split_x, stride, weight + u * I, I, n, I, sums, L);
      } else {
        dot_product(M, x, I, weight + u * I, I, n, I, sums, L);
      }
      epilogue.apply(sums, L, int(M), n, u, y, O, 0);
    }
  };
  job.run(threads_for(double(M * O) * double(I), kThreadGrain), body);
}

template <class T, class W>
void forward(const LinearForward& p) {
  using A = acc_t<T>;
  Epilogue<T> epilogue{static_cast<const A*>(p.bias), nullptr, p.fused, static_cast<const T*>(p.residual),
                       static_cast<T*>(p.z)};
  product(p.rows, p.in_features, p.out_features, static_cast<const T*>(p.x), static_cast<const W*>(p.weight),
          static_cast<T*>(p.y), epilogue, p.precision);
}

template <class T>
void int8(const LinearInt8& p) {
  Epilogue<T> epilogue{p.bias, p.scale, p.fused, static_cast<const T*>(p.residual), nullptr};
  product(p.rows, p.in_features, p.out_features, static_cast<const T*>(p.x), p.q, static_cast<T*>(p.y), epilogue);
}

// dz = dy act'(z), rounded to storage as dy is.
template <class T>
const T* through_activation(Job& job, const LinearBackward& p, const T* dy) {
  constexpr index_t kBlock = 1024;
  index_t count = p.rows * p.out_features;
  T* dz = job.take<T>(count);
  auto z = static_cast<const T*>(p.z);
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(ceil_div(count, kBlock), rank, threads);
    index_t begin = own.begin * kBlock, end = std::min(own.end * kBlock, count);
    for_fused(p.fused, [&]<class F>() {
      if constexpr (!std::is_same_v<F, Identity>)
        for_columns<acc_t<T>>(end - begin, [&](index_t i, auto n) {
          i += begin;
          store_n(dz + i, F::gradient(load_n(z + i, n), load_n(dy + i, n)), n);
        });
    });
  };
  job.run(threads_for(double(count), 1.0e4), body);
  return dz;
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
  if (p.fused.activates) dy = through_activation(job, p, dy);
  if (p.dx) Gemm<T, W, T>(M, I, O, {dy, O, 1}, {weight, I, 1}, static_cast<T*>(p.dx), I).in(p.precision).run(job);
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
void linear_int8(const LinearInt8& p) {
  if (p.dtype == DType::bf16) return int8<bf16>(p);
  if constexpr (owns(DType::f32, DType::f32)) int8<float>(p);
}
void linear_backward(const LinearBackward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { backward<T, W>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
