// Gemm on the matrix unit: squares of 32 x 32 and bf16 parts (tile_product.h).
//
// Splitting costs, so all threads pack A together: of a slab of k a group of panels at a time into one of two buffers,
// and one barrier later everybody multiplies what is his. Panels of B are packed where they are first needed, or, where
// all threads need all of them, together too. A slab is as deep as keeps a panel in half of the first-level cache, a
// group of A stays in the second. Sums of slabs are added up in C, or, where C is bf16, there is one slab. Slabs,
// squares and parts follow from shape and mode alone.
#pragma once
#include "tile_product.h"

namespace seqkern::SEQKERN_ISA {

template <class SA, class SB, class SC>
class TileGemm {
  static constexpr int L = kLanes<float>;
  static constexpr index_t kPanelBytes = 24 << 10, kGroup = 32;  // panels of A packed at a time
  static constexpr bool kMasks = !kPlainTiles<SA, SB>;

 public:
  TileGemm(const Gemm<SA, SB, SC>& gemm, Parts parts_)
      : g(gemm), parts(parts_), blocks(ceil_div(g.rows, kTilePanel)), panels(ceil_div(g.columns, kTilePanel)) {}

  void run(Job& job) {
    double work = double(g.rows) * double(g.columns) * double(g.depth) * parts.products() / 8;
    int threads = int(std::min<index_t>(threads_for(work, 2.0e5), std::max(blocks, panels)));
    by_columns = panels >= std::min<index_t>(threads, blocks);
    index_t deep = kPanelBytes / (2 * kTilePanel * parts.a) / kTileDepth * kTileDepth;
    slab = std::is_same_v<SC, float> ? std::min(g.depth, deep) : g.depth;
    group = std::min(kGroup, blocks);
    left_size = group * panel_values(slab, parts.a);
    left = job.take<Half>(2 * left_size);
    keep = !by_columns || blocks > group;
    right = job.take<Half>((keep ? panels : threads) * panel_values(slab, parts.b));
    row_masks = job.take<std::uint32_t>(2 * group);
    column_masks = job.take<std::uint32_t>(keep ? panels : threads);
    again_size = slab * (kPanel<float> + 1);
    again = job.take<float>(kMasks ? threads * again_size : 0);
    auto body = [this](int rank, int n, Barrier& barrier) { work_of(rank, n, barrier); };
    job.run(threads, body);
  }

 private:
  // A group of packed panels of A, [first, last).
  struct Group {
    index_t first, last;
    Half* values;
    std::uint32_t* masks;
  };

  void work_of(int rank, int threads, Barrier& barrier) {
    TileScope scope(true);
    Range own = share(panels, rank, threads);
    index_t turn = 0;
    for (index_t k = 0; k < g.depth; k += slab) {
      index_t d = std::min(slab, g.depth - k);
      auto pack_right = [&](index_t j) {
        Half* to = right + slot(j, rank) * panel_values(d, parts.b);
        pack<false>(g.b.data, g.b.column_stride, g.b.row_stride, j, g.columns, k, d, parts.b, to);
        column_masks[slot(j, rank)] = kMasks ? wide_columns(to, d, parts.b) : 0;
      };
      if (!by_columns) {
        if (k > 0) barrier.wait();  // for those who still read the slab before
        for (index_t j = own.begin; j < own.end; ++j) pack_right(j);
      }
      for (index_t first = 0; first < blocks; first += group, turn ^= 1) {
        Group a{first, std::min(first + group, blocks), left + turn * left_size, row_masks + turn * group};
        Range part = share(a.last - first, rank, threads);
        for (index_t i = part.begin; i < part.end; ++i) {
          Half* to = a.values + i * panel_values(d, parts.a);
          pack<true>(g.a.data, g.a.row_stride, g.a.column_stride, first + i, g.rows, k, d, parts.a, to);
          a.masks[i] = kMasks ? wide_rows(to, d, parts.a) : 0;
        }
        barrier.wait();
        Range columns = by_columns ? own : Range{0, panels}, rows = by_columns ? Range{0, a.last - first} : part;
        for (index_t j = columns.begin; j < columns.end; ++j) {
          if (by_columns && first == 0) pack_right(j);
          for (index_t i = rows.begin; i < rows.end; ++i) {
            if (by_columns && first == 0 && j + 1 < columns.end)
              fetch_right(g.b, (j + 1) * kTilePanel, std::min(kTilePanel, g.columns - (j + 1) * kTilePanel), k, d,
                          i - rows.begin, rows.end - rows.begin);
            square(a, i, j, k, d, rank);
          }
        }
      }
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

  // Where panel j of B lies.
  index_t slot(index_t j, int rank) const { return keep ? j : rank; }

  void square(const Group& left, index_t i, index_t j, index_t k, index_t d, int rank) {
    const Half* a = left.values + i * panel_values(d, parts.a);
    const Half* b = right + slot(j, rank) * panel_values(d, parts.b);
    std::uint32_t wide_row = left.masks[i], wide_column = column_masks[slot(j, rank)];
    index_t row = (left.first + i) * kTilePanel, column = j * kTilePanel;
    index_t height = std::min(kTilePanel, g.rows - row), width = std::min(kTilePanel, g.columns - column);
    bool add = k > 0 || g.accumulate, last = k + d == g.depth, wide = wide_row || wide_column;
    SC* out = g.c + row * g.ldc + column;
    if constexpr (std::is_same_v<SC, float>)
      if (width == kTilePanel && !wide && !(last && g.epilogue.any()))
        return tile_product(parts, a, b, d, height, out, g.ldc, add);
    alignas(64) float sums[kTilePanel * kTilePanel];
    tile_product(parts, a, b, d, height, sums, kTilePanel);
    if (wide) multiply_again(row, height, column, width, wide_row, wide_column, k, d, again + rank * again_size, sums);
    if (add)
      for (index_t m = 0; m < height; ++m)
        for (index_t v = 0; v < width; v += L) {
          float* at = sums + m * kTilePanel + v;
          store(at, load(at) + load_n(out + m * g.ldc + v, int(std::min<index_t>(L, width - v))));
        }
    (last ? g.epilogue : Epilogue<SC>{}).apply(sums, kTilePanel, int(height), width, column, g.c, g.ldc, row * g.ldc);
  }

  // By FMA: all of a row with a wide value, and in the other rows the columns with one.
  void multiply_again(index_t row, index_t height, index_t column, index_t width, std::uint32_t wide_row,
                      std::uint32_t wide_column, index_t k, index_t d, float* b, float* sums) const {
    constexpr index_t P = kPanel<float>;
    float *a = b + slab * P, products[P];
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
  index_t blocks, panels;  // of A and B
  bool by_columns = true;
  bool keep = false;  // whether panels of B are needed again after their first use
  index_t slab = 0, group = 0, left_size = 0, again_size = 0;
  Half *left = nullptr, *right = nullptr;
  std::uint32_t *row_masks = nullptr, *column_masks = nullptr;
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
