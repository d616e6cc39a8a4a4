// Kernels over the rows of [rows, columns]: a row of up to 1024 columns belongs to a warp, a longer one to a block.
//
// A thread takes kWidth adjacent columns at a time: 16 bytes of the storage type where all rows start at multiples of
// 16 bytes, else one column. What a kernel passes over more than once comes out of L1 from then on.
#pragma once
#include <initializer_list>

#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"

namespace seqkern::cuda {

// f(row) for the rows of this thread's warp or block.
template <class F>
SEQKERN_INLINE void for_rows(index_t rows, F f) {
  index_t step = index_t(gridDim.x) * blockDim.y;
  for (index_t r = index_t(blockIdx.x) * blockDim.y + threadIdx.y; r < rows; r += step) f(r);
}

// An array that may be missing, and what its elements are then.
template <class T>
struct Given {
  const T* data;
  acc_t<T> otherwise;
};

template <class A, int kWidth>
struct Values {
  A v[kWidth];
};
template <int kWidth, class T>
SEQKERN_INLINE Values<acc_t<T>, kWidth> values_at(const T* row, index_t j) {
  Adjacent<T, kWidth> piece{};
  constexpr int kBytes = int(sizeof piece) < 16 ? int(sizeof piece) : 16, kCount = kBytes / int(sizeof(T));
  SEQKERN_UNROLL
  for (int k = 0; k < kWidth; k += kCount) copy_word<kBytes>(piece.v + k, row + j + k);
  Values<acc_t<T>, kWidth> values;
  SEQKERN_UNROLL
  for (int k = 0; k < kWidth; ++k) values.v[k] = load(piece.v + k);
  return values;
}
template <int kWidth, class T>
SEQKERN_INLINE Values<acc_t<T>, kWidth> values_at(Given<T> row, index_t j) {
  if (row.data) return values_at<kWidth>(row.data, j);
  Values<acc_t<T>, kWidth> values;
  for (auto& v : values.v) v = row.otherwise;
  return values;
}

// f(column, its value in each of the rows...) for this thread's columns, of fewer than 2^31.
template <int kWidth = 1, class F, class... Rows>
SEQKERN_INLINE void for_columns(index_t columns, F f, Rows... rows) {
  for (unsigned j = threadIdx.x * kWidth; j < unsigned(columns); j += blockDim.x * kWidth)
    [&](auto... values) {
      SEQKERN_UNROLL
      for (int k = 0; k < kWidth; ++k) f(index_t(j + k), values.v[k]...);
    }(values_at<kWidth>(rows, j)...);
}
// to[column] = f(...)
template <int kWidth, class T, class F, class... Rows>
SEQKERN_INLINE void map_columns(index_t columns, T* to, F f, Rows... rows) {
  for (unsigned j = threadIdx.x * kWidth; j < unsigned(columns); j += blockDim.x * kWidth)
    [&](auto... values) {
      Adjacent<T, kWidth> piece{};
      acc_t<T> mapped[kWidth];
      SEQKERN_UNROLL
      for (int k = 0; k < kWidth; ++k) mapped[k] = f(index_t(j + k), values.v[k]...);
      store_all(piece, mapped);
      copy_word<kWidth * sizeof(T)>(to + j, piece.v);
    }(values_at<kWidth>(rows, j)...);
}

template <class... Parameters, class... Arguments>
void launch_rows(index_t rows, index_t columns, void* stream, void (*kernel)(Parameters...), Arguments... arguments) {
  if (!rows || !columns) return;
  if (columns > 0x7fffffff - 1024 * 8) throw DeviceError("a row of 2^31 columns");
  Launch l;
  l.threads = columns <= 1024 ? dim3(32, 4) : columns <= 8192 ? dim3(128) : dim3(256);  // few, for reductions cost
  index_t blocks = ceil_div(rows, index_t(l.threads.y));
  l.blocks = dim3(unsigned(min_of(blocks, 65536)));
  l.stream = static_cast<cudaStream_t>(stream);
  launch(l, kernel, arguments...);
}

// run<kWidth>() for rows of T that start at these addresses and lie one after the other.
template <class T, class Run>
void for_width(index_t columns, std::initializer_list<const void*> arrays, Run run) {
  constexpr int kWidth = 16 / int(sizeof(T));
  bool wide = columns % kWidth == 0;
  for (auto p : arrays) wide = wide && std::uintptr_t(p) % 16 == 0;
  if (wide) run.template operator()<kWidth>();
  else run.template operator()<1>();
}

}  // namespace seqkern::cuda
