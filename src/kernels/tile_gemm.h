// Gemm on the matrix unit: the walk of gemm.h in squares of 32 x 32 and bf16 parts (tile_product.h).
//
// A slab of k is as deep as keeps a panel of A in half of the first-level cache; its sums are added up in C, or,
// where C is bf16, there is one slab. Slabs, squares and parts follow from shape and mode alone.
#pragma once
#include "tile_product.h"

namespace seqkern::SEQKERN_ISA {

template <class SA, class SB, class SC>
class TileGemm {
  static constexpr int L = kLanes<float>;
  static constexpr index_t kPanelBytes = 24 << 10, kGroup = 8;  // panels of A packed at a time
  static constexpr bool kMasks = !kPlainTiles<SA, SB>;

 public:
  TileGemm(const Gemm<SA, SB, SC>& gemm, Parts parts_) : g(gemm), parts(parts_) {}

  void run(Job& job) {
    double work = double(g.rows) * double(g.columns) * double(g.depth) * parts.products() / 8;
    int threads = threads_for(work, 2.0e5);
    index_t panels = ceil_div(g.columns, kTilePanel), blocks = ceil_div(g.rows, kTilePanel);
    by_columns = panels >= std::min<index_t>(threads, blocks) || threads == 1;
    index_t deep = kPanelBytes / (2 * kTilePanel * parts.a) / kTileDepth * kTileDepth;
    slab = std::is_same_v<SC, float> ? std::min(g.depth, deep) : g.depth;
    if (by_columns) panels = ceil_div(panels, threads);
    left_size = std::min(kGroup, blocks) * panel_values(slab, parts.a);
    right_size = panels * panel_values(slab, parts.b);
    left = job.take<Half>(threads * left_size);
    right = job.take<Half>(threads * right_size);
    masks_size = panels + kGroup;
    masks = job.take<std::uint32_t>(threads * masks_size);
    again_size = slab * (kPanel<float> + 1);
    again = job.take<float>(kMasks ? threads * again_size : 0);
    auto body = [this](int rank, int n, Barrier&) { work_of(rank, n); };
    job.run(threads, body);
  }

 private:
  struct Own {
    Half *left, *right;
    std::uint32_t *row_masks, *column_masks;
    float* again;
    Range rows, panels;
  };

  void work_of(int rank, int threads) {
    Range rows{0, ceil_div(g.rows, kTilePanel)}, panels{0, ceil_div(g.columns, kTilePanel)};
    if (by_columns) panels = share(panels.end, rank, threads);
    else rows = share(rows.end, rank, threads);
    if (rows.begin == rows.end || panels.begin == panels.end) return;
    std::uint32_t* mask = masks + rank * masks_size;
    Own own{left + rank * left_size,
            right + rank * right_size,
            mask,
            mask + kGroup,
            again + rank * again_size,
            rows,
            panels};
    TileScope tiles(true);
    for (index_t k = 0; k < g.depth; k += slab) {
      index_t d = std::min(slab, g.depth - k);
      for (index_t j = panels.begin; j < panels.end; ++j) {
        Half* to = own.right + (j - panels.begin) * panel_values(d, parts.b);
        pack<false>(g.b.data, g.b.column_stride, g.b.row_stride, j, g.columns, k, d, parts.b, to);
        own.column_masks[j - panels.begin] = kMasks ? wide_columns(to, d, parts.b) : 0;
      }
      for (index_t i = rows.begin; i < rows.end; i += kGroup) multiply(own, i, std::min(i + kGroup, rows.end), k, d);
    }
  }

  template <bool Left, class S>
  static void pack(const S* data, index_t stride, index_t k_stride, index_t panel, index_t size, index_t k, index_t d,
                   int parts, Half* out) {
    const S* from = data + panel * kTilePanel * stride + k * k_stride;
    index_t count = std::min(kTilePanel, size - panel * kTilePanel);
    if (k_stride == 1) pack_tiles<Left, true>(from, stride, k_stride, count, d, parts, out);
    else pack_tiles<Left, false>(from, stride, k_stride, count, d, parts, out);
  }

  void multiply(const Own& own, index_t first, index_t last, index_t k, index_t d) {
    index_t size = panel_values(d, parts.a);
    for (index_t i = first; i < last; ++i) {
      Half* to = own.left + (i - first) * size;
      pack<true>(g.a.data, g.a.row_stride, g.a.column_stride, i, g.rows, k, d, parts.a, to);
      own.row_masks[i - first] = kMasks ? wide_rows(to, d, parts.a) : 0;
    }
    for (index_t j = own.panels.begin; j < own.panels.end; ++j)
      for (index_t i = first; i < last; ++i)
        square(own, i, j, own.left + (i - first) * size, own.row_masks[i - first], k, d);
  }

  void square(const Own& own, index_t i, index_t j, const Half* a, std::uint32_t wide_row, index_t k, index_t d) {
    const Half* b = own.right + (j - own.panels.begin) * panel_values(d, parts.b);
    std::uint32_t wide_column = own.column_masks[j - own.panels.begin];
    index_t row = i * kTilePanel, column = j * kTilePanel;
    index_t height = std::min(kTilePanel, g.rows - row), width = std::min(kTilePanel, g.columns - column);
    bool add = k > 0 || g.accumulate, wide = wide_row || wide_column;
    SC* out = g.c + row * g.ldc + column;
    if constexpr (std::is_same_v<SC, float>)
      if (width == kTilePanel && !add && !g.bias && !wide) return tile_product(parts, a, b, d, height, out, g.ldc);
    float sums[kTilePanel * kTilePanel];
    tile_product(parts, a, b, d, height, sums, kTilePanel);
    if (wide) multiply_again(own, row, height, column, width, wide_row, wide_column, k, d, sums);
    for (index_t m = 0; m < height; ++m)
      for (index_t v = 0; v < width; v += L) {
        int n = int(std::min<index_t>(L, width - v));
        Vec<float> x = load(sums + m * kTilePanel + v);
        if (add) x = x + load_n(out + m * g.ldc + v, n);
        if (g.bias && !add) x = x + load_n(g.bias + column + v, n);
        store_n(out + m * g.ldc + v, x, n);
      }
  }

  // By FMA: all of a row with a wide value, and in the other rows the columns with one.
  void multiply_again(const Own& own, index_t row, index_t height, index_t column, index_t width,
                      std::uint32_t wide_row, std::uint32_t wide_column, index_t k, index_t d, float* sums) const {
    constexpr index_t P = kPanel<float>;
    float *b = own.again, *a = b + slab * P, products[P];
    for (index_t v = 0; v < width; v += P) {
      pack_right(g.b, column + v, std::min(P, width - v), k, d, b);
      for (index_t m = 0; m < height; ++m) {
        std::uint32_t which = wide_row >> m & 1 ? ~0u : wide_column;
        if (!which) continue;
        pack_left(g.a, row + m, 1, k, d, a);
        panel_product<float>(1, a, b, d, products, P, false);
        for (index_t j = 0; j < std::min(P, width - v); ++j)
          if (which >> (v + j) & 1) sums[m * kTilePanel + v + j] = products[j];
      }
    }
  }

  const Gemm<SA, SB, SC>& g;
  Parts parts;
  bool by_columns = true;
  index_t slab = 0, left_size = 0, right_size = 0, masks_size = 0, again_size = 0;
  Half *left = nullptr, *right = nullptr;
  std::uint32_t* masks = nullptr;
  float* again = nullptr;
};

// Whether the matrix unit has done it.
template <class SA, class SB, class SC>
bool on_tiles(const Gemm<SA, SB, SC>& g, Job& job) {
  constexpr index_t kRowsEach = 8;  // B is packed for this product alone
  Parts parts = parts_for<SA, SB>(g.precision, g.rows, g.depth, kRowsEach);
  if (!parts || g.columns < kTileRows) return false;
  if constexpr (kTiles && !std::is_same_v<acc_t<SC>, double>) TileGemm<SA, SB, SC>(g, parts).run(job);
  return true;
}

}  // namespace seqkern::SEQKERN_ISA
