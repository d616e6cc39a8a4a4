// Rotary position embedding on the GPU: a thread turns one pair of a row, or copies one element past the rotated ones.
#include "seqkern/rope.h"

#include "cuda/rows.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

template <class T>
__global__ void rope_kernel(Rope p) {
  using A = acc_t<T>;
  index_t half = p.rotary_dim / 2, width = p.interleaved ? p.rotary_dim : half;
  for_rows(p.rows, [&](index_t r) {
    index_t t = p.table_row ? p.table_row[r] : r % p.table_rows;
    auto x = static_cast<const T*>(p.x) + r * p.dim;
    auto y = static_cast<T*>(p.y) + r * p.dim;
    auto cos = static_cast<const A*>(p.cos) + t * width, sin = static_cast<const A*>(p.sin) + t * width;
    for_columns(p.dim - half, [&](index_t j) {
      if (j >= half) {
        y[half + j] = x[half + j];
        return;
      }
      index_t first = p.interleaved ? 2 * j : j, second = p.interleaved ? first + 1 : j + half;
      index_t entry = p.interleaved ? second : j;  // where sin has the sign of its place, the second's is its own
      A a = load(x + first), b = load(x + second), c = cos[entry], s = p.inverse ? -sin[entry] : sin[entry];
      store(y + first, a * c - b * s);
      store(y + second, b * c + a * s);
    });
  });
}

}  // namespace

void rope(const Rope& p, void* stream) {
  if (p.dim) for_type(p.dtype, [&]<class T>() { launch_rows(p.rows, row_threads(p.dim), stream, rope_kernel<T>, p); });
}

}  // namespace seqkern::cuda
