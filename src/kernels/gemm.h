// General matrix product on packed tiles:  C[M, N] (+)= A[M, K] B[K, N]  (+ bias over the rows of C).
//
// Either factor may be transposed: a Matrix is a pointer and two strides, one of which is 1. Threads split
// the columns, or the rows when there are too few columns to go round; K is never split, so the result does
// not depend on the number of threads. Per thread: a slab of kDepth of its columns of B is packed, then A is
// packed a group of row blocks at a time and multiplied while it is in L2.
#pragma once
#include <algorithm>

#include "cpu/thread_pool.h"
#include "row_product.h"
#include "tile.h"

namespace seqkern::SEQKERN_ISA {

template <class S>
struct Matrix {
  const S* data;
  index_t row_stride, column_stride;
};

inline constexpr index_t kDepth = 384;
inline constexpr index_t kGroupBlocks = 8;  // row blocks of A packed at a time

template <class S, class A = acc_t<S>>
void pack_left(const Matrix<S>& a, index_t row, int mr, index_t k, index_t depth, A* out) {
  const S* from = a.data + row * a.row_stride + k * a.column_stride;
  if (a.column_stride == 1) return pack_rows(from, a.row_stride, mr, depth, out);
  constexpr int L = kLanes<A>;
  for (index_t i = 0; i < depth; ++i, from += a.column_stride, out += mr)
    for (int m = 0; m < mr; m += L) store_n(out + m, load_n(from + m, std::min(L, mr - m)), std::min(L, mr - m));
}

template <class S, class A = acc_t<S>>
void pack_right(const Matrix<S>& b, index_t column, index_t columns, index_t k, index_t depth, A* out) {
  const S* from = b.data + k * b.row_stride + column * b.column_stride;
  if (b.row_stride == 1 && b.column_stride != 1) pack_panel_transposed(from, b.column_stride, columns, depth, out);
  else pack_panel(from, b.row_stride, columns, depth, out);
}

template <class SA, class SB, class SC>
class Gemm {
  using A = acc_t<SC>;
  static constexpr int L = kLanes<A>, P = kPanel<A>;

 public:
  index_t rows, columns, depth;
  Matrix<SA> a;
  Matrix<SB> b;
  SC* c;
  index_t ldc;
  const A* bias;
  bool accumulate;

  Gemm(index_t rows_, index_t columns_, index_t depth_, Matrix<SA> a_, Matrix<SB> b_, SC* c_, index_t ldc_,
       const A* bias_ = nullptr, bool accumulate_ = false)
      : rows(rows_),
        columns(columns_),
        depth(depth_),
        a(a_),
        b(b_),
        c(c_),
        ldc(ldc_),
        bias(bias_),
        accumulate(accumulate_) {}

  void run(Job& job) {
    if (rows <= 0 || columns <= 0) return;
    int threads = threads_for(double(rows) * double(columns) * double(depth), 2.0e5);
    by_columns = ceil_div(columns, P) >= std::min<index_t>(threads, ceil_div(rows, kMaxTileRows)) || threads == 1;
    slab = std::is_same_v<SC, A> ? std::min(depth, kDepth) : depth;
    group = kGroupBlocks * kMaxTileRows;
    index_t panels = by_columns ? ceil_div(ceil_div(columns, P), threads) : ceil_div(columns, P);
    left_size = std::min(group, round_up(rows, kMaxTileRows)) * slab;
    right_size = panels * slab * P;
    left = job.take<A>(threads * left_size);
    right = job.take<A>(threads * right_size);
    auto body = [this](int rank, int n, Barrier&) { work(rank, n); };
    job.run(threads, body);
  }

 private:
  void work(int rank, int threads) {
    Range r{0, rows}, cols{0, ceil_div(columns, P)};
    if (by_columns) cols = share(cols.end, rank, threads);
    else r = share(rows, rank, threads);
    if (cols.begin == cols.end || r.begin == r.end) return;
    A* pa = left + rank * left_size;
    A* pb = right + rank * right_size;
    if (depth == 0) return finish_empty(r, cols);
    for (index_t k = 0; k < depth; k += slab) {
      index_t d = std::min(slab, depth - k);
      for (index_t j = cols.begin; j < cols.end; ++j)
        pack_right(b, j * P, std::min<index_t>(P, columns - j * P), k, d, pb + (j - cols.begin) * d * P);
      for (index_t m = r.begin; m < r.end; m += group) multiply(m, std::min(group, r.end - m), cols, k, d, pa, pb);
    }
  }

  void multiply(index_t first, index_t count, Range cols, index_t k, index_t d, A* pa, const A* pb) {
    RowBlocks blocks(count);
    for (index_t i = 0; i < blocks.count; ++i)
      pack_left(a, first + blocks.begin(i), blocks.height(i), k, d, pa + blocks.begin(i) * d);
    for (index_t j = cols.begin; j < cols.end; ++j)
      for (index_t i = 0; i < blocks.count; ++i)
        block(first + blocks.begin(i), blocks.height(i), j, pa + blocks.begin(i) * d, pb + (j - cols.begin) * d * P, d,
              k > 0 || accumulate);
  }

  void block(index_t row, int mr, index_t j, const A* pa, const A* pb, index_t d, bool add) {
    SC* out = c + row * ldc + j * P;
    index_t width = std::min<index_t>(P, columns - j * P);
    bool first = !add || !std::is_same_v<SC, A>;
    if constexpr (std::is_same_v<SC, A>)
      if (width == P && !(first && bias)) return panel_product<A>(mr, pa, pb, d, out, ldc, add);
    A sums[kMaxTileRows * P];
    panel_product<A>(mr, pa, pb, d, sums, P, false);
    for (int m = 0; m < mr; ++m)
      for (index_t v = 0; v < width; v += L) {
        int n = int(std::min<index_t>(L, width - v));
        Vec<A> x = load(sums + m * P + v);
        if (add) x = x + load_n(out + m * ldc + v, n);
        if (bias && first) x = x + load_n(bias + j * P + v, n);
        store_n(out + m * ldc + v, x, n);
      }
  }

  void finish_empty(Range r, Range cols) {
    for (index_t m = r.begin; m < r.end; ++m)
      for (index_t n = cols.begin * P; n < std::min(cols.end * P, columns); ++n)
        if (!accumulate) c[m * ldc + n] = to_storage<SC>(bias ? bias[n] : A{});
  }

  bool by_columns = true;
  index_t slab = 0, group = 0, left_size = 0, right_size = 0;
  A *left = nullptr, *right = nullptr;
};

}  // namespace seqkern::SEQKERN_ISA
