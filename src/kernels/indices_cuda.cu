// Indices on the GPU: nobody there can refuse one that is out of range, so it is moved to the nearest in range.
#include "seqkern/indices.h"

#include "cuda/launch.cuh"

namespace seqkern::cuda {
namespace {

template <class I>
__global__ void indices_kernel(Indices p) {
  index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += step) {
    index_t v = index_t(static_cast<const I*>(p.from)[i]);
    if (v != p.also) v = v < p.low ? p.low : v > p.high ? p.high : v;
    p.to[i] = v;
  }
}

template <class I>
void run(const Indices& p, void* stream) {
  Launch l{dim3(unsigned(min_of(ceil_div(p.count, 256), 65536))), dim3(256)};
  l.stream = static_cast<cudaStream_t>(stream);
  launch(l, indices_kernel<I>, p);
}

}  // namespace

void take_indices(const Indices& p, void* stream) {
  if (!p.count) return;
  switch (p.bytes) {
    case 1: return p.is_signed ? run<std::int8_t>(p, stream) : run<std::uint8_t>(p, stream);
    case 2: return p.is_signed ? run<std::int16_t>(p, stream) : run<std::uint16_t>(p, stream);
    case 4: return p.is_signed ? run<std::int32_t>(p, stream) : run<std::uint32_t>(p, stream);
    default: return run<std::int64_t>(p, stream);
  }
}

}  // namespace seqkern::cuda
