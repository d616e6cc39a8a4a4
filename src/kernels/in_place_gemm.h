// y = x W' with the larger of x [rows, depth] and W [columns, depth] read where it lies.
//
// Packing a factor takes as long as some ten rows of products with it. Rows of a left factor, whose values are
// broadcast one at a time, do without: only the smaller factor is packed, once, as the right one. Where that is x, the
// product is turned, C' = W x'. A thread takes units of some rows of the left factor, multiplies them with a panel of
// the right one into a square that stays in L1, turns that if need be and finishes it. Every sum runs over k in order,
// as in Gemm, and has the same bits.
#pragma once
#include "tile_product.h"

namespace seqkern::SEQKERN_ISA {

// c[kRows, Columns] = kRows rows of `a` times the first Columns of a packed panel.
template <int kRows, int Columns, class A>
__attribute__((noinline)) void rows_in_place(const A* a, index_t lda, const A* b, index_t depth, A* c, index_t ldc) {
  constexpr int L = kLanes<A>, NV = Columns / L, kSpan = 3;  // a pointer for every third row: more would not fit
  const A* rows[ceil_div(kRows, kSpan)];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; m += kSpan) rows[m / kSpan] = a + m * lda;
  Vec<A> acc[kRows][NV] = {};
#pragma GCC unroll 4
  for (index_t k = 0; k < depth; ++k, b += kPanel<A>) {
    Vec<A> bv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      Vec<A> am = splat(rows[m / kSpan][m % kSpan * lda + k]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] = am * bv[v] + acc[m][v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
    for (int v = 0; v < NV; ++v) store(c + m * ldc + v * L, acc[m][v]);
}

// By FMA. The rows that are left of a unit are its last ones once more.
template <class A>
struct InPlaceRows {
  using Value = A;
  static constexpr int kRows = kVecRegisters == 32 ? 8 : 6;  // no more than a set of L1 holds
  static constexpr index_t kUnit = 48, kShort = kRows, kPanelRows = kPanel<A>, kLeast = 8, kPadding = 12;

  static bool takes(index_t) { return true; }
  static index_t panel_size(index_t depth) { return depth * kPanel<A>; }
  static void pack(const A* x, index_t stride, index_t height, index_t depth, A* out) {
    pack_panel_transposed(x, stride, height, depth, out);
  }
  static void multiply(const A* w, index_t stride, index_t units, const A* x, index_t height, index_t depth, A* out) {
    for (index_t m = 0; m < units; m += kRows) {
      index_t at = std::min(m, units - kRows);
      if (height <= kLanes<A>)
        rows_in_place<kRows, kLanes<A>>(w + at * stride, stride, x, depth, out + at * kPanelRows, kPanelRows);
      else rows_in_place<kRows, kPanel<A>>(w + at * stride, stride, x, depth, out + at * kPanelRows, kPanelRows);
    }
  }
};

// By pairs of bf16 (tile_product.h), where there are no tile registers.
struct InPlacePairs {
  using Value = Half;
  static constexpr index_t kRows = 8, kUnit = 32, kShort = kRows, kPanelRows = kTilePanel, kLeast = 8, kPadding = 16;

  static bool takes(index_t depth) { return depth % kTileDepth == 0; }
  static index_t panel_size(index_t depth) { return panel_values(depth, 1); }
  static void pack(const bf16* x, index_t stride, index_t height, index_t depth, Half* out) {
    pack_tiles<false, true>(x, stride, 1, height, depth, 1, out);
  }
  static void multiply(const bf16* w, index_t stride, index_t units, const Half* x, index_t height, index_t depth,
                       float* out) {
    for (index_t m = 0; m < units; m += kRows) {
      index_t at = std::min(m, units - kRows);
      RowsLeft rows{&w[at * stride].bits, stride};
      if (height <= kTileRows)
        pair_product<kTileRows>(rows, x, tile_chunks(depth), kRows, out + at * kTilePanel, kTilePanel, false);
      else pair_product<int(kTilePanel)>(rows, x, tile_chunks(depth), kRows, out + at * kTilePanel, kTilePanel, false);
    }
  }
};

template <class S, class SC, class How>
class InPlaceGemm {
  using A = acc_t<SC>;
  using Value = typename How::Value;
  static constexpr index_t L = kLanes<A>, P = How::kPanelRows, kUnit = How::kUnit;
  static constexpr index_t kMost = round_up(kUnit + How::kShort, L);  // rows of the last unit, at most

 public:
  // The last unit is longer rather than too short.
  explicit InPlaceGemm(const Gemm<S, S, SC>& gemm)
      : g(gemm),
        turned(g.rows < g.columns),
        a{turned ? g.b.data : g.a.data, turned ? g.b.column_stride : g.a.row_stride, 1},
        b{turned ? g.a.data : g.b.data, 1, turned ? g.a.row_stride : g.b.column_stride},
        rows(turned ? g.columns : g.rows),
        columns(turned ? g.rows : g.columns),
        units(std::max<index_t>(1, (rows + kUnit - How::kShort) / kUnit)),
        panels(ceil_div(columns, P)) {}

  static bool takes(const Gemm<S, S, SC>& g) {
    index_t few = std::min(g.rows, g.columns), padding = round_up(few, L) - few;
    return g.a.column_stride == 1 && g.b.row_stride == 1 && few >= How::kLeast && padding <= How::kPadding &&
           !g.accumulate && How::takes(g.depth);
  }

  void run(Job& job) {
    int threads = threads_for(double(rows) * double(columns) * double(g.depth), 2.0e5);
    threads = int(std::min<index_t>(threads, units));
    right = job.take<Value>(panels * How::panel_size(g.depth));
    auto body = [this](int rank, int n, Barrier& barrier) {
      Range own = share(panels, rank, n), own_units = share(units, rank, n);
      for (index_t j = own.begin; j < own.end; ++j)
        How::pack(b.data + j * P * b.column_stride, b.column_stride, width(j), g.depth, panel(j));
      barrier.wait();
      for (index_t i = own_units.begin; i < own_units.end; ++i)
        for (index_t j = 0; j < panels; ++j) {
          if (i + 1 < own_units.end)
            fetch(a.data + (i + 1) * kUnit * a.row_stride, a.row_stride, height(i + 1), g.depth, j, panels);
          square(i, j);
        }
    };
    job.run(threads, body);
  }

 private:
  index_t height(index_t i) const { return i + 1 == units ? rows - i * kUnit : kUnit; }
  index_t width(index_t j) const { return std::min(P, columns - j * P); }
  Value* panel(index_t j) const { return right + j * How::panel_size(g.depth); }

  void square(index_t i, index_t j) const {
    A product[kMost * P], across[P * kMost];
    const S* from = a.data + i * kUnit * a.row_stride;
    How::multiply(from, a.row_stride, height(i), panel(j), width(j), g.depth, product);
    if (!turned) return g.epilogue.apply(product, P, int(height(i)), width(j), j * P, g.c, g.ldc, i * kUnit * g.ldc);
    for (index_t n = 0; n < width(j); n += L)
      for (index_t m = 0; m < height(i); m += L) {
        Vec<A> lines[L];
        for (index_t k = 0; k < L; ++k) lines[k] = load(product + (m + k) * P + n);
        transpose<A>(lines);
        for (index_t k = 0; k < L; ++k) store(across + (n + k) * kMost + m, lines[k]);
      }
    g.epilogue.apply(across, kMost, int(width(j)), height(i), i * kUnit, g.c, g.ldc, j * P * g.ldc);
  }

  const Gemm<S, S, SC>& g;
  bool turned;
  Matrix<S> a, b;  // where they lie
  index_t rows, columns, units, panels;
  Value* right = nullptr;
};

// Whether it has been done this way.
template <class SA, class SB, class SC>
bool in_place(const Gemm<SA, SB, SC>& g, Job& job) {
  auto run = [&]<class How>() {
    using InPlace = InPlaceGemm<SA, SC, How>;
    bool takes = InPlace::takes(g);
    if (takes) InPlace(g).run(job);
    return takes;
  };
  if constexpr (std::is_same_v<SA, SB> && std::is_same_v<SA, acc_t<SA>> && std::is_same_v<SA, SC>)
    return run.template operator()<InPlaceRows<SA>>();
  else if constexpr (kTiles && !kTileRegisters && kPlainTiles<SA, SB>) return run.template operator()<InPlacePairs>();
  else return false;
}

}  // namespace seqkern::SEQKERN_ISA
