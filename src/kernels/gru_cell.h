// The GRU cell, once over a value type V (a SIMD register or a float).
//
//   h = (1 - z) n + z h_prev      r, z = logistic(a),   n = tanh(a_n + r q)   with q = h_prev W_hn' + b_hn,
// or, with the reset gate before the product, n = tanh(a_n) where a_n already contains (r h_prev) W_hn'.
#pragma once

namespace seqkern::SEQKERN_ISA {

template <class V>
SEQKERN_INLINE V gru_blend(V z, V n, V h_prev) {
  return (1 - z) * n + z * h_prev;
}

template <class V>
struct GruUpdateGradients {
  V n, z, h_prev;  // of the sums before activation of n and z, and the direct part of h_prev
};

template <class V>
SEQKERN_INLINE GruUpdateGradients<V> gru_blend_backward(V dh, V z, V n, V h_prev) {
  return {dh * (1 - z) * (1 - n * n), dh * (h_prev - n) * z * (1 - z), dh * z};
}

template <class V>
SEQKERN_INLINE V logistic_backward(V d, V s) {
  return d * s * (1 - s);
}

}  // namespace seqkern::SEQKERN_ISA
