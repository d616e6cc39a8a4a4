// Layer norm and RMS norm on the GPU: several passes over a row that is then in L1.
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

template <class A>
SEQKERN_INLINE A or_constant(const void* given, A value, index_t j) {
  return given ? static_cast<const A*>(given)[j] : value;
}

template <bool kCentred, class T>
__global__ void norm_forward_kernel(NormForward p) {
  using A = acc_t<T>;
  for_rows(p.rows, [&](index_t r) {
    index_t C = p.columns;
    auto s = static_cast<const T*>(p.x) + r * C;
    auto y = static_cast<T*>(p.y) + r * C;
    if (p.residual) {  // every thread reads back only what it wrote
      auto residual = static_cast<const T*>(p.residual) + r * C;
      auto summed = static_cast<T*>(p.summed) + r * C;
      for_columns(C, [&](index_t j) { store(summed + j, load(s + j) + load(residual + j)); });
      s = summed;
    }
    A mean = 0, shift = 0, squares = 0;
    if (kCentred) {
      for_columns(C, [&](index_t j) { mean += load(s + j); });
      mean = reduce_row(Sum{}, mean) / A(C);
    }
    for_columns(C, [&](index_t j) {
      A d = load(s + j) - mean;
      if (kCentred) shift += d;
      squares += d * d;
    });
    if (kCentred) shift = reduce_row(Sum{}, shift) / A(C);
    A variance = reduce_row(Sum{}, squares) / A(C) - shift * shift;
    A rstd = 1 / sqrt(variance + A(p.eps));
    if (threadIdx.x == 0) {
      static_cast<A*>(p.rstd)[r] = rstd;
      if (kCentred) static_cast<A*>(p.mean)[r] = mean + shift;
    }
    for_columns(C, [&](index_t j) {
      A h = ((load(s + j) - mean) - shift) * rstd * or_constant(p.weight, A(1), j);
      store(y + j, kCentred ? h + or_constant(p.bias, A(0), j) : h);
    });
  });
}

template <bool kCentred, class T>
__global__ void norm_backward_kernel(NormBackward p, acc_t<T>* shifts) {
  using A = acc_t<T>;
  for_rows(p.rows, [&](index_t r) {
    index_t C = p.columns;
    auto s = static_cast<const T*>(p.summed) + r * C, dy = static_cast<const T*>(p.dy) + r * C;
    A mean = kCentred ? static_cast<const A*>(p.mean)[r] : A(0), rstd = static_cast<const A*>(p.rstd)[r];
    A shift = 0, mean_g = 0, along = 0;
    for_columns(C, [&](index_t j) {
      A d = load(s + j) - mean, g = load(dy + j) * or_constant(p.weight, A(1), j);
      if (kCentred) shift += d, mean_g += g;
      along += g * d;
    });
    if (kCentred) {
      shift = reduce_row(Sum{}, shift) / A(C);
      mean_g = reduce_row(Sum{}, mean_g) / A(C);
    }
    along = (reduce_row(Sum{}, along) / A(C) - shift * mean_g) * rstd;
    if (threadIdx.x == 0) shifts[r] = shift;
    for_columns(C, [&](index_t j) {
      A h = ((load(s + j) - mean) - shift) * rstd;
      A ds = rstd * (load(dy + j) * or_constant(p.weight, A(1), j) - mean_g - h * along);
      if (p.dsummed) ds += load(static_cast<const T*>(p.dsummed) + r * C + j);
      store(static_cast<T*>(p.dx) + r * C + j, ds);
    });
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
  for_type(p.dtype, [&]<class T>() { launch_rows(p.rows, p.columns, stream, norm_forward_kernel<kCentred, T>, p); });
}

template <bool kCentred>
void backward(const NormBackward& p, void* workspace, void* stream_) {
  auto stream = static_cast<cudaStream_t>(stream_);
  for_type(p.dtype, [&]<class T>() {
    using A = acc_t<T>;
    auto shifts = static_cast<A*>(workspace);
    launch_rows(p.rows, p.columns, stream_, norm_backward_kernel<kCentred, T>, p, shifts);
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
