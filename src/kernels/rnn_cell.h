// The vanilla recurrent cell, once over a value type V (a SIMD register or a float): h = f(a).
#pragma once

namespace seqkern::SEQKERN_ISA {

template <class V>
SEQKERN_INLINE V rnn_cell(V a, bool relu) {
  if (!relu) return tanh(a);
  return a < 0 ? V{} : a;  // NaN stays NaN
}

// da from dh, given h = f(a).
template <class V>
SEQKERN_INLINE V rnn_cell_backward(V dh, V h, bool relu) {
  if (relu) return h > 0 ? dh : V{};
  return dh * (1 - h * h);
}

}  // namespace seqkern::SEQKERN_ISA
