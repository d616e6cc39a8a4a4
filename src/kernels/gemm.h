// General matrix product on packed tiles:  C[M, N] (+)= A[M, K] B[K, N]  (+ bias over the rows of C).
//
// Either factor may be transposed: a Matrix is a pointer and two strides, one of which is 1. Threads split C into a
// grid; K is never split, so the result does not depend on the number of threads. Per thread: A is packed a group of
// row blocks at a time, which stays in L2 while the panels of B go by, each packed into L1 where it is first needed and
// asked for while the one before it is multiplied.
// What follows the product (bias, activation, residual: epilogue.h) is done to each block while it is in L1.
#pragma once
#include <algorithm>

#include "cpu/thread_pool.h"
#include "epilogue.h"
#include "simd/tiles.h"
#include "tile.h"

namespace seqkern::SEQKERN_ISA {

template <class S>
struct Matrix {
  const S* data;
  index_t row_stride, column_stride;
};

inline constexpr index_t kDepth = 384;             // a panel of B and a block of A fit L1 together
inline constexpr index_t kLeftSize = 80 << 10;     // values of A packed at a time: they stay in L2
inline constexpr index_t kRightSize = 512 << 10;   // values of B kept packed: 2 MiB of L3
inline constexpr index_t kShallow = 128;           // up to this depth writing C is what takes the time
inline constexpr index_t kShallowSize = 64 << 10;  // values of B kept packed then: they stay in L2
inline constexpr double kPackCost = 16;            // multiply-adds that take as long as packing one value

template <class S, class A = acc_t<S>>
void pack_left(const Matrix<S>& a, index_t row, int mr, index_t k, index_t depth, A* out) {
  const S* from = a.data + row * a.row_stride + k * a.column_stride;
  if (a.column_stride == 1) return pack_rows(from, a.row_stride, mr, depth, out);
  constexpr int L = kLanes<A>;
  for (index_t i = 0; i < depth; ++i, from += a.column_stride)
    for (int m = 0; m < mr; m += L) {
      int n = std::min(L, mr - m);
      store_over(out + i * mr + m, load_n(from + m, n), n, mr <= L && i * mr + L <= depth * mr);
    }
}

template <class S, class A = acc_t<S>>
void pack_right(const Matrix<S>& b, index_t column, index_t columns, index_t k, index_t depth, A* out) {
  const S* from = b.data + k * b.row_stride + column * b.column_stride;
  if (b.row_stride == 1 && b.column_stride != 1) pack_panel_transposed(from, b.column_stride, columns, depth, out);
  else pack_panel(from, b.row_stride, columns, depth, out);
}

// Asks for a share of `count` rows, that they be in L2 when they are needed. Inline, as all that do nothing else: the
// compiler takes them for pure and drops the call.
template <class S>
SEQKERN_INLINE void fetch(const S* rows, index_t stride, index_t count, index_t length, index_t part, index_t parts) {
  Range own = share(count, int(part), int(parts));
  for (index_t r = own.begin; r < own.end; ++r)
    for (index_t i = 0; i < length; i += 64 / index_t(sizeof(S))) __builtin_prefetch(rows + r * stride + i, 0, 2);
}

// A share of what pack_right will read.
template <class S>
SEQKERN_INLINE void fetch_right(const Matrix<S>& b, index_t column, index_t columns, index_t k, index_t depth,
                                index_t part, index_t parts) {
  const S* from = b.data + k * b.row_stride + column * b.column_stride;
  if (b.row_stride == 1) fetch(from, b.column_stride, columns, depth, part, parts);
  else fetch(from, b.row_stride, depth, columns, part, parts);
}

template <class SA, class SB, class SC>
class Gemm;
template <class SA, class SB, class SC>
bool on_tiles(const Gemm<SA, SB, SC>& g, Job& job);  // tile_gemm.h
template <class SA, class SB, class SC>
bool in_place(const Gemm<SA, SB, SC>& g, Job& job);  // in_place_gemm.h
template <class SA, class SB, class SC>
bool few_rows(const Gemm<SA, SB, SC>& g, Job& job);  // small_gemm.h
template <class SA, class SB, class SC>
bool shallow(const Gemm<SA, SB, SC>& g, Job& job);

template <class SA, class SB, class SC>
class Gemm {
  using A = acc_t<SC>;
  static constexpr int L = kLanes<A>, P = kPanel<A>;
  static constexpr bool kInPlace = std::is_same_v<SC, A>;  // partial sums may rest in C

 public:
  index_t rows, columns, depth;
  Matrix<SA> a;
  Matrix<SB> b;
  SC* c;
  index_t ldc;
  Epilogue<SC> epilogue;
  bool accumulate;
  Precision precision = Precision::highest;

  Gemm(index_t rows_, index_t columns_, index_t depth_, Matrix<SA> a_, Matrix<SB> b_, SC* c_, index_t ldc_,
       const A* bias = nullptr, bool accumulate_ = false)
      : rows(rows_), columns(columns_), depth(depth_), a(a_), b(b_), c(c_), ldc(ldc_), accumulate(accumulate_) {
    epilogue.bias = bias;
  }

  Gemm& then(const Epilogue<SC>& e) {
    epilogue = e;
    return *this;
  }

  Gemm& in(Precision mode) {
    precision = mode;
    return *this;
  }

  void run(Job& job);

 private:
  // The grid of threads over C whose largest part costs least, the packing that neighbours repeat included.
  void choose_grid(int threads) {
    double least = 0;
    for (int r = 1; r <= threads; ++r) {
      if (threads % r) continue;
      double height = double(ceil_div(RowBlocks(rows).count, r) * kMaxTileRows);
      double width = double(ceil_div(ceil_div(columns, P), threads / r) * P);
      double cost = height * width + kPackCost * (height + width);
      if (r == 1 || cost < least) least = cost, grid_rows = r, grid_columns = threads / r;
    }
  }

  void work(int rank) {
    RowBlocks blocks(rows);
    Range own = share(blocks.count, rank / grid_columns, grid_rows);
    Range panels = share(ceil_div(columns, P), rank % grid_columns, grid_columns);
    A *pa = left + rank * left_size, *pb = right + rank * right_size;
    for (index_t j = panels.begin; j < panels.end; j += chunk)
      for (index_t k = 0; k == 0 || k < depth; k += slab)
        for (index_t i = own.begin; i < own.end; i += group)
          multiply(blocks, {i, std::min(i + group, own.end)}, {j, std::min(j + chunk, panels.end)}, k, i == own.begin,
                   pa, pb);
  }

  // One group of row blocks times one chunk of panels, over one slab. The first group packs the panels as it goes,
  // and the others find them packed; with a single group each panel is used up in L1 and overwritten by the next.
  void multiply(const RowBlocks& blocks, Range i, Range j, index_t k, bool first, A* pa, A* pb) {
    index_t d = std::min(slab, depth - k), top = blocks.begin(i.begin);
    for (index_t m = i.begin; m < i.end; ++m)
      pack_left(a, blocks.begin(m), blocks.height(m), k, d, pa + (blocks.begin(m) - top) * d);
    auto panel = [&](index_t n) { return pb + (keep ? n - j.begin : 0) * d * P; };
    auto tiles = [&](index_t m, index_t n) {
      block(blocks.begin(m), blocks.height(m), n, pa + (blocks.begin(m) - top) * d, panel(n), k, d);
    };
    for (index_t n = j.begin; n < j.end; ++n) {
      if (first) pack_right(b, n * P, width(n), k, d, panel(n));
      for (index_t m = i.begin; !by_rows && m < i.end; ++m) {
        if (n + 1 < j.end && first) fetch_right(b, (n + 1) * P, width(n + 1), k, d, m - i.begin, i.end - i.begin);
        else if (n + 1 < j.end) fetch(panel(n + 1), P, d, P, m - i.begin, i.end - i.begin);
        tiles(m, n);
      }
    }
    for (index_t m = i.begin; by_rows && m < i.end; ++m)  // rows of C from end to end
      for (index_t n = j.begin; n < j.end; ++n) tiles(m, n);
  }

  index_t width(index_t panel) const { return std::min<index_t>(P, columns - panel * P); }

  void block(index_t row, int mr, index_t j, const A* pa, const A* pb, index_t k, index_t d) {
    SC* out = c + row * ldc + j * P;
    bool add = k > 0 || accumulate, last = k + d == depth;
    if constexpr (kInPlace)
      if (width(j) == P) {
        panel_product<A>(mr, pa, pb, d, out, ldc, add);
        if (last && epilogue.any()) epilogue.apply(out, ldc, mr, width(j), j * P, c, ldc, row * ldc);
        return;
      }
    A sums[kMaxTileRows * P];
    if (add)
      for (int m = 0; m < mr; ++m)
        for (index_t v = 0; v < P; v += L)
          store(sums + m * P + v, load_n(out + m * ldc + v, int(std::clamp<index_t>(width(j) - v, 0, L))));
    panel_product<A>(mr, pa, pb, d, sums, P, add);
    (last ? epilogue : Epilogue<SC>{}).apply(sums, P, mr, width(j), j * P, c, ldc, row * ldc);
  }

  int grid_rows = 1, grid_columns = 1;
  bool keep = false;     // whether packed panels are needed again by the next group
  bool by_rows = false;  // whether C is written row by row
  index_t slab = 0, group = 0, chunk = 0, left_size = 0, right_size = 0;
  A *left = nullptr, *right = nullptr;
};

template <class SA, class SB, class SC>
void Gemm<SA, SB, SC>::run(Job& job) {
  if (rows <= 0 || columns <= 0) return;
  if (few_rows(*this, job) || shallow(*this, job) || in_place(*this, job) || on_tiles(*this, job)) return;
  int threads = threads_for(double(rows) * double(columns) * double(depth), 2.0e5);
  choose_grid(threads);
  RowBlocks blocks(rows);
  slab = std::max<index_t>(kInPlace ? std::min(depth, kDepth) : depth, 1);
  index_t own_blocks = ceil_div(blocks.count, grid_rows), own_panels = ceil_div(ceil_div(columns, P), grid_columns);
  group = std::clamp<index_t>(kLeftSize / (slab * kMaxTileRows), 1, own_blocks);
  group = ceil_div(own_blocks, ceil_div(own_blocks, group));
  by_rows = slab <= kShallow;
  keep = own_blocks > group || by_rows;
  chunk = keep ? std::clamp<index_t>((by_rows ? kShallowSize : kRightSize) / (slab * P), 1, own_panels) : own_panels;
  left_size = group * kMaxTileRows * slab;
  right_size = (keep ? chunk : 1) * slab * P;
  left = job.take<A>(threads * left_size);
  right = job.take<A>(threads * right_size);
  auto body = [this](int rank, int, Barrier&) { work(rank); };
  job.run(threads, body);
}

}  // namespace seqkern::SEQKERN_ISA

#include "in_place_gemm.h"
#include "small_gemm.h"
#include "tile_gemm.h"
