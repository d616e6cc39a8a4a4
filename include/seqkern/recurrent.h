// Recurrent layers: one layer, one direction, the whole sequence in one call.
//
//   x [T, N, I]   weight_ih [G*H, I]   weight_hh [G*H, S]   bias_ih, bias_hh [G*H]   y [T, N, S]
//
// G gates: 1 (RNN), 4 in the order i, f, g, o (LSTM), 3 in the order r, z, n (GRU). S is the width of the
// recurrent state: hidden_size H, or proj_size P for an LSTM with weight_hr [P, H].
//
//   RNN   h = f(x W_ih' + b_ih + h W_hh' + b_hh)                       f = tanh or relu
//   LSTM  c = s(f) c + s(i) tanh(g),  h = s(o) tanh(c)  [W_hr']        s = logistic function
//         with peepholes p [3, H]: i, f also see p_i c_{t-1}, p_f c_{t-1}, and o sees p_o c_t
//   GRU   h = (1 - z) n + z h,  n = tanh(x W_in' + b_in + r (h W_hn' + b_hn))        reset_after
//                               n = tanh(x W_in' + b_in + (r h) W_hn' + b_hn)        otherwise
//
// Row n takes part in the first lengths[n] steps (all when lengths is null); past them y is 0 and the state
// stands still. `reverse` walks t downwards, so a row starts at its own last step.
//
// Types: `dtype` is that of x, h0, y, h_n and their gradients, `weight_dtype` that of the weight matrices
// (equal, or f32 with bf16 weights). Everything else - biases, peepholes, cell states, saved gates, weight
// gradients - is of the accumulator type: f64 for f64, else f32. All arrays are contiguous. Inputs may not
// overlap outputs. Null pointers stand for absent inputs (zero) and unwanted outputs.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

class FrozenWeight;

struct RecurrentInputs {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  index_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0, proj_size = 0;
  Precision precision = Precision::highest;
  bool reverse = false;
  bool relu = false;        // RNN
  bool reset_after = true;  // GRU
  const index_t* lengths = nullptr;
  const void *x = nullptr, *weight_ih = nullptr, *weight_hh = nullptr, *weight_hr = nullptr;
  const void *bias_ih = nullptr, *bias_hh = nullptr, *peephole = nullptr;
  const void *h0 = nullptr, *c0 = nullptr;

  constexpr index_t state_size() const { return proj_size ? proj_size : hidden_size; }
};

struct RecurrentForward : RecurrentInputs {
  void *y = nullptr, *h_n = nullptr, *c_n = nullptr;  // y optional: a cell needs h_n alone
  void* gates = nullptr;                              // [T, N, G*H] after activation; optional
  void* cells = nullptr;                              // LSTM [T, N, H]; optional
  void* hidden_n = nullptr;                           // GRU, reset_after: h W_hn' + b_hn, [T, N, H]; optional
  // On the CPU: where weights that are frozen keep their packed forms.
  FrozenWeight *frozen_ih = nullptr, *frozen_hh = nullptr, *frozen_hr = nullptr;
};

// Activation gradients are written; every weight gradient is written too (the layer above adds them up).
struct RecurrentBackward : RecurrentInputs {
  const void *y = nullptr, *gates = nullptr, *cells = nullptr, *hidden_n = nullptr;
  const void *dy = nullptr, *dh_n = nullptr, *dc_n = nullptr;
  void *dx = nullptr, *dh0 = nullptr, *dc0 = nullptr;
  void *dweight_ih = nullptr, *dweight_hh = nullptr, *dweight_hr = nullptr;
  void *dbias_ih = nullptr, *dbias_hh = nullptr, *dpeephole = nullptr;
};

namespace cpu {
void rnn_forward(const RecurrentForward&);
void lstm_forward(const RecurrentForward&);
void gru_forward(const RecurrentForward&);
void rnn_backward(const RecurrentBackward&);
void lstm_backward(const RecurrentBackward&);
void gru_backward(const RecurrentBackward&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's. The workspace, of at least the
// bytes its function names, is 256-byte aligned and holds nothing before or after.
namespace cuda {
std::size_t rnn_forward_workspace(const RecurrentForward&);
std::size_t lstm_forward_workspace(const RecurrentForward&);
std::size_t gru_forward_workspace(const RecurrentForward&);
std::size_t rnn_backward_workspace(const RecurrentBackward&);
std::size_t lstm_backward_workspace(const RecurrentBackward&);
std::size_t gru_backward_workspace(const RecurrentBackward&);
void rnn_forward(const RecurrentForward&, void* workspace, void* stream);
void lstm_forward(const RecurrentForward&, void* workspace, void* stream);
void gru_forward(const RecurrentForward&, void* workspace, void* stream);
void rnn_backward(const RecurrentBackward&, void* workspace, void* stream);
void lstm_backward(const RecurrentBackward&, void* workspace, void* stream);
void gru_backward(const RecurrentBackward&, void* workspace, void* stream);
}  // namespace cuda

}  // namespace seqkern
