// The five products of attention backward, over blocks of query rows and 128 keys at a time:
//
//   S = q k',  dP = dout v'            scores
//   dv += P' dout,  dk += dS' q,  dq += dS k       gradients
//
// PanelProducts by FMA, TileProducts in bf16 parts (tile_product.h): of bf16 arrays their own values, and of P and dS
// what is left when they are rounded, as on any tensor core. A thread has one of them for the head it is at.
#pragma once
#include "attention_tile.h"
#include "tile_product.h"

namespace seqkern::SEQKERN_ISA {

// Rows of one head in a strided array.
template <class T>
struct HeadRows {
  const T* data;
  index_t stride;
};

// Rows of a block in groups of similar height, and the keys [low, high) of 128 each sees.
template <class Blocks, int kRows>
struct SeenBlocks : Blocks {
  using Blocks::Blocks;
  index_t low[kRows], high[kRows], top = 0, bottom = 0;
  bool any(index_t i) const { return low[i] < high[i]; }
};

template <class T>
class PanelProducts {
  using A = acc_t<T>;
  static constexpr int P = kPanel<A>;

 public:
  static constexpr int kRows = kQueryBlock, kWidth = P, kStep = kLanes<A>;
  using Blocks = SeenBlocks<RowBlocks, kRows>;

  // rows: of all query heads of a group, in blocks of kRows.
  PanelProducts(index_t rows, index_t head_dim, index_t value_dim)
      : R(rows), D(head_dim), Dv(value_dim), Dp(round_up(D, P)), Dvp(round_up(Dv, P)) {}

  void take(Job& job) {
    query = job.take<A>(R * D), dout = job.take<A>(R * Dv);
    query_panels = job.take<A>(R * Dp), dout_panels = job.take<A>(R * Dvp);
    keys = job.take<A>(kKeyBlock * D), values = job.take<A>(kKeyBlock * Dv), key_panels = job.take<A>(kKeyBlock * Dp);
  }

  // Rows [at, at + count) of the group.
  void load_rows(HeadRows<T> q, HeadRows<T> up, index_t at, index_t count) const {
    pack_columns(q.data, q.stride, D, count, R, {0, count}, query_panels + at * P);
    pack_columns(up.data, up.stride, Dv, count, R, {0, count}, dout_panels + at * P);
  }
  void rows_loaded(index_t rows) const {
    for (index_t first = 0; first < rows; first += kRows) {
      RowBlocks blocks(std::min<index_t>(kRows, rows - first));
      for (index_t i = 0; i < blocks.count; ++i) {
        index_t at = first + blocks.begin(i);
        transpose_panels(query_panels, at, blocks.height(i), D, query + at * D);
        transpose_panels(dout_panels, at, blocks.height(i), Dv, dout + at * Dv);
      }
    }
  }
  void load_keys(HeadRows<T> k, HeadRows<T> v, index_t count) {
    loaded = count;
    Range panels{0, ceil_div(count, P)};
    pack_keys(k.data, k.stride, D, count, panels, keys);
    pack_keys(v.data, v.stride, Dv, count, panels, values);
    pack_columns(k.data, k.stride, D, count, kKeyBlock, {0, panels.end * P}, key_panels);
  }

  void scores(index_t first, const Blocks& blocks, A* s, A* dp) const {
    for (index_t j = 0; j < kKeyBlock; j += P)
      for (index_t i = 0; i < blocks.count; ++i) {
        if (j < blocks.low[i] || j >= blocks.high[i]) continue;
        index_t r = blocks.begin(i), at = first + r;
        int mr = blocks.height(i);
        panel_product<A>(mr, query + at * D, keys + j * D, D, s + r * kKeyBlock + j, kKeyBlock, false);
        panel_product<A>(mr, dout + at * Dv, values + j * Dv, Dv, dp + r * kKeyBlock + j, kKeyBlock, false);
      }
  }
  void gradients(index_t first, const Blocks& blocks, const A* probs, const A* ds, A* dq, A* dk, A* dv) const {
    RowBlocks key_blocks(loaded);
    index_t top = blocks.top, depth = blocks.bottom - top;
    for (index_t k = 0; k < key_blocks.count; ++k) {
      index_t at = key_blocks.begin(k), from = top * kKeyBlock + at, row = (first + top) * P;
      int height = key_blocks.height(k);
      for (index_t d = 0; d < Dv; d += P)
        columns_product(height, probs + from, dout_panels + d * R + row, depth, dv + at * Dvp + d, Dvp);
      for (index_t d = 0; d < D; d += P)
        columns_product(height, ds + from, query_panels + d * R + row, depth, dk + at * Dp + d, Dp);
    }
    for (index_t d = 0; d < D; d += P)
      for (index_t i = 0; i < blocks.count; ++i)
        if (blocks.any(i))
          rows_product(blocks.height(i), ds + blocks.begin(i) * kKeyBlock + blocks.low[i],
                       key_panels + d * kKeyBlock + blocks.low[i] * P, blocks.high[i] - blocks.low[i],
                       dq + (first + blocks.begin(i)) * Dp + d, Dp);
  }

 private:
  // Rows [at, at + mr) of column panels as a left factor.
  void transpose_panels(const A* panels, index_t at, int mr, index_t width, A* out) const {
    for (index_t d = 0; d < width; d += P)
      pack_rows(panels + d * R + at * P, P, mr, std::min<index_t>(P, width - d), out + d * mr);
  }

  index_t R, D, Dv, Dp, Dvp, loaded = 0;                        // the last: keys
  A *query = nullptr, *dout = nullptr;                          // left factors, k-major by row block
  A *query_panels = nullptr, *dout_panels = nullptr;            // right factors [panel][R][P]
  A *keys = nullptr, *values = nullptr, *key_panels = nullptr;  // [key panel][D][P], [..][Dv][P], [panel][128][P]
};

class TileProducts {
  static constexpr index_t P = kTilePanel, kChunk = 2 * kTileValues;  // a chunk: 32 terms of a panel
  static constexpr Parts kOne{1, 1};

  struct Panels {
    index_t rows, count;
    explicit Panels(index_t rows_) : rows(rows_), count(ceil_div(rows_, P)) {}
    index_t begin(index_t i) const { return std::min(i * P, rows); }
    int height(index_t i) const { return int(begin(i + 1) - begin(i)); }
  };

 public:
  static constexpr int kRows = 2 * kTilePanel, kWidth = kTilePanel, kStep = kWidth;
  using Blocks = SeenBlocks<Panels, kRows>;

  TileProducts(index_t rows, index_t head_dim, index_t value_dim)
      : R(rows), D(head_dim), Dv(value_dim), Dp(round_up(D, P)), Dvp(round_up(Dv, P)) {}

  void take(Job& job) {
    query_rows = job.take<bf16>(R * D), dout_rows = job.take<bf16>(R * Dv);
    auto halves = [&](index_t panels, index_t depth) { return job.take<Half>(panels * panel_values(depth, 1)); };
    query = halves(R / P, D), dout = halves(R / P, Dv), query_right = halves(Dp / P, R),
    dout_right = halves(Dvp / P, R);
    keys = halves(kKeyBlock / P, D), values = halves(kKeyBlock / P, Dv), key_right = halves(Dp / P, kKeyBlock);
    left = halves(1, kKeyBlock);
  }

  void load_rows(HeadRows<bf16> q, HeadRows<bf16> up, index_t at, index_t count) const {
    for (index_t i = 0; i < count; ++i) {
      std::copy_n(q.data + i * q.stride, D, query_rows + (at + i) * D);
      std::copy_n(up.data + i * up.stride, Dv, dout_rows + (at + i) * Dv);
    }
  }
  void rows_loaded(index_t rows) const {
    pack_both(query_rows, D, rows, query, query_right);
    pack_both(dout_rows, Dv, rows, dout, dout_right);
  }
  void load_keys(HeadRows<bf16> k, HeadRows<bf16> v, index_t count) const {
    for (index_t j = 0; j < count; j += P) {
      index_t height = std::min(P, count - j);
      pack_tiles<false, true>(k.data + j * k.stride, k.stride, 1, height, D, 1, keys + j / P * panel_values(D, 1));
      pack_tiles<false, true>(v.data + j * v.stride, v.stride, 1, height, Dv, 1, values + j / P * panel_values(Dv, 1));
    }
    for (index_t d = 0; d < D; d += P)
      pack_tiles<false, false>(k.data + d, 1, k.stride, std::min(P, D - d), count, 1,
                               key_right + d / P * panel_values(kKeyBlock, 1));
  }

  void scores(index_t first, const Blocks& blocks, float* s, float* dp) const {
    for (index_t i = 0; i < blocks.count; ++i)
      for (index_t j = blocks.low[i]; j < blocks.high[i]; j += P) {
        index_t panel = first / P + i, at = blocks.begin(i) * kKeyBlock + j;
        tile_product(kOne, query + panel * panel_values(D, 1), keys + j / P * panel_values(D, 1), D, blocks.height(i),
                     s + at, kKeyBlock);
        tile_product(kOne, dout + panel * panel_values(Dv, 1), values + j / P * panel_values(Dv, 1), Dv,
                     blocks.height(i), dp + at, kKeyBlock);
      }
  }
  void gradients(index_t first, const Blocks& blocks, const float* probs, const float* ds, float* dq, float* dk,
                 float* dv) const {
    for (index_t j = 0; j < kKeyBlock; j += P) {
      index_t top = kRows, bottom = 0;  // of the rows that see these 32 keys
      for (index_t i = 0; i < blocks.count; ++i)
        if (blocks.low[i] <= j && j < blocks.high[i])
          top = std::min(top, blocks.begin(i)), bottom = blocks.begin(i) + blocks.height(i);
      if (top >= bottom) continue;
      index_t from = top * kKeyBlock + j, chunk = (first + top) / P * kChunk;
      across(probs + from, bottom - top, dout_right + chunk, Dv, dv + j * Dvp, Dvp);
      across(ds + from, bottom - top, query_right + chunk, D, dk + j * Dp, Dp);
    }
    for (index_t i = 0; i < blocks.count; ++i) {
      if (!blocks.any(i)) continue;
      index_t low = blocks.low[i], seen = blocks.high[i] - low;
      pack_tiles<true, true>(ds + blocks.begin(i) * kKeyBlock + low, kKeyBlock, 1, blocks.height(i), seen, 1, left);
      for (index_t d = 0; d < D; d += P)
        tile_product(kOne, left, key_right + d / P * panel_values(kKeyBlock, 1) + low / P * kChunk, seen,
                     blocks.height(i), dq + (first + blocks.begin(i)) * Dp + d, Dp, true);
    }
  }

 private:
  // Rows as a left factor and as a right one, over their width and over the rows.
  void pack_both(const bf16* rows, index_t width, index_t count, Half* to_left, Half* to_right) const {
    for (index_t i = 0; i < count; i += P)
      pack_tiles<true, true>(rows + i * width, width, 1, std::min(P, count - i), width, 1,
                             to_left + i / P * panel_values(width, 1));
    for (index_t d = 0; d < width; d += P)
      pack_tiles<false, false>(rows + d, 1, width, std::min(P, width - d), count, 1,
                               to_right + d / P * panel_values(R, 1));
  }

  // The sums of 32 keys over `depth` rows: c += a' b.
  void across(const float* a, index_t depth, const Half* b, index_t width, float* c, index_t ldc) const {
    pack_tiles<true, false>(a, 1, kKeyBlock, P, depth, 1, left);
    for (index_t d = 0; d < width; d += P)
      tile_product(kOne, left, b + d / P * panel_values(R, 1), depth, P, c + d, ldc, true);
  }

  index_t R, D, Dv, Dp, Dvp;
  bf16 *query_rows = nullptr, *dout_rows = nullptr;
  Half *query = nullptr, *dout = nullptr, *query_right = nullptr, *dout_right = nullptr;
  Half *keys = nullptr, *values = nullptr, *key_right = nullptr, *left = nullptr;
};

}  // namespace seqkern::SEQKERN_ISA
