// Scalar functions over whole arrays on the GPU, forward and backward: one pass, bound by memory.
#include "seqkern/activation.h"

#include "cuda/elements.cuh"
#include "cuda/types.cuh"
#include "simd/exp_parts.h"

namespace seqkern::cuda {

// With what rounding cuts off a^2 and its product with -log2(e) / 2, which would be many units of the power.
SEQKERN_INLINE Normal<float> normal(float a) {
  constexpr float kEnd = 13.2f, kScale = -0.721347520f, kScaleRest = -9.62981496e-9f;
  float b = a < kEnd ? a : kEnd, square = b * b, rest = ::fmaf(b, b, -square), exponent = square * kScale;
  rest = ::fmaf(square, kScale, -exponent) + (rest * kScale + square * kScaleRest);
  float power = exp2_flushed(exponent);
  power = a < kEnd ? power + power * (rest * 0.693147181f) : 0.0f;
  return normal_of(b, reciprocal(b + 3), power);
}
SEQKERN_INLINE Normal<double> normal(double a) {
  return {0.5 * ::erfc(a * 0.70710678118654752440), exp(a * a * -0.5) * 0.39894228040143267794};
}

template <class A>
SEQKERN_INLINE A normal_tail(A a) {
  return normal(a).tail;
}

}  // namespace seqkern::cuda

#include "activation_cell.h"

namespace seqkern::cuda {
namespace {

// To 2^-15, which is all that 16 bits show: (a + 3) Q(a) e^(a^2 / 2) as a polynomial of degree 5 in (a - 3) / (a + 3).
struct Roughly {
  static SEQKERN_INLINE float tail(float a) { return distribution(a).tail; }
  static SEQKERN_INLINE Normal<float> distribution(float a) {
    float power = exp2_flushed(a * a * -0.721347520f), b = a < 13.2f ? a : 13.2f;
    float inverse = reciprocal(b + 3), t = (b - 3) * inverse;
    float p = 4.86144982e-3f * t - 9.91849229e-3f;
    p = ((p * t - 4.63363752e-2f) * t + 0.229906395f) * t - 0.509423196f;
    return {(p * t + 0.729088843f) * (inverse * power), power * 0.398942280f};
  }
};
template <class F, class T>
using For = std::conditional_t<std::is_same_v<F, Gelu> && sizeof(T) == 2, GeluBy<Roughly>, F>;

template <class F>
struct Value {
  template <class A>
  SEQKERN_INLINE A operator()(index_t, A x) const {
    return F::value(x);
  }
};
template <class F>
struct Gradient {
  template <class A>
  SEQKERN_INLINE A operator()(index_t, A saved, A dy) const {
    return F::gradient(saved, dy);
  }
};

}  // namespace

void activation_forward(const ActivationForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_function(p.function, [&]<class F>() {
      for_elements(p.count, stream, Value<For<F, T>>{}, Inputs<T, 1>{{static_cast<const T*>(p.x)}}, p.y);
    });
  });
}
void activation_backward(const ActivationBackward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_function(p.function, [&]<class F>() {
      Inputs<T, 2> in{{static_cast<const T*>(p.saved), static_cast<const T*>(p.dy)}};
      for_elements(p.count, stream, Gradient<For<F, T>>{}, in, p.dx);
    });
  });
}

}  // namespace seqkern::cuda
