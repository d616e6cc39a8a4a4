// Linear layer:  y [M, O] = act(z) + residual,   z = x [M, I] W' + b    with W [O, I], b [O]
//   backward:    dz = dy act'(z),   dx = dz W,   dW = dz' x,   db = column sums of dz
// x, y, z, residual and their gradients are of `dtype`, W of `weight_dtype` (equal, or f32 with bf16 weights); bias
// and weight gradients are of the accumulator type. All arrays contiguous; null = none, null output = unwanted.
//
// With int8 weights:  z [M, O] = (x [M, I] q') s + b   with q int8 [O, I] and s one scale per row of q.
#pragma once
#include "seqkern/activation.h"

namespace seqkern {

// relu, silu, gelu or gelu_tanh of z, or z itself.
struct Fused {
  bool activates = false;
  Activation function = Activation::relu;
};

struct LinearForward {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  index_t rows = 0, in_features = 0, out_features = 0;
  const void *x = nullptr, *weight = nullptr, *bias = nullptr;
  void* y = nullptr;
  Fused fused;
  const void* residual = nullptr;
  void* z = nullptr;
  Precision precision = Precision::highest;
};

struct LinearBackward {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  index_t rows = 0, in_features = 0, out_features = 0;
  const void *x = nullptr, *weight = nullptr, *dy = nullptr;
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
  Fused fused;
  const void* z = nullptr;
  Precision precision = Precision::highest;
};

struct LinearInt8 {
  DType dtype = DType::f32;  // f32 or bf16
  index_t rows = 0, in_features = 0, out_features = 0;
  const void* x = nullptr;
  const std::int8_t* q = nullptr;
  const float *scale = nullptr, *bias = nullptr;
  void* y = nullptr;
  Fused fused;
  const void* residual = nullptr;
};

namespace cpu {
void linear_forward(const LinearForward&);
void linear_backward(const LinearBackward&);
void linear_int8(const LinearInt8&);
}  // namespace cpu

}  // namespace seqkern
