// Layer norm and RMS norm on the GPU: several passes over a row that is in registers, or in L1, by then.
//
// As on the CPU, the mean of the first pass is a rounded one; the second finds what it lacks, c = mean(s - mean), so
// that the row is (s - mean - c) rstd without cancellation. Backward finds c again and hands it to the gradients of
// the parameters, which are sums over columns in kernels of their own.
#include "seqkern/layer_norm.h"

#include "cuda/rows.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

template <bool kCentred, class T, class P>
__global__ void __launch_bounds__(kMostThreads<P>, P::kWhole ? 8 : 1) norm_forward_kernel(NormForward p) {
  using A = acc_t<T>;
  constexpr bool kCorrected = kCentred && sizeof(T) > 2;  // what the mean lacks is far below 16 bits
  Given<A> weight{static_cast<const A*>(p.weight), 1}, bias{static_cast<const A*>(p.bias), 0};
  for_rows(p.rows, [&](index_t r) {
    index_t C = p.columns;
    KeptRow<T, P> s(static_cast<const T*>(p.x) + r * C, C);
    if (p.residual)  // past what is kept every thread reads back only what it wrote
      s.add(static_cast<const T*>(p.residual) + r * C, static_cast<T*>(p.summed) + r * C, C);
    A mean = 0, shift = 0, squares = 0;
    if (kCentred) {
      for_columns<P>(C, [&](index_t, A v) { mean += v; }, s);
      mean = reduce_row(Sum{}, mean) / A(C);
    }
    for_columns<P>(
        C,
        [&](index_t, A v) {
          A d = v - mean;
          if (kCorrected) shift += d;
          squares += d * d;
        },
        s);
    if (kCorrected) shift = reduce_row(Sum{}, shift) / A(C);
    A variance = reduce_row(Sum{}, squares) / A(C) - shift * shift;
    A rstd = 1 / sqrt(variance + A(p.eps));
    if (threadIdx.x == 0) {
      static_cast<A*>(p.rstd)[r] = rstd;
      if (kCentred) static_cast<A*>(p.mean)[r] = mean + shift;
    }
    map_columns<P>(
        C, static_cast<T*>(p.y) + r * C,
        [&](index_t, A v, A w, A b) {
          A h = ((v - mean) - shift) * (rstd * w);
          return kCentred ? h + b : h;
        },
        s, weight, bias);
  });
}

template <bool kCentred, class T, class P>
__global__ void norm_backward_kernel(NormBackward p, acc_t<T>* shifts) {
  using A = acc_t<T>;
  Given<A> weight{static_cast<const A*>(p.weight), 1};
  for_rows(p.rows, [&](index_t r) {
    index_t C = p.columns;
    KeptRow<T, P> s(static_cast<const T*>(p.summed) + r * C, C), dy(static_cast<const T*>(p.dy) + r * C, C);
    Given<T> dsummed{p.dsummed ? static_cast<const T*>(p.dsummed) + r * C : nullptr, 0};
    A mean = kCentred ? static_cast<const A*>(p.mean)[r] : A(0), rstd = static_cast<const A*>(p.rstd)[r];
    A shift = 0, mean_g = 0, along = 0;
    for_columns<P>(
        C,
        [&](index_t, A v, A dv, A w) {
          A d = v - mean, g = dv * w;
          if (kCentred) shift += d, mean_g += g;
          along += g * d;
        },
        s, dy, weight);
    if (kCentred) {
      shift = reduce_row(Sum{}, shift) / A(C);
      mean_g = reduce_row(Sum{}, mean_g) / A(C);
    }
    along = (reduce_row(Sum{}, along) / A(C) - shift * mean_g) * rstd;
    if (threadIdx.x == 0) shifts[r] = shift;
    map_columns<P>(
        C, static_cast<T*>(p.dx) + r * C,
        [&](index_t, A v, A dv, A w, A more) {
          A h = ((v - mean) - shift) * rstd;
          return rstd * (dv * w - mean_g - h * along) + more;
        },
        s, dy, weight, dsummed);
  });
}

// The gradients of the weight and of the bias: a block sums up one of kSlices parts of the rows, of 32 kWidth columns;
// to [kSlices, 2, columns].
inline constexpr int kSlices = 32, kSumWarps = 8;

template <bool kCentred, class T, int kWidth>
__global__ void __launch_bounds__(32 * kSumWarps)
    parameter_sums_kernel(NormBackward p, const acc_t<T>* shifts, acc_t<T>* to) {
  using A = acc_t<T>;
  struct alignas(sizeof(A) * kWidth < 16 ? sizeof(A) * kWidth : 16) Sums {
    A v[kWidth];
  };
  SEQKERN_SHARED(Sums, parts, 2 * kSumWarps * 32);
  index_t C = p.columns, slice = blockIdx.y, end = p.rows * (slice + 1) / kSlices;
  unsigned j = (blockIdx.x * 32 + threadIdx.x) * kWidth;
  Sums weight{}, bias{};
  if (j < unsigned(C)) {
#if !SEQKERN_HOSTCUDA
#pragma unroll 4
#endif
    for (index_t r = p.rows * slice / kSlices + threadIdx.y; r < end; r += kSumWarps) {
      auto s = values_at<kWidth, -1>(static_cast<const T*>(p.summed) + r * C, j);
      auto dy = values_at<kWidth, -1>(static_cast<const T*>(p.dy) + r * C, j);
      A mean = kCentred ? static_cast<const A*>(p.mean)[r] : A(0), shift = kCentred ? shifts[r] : A(0);
      A rstd = static_cast<const A*>(p.rstd)[r];
      SEQKERN_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        weight.v[k] += dy.v[k] * (((s.v[k] - mean) - shift) * rstd);
        if (kCentred) bias.v[k] += dy.v[k];
      }
    }
  }
  Sums* mine = parts + threadIdx.y * 32 + threadIdx.x;
  mine[0] = weight, mine[kSumWarps * 32] = bias;
  sync_block();
  if (threadIdx.y > (kCentred ? 1 : 0) || j >= unsigned(C)) return;
  Sums sum = parts[threadIdx.y * kSumWarps * 32 + threadIdx.x];
  for (int w = 1; w < kSumWarps; ++w) {
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth; ++k) sum.v[k] += parts[(threadIdx.y * kSumWarps + w) * 32 + threadIdx.x].v[k];
  }
  SEQKERN_UNROLL
  for (int k = 0; k < kWidth; ++k) to[(slice * 2 + threadIdx.y) * C + j + k] = sum.v[k];
}
// Their sums over the slices; which is 0 for the weight.
template <class A>
__global__ void slices_kernel(index_t columns, const A* from, A* dweight, A* dbias) {
  index_t j = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
  A* to = blockIdx.y ? dbias : dweight;
  if (j >= columns || !to) return;
  A sum = 0;
  SEQKERN_UNROLL
  for (int i = 0; i < kSlices; ++i) sum += from[(i * 2 + blockIdx.y) * columns + j];
  to[j] = sum;
}

template <bool kCentred>
void forward(const NormForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_rows_of<T>(p.columns, {p.x, p.residual, p.summed, p.y, p.weight, p.bias}, [&]<class P>(dim3 threads, P) {
      launch_rows(p.rows, threads, stream, norm_forward_kernel<kCentred, T, P>, p);
    });
  });
}

template <bool kCentred>
void backward(const NormBackward& p, void* workspace, void* stream_) {
  auto stream = static_cast<cudaStream_t>(stream_);
  for_type(p.dtype, [&]<class T>() {
    using A = acc_t<T>;
    auto sums = static_cast<A*>(workspace), shifts = sums + kSlices * 2 * p.columns;
    for_rows_of<T>(p.columns, {p.summed, p.dy, p.dsummed, p.dx, p.weight}, [&]<class P>(dim3 threads, P) {
      constexpr int kWidth = P::kWidth;
      launch_rows(p.rows, threads, stream_, norm_backward_kernel<kCentred, T, P>, p, shifts);
      if (!(p.dweight || p.dbias)) return;
      Launch l{dim3(unsigned(ceil_div(p.columns, 32 * kWidth)), kSlices), dim3(32, kSumWarps)};
      l.stream = stream;
      launch(l, parameter_sums_kernel<kCentred, T, kWidth>, p, shifts, sums);
      Launch last{dim3(unsigned(ceil_div(p.columns, 128)), kCentred ? 2 : 1), dim3(128)};
      last.stream = stream;
      launch(last, slices_kernel<A>, p.columns, sums, static_cast<A*>(p.dweight), static_cast<A*>(p.dbias));
    });
  });
}

}  // namespace

std::size_t norm_backward_workspace(const NormBackward& p) {
  return std::size_t(p.rows + kSlices * 2 * p.columns) * sizeof(double);
}
void layer_norm_forward(const NormForward& p, void* stream) { forward<true>(p, stream); }
void layer_norm_backward(const NormBackward& p, void* workspace, void* stream) { backward<true>(p, workspace, stream); }
void rms_norm_forward(const NormForward& p, void* stream) { forward<false>(p, stream); }
void rms_norm_backward(const NormBackward& p, void* workspace, void* stream) { backward<false>(p, workspace, stream); }

}  // namespace seqkern::cuda
