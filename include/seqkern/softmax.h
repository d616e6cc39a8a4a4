// Softmax, log-softmax and cross-entropy over the last axis of [rows, columns], contiguous.
//
//   softmax      y = exp(x - max) / sum          dx = y (dy - sum(dy y))
//   log-softmax  y = x - lse(x)                  dx = dy - exp(y) sum(dy)
//   cross-entropy from logits with target t and label smoothing e, over C classes:
//     loss = lse - (1 - e) x_t - e mean(x)       dx = scale (softmax(x) - (1 - e) [t] - e / C)
// Rows whose target is `ignore_index` have loss 0 and gradient 0. loss, lse and scale are of the accumulator
// type.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct SoftmaxForward {
  DType dtype = DType::f32;
  index_t rows = 0, columns = 0;
  bool log = false;
  const void* x = nullptr;
  void* y = nullptr;
};

struct SoftmaxBackward {
  DType dtype = DType::f32;
  index_t rows = 0, columns = 0;
  bool log = false;
  const void *y = nullptr, *dy = nullptr;
  void* dx = nullptr;
};

struct CrossEntropyForward {
  DType dtype = DType::f32;
  index_t rows = 0, columns = 0, ignore_index = -100;
  double label_smoothing = 0;
  const void* logits = nullptr;
  const index_t* target = nullptr;
  void *loss = nullptr, *lse = nullptr;  // [rows]
};

struct CrossEntropyBackward {
  DType dtype = DType::f32;
  index_t rows = 0, columns = 0, ignore_index = -100;
  double label_smoothing = 0;
  const void *logits = nullptr, *lse = nullptr, *scale = nullptr;  // scale [rows]: gradient of each row's loss
  const index_t* target = nullptr;
  void* dlogits = nullptr;
};

namespace cpu {
void softmax_forward(const SoftmaxForward&);
void softmax_backward(const SoftmaxBackward&);
void cross_entropy_forward(const CrossEntropyForward&);
void cross_entropy_backward(const CrossEntropyBackward&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's.
namespace cuda {
void softmax_forward(const SoftmaxForward&, void* stream);
void softmax_backward(const SoftmaxBackward&, void* stream);
void cross_entropy_forward(const CrossEntropyForward&, void* stream);
void cross_entropy_backward(const CrossEntropyBackward&, void* stream);
}  // namespace cuda

}  // namespace seqkern
