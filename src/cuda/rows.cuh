// Kernels over the rows of [rows, columns]: a row of up to 1024 columns belongs to a warp, a longer one to a block.
//
// A thread takes kWidth adjacent columns at a time: 16 bytes of the storage type where all rows start at multiples of
// 16 bytes, else one column. What a kernel passes over more than once it keeps (KeptRow), as far as registers go;
// the rest comes out of L1.
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

// A row of which a thread keeps its first kKept pieces.
inline constexpr int kKept = 2;
template <class T, int kWidth>
struct KeptRow {
  const T* data;
  Adjacent<T, kWidth> kept[kKept] = {};

  SEQKERN_INLINE KeptRow(const T* row, index_t columns) : data(row) {
    SEQKERN_UNROLL
    for (int i = 0; i < kKept; ++i) {
      unsigned j = (unsigned(i) * blockDim.x + threadIdx.x) * kWidth;
      if (j < unsigned(columns)) copy_word<sizeof kept[i]>(kept[i].v, row + j);
    }
  }
};

template <class A, int kWidth>
struct Values {
  A v[kWidth];
};
template <class T, int kWidth>
SEQKERN_INLINE Values<acc_t<T>, kWidth> loaded(const Adjacent<T, kWidth>& piece) {
  Values<acc_t<T>, kWidth> values;
  SEQKERN_UNROLL
  for (int k = 0; k < kWidth; ++k) values.v[k] = load(piece.v + k);
  return values;
}
// Columns [j, j + kWidth), this thread's piece i; or from memory, when i < 0.
template <int kWidth, int i, class T>
SEQKERN_INLINE Values<acc_t<T>, kWidth> values_at(const T* row, unsigned j) {
  Adjacent<T, kWidth> piece{};
  constexpr int kBytes = int(sizeof piece) < 16 ? int(sizeof piece) : 16, kCount = kBytes / int(sizeof(T));
  SEQKERN_UNROLL
  for (int k = 0; k < kWidth; k += kCount) copy_word<kBytes>(piece.v + k, row + j + k);
  return loaded(piece);
}
template <int kWidth, int i, class T>
SEQKERN_INLINE Values<acc_t<T>, kWidth> values_at(const KeptRow<T, kWidth>& row, unsigned j) {
  if constexpr (i < 0) return values_at<kWidth, i>(row.data, j);
  else return loaded(row.kept[i]);
}
template <int kWidth, int i, class T>
SEQKERN_INLINE Values<acc_t<T>, kWidth> values_at(const Given<T>& row, unsigned j) {
  if (row.data) return values_at<kWidth, i>(row.data, j);
  Values<acc_t<T>, kWidth> values;
  for (auto& v : values.v) v = row.otherwise;
  return values;
}

// f(first column, its values and the next kWidth - 1 in each of the rows...) for this thread's pieces.
template <int kWidth, int i = 0, class F, class... Rows>
SEQKERN_INLINE void for_pieces(unsigned columns, F f, const Rows&... rows) {
  unsigned j = (unsigned(i) * blockDim.x + threadIdx.x) * kWidth;
  if constexpr (i < kKept) {
    if (j < columns) f(j, values_at<kWidth, i>(rows, j)...);
    for_pieces<kWidth, i + 1>(columns, f, rows...);
  } else {
    for (; j < columns; j += blockDim.x * kWidth) f(j, values_at<kWidth, -1>(rows, j)...);
  }
}
// f(column, its value in each of the rows...) for this thread's columns, of fewer than 2^31.
template <int kWidth = 1, class F, class... Rows>
SEQKERN_INLINE void for_columns(index_t columns, F f, const Rows&... rows) {
  auto one_by_one = [&](unsigned j, auto... values) {
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth; ++k) f(index_t(j + unsigned(k)), values.v[k]...);
  };
  for_pieces<kWidth>(unsigned(columns), one_by_one, rows...);
}
// to[column] = f(...)
template <int kWidth, class T, class F, class... Rows>
SEQKERN_INLINE void map_columns(index_t columns, T* to, F f, const Rows&... rows) {
  auto piecewise = [&](unsigned j, auto... values) {
    Adjacent<T, kWidth> piece{};
    acc_t<T> mapped[kWidth];
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth; ++k) mapped[k] = f(index_t(j + unsigned(k)), values.v[k]...);
    store_all(piece, mapped);
    copy_word<sizeof piece>(to + j, piece.v);
  };
  for_pieces<kWidth>(unsigned(columns), piecewise, rows...);
}

template <class... Parameters, class... Arguments>
void launch_rows(index_t rows, index_t columns, void* stream, void (*kernel)(Parameters...), Arguments... arguments) {
  if (!rows || !columns) return;
  if (columns > 0x7fffffff - 1024 * 8) throw DeviceError("a row of 2^31 columns");
  Launch l;
  l.threads = columns <= 1024 ? dim3(32, 4) : dim3(256);
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
