// Layer norm and RMS norm on the GPU: several passes over a row that is in registers, or in L1, by then.
//
// As on the CPU, the mean of the first pass is a rounded one; the second finds what it lacks, c = mean(s - mean), so
// that the row is (s - mean - c) rstd without cancellation. Backward finds c again and hands it to the gradients of
// the parameters, which are sums over columns in a kernel of their own.
#include "seqkern/layer_norm.h"

#include "cuda/gemm.cuh"
#include "cuda/rows.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

template <bool kCentred, class T, int kWidth>
__global__ void norm_forward_kernel(NormForward p) {
  using A = acc_t<T>;
  constexpr bool kCorrected = kCentred && sizeof(T) > 2;  // what the mean lacks is far below 16 bits
  Given<A> weight{static_cast<const A*>(p.weight), 1}, bias{static_cast<const A*>(p.bias), 0};
  for_rows(p.rows, [&](index_t r) {
    index_t C = p.columns;
    auto row = static_cast<const T*>(p.x) + r * C;
    if (p.residual) {  // every thread reads back only what it wrote
      auto summed = static_cast<T*>(p.summed) + r * C;
      map_columns<kWidth>(
          C, summed, [](index_t, A x, A y) { return x + y; }, row, static_cast<const T*>(p.residual) + r * C);
      row = summed;
    }
    KeptRow<T, kWidth> s(row, C);
    A mean = 0, shift = 0, squares = 0;
    if (kCentred) {
      for_columns<kWidth>(C, [&](index_t, A v) { mean += v; }, s);
      mean = reduce_row(Sum{}, mean) / A(C);
    }
    for_columns<kWidth>(
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
    map_columns<kWidth>(
        C, static_cast<T*>(p.y) + r * C,
        [&](index_t, A v, A w, A b) {
          A h = ((v - mean) - shift) * (rstd * w);
          return kCentred ? h + b : h;
        },
        s, weight, bias);
  });
}

template <bool kCentred, class T, int kWidth>
__global__ void norm_backward_kernel(NormBackward p, acc_t<T>* shifts) {
  using A = acc_t<T>;
  Given<A> weight{static_cast<const A*>(p.weight), 1};
  for_rows(p.rows, [&](index_t r) {
    index_t C = p.columns;
    KeptRow<T, kWidth> s(static_cast<const T*>(p.summed) + r * C, C), dy(static_cast<const T*>(p.dy) + r * C, C);
    Given<T> dsummed{p.dsummed ? static_cast<const T*>(p.dsummed) + r * C : nullptr, 0};
    A mean = kCentred ? static_cast<const A*>(p.mean)[r] : A(0), rstd = static_cast<const A*>(p.rstd)[r];
    A shift = 0, mean_g = 0, along = 0;
    for_columns<kWidth>(
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
    map_columns<kWidth>(
        C, static_cast<T*>(p.dx) + r * C,
        [&](index_t, A v, A dv, A w, A more) {
          A h = ((v - mean) - shift) * rstd;
          return rstd * (dv * w - mean_g - h * along) + more;
        },
        s, dy, weight, dsummed);
  });
}

// What the gradient of the weight, or of the bias, sums up.
template <bool kCentred, class T>
struct ParameterTerm {
  using A = acc_t<T>;
  NormBackward p;
  const A* shifts;  // null: the bias
  SEQKERN_INLINE A operator()(index_t r, index_t j) const {
    A d = load(static_cast<const T*>(p.dy) + r * p.columns + j);
    if (!shifts) return d;
    A s = load(static_cast<const T*>(p.summed) + r * p.columns + j);
    if (kCentred) s = (s - static_cast<const A*>(p.mean)[r]) - shifts[r];
    return d * (s * static_cast<const A*>(p.rstd)[r]);
  }
};

template <bool kCentred>
void forward(const NormForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_width<T>(p.columns, {p.x, p.residual, p.summed, p.y, p.weight, p.bias}, [&]<int kWidth>() {
      launch_rows(p.rows, p.columns, stream, norm_forward_kernel<kCentred, T, kWidth>, p);
    });
  });
}

template <bool kCentred>
void backward(const NormBackward& p, void* workspace, void* stream_) {
  auto stream = static_cast<cudaStream_t>(stream_);
  for_type(p.dtype, [&]<class T>() {
    using A = acc_t<T>;
    auto shifts = static_cast<A*>(workspace);
    for_width<T>(p.columns, {p.summed, p.dy, p.dsummed, p.dx, p.weight}, [&]<int kWidth>() {
      launch_rows(p.rows, p.columns, stream_, norm_backward_kernel<kCentred, T, kWidth>, p, shifts);
    });
    column_sums(p.rows, p.columns, ParameterTerm<kCentred, T>{p, shifts}, static_cast<A*>(p.dweight), stream);
    if (kCentred)
      column_sums(p.rows, p.columns, ParameterTerm<kCentred, T>{p, nullptr}, static_cast<A*>(p.dbias), stream);
  });
}

}  // namespace

std::size_t norm_backward_workspace(const NormBackward& p) { return std::size_t(p.rows) * sizeof(double); }
void layer_norm_forward(const NormForward& p, void* stream) { forward<true>(p, stream); }
void layer_norm_backward(const NormBackward& p, void* workspace, void* stream) { backward<true>(p, workspace, stream); }
void rms_norm_forward(const NormForward& p, void* stream) { forward<false>(p, stream); }
void rms_norm_backward(const NormBackward& p, void* workspace, void* stream) { backward<false>(p, workspace, stream); }

}  // namespace seqkern::cuda
