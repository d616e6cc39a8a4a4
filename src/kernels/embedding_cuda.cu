// Embedding on the GPU: a warp copies a row, in the widest words its size and address allow.
//
// Its gradient adds up in the order of the ids, as on the CPU, so that every run gives the same bits: the block of
// each id's first place walks the later places of that id; the blocks of those later places have nothing to do.
#include "seqkern/embedding.h"

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

constexpr int kRows = 8;  // rows a block copies
constexpr int kThreads = 128;

template <int kBytes>
__global__ void embedding_forward_kernel(EmbeddingForward p) {
  for (index_t i = index_t(blockIdx.x) * kRows + threadIdx.y; i < p.count; i += index_t(gridDim.x) * kRows) {
    auto from = static_cast<const char*>(p.weight) + p.ids[i] * p.row_bytes;
    auto to = static_cast<char*>(p.y) + i * p.row_bytes;
    for (index_t j = threadIdx.x * kBytes; j < p.row_bytes; j += 32 * kBytes) copy_word<kBytes>(to + j, from + j);
  }
}

template <class A>
__global__ void zero_kernel(A* p, index_t count) {
  index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) p[i] = 0;
}

template <class T>
__global__ void embedding_backward_kernel(EmbeddingBackward p) {
  using A = acc_t<T>;
  auto dy = static_cast<const T*>(p.dy);
  for (index_t i = blockIdx.x; i < p.count; i += gridDim.x) {
    index_t id = p.ids[i];
    if (id == p.padding_idx) continue;
    int earlier = 0;
    for (index_t k = threadIdx.x; k < i; k += kThreads) earlier |= p.ids[k] == id;
    if (reduce_row(Sum{}, earlier)) continue;
    auto to = static_cast<A*>(p.dweight) + id * p.width;
    for (index_t j = threadIdx.x; j < p.width; j += kThreads) {
      A sum = 0;
      for (index_t k = i; k < p.count; ++k)
        if (p.ids[k] == id) sum += load(dy + k * p.width + j);
      to[j] = sum;
    }
  }
}

unsigned grid(index_t blocks) { return unsigned(blocks < 65536 ? blocks : 65536); }

}  // namespace

void embedding_forward(const EmbeddingForward& p, void* stream) {
  if (!p.count || !p.row_bytes) return;
  Launch l{dim3(grid(ceil_div(p.count, kRows))), dim3(32, kRows)};
  l.stream = static_cast<cudaStream_t>(stream);
  auto common = std::uintptr_t(p.weight) | std::uintptr_t(p.y) | std::uintptr_t(p.row_bytes);
  if (common % 16 == 0) launch(l, embedding_forward_kernel<16>, p);
  else if (common % 8 == 0) launch(l, embedding_forward_kernel<8>, p);
  else if (common % 4 == 0) launch(l, embedding_forward_kernel<4>, p);
  else launch(l, embedding_forward_kernel<2>, p);
}

void embedding_backward(const EmbeddingBackward& p, void* stream) {
  index_t size = p.rows * p.width;
  if (!size) return;
  Launch l{dim3(grid(ceil_div(size, 256))), dim3(256)};
  l.stream = static_cast<cudaStream_t>(stream);
  for_type(p.dtype, [&]<class T>() {
    using A = acc_t<T>;
    launch(l, zero_kernel<A>, static_cast<A*>(p.dweight), size);
    if (!p.count) return;
    l.blocks = dim3(grid(p.count)), l.threads = dim3(kThreads);
    launch(l, embedding_backward_kernel<T>, p);
  });
}

}  // namespace seqkern::cuda
