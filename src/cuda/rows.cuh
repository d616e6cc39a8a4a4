// Kernels over the rows of [rows, columns]: a row of up to 1024 columns belongs to a warp, a longer one to a block.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace seqkern::cuda {

// f(row) for the rows of this thread's warp or block.
template <class F>
SEQKERN_INLINE void for_rows(index_t rows, F f) {
  index_t step = index_t(gridDim.x) * blockDim.y;
  for (index_t r = index_t(blockIdx.x) * blockDim.y + threadIdx.y; r < rows; r += step) f(r);
}
// f(column) for this thread's columns.
template <class F>
SEQKERN_INLINE void for_columns(index_t columns, F f) {
  for (index_t j = threadIdx.x; j < columns; j += blockDim.x) f(j);
}

template <class... Parameters, class... Arguments>
void launch_rows(index_t rows, index_t columns, void* stream, void (*kernel)(Parameters...), Arguments... arguments) {
  if (!rows || !columns) return;
  Launch l;
  l.threads = columns <= 1024 ? dim3(32, 4) : dim3(256);
  index_t blocks = ceil_div(rows, index_t(l.threads.y));
  l.blocks = dim3(unsigned(min_of(blocks, 65536)));
  l.stream = static_cast<cudaStream_t>(stream);
  launch(l, kernel, arguments...);
}

}  // namespace seqkern::cuda
