// The matrix unit in recurrent layers: what layer_forward.h and layer_backward.h pack and multiply there.
//
// Weights are packed once per call, states as they are written, split on the way. Beside its parts a state keeps
// its rows as they are: for the few values that the unit gets wrong (tile_product.h), sum by sum.
#pragma once
#include "cpu/thread_pool.h"
#include "seqkern/recurrent.h"
#include "tile_product.h"

namespace seqkern::SEQKERN_ISA {

// Parts of every product of a layer, by batch, sizes and mode alone. W is packed once for all steps: four rows
// for each product are worth it.
template <class S, class W>
Parts layer_parts(const RecurrentInputs& p) {
  return parts_for<S, W>(p.precision, p.batch, std::min(p.hidden_size, p.state_size()), 4);
}

// The left factor, [rows, depth] in panels of 32 rows; zero where nothing is put.
struct TileRows {
  index_t rows = 0, depth = 0;
  int parts = 0;
  Half* values = nullptr;

  explicit operator bool() const { return kTiles && parts; }
  index_t panels() const { return ceil_div(rows, kTilePanel); }
  index_t size() const { return panels() * panel_values(depth, parts); }
  Half* panel(index_t i) const { return values + i * panel_values(depth, parts); }
  void take(Job& job) {
    values = job.take<Half>(size());
    std::memset(values, 0, std::size_t(size()) * sizeof(Half));
  }
  Half* at(index_t row, index_t k) const {
    index_t tile = k / kTileDepth * parts * 2 + row % kTilePanel / kTileRows;
    return values + row / kTilePanel * panel_values(depth, parts) + tile * kTileValues + row % kTileRows * kTileDepth +
           k % kTileDepth;
  }
  // values k .. k+n of one row
  SEQKERN_INLINE void put(index_t row, index_t k, Vec<float> v, int n) const {
    constexpr int L = kLanes<float>;
    for (int part = 0; part < parts; ++part) {
      VecU16 bits = narrow(v);
      v = v - widen(bits);
      index_t offset = part * 2 * kTileValues;
      if (n == L && k % L == 0) std::memcpy(at(row, k) + offset, &bits, sizeof bits);
      else put_each(row, k, bits, n, offset);
    }
  }
  __attribute__((noinline)) void put_each(index_t row, index_t k, VecU16 bits, int n, index_t offset) const {
    for (int j = 0; j < n; ++j) at(row, k + j)[offset] = bits[j];
  }
  bool wide() const {  // anywhere
    VecI top{};
    for (index_t i = 0; i < size(); i += parts * 2 * kTileValues)
      for (index_t j = 0; j < 2 * kTileValues; j += 2 * kLanes<float>) top = max(top, larger_magnitude(values + i + j));
    return max_lanes(top) >= kWide;
  }
};

// The right factor: panels of 32 units or columns, and which of those hold wide values.
struct TilePanels {
  index_t depth = 0;
  int parts = 0;
  Half* values = nullptr;
  std::uint32_t* wide = nullptr;

  explicit operator bool() const { return kTiles && parts; }
  void take(Job& job, index_t panels) { place(job.take<char>(bytes(panels)), panels); }
  std::size_t bytes(index_t panels) const {
    return std::size_t(panels) * (std::size_t(panel_values(depth, parts)) * sizeof(Half) + sizeof *wide);
  }
  void place(void* memory, index_t panels) {
    values = static_cast<Half*>(memory);
    wide = reinterpret_cast<std::uint32_t*>(values + panels * panel_values(depth, parts));
  }
  Half* panel(index_t i) const { return values + i * panel_values(depth, parts); }
  template <bool Along, class W>
  void pack(index_t i, const W* from, index_t stride, index_t k_stride, index_t count) const {
    pack_tiles<false, Along>(from, stride, k_stride, count, depth, parts, panel(i));
    wide[i] = wide_columns(panel(i), depth, parts);
  }
};

// out[m][j] = row m of panel `left` of a times column j of panel `right` of w, for m < height and j < width (and
// something in columns up to 32); wide: whether to look for wide rows; again(m, j): that sum by FMA.
template <class Again>
SEQKERN_INLINE void layer_product(const TileRows& a, index_t left, index_t height, bool wide, const TilePanels& w,
                                  index_t right, index_t width, float* out, index_t ldo, Again again) {
  tile_product({a.parts, w.parts}, a.panel(left), w.panel(right), w.depth, height, out, ldo);
  std::uint32_t rows = wide ? wide_rows(a.panel(left), a.depth, a.parts) : 0, columns = w.wide[right];
  if (!rows && !columns) return;
  for (index_t m = 0; m < height; ++m)
    for (index_t j = 0; j < width; ++j)
      if (rows >> m & 1 || columns >> j & 1) out[m * ldo + j] = again(m, j);
}

}  // namespace seqkern::SEQKERN_ISA
