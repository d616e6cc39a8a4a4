// Dropout, optimiser updates and the scalar functions by themselves: one pass over `count` values.
#pragma once
#include <cstdint>

#include "seqkern/types.h"

namespace seqkern {

// y = x / (1 - p) where kept, else 0. Element e of the array is kept when word e % 4 of Philox4x32-10 with key
// `seed` and counter (e / 4, offset) is at least floor(p 2^32): the backward pass replays it on dy.
// J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
struct Dropout {
  DType dtype = DType::f32;
  index_t count = 0;
  double p = 0;
  std::uint64_t seed = 0, offset = 0;
  const void* x = nullptr;
  void* y = nullptr;
};

// In place, with torch.optim's formulas. `param` is of dtype; gradient and state are of the accumulator type.
struct SgdUpdate {
  DType dtype = DType::f32;
  index_t count = 0;
  double lr = 0, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
  void* param = nullptr;
  const void* grad = nullptr;
  void* momentum_buffer = nullptr;  // null without momentum
};

struct AdagradUpdate {
  DType dtype = DType::f32;
  index_t count = 0;
  double lr = 0, eps = 0, weight_decay = 0;
  void* param = nullptr;
  const void* grad = nullptr;
  void* sum = nullptr;
};

struct AdamwUpdate {
  DType dtype = DType::f32;
  index_t count = 0, step = 1;
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  void* param = nullptr;
  const void* grad = nullptr;
  void *exp_avg = nullptr, *exp_avg_sq = nullptr;
};

enum class Function : std::uint8_t { exp, tanh, sigmoid, erf, round_bf16 };

struct Map {
  Function function = Function::exp;
  index_t count = 0;
  const float* x = nullptr;
  float* y = nullptr;
};

// What the machine gives: fused multiply-adds in registers, and plain reading of `bytes` shared out over the
// threads. `result` is flop/s or bytes/s.
struct Probe {
  int threads = 1;
  double seconds = 0.1;
  index_t bytes = 0;
  double* result = nullptr;
};

namespace cpu {
void dropout(const Dropout&);
void sgd_update(const SgdUpdate&);
void adagrad_update(const AdagradUpdate&);
void adamw_update(const AdamwUpdate&);
void map(const Map&);
void probe_fma(const Probe&);
void probe_read(const Probe&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's.
namespace cuda {
void dropout(const Dropout&, void* stream);
void sgd_update(const SgdUpdate&, void* stream);
void adagrad_update(const AdagradUpdate&, void* stream);
void adamw_update(const AdamwUpdate&, void* stream);
}  // namespace cuda

}  // namespace seqkern
