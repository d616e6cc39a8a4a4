// y = f(x) and dx = dy f'(x) for one scalar function, elementwise:
//
//   relu      max(x, 0)                                    f' = 1 where x > 0
//   sigmoid   s = 1 / (1 + e^-x)                           f' = s (1 - s)
//   tanh                                                   f' = 1 - y^2
//   silu      x s                                          f' = s + x s (1 - s)
//   gelu      x Phi(x), Phi the normal distribution        f' = Phi(x) + x phi(x)
//   gelu_tanh x s(2u), u = sqrt(2 / pi) (x + 0.044715 x^3) f' = s + 2 x s (1 - s) u'
//
// Both forms of gelu and silu keep their relative accuracy where x is very negative, down to the smallest normal
// number. What backward reads is x, but y for sigmoid and tanh. Arrays are contiguous.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

enum class Activation : std::uint8_t { relu, sigmoid, tanh, silu, gelu, gelu_tanh };

struct ActivationForward {
  DType dtype = DType::f32;
  Activation function = Activation::relu;
  index_t count = 0;
  const void* x = nullptr;
  void* y = nullptr;
};

struct ActivationBackward {
  DType dtype = DType::f32;
  Activation function = Activation::relu;
  index_t count = 0;
  const void *saved = nullptr, *dy = nullptr;
  void* dx = nullptr;
};

namespace cpu {
void activation_forward(const ActivationForward&);
void activation_backward(const ActivationBackward&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's.
namespace cuda {
void activation_forward(const ActivationForward&, void* stream);
void activation_backward(const ActivationBackward&, void* stream);
}  // namespace cuda

}  // namespace seqkern
