// Scalar functions over a value type V (a SIMD register or a float): value(x), and gradient(s, dy) with s what forward
// saved (include/seqkern/activation.h). Who includes this brings exp, tanh, sigmoid, abs, normal and normal_tail of V.
#pragma once
#include <type_traits>

#include "seqkern/activation.h"

namespace seqkern::SEQKERN_ISA {

template <class V>
struct ScalarOf {
  using type = std::remove_cvref_t<decltype(V{}[0])>;
};
template <>
struct ScalarOf<float> {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};
template <class V>
using Scalar = typename ScalarOf<V>::type;

struct Relu {
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    return x < 0 ? V{} : x;  // NaN stays
  }
  template <class V>
  static SEQKERN_INLINE V gradient(V x, V dy) {
    return x <= 0 ? V{} : dy;
  }
};

struct Sigmoid {
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    return sigmoid(x);
  }
  template <class V>
  static SEQKERN_INLINE V gradient(V y, V dy) {
    return dy * (y * (1 - y));
  }
};

struct Tanh {
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    return tanh(x);
  }
  template <class V>
  static SEQKERN_INLINE V gradient(V y, V dy) {
    return dy * (1 - y * y);
  }
};

// s = sigmoid(x) and s (1 - s), neither by subtraction.
template <class V>
struct Logistic {
  V s, slope;
  SEQKERN_INLINE explicit Logistic(V x) {
    V e = exp(-abs(x)), inverse = 1 / (1 + e), small = e * inverse;
    s = x < 0 ? small : inverse;
    slope = small * inverse;
  }
};

struct Silu {
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    return x * sigmoid(x);
  }
  template <class V>
  static SEQKERN_INLINE V gradient(V x, V dy) {
    Logistic<V> l(x);
    return dy * (l.s + x * l.slope);
  }
};

// By::tail(a), By::distribution(a): tail, and tail and density, of the normal distribution at a >= 0.
template <class By>
struct GeluBy {
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    V q = By::tail(abs(x));
    return x * (x > 0 ? 1 - q : q);
  }
  template <class V>
  static SEQKERN_INLINE V gradient(V x, V dy) {
    auto n = By::distribution(abs(x));
    return dy * ((x > 0 ? 1 - n.tail : n.tail) + x * n.density);
  }
};
struct Exactly {
  template <class V>
  static SEQKERN_INLINE V tail(V a) {
    return normal_tail(a);
  }
  template <class V>
  static SEQKERN_INLINE auto distribution(V a) {
    return normal(a);
  }
};
using Gelu = GeluBy<Exactly>;

// x sigmoid(2u). Past |x| = 100 the function is x or 0; x^2 is held there, so that it cannot overflow.
struct GeluTanh {
  template <class V>
  static SEQKERN_INLINE V square(V x) {
    V z = x * x;
    return z > 1e4f ? V{} + 1e4f : z;
  }
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    constexpr Scalar<V> c1 = 1.5957691216057308, c3 = 0.071354816272600243;
    return x * sigmoid(x * (c1 + c3 * square(x)));
  }
  template <class V>
  static SEQKERN_INLINE V gradient(V x, V dy) {
    constexpr Scalar<V> c1 = 1.5957691216057308, c3 = 0.071354816272600243;
    V z = square(x);
    Logistic<V> l(x * (c1 + c3 * z));
    return dy * (l.s + x * l.slope * (c1 + 3 * c3 * z));
  }
};

template <class Run>
void for_function(Activation f, Run run) {
  switch (f) {
    case Activation::relu: return run.template operator()<Relu>();
    case Activation::sigmoid: return run.template operator()<Sigmoid>();
    case Activation::tanh: return run.template operator()<Tanh>();
    case Activation::silu: return run.template operator()<Silu>();
    case Activation::gelu: return run.template operator()<Gelu>();
    case Activation::gelu_tanh: return run.template operator()<GeluTanh>();
  }
}

}  // namespace seqkern::SEQKERN_ISA
