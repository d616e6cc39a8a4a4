// Batch norm over [batch, channels, inner], per channel, statistics over batch and inner (n elements).
//
//   h = (x - mean) rstd,  rstd = 1 / sqrt(var + eps),  y = h w + b
//   training: mean and the biased var of the batch; running = (1 - momentum) running + momentum (mean, var n / (n - 1))
//   otherwise: mean and var are the running ones
//   backward: g = dy w,  dx = rstd (g - mean(g) - h mean(g h)) in training, else rstd g;  dw = sum(dy h), db = sum(dy)
//
// x, y and their gradients are of `dtype`, everything else [channels] and of the accumulator type. Null weight and
// bias stand for 1 and 0, null running statistics are not updated, null outputs are unwanted.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct BatchNormForward {
  DType dtype = DType::f32;
  index_t batch = 0, channels = 0, inner = 1;
  bool training = false;
  double momentum = 0, eps = 0;
  const void *x = nullptr, *weight = nullptr, *bias = nullptr;
  void *running_mean = nullptr, *running_var = nullptr;
  void *y = nullptr, *mean = nullptr, *rstd = nullptr;
};

struct BatchNormBackward {
  DType dtype = DType::f32;
  index_t batch = 0, channels = 0, inner = 1;
  bool training = false;
  const void *x = nullptr, *weight = nullptr, *mean = nullptr, *rstd = nullptr, *dy = nullptr;
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
};

namespace cpu {
void batch_norm_forward(const BatchNormForward&);
void batch_norm_backward(const BatchNormBackward&);
}  // namespace cpu

}  // namespace seqkern
