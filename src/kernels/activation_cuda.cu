// Scalar functions over whole arrays on the GPU, forward and backward: one pass, bound by memory.
#include "seqkern/activation.h"

#include "cuda/elements.cuh"
#include "cuda/types.cuh"
#include "simd/exp_parts.h"

namespace seqkern::cuda {

SEQKERN_INLINE Normal<float> normal(float a) { return normal_parts<std::int32_t>(a); }
SEQKERN_INLINE Normal<double> normal(double a) {
  return {0.5 * ::erfc(a * 0.70710678118654752440), exp(a * a * -0.5) * 0.39894228040143267794};
}

}  // namespace seqkern::cuda

#include "activation_cell.h"

namespace seqkern::cuda {
namespace {

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
      for_elements(p.count, stream, Value<F>{}, Inputs<T, 1>{{static_cast<const T*>(p.x)}}, p.y);
    });
  });
}
void activation_backward(const ActivationBackward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_function(p.function, [&]<class F>() {
      Inputs<T, 2> in{{static_cast<const T*>(p.saved), static_cast<const T*>(p.dy)}};
      for_elements(p.count, stream, Gradient<F>{}, in, p.dx);
    });
  });
}

}  // namespace seqkern::cuda
