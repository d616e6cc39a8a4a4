// y = x W' with the larger of x [rows, depth] and W [columns, depth] read where it lies.
//
// Packing a factor takes as long as some ten rows of products with it. Rows of a left factor, whose values are
// broadcast one at a time or loaded as they lie, do without: only the smaller factor is packed, once, as the right one.
// Where that is x, the product is turned, C' = W x'. Threads take units, some squares of rows of the left factor that
// stay in L2, as they come to them: cores are not equally fast where others share them. They multiply each square
// with a panel of the right factor into a product that stays in L1, turn that if need be and finish it. Every sum runs
// over k in order, as in Gemm, and by FMA has the same bits; but for a few rows of x past the last whole register,
// which are multiplied as few rows are (dot.h).
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

// By FMA. The rows that are left of a square are its last ones once more.
template <class A>
struct InPlaceRows {
  using Value = A;
  static constexpr int kRows = kVecRegisters == 32 ? 8 : 6;  // no more than a set of L1 holds
  static constexpr index_t kSquare = 48, kShort = kRows, kPanelRows = kPanel<A>, kLeast = 8, kPadding = 12,
                           kRest = kLanes<A> / 2 - 1;
  index_t depth;

  template <class Gemm>
  explicit InPlaceRows(const Gemm& g) : depth(g.depth) {}
  bool takes() const { return true; }
  index_t panel_size() const { return depth * kPanel<A>; }
  index_t square_size() const { return 0; }
  std::uint32_t pack(const A* x, index_t stride, index_t height, A* out) const {
    pack_panel_transposed(x, stride, height, depth, out);
    return 0;
  }
  std::uint32_t open(const A*, index_t, index_t, A*) const { return 0; }
  void multiply(const A* w, index_t stride, index_t rows, const A*, const A* x, index_t height, A* out) const {
    for (index_t m = 0; m < rows; m += kRows) {
      index_t at = std::min(m, rows - kRows);
      if (height <= kLanes<A>)
        rows_in_place<kRows, kLanes<A>>(w + at * stride, stride, x, depth, out + at * kPanelRows, kPanelRows);
      else rows_in_place<kRows, kPanel<A>>(w + at * stride, stride, x, depth, out + at * kPanelRows, kPanelRows);
    }
  }
};

// By pairs of bf16 (tile_product.h), where there are no tile registers.
struct InPlacePairs {
  using Value = Half;
  static constexpr index_t kRows = 8, kSquare = 32, kShort = kRows, kPanelRows = kTilePanel, kLeast = 8, kPadding = 16,
                           kRest = kLanes<float> / 2 - 1;
  index_t depth;

  template <class Gemm>
  explicit InPlacePairs(const Gemm& g) : depth(g.depth) {}
  bool takes() const { return depth % kTileDepth == 0; }
  index_t panel_size() const { return panel_values(depth, 1); }
  index_t square_size() const { return 0; }
  std::uint32_t pack(const bf16* x, index_t stride, index_t height, Half* out) const {
    pack_tiles<false, true>(x, stride, 1, height, depth, 1, out);
    return 0;
  }
  std::uint32_t open(const bf16*, index_t, index_t, Half*) const { return 0; }
  void multiply(const bf16* w, index_t stride, index_t rows, const Half*, const Half* x, index_t height,
                float* out) const {
    for (index_t m = 0; m < rows; m += kRows) {
      index_t at = std::min(m, rows - kRows);
      RowsLeft left{&w[at * stride].bits, stride};
      if (height <= kTileRows)
        pair_product<kTileRows>(left, x, tile_chunks(depth), kRows, out + at * kTilePanel, kTilePanel, false);
      else pair_product<int(kTilePanel)>(left, x, tile_chunks(depth), kRows, out + at * kTilePanel, kTilePanel, false);
    }
  }
};

// On the matrix unit, in parts. What has more than one, or is no whole tile, is packed square by square: a left factor
// needs no turning.
template <class S>
struct InPlaceTiles {
  using Value = Half;
  static constexpr index_t kSquare = kTilePanel, kShort = 1, kPanelRows = kTilePanel, kLeast = 8, kPadding = kTilePanel,
                           kRest = 0;
  static constexpr index_t kFew = 6 * kTilePanel;  // multiplied with more, rows are better packed: apart, they share
                                                   // few sets of the first-level cache
  index_t depth, few;
  Parts parts;

  template <class Gemm>
  explicit InPlaceTiles(const Gemm& g)
      : depth(g.depth), few(std::min(g.rows, g.columns)), parts(parts_for<S, S>(g.precision, few, depth, kLeast)) {}
  bool takes() const { return bool(parts); }
  index_t panel_size() const { return panel_values(depth, parts.b); }
  index_t square_size() const { return panel_values(depth, parts.a); }
  bool as_they_lie(index_t rows) const {
    return kPlainTiles<S, S> && few <= kFew && depth % kTileDepth == 0 && rows % kTileRows == 0;
  }
  // Which columns, which rows hold values that the unit gets wrong.
  std::uint32_t pack(const S* x, index_t stride, index_t height, Half* out) const {
    pack_tiles<false, true>(x, stride, 1, height, depth, parts.b, out);
    return kPlainTiles<S, S> ? 0 : wide_columns(out, depth, parts.b);
  }
  std::uint32_t open(const S* w, index_t stride, index_t rows, Half* out) const {
    if (as_they_lie(rows)) return 0;
    pack_tiles<true, true>(w, stride, 1, rows, depth, parts.a, out);
    return kPlainTiles<S, S> ? 0 : wide_rows(out, depth, parts.a);
  }
  void multiply(const S* w, index_t stride, index_t rows, const Half* packed, const Half* x, index_t,
                float* out) const {
    if constexpr (kPlainTiles<S, S>)
      if (as_they_lie(rows)) {
        RowsLeft left{&w->bits, stride};
        if (rows == kTileRows) tile_square<1, 1, 1>(left, x, tile_chunks(depth), out, kTilePanel, false);
        else tile_square<2, 1, 1>(left, x, tile_chunks(depth), out, kTilePanel, false);
        return;
      }
    tile_product(parts, packed, x, depth, rows, out, kTilePanel);
  }
};

template <class S, class SC, class How>
class InPlaceGemm {
  using A = acc_t<SC>;
  using Value = typename How::Value;
  static constexpr index_t L = kLanes<A>, P = How::kPanelRows, kSquare = How::kSquare;
  static constexpr index_t kMost = round_up(kSquare + How::kShort - 1, L);  // rows of the last square, at most
  static constexpr index_t kUnitBytes = 512 << 10, kUnitsEach = 4;          // for every thread

 public:
  // The last square is longer rather than too short.
  explicit InPlaceGemm(const Gemm<S, S, SC>& gemm)
      : g(gemm),
        how(gemm),
        turned(g.rows < g.columns),
        a{turned ? g.b.data : g.a.data, turned ? g.b.column_stride : g.a.row_stride, 1},
        b{turned ? g.a.data : g.b.data, 1, turned ? g.a.row_stride : g.b.column_stride},
        rows(turned ? g.columns : g.rows),
        columns(turned ? g.rows : g.columns),
        rest(turned && columns % L <= How::kRest ? columns % L : 0),
        squares(std::max<index_t>(1, (rows + kSquare - How::kShort) / kSquare)),
        panels(ceil_div(columns - rest, P)) {}

  bool takes() const {
    return g.a.column_stride == 1 && g.b.row_stride == 1 && columns >= How::kLeast &&
           (rest || round_up(columns, L) - columns <= How::kPadding) && !g.accumulate && how.takes();
  }

  void run(Job& job) {
    int threads = threads_for(double(rows) * double(columns) * double(g.depth), 2.0e5);
    threads = int(std::min<index_t>(threads, squares));
    index_t fitting = kUnitBytes / (kSquare * g.depth * index_t(sizeof(S)) + 1),
            even = squares / (threads * kUnitsEach);
    unit = std::max<index_t>(1, std::min(fitting, even));
    index_t units = ceil_div(squares, unit), next = 0;
    right = job.take<Value>(panels * how.panel_size());
    wide_columns = job.take<std::uint32_t>(panels);
    wide_rows = job.take<std::uint32_t>(squares);
    auto left = job.take<Value>(threads * unit * how.square_size());
    auto body = [&](int rank, int n, Barrier& barrier) {
      TileScope scope(kTileRegisters && !std::is_same_v<Value, A>);
      Range own = share(panels, rank, n);
      for (index_t j = own.begin; j < own.end; ++j)
        wide_columns[j] = how.pack(b.data + j * P * b.column_stride, b.column_stride, width(j), panel(j));
      auto take = [&] { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); };
      index_t i = take();
      barrier.wait();
      for (index_t then; i < units; i = then) {
        then = take();
        multiply(i, then, left + rank * unit * how.square_size());
      }
    };
    job.run(threads, body);
  }

 private:
  index_t height(index_t i) const { return i + 1 == squares ? rows - i * kSquare : kSquare; }
  index_t width(index_t j) const { return std::min(P, columns - rest - j * P); }
  Value* panel(index_t j) const { return right + j * how.panel_size(); }
  const S* row(index_t i) const { return a.data + i * a.row_stride; }
  Range squares_of(index_t i) const { return {std::min(i * unit, squares), std::min((i + 1) * unit, squares)}; }

  // Unit i, while unit `then` is asked for.
  void multiply(index_t i, index_t then, Value* left) const {
    Range own = squares_of(i), ahead = squares_of(then);
    index_t done = 0, parts = (own.end - own.begin) * panels;
    index_t rows_ahead = std::min(ahead.end * kSquare, rows) - std::min(ahead.begin * kSquare, rows);
    auto space = [&](index_t s) { return left + (s - own.begin) * how.square_size(); };
    for (index_t s = own.begin; s < own.end; ++s)
      wide_rows[s] = how.open(row(s * kSquare), a.row_stride, height(s), space(s));
    for (index_t j = 0; j < panels; ++j)
      for (index_t s = own.begin; s < own.end; ++s, ++done) {
        fetch(row(ahead.begin * kSquare), a.row_stride, rows_ahead, g.depth, done, parts);
        if (j + 1 < panels) fetch(panel(j + 1), 64, how.panel_size() / 64, 64, s - own.begin, own.end - own.begin);
        square(s, j, space(s));
      }
    if constexpr (How::kRest > 0)
      for (index_t s = own.begin; rest > 0 && s < own.end; ++s) rest_of(s);
  }

  // The rows of x that are in no panel.
  void rest_of(index_t i) const {
    A sums[How::kRest * L];
    for (index_t m = 0; m < height(i); m += L) {
      int n = int(std::min(L, height(i) - m));
      dot_product(rest, b.data + (columns - rest) * b.column_stride, b.column_stride, row(i * kSquare + m),
                  a.row_stride, n, g.depth, sums, L);
      g.epilogue.apply(sums, L, int(rest), n, i * kSquare + m, g.c, g.ldc, (columns - rest) * g.ldc);
    }
  }

  void square(index_t i, index_t j, const Value* packed) const {
    alignas(64) A product[kMost * P], across[P * kMost];
    how.multiply(row(i * kSquare), a.row_stride, height(i), packed, panel(j), width(j), product);
    if (wide_rows[i] || wide_columns[j]) multiply_again(i, j, product);
    if (!turned) return g.epilogue.apply(product, P, int(height(i)), width(j), j * P, g.c, g.ldc, i * kSquare * g.ldc);
    for (index_t n = 0; n < width(j); n += L)
      for (index_t m = 0; m < height(i); m += L) {
        Vec<A> lines[L];
        for (index_t k = 0; k < L; ++k) lines[k] = load(product + (m + k) * P + n);
        transpose<A>(lines);
        for (index_t k = 0; k < L; ++k) store(across + (n + k) * kMost + m, lines[k]);
      }
    g.epilogue.apply(across, kMost, int(width(j)), height(i), i * kSquare, g.c, g.ldc, j * P * g.ldc);
  }

  // By FMA: what comes of values that the matrix unit gets wrong.
  void multiply_again(index_t i, index_t j, A* product) const {
    for (index_t m = 0; m < height(i); ++m)
      for (index_t n = 0; n < width(j); ++n) {
        if (!((wide_rows[i] >> m | wide_columns[j] >> n) & 1)) continue;
        const S *x = row(i * kSquare + m), *y = b.data + (j * P + n) * b.column_stride;
        A sum{};
        for (index_t k = 0; k < g.depth; ++k) sum += from_storage(x[k]) * from_storage(y[k]);
        product[m * P + n] = sum;
      }
  }

  const Gemm<S, S, SC>& g;
  How how;
  bool turned;
  Matrix<S> a, b;  // where they lie
  index_t rows, columns, rest, squares, panels, unit = 1;
  Value* right = nullptr;
  std::uint32_t *wide_rows = nullptr, *wide_columns = nullptr;  // of a square and of a panel: to multiply again
};

// Whether it has been done this way.
template <class SA, class SB, class SC>
bool in_place(const Gemm<SA, SB, SC>& g, Job& job) {
  [[maybe_unused]] auto run = [&]<class How>() {
    InPlaceGemm<SA, SC, How> gemm(g);
    bool takes = gemm.takes();
    if (takes) gemm.run(job);
    return takes;
  };
  if constexpr (std::is_same_v<SA, SB> && !std::is_same_v<SA, std::int8_t>) {
    if constexpr (kTileRegisters && std::is_same_v<acc_t<SA>, float>)
      if (run.template operator()<InPlaceTiles<SA>>()) return true;
    if constexpr (kTiles && !kTileRegisters && kPlainTiles<SA, SB>) return run.template operator()<InPlacePairs>();
    if constexpr (std::is_same_v<SA, acc_t<SA>> && std::is_same_v<SA, SC>)
      return run.template operator()<InPlaceRows<SA>>();
  }
  return false;
}

}  // namespace seqkern::SEQKERN_ISA
