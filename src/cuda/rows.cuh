// Kernels over the rows of [rows, columns]: a row of up to 1024 columns belongs to a warp, a longer one to a block.
//
// A thread takes kWidth adjacent columns at a time: 16 bytes of the storage type where all rows start at multiples of
// 16 bytes, else one column. What a kernel passes over more than once it keeps (KeptRow), as far as registers go;
// the rest comes out of L1. Rows that are kept as a whole have kernels of their own: the code for a rest takes
// registers, and with them threads that could be reading.
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

// What a thread has of a row: pieces of kWidth columns, of which it keeps the first kKept, or all.
template <int kWidth_, bool kWhole_ = false>
struct Pieces {
  static constexpr int kWidth = kWidth_, kKept = kWhole_ ? 4 : 2;
  static constexpr bool kWhole = kWhole_;
};
template <class P>
inline constexpr int kMostThreads = P::kWhole ? 128 : 256;
template <class T, class P>
struct KeptRow {
  static constexpr int kWidth = P::kWidth, kKept = P::kKept;
  const T* data;
  Adjacent<T, kWidth> kept[kKept] = {};

  SEQKERN_INLINE KeptRow(const T* row, index_t columns) : data(row) {
    SEQKERN_UNROLL
    for (int i = 0; i < kKept; ++i) {
      unsigned j = (unsigned(i) * blockDim.x + threadIdx.x) * kWidth;
      if (j < unsigned(columns)) copy_word<sizeof kept[i]>(kept[i].v, row + j);
    }
  }
  // Another row is added; the sum, rounded, is written to `sum`.
  SEQKERN_INLINE void add(const T* other, T* sum, index_t columns) {
    auto add_at = [&](unsigned j, Adjacent<T, kWidth> mine) {
      Adjacent<T, kWidth> theirs;
      acc_t<T> values[kWidth];
      copy_word<sizeof theirs>(theirs.v, other + j);
      SEQKERN_UNROLL
      for (int k = 0; k < kWidth; ++k) values[k] = load(mine.v + k) + load(theirs.v + k);
      store_all(mine, values);
      copy_word<sizeof mine>(sum + j, mine.v);
      return mine;
    };
    unsigned j = threadIdx.x * kWidth;
    SEQKERN_UNROLL
    for (int i = 0; i < kKept; ++i, j += blockDim.x * kWidth)
      if (j < unsigned(columns)) kept[i] = add_at(j, kept[i]);
    for (; !P::kWhole && j < unsigned(columns); j += blockDim.x * kWidth) {
      Adjacent<T, kWidth> mine;
      copy_word<sizeof mine>(mine.v, data + j);
      add_at(j, mine);
    }
    data = sum;
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
template <int kWidth, int i, class T, class P>
SEQKERN_INLINE Values<acc_t<T>, kWidth> values_at(const KeptRow<T, P>& row, unsigned j) {
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
template <class P, int i = 0, class F, class... Rows>
SEQKERN_INLINE void for_pieces(unsigned columns, F f, const Rows&... rows) {
  constexpr int kWidth = P::kWidth;
  unsigned j = (unsigned(i) * blockDim.x + threadIdx.x) * kWidth;
  if constexpr (i < P::kKept) {
    if (j < columns) f(j, values_at<kWidth, i>(rows, j)...);
    for_pieces<P, i + 1>(columns, f, rows...);
  } else if constexpr (!P::kWhole) {
    for (; j < columns; j += blockDim.x * kWidth) f(j, values_at<kWidth, -1>(rows, j)...);
  }
}
// f(column, its value in each of the rows...) for this thread's columns, of fewer than 2^31.
template <class P = Pieces<1>, class F, class... Rows>
SEQKERN_INLINE void for_columns(index_t columns, F f, const Rows&... rows) {
  auto one_by_one = [&](unsigned j, auto... values) {
    SEQKERN_UNROLL
    for (int k = 0; k < P::kWidth; ++k) f(index_t(j + unsigned(k)), values.v[k]...);
  };
  for_pieces<P>(unsigned(columns), one_by_one, rows...);
}
// to[column] = f(...)
template <class P, class T, class F, class... Rows>
SEQKERN_INLINE void map_columns(index_t columns, T* to, F f, const Rows&... rows) {
  constexpr int kWidth = P::kWidth;
  auto piecewise = [&](unsigned j, auto... values) {
    Adjacent<T, kWidth> piece{};
    acc_t<T> mapped[kWidth];
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth; ++k) mapped[k] = f(index_t(j + unsigned(k)), values.v[k]...);
    store_all(piece, mapped);
    copy_word<sizeof piece>(to + j, piece.v);
  };
  for_pieces<P>(unsigned(columns), piecewise, rows...);
}

template <class... Parameters, class... Arguments>
void launch_rows(index_t rows, dim3 threads, void* stream, void (*kernel)(Parameters...), Arguments... arguments) {
  if (!rows) return;
  Launch l;
  l.threads = threads;
  index_t blocks = ceil_div(rows, index_t(threads.y));
  l.blocks = dim3(unsigned(min_of(blocks, 65536)));
  l.stream = static_cast<cudaStream_t>(stream);
  launch(l, kernel, arguments...);
}
// Threads of a block, and of each of its rows.
inline dim3 row_threads(index_t columns) {
  if (columns > 0x7fffffff - 1024 * 8) throw DeviceError("a row of 2^31 columns");
  return columns <= 1024 ? dim3(32, 4) : dim3(256);
}

// run(threads, pieces) for rows of T that start at these addresses and lie one after the other.
template <class T, class Run>
void for_rows_of(index_t columns, std::initializer_list<const void*> arrays, Run run) {
  constexpr int kWidth = 16 / int(sizeof(T)), kKept = Pieces<kWidth, true>::kKept;
  if (!columns) return;
  bool wide = columns % kWidth == 0;
  for (auto p : arrays) wide = wide && std::uintptr_t(p) % 16 == 0;
  if (wide && columns <= 32 * kKept * kWidth) run(dim3(32, 4), Pieces<kWidth, true>());
  else if (wide && columns <= 128 * kKept * kWidth) run(dim3(128), Pieces<kWidth, true>());
  else if (wide) run(row_threads(columns), Pieces<kWidth>());
  else run(row_threads(columns), Pieces<1>());
}

}  // namespace seqkern::cuda
