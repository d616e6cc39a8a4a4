// Layer norm and RMS norm over the rows of [rows, columns], with an optional residual added first.
//
//   s = x + residual                                        (rounded to dtype, as it is stored; s = x without one)
//   layer norm  h = (s - mean) rstd,  rstd = 1 / sqrt(var + eps), var biased;   y = h w + b
//   RMS norm    h = s rstd,           rstd = 1 / sqrt(mean(s^2) + eps);         y = h w
//   backward    g = dy w,  ds = rstd (g - mean(g) - h mean(g h)) + dsummed      (no mean(g) for RMS norm)
//               dw = sum(dy h), db = sum(dy) over the rows; written, not added
//
// ds is the gradient of x and of the residual alike. weight, bias (null: 1 and 0), mean, rstd [rows] and the
// gradients of parameters are of the accumulator type, everything else of `dtype`.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct NormForward {
  DType dtype = DType::f32;
  index_t rows = 0, columns = 0;
  double eps = 0;
  const void *x = nullptr, *residual = nullptr, *weight = nullptr, *bias = nullptr;
  void *y = nullptr, *summed = nullptr;   // summed: with a residual only
  void *mean = nullptr, *rstd = nullptr;  // mean: layer norm only
};

struct NormBackward {
  DType dtype = DType::f32;
  index_t rows = 0, columns = 0;
  const void *summed = nullptr, *weight = nullptr, *mean = nullptr, *rstd = nullptr;
  const void *dy = nullptr, *dsummed = nullptr;  // dsummed: may be null
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
};

namespace cpu {
void layer_norm_forward(const NormForward&);
void layer_norm_backward(const NormBackward&);
void rms_norm_forward(const NormForward&);
void rms_norm_backward(const NormBackward&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's. The workspace, of at least the bytes
// its function names, holds nothing before or after.
namespace cuda {
std::size_t norm_backward_workspace(const NormBackward&);
void layer_norm_forward(const NormForward&, void* stream);
void layer_norm_backward(const NormBackward&, void* workspace, void* stream);
void rms_norm_forward(const NormForward&, void* stream);
void rms_norm_backward(const NormBackward&, void* workspace, void* stream);
}  // namespace cuda

}  // namespace seqkern
