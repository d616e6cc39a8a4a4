// The LSTM cell, once over a value type V (a SIMD register or a float).
//
//   c = f c_prev + i g,   h = o tanh(c)      with i, f, o = logistic(a + peephole), g = tanh(a)
#pragma once

namespace seqkern::SEQKERN_ISA {

template <class V>
struct LstmGates {
  V i, f, g, o;
};

template <class V>
struct LstmPeephole {
  V i, f, o;
};

// `a` holds the four sums before activation and leaves with the gates; c leaves with the new cell state.
template <class V>
SEQKERN_INLINE V lstm_cell(LstmGates<V>& a, V& c, const LstmPeephole<V>* peephole) {
  if (peephole) {
    a.i = a.i + peephole->i * c;
    a.f = a.f + peephole->f * c;
  }
  a.i = gate(a.i);
  a.f = gate(a.f);
  a.g = tanh(a.g);
  c = a.f * c + a.i * a.g;
  if (peephole) a.o = a.o + peephole->o * c;
  a.o = gate(a.o);
  return a.o * tanh(c);
}

// Gradients of the sums before activation. dc enters as the gradient of c_t from later steps and leaves as
// that of c_{t-1}.
template <class V>
SEQKERN_INLINE LstmGates<V> lstm_cell_backward(V dh, V& dc, const LstmGates<V>& s, V c, V c_prev,
                                               const LstmPeephole<V>* peephole) {
  V tanh_c = tanh(c);
  LstmGates<V> d;
  d.o = dh * tanh_c * s.o * (1 - s.o);
  dc = dc + dh * s.o * (1 - tanh_c * tanh_c);
  if (peephole) dc = dc + d.o * peephole->o;
  d.i = dc * s.g * s.i * (1 - s.i);
  d.f = dc * c_prev * s.f * (1 - s.f);
  d.g = dc * s.i * (1 - s.g * s.g);
  dc = dc * s.f;
  if (peephole) dc = dc + d.i * peephole->i + d.f * peephole->f;
  return d;
}

}  // namespace seqkern::SEQKERN_ISA
