// Linear layer:  y [M, O] = x [M, I] W'  + b      with W [O, I], b [O]
//   backward:    dx = dy W,   dW = dy' x,   db = column sums of dy
// x, y and their gradients are of `dtype`, W of `weight_dtype` (equal, or f32 with bf16 weights); bias and
// weight gradients are of the accumulator type. All arrays contiguous; null bias = none, null output = unwanted.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct LinearForward {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  index_t rows = 0, in_features = 0, out_features = 0;
  const void *x = nullptr, *weight = nullptr, *bias = nullptr;
  void* y = nullptr;
  Precision precision = Precision::highest;
};

struct LinearBackward {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  index_t rows = 0, in_features = 0, out_features = 0;
  const void *x = nullptr, *weight = nullptr, *dy = nullptr;
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
  Precision precision = Precision::highest;
};

namespace cpu {
void linear_forward(const LinearForward&);
void linear_backward(const LinearBackward&);
}  // namespace cpu

}  // namespace seqkern
