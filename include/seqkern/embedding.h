// Embedding: y[i] = weight[ids[i]], weight [rows, width].
// Backward: dweight (written, accumulator type) = sum of dy over the places each row was taken, in their order;
// row padding_idx (>= 0) receives none. ids must lie in [0, rows).
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct EmbeddingForward {
  index_t count = 0, row_bytes = 0;
  const index_t* ids = nullptr;
  const void* weight = nullptr;
  void* y = nullptr;
};

struct EmbeddingBackward {
  DType dtype = DType::f32;
  index_t count = 0, rows = 0, width = 0, padding_idx = -1;
  const index_t* ids = nullptr;
  const void* dy = nullptr;
  void* dweight = nullptr;
};

namespace cpu {
void embedding_forward(const EmbeddingForward&);
void embedding_backward(const EmbeddingBackward&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's.
namespace cuda {
void embedding_forward(const EmbeddingForward&, void* stream);
void embedding_backward(const EmbeddingBackward&, void* stream);
}  // namespace cuda

}  // namespace seqkern
