// Integers of any type as the kernels take them: to[i] = from[i], moved into [low, high] where it lies outside and is
// not `also`.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct Indices {
  int bytes = 8;  // of one integer
  bool is_signed = true;
  index_t count = 0, low = 0, high = 0, also = 0;
  const void* from = nullptr;
  index_t* to = nullptr;
};

namespace cuda {
void take_indices(const Indices&, void* stream);
}  // namespace cuda

}  // namespace seqkern
