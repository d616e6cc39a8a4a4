// C [m, n] = sum over k of a(i, k) b(j, k): the products of a recurrent layer that lie outside its time loop.
//
// The operands are functors, so that masks, transposition and "the state one step before" cost no copy. Tiles of
// 64 x 64 through shared memory, 16 deep, 4 x 4 sums a thread; every sum runs over k in order, wherever its tile
// lies, so results do not depend on m and n. Plain products of the user's are cuBLAS's job.
#pragma once
#include "cuda/launch.cuh"

namespace seqkern::cuda {

inline constexpr int kTile = 64, kDepth = 16, kPitch = kTile + 1, kGemmThreads = 256;

template <class T>
struct RowMajor {  // [i, k]
  static constexpr bool kDepthFirst = true;
  const T* data;
  index_t stride;
  SEQKERN_INLINE acc_t<T> operator()(index_t i, index_t k) const { return load(data + i * stride + k); }
};
template <class T>
struct Transposed {  // [k, i]
  static constexpr bool kDepthFirst = false;
  const T* data;
  index_t stride;
  SEQKERN_INLINE acc_t<T> operator()(index_t i, index_t k) const { return load(data + k * stride + i); }
};
template <class T>
struct StoreTo {
  T* data;
  index_t stride;
  SEQKERN_INLINE void operator()(index_t i, index_t j, acc_t<T> v) const { store(data + i * stride + j, v); }
};

// values [first, first + 64) x [k, k + 16) of an operand to tile[depth][kPitch], zeros outside.
template <class A, class Operand>
SEQKERN_INLINE void load_tile(const Operand& operand, index_t first, index_t count, index_t k, index_t depth, A* tile) {
  for (int e = int(threadIdx.x); e < kTile * kDepth; e += kGemmThreads) {
    int i = Operand::kDepthFirst ? e / kDepth : e % kTile, d = Operand::kDepthFirst ? e % kDepth : e / kTile;
    bool inside = first + i < count && k + d < depth;
    tile[d * kPitch + i] = inside ? A(operand(first + i, k + d)) : A(0);
  }
}

template <class A, class Left, class Right, class Out>
__global__ void __launch_bounds__(kGemmThreads, 2)
    gemm_kernel(index_t m, index_t n, index_t depth, Left left, Right right, Out out) {
  SEQKERN_SHARED(A, a, kDepth * kPitch);
  SEQKERN_SHARED(A, b, kDepth * kPitch);
  index_t across = ceil_div(n, kTile), i0 = blockIdx.x / across * kTile, j0 = blockIdx.x % across * kTile;
  int x = int(threadIdx.x) % 16, y = int(threadIdx.x) / 16;
  A sum[4][4] = {};
  for (index_t k = 0; k < depth; k += kDepth) {
    load_tile(left, i0, m, k, depth, &a[0]);
    load_tile(right, j0, n, k, depth, &b[0]);
    sync_block();
    SEQKERN_UNROLL
    for (int d = 0; d < kDepth; ++d) {
      A u[4], v[4];
      for (int i = 0; i < 4; ++i) u[i] = a[d * kPitch + y + 16 * i], v[i] = b[d * kPitch + x + 16 * i];
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) sum[i][j] += u[i] * v[j];
    }
    sync_block();
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      index_t row = i0 + y + 16 * i, column = j0 + x + 16 * j;
      if (row < m && column < n) out(row, column, sum[i][j]);
    }
}

template <class A, class Left, class Right, class Out>
void gemm(index_t m, index_t n, index_t depth, Left left, Right right, Out out, cudaStream_t stream) {
  index_t tiles = ceil_div(m, kTile) * ceil_div(n, kTile);
  if (!tiles) return;
  if (tiles > 0x7fffffff) throw DeviceError("a matrix product of more than 2^31 tiles");
  Launch l{dim3(unsigned(tiles)), dim3(kGemmThreads)};
  l.stream = stream;
  launch(l, gemm_kernel<A, Left, Right, Out>, m, n, depth, left, right, out);
}

inline constexpr int kSumRows = 32;

// out(j) = sum over rows of value(row, j), kSumRows rows apart in as many sums; the same to `copy`, unless null.
template <class A, class Value>
__global__ void column_sums_kernel(index_t rows, index_t columns, Value value, A* out, A* copy) {
  SEQKERN_SHARED(A, parts, kSumRows * 32);
  index_t j = index_t(blockIdx.x) * 32 + threadIdx.x;
  A sum = 0;
  if (j < columns)
    for (index_t r = threadIdx.y; r < rows; r += kSumRows) sum += value(r, j);
  parts[threadIdx.y * 32 + threadIdx.x] = sum;
  sync_block();
  if (threadIdx.y || j >= columns) return;
  for (int i = 1; i < kSumRows; ++i) sum += parts[i * 32 + threadIdx.x];
  out[j] = sum;
  if (copy) copy[j] = sum;
}
template <class A, class Value>
void column_sums(index_t rows, index_t columns, Value value, A* out, cudaStream_t stream, A* copy = nullptr) {
  Launch l{dim3(unsigned(ceil_div(columns, 32))), dim3(32, kSumRows)};
  l.stream = stream;
  if (out && columns) launch(l, column_sums_kernel<A, Value>, rows, columns, value, out, copy);
}

// to [columns, rows] = from [rows, columns] transposed.
template <class T>
__global__ void transpose_kernel(index_t rows, index_t columns, const T* from, T* to) {
  index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t e = index_t(blockIdx.x) * blockDim.x + threadIdx.x; e < rows * columns; e += step)
    to[e % columns * rows + e / columns] = from[e];
}
template <class T>
void transpose(index_t rows, index_t columns, const T* from, T* to, cudaStream_t stream) {
  index_t blocks = ceil_div(rows * columns, 256);
  Launch l{dim3(unsigned(blocks < 65536 ? blocks : 65536)), dim3(256)};
  l.stream = stream;
  if (blocks) launch(l, transpose_kernel<T>, rows, columns, from, to);
}

}  // namespace seqkern::cuda
