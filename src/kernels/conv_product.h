// The product under every convolution, an im2col product whose right factor is packed straight from the images:
//
//   out[n, g, m, q] = bias[g, m] + sum_k a[g, m, k] source[n, g, k, q]      q: positions of an output grid
//
// a is packed once per call. A Source packs panels of positions for a slab of k; there is one for padded images,
// one for planes read as they lie and one for patches. Threads split the panels of all images and groups, or the
// rows when panels are few: they then pack together. k is never split, so results do not depend on the threads.
#pragma once
#include "conv_image.h"
#include "products.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr index_t kConvDepth = 256;  // a slab of a panel and one block of rows stay in L1
inline constexpr index_t kGroupBlocks = 8;  // row blocks of A packed at a time
inline constexpr index_t kConvPanels = 16;  // panels packed at a time, in L2
inline constexpr int kDirectRows = 3;       // up to here packing costs more than it saves

// Padded images: term k at position (h, w) is data[offset[k] + h * row_step + w].
template <class A>
struct PaddedSource {
  const A* data;
  index_t image, group;  // strides
  const index_t* offset;
  index_t row_step;
  Size2 grid;

  const A* at(index_t n, index_t g) const { return data + n * image + g * group; }

  // Whole registers are copied: what spills over the end of a run is overwritten by the next, or lies in the
  // panel's spare row. Columns beyond the grid are whatever follows in memory; their sums are not stored.
  void pack(index_t n, index_t g, index_t q, index_t, index_t k, index_t depth, A* out) const {
    constexpr int L = kLanes<A>, P = kPanel<A>;
    struct Run {
      const A* from;
      int at, length;
    } runs[P];
    int count = 0;
    index_t h = q / grid.width, w = q % grid.width;
    for (int at = 0; at < P; ++h, w = 0) {
      index_t here = h + 1 < grid.height ? std::min<index_t>(grid.width - w, P - at) : P - at;
      runs[count++] = {this->at(n, g) + h * row_step + w, at, int(here)};
      at += int(here);
    }
    const index_t* last = offset + k + depth;
    if (count == 1) {
      const A* from = runs[0].from;
      for (const index_t* o = offset + k; o < last; ++o, out += P)
        for (int v = 0; v < P; v += L) store(out + v, load(from + *o + v));
      return;
    }
    for (const index_t* o = offset + k; o < last; ++o, out += P)
      for (int r = 0; r < count; ++r)
        for (int v = 0; v < runs[r].length; v += L) store(out + runs[r].at + v, load(runs[r].from + *o + v));
  }
};

// Positions are the elements of a plane: kernels of one element, stride 1 and no padding.
template <class S>
struct PlaneSource {
  const S* data;
  index_t image, group, plane;

  template <class A>
  void pack(index_t n, index_t g, index_t q, index_t columns, index_t k, index_t depth, A* out) const {
    pack_panel(data + n * image + g * group + k * plane + q, plane, columns, depth, out);
  }
};

// Patches that do not overlap and lie inside: the terms of a kernel row are contiguous, a square of terms and
// positions is transposed in registers.
template <class S>
struct PatchSource {
  const S* data;
  index_t image, group;
  Size2 in, kernel, stride, grid;

  template <class A>
  void pack(index_t n, index_t g, index_t q, index_t columns, index_t k, index_t depth, A* out) const {
    constexpr int L = kLanes<A>, P = kPanel<A>;
    const S* corner[P];
    for (index_t j = 0; j < P; ++j) {
      index_t at = q + std::min(j, columns - 1);
      corner[j] =
          data + n * image + g * group + at / grid.width * stride.height * in.width + at % grid.width * stride.width;
    }
    for (index_t end = k + depth; k < end;) {
      index_t row = k / kernel.width, j = k % kernel.width;
      index_t from = row / kernel.height * in.height * in.width + row % kernel.height * in.width + j;
      int width = int(std::min({index_t(L), kernel.width - j, end - k}));
      for (int v = 0; v < P; v += L) {
        Vec<A> square[L];
        for (int i = 0; i < L; ++i)
          square[i] = width == L ? load(corner[v + i] + from) : load_n(corner[v + i] + from, width);
        transpose<A>(square);
        for (int i = 0; i < width; ++i) store(out + i * P + v, square[i]);
      }
      k += width;
      out += width * P;
    }
  }
};

// Where sums go: row m of a group at row_at[m], or m * plane; position (h, w) at h * row + w * column.
template <class T>
struct Target {
  T* data;
  index_t image, group, plane;
  index_t row, column;
  const index_t* row_at = nullptr;
  Size2 grid;

  bool flat() const { return !row_at && column == 1 && row == grid.width; }
  T* at(index_t n, index_t g, index_t m) const {
    return data + n * image + g * group + (row_at ? row_at[m] : m * plane);
  }
};

template <class T, class Source>
class ConvProduct {
  using A = acc_t<T>;
  static constexpr int L = kLanes<A>, P = kPanel<A>;
  static constexpr bool kInPlace = std::is_same_v<T, A>;

 public:
  index_t groups, rows, depth;
  Source source;
  Target<T> target;
  const A* bias = nullptr;  // [groups * rows]
  bool direct = false;      // few rows over padded images: nothing is packed but a

  int most = 1;                                        // threads there is memory for
  index_t terms = 0, slab = 0, width = 1, panels = 0;  // of a sum, and packed at a time; panels likewise
  index_t block_count = 0, *block_begin = nullptr;     // blocks of rows
  A *left = nullptr, *right = nullptr;

  // block(g, row, height, k, depth, out) packs rows of group g, k-major. A bias is one more term, times 1.
  template <class Block>
  void pack(Job& job, Block block) {
    terms = depth + (bias && !direct ? 1 : 0);
    index_t slabs = kInPlace && !direct ? std::max<index_t>((depth + kConvDepth / 2) / kConvDepth, 1) : 1;
    slab = ceil_div(terms, slabs);
    width = std::clamp<index_t>(kConvDepth * kConvPanels / std::max<index_t>(slab, 1), 1, kConvPanels);
    most = num_threads();
    left = job.take<A>(groups * rows * terms);
    if (!direct) right = job.take<A>(most * right_size());
    RowBlocks blocks(rows);
    block_count = blocks.count;
    block_begin = job.take<index_t>(block_count + 1);
    for (index_t i = 0; i <= block_count; ++i) block_begin[i] = blocks.begin(i);
    auto body = [&](int rank, int threads, Barrier&) {
      Range own = share(groups * slabs * block_count, rank, threads);
      for (index_t u = own.begin; u < own.end; ++u) {
        index_t i = u % block_count, k = u / block_count % slabs * slab, g = u / block_count / slabs;
        index_t d = std::max<index_t>(std::min(slab, terms - k), 0), from_a = std::clamp<index_t>(depth - k, 0, d);
        A* out = packed(g, k, d, i);
        if (from_a > 0) block(g, block_begin[i], height(i), k, from_a, out);
        if (d > from_a) std::copy_n(bias + g * rows + block_begin[i], height(i), out + from_a * height(i));
      }
    };
    job.run(threads_for(double(groups * rows) * double(terms), 2.0e5), body);
  }

  void run(Job& job, index_t images) {
    index_t positions = target.grid.height * target.grid.width;
    if (images * groups * rows * positions == 0) return;
    panels = ceil_div(positions, P);
    int threads = threads_for(double(images * groups * rows) * double(positions) * double(terms + 1), 2.0e5);
    threads = std::min(threads, most);
    if (direct) return run_direct(job, images, threads);
    index_t all = images * groups * panels;
    bool by_rows = threads > 1 && all < 16 * threads && block_count >= 4 * threads;
    auto body = [&](int rank, int n, Barrier& barrier) {
      Range own = by_rows ? Range{0, all} : share(all, rank, n);
      for (index_t u = own.begin; u < own.end;) {
        index_t count = std::min({width, own.end - u, panels - u % panels});
        run_panels(u, count, by_rows, rank, n, barrier);
        u += count;
      }
    };
    job.run(threads, body);
  }

 private:
  // The panels of a slab, a spare row each.
  index_t right_size() const { return width * (slab + 1) * P; }

  A* packed(index_t g, index_t k, index_t d, index_t i) const {
    return left + (g * terms + k) * rows + block_begin[i] * d;
  }
  int height(index_t i) const { return int(block_begin[i + 1] - block_begin[i]); }

  // `count` neighbouring panels of one image and group, all rows or this rank's share of them.
  void run_panels(index_t u, index_t count, bool by_rows, int rank, int threads, Barrier& barrier) {
    index_t first = u % panels, g = u / panels % groups, n = u / panels / groups;
    Range own = by_rows ? share(block_count, rank, threads) : Range{0, block_count};
    Range mine = by_rows ? share(count, rank, threads) : Range{0, count};
    A* pb = by_rows ? right : right + rank * right_size();
    index_t positions = target.grid.height * target.grid.width, k = 0;
    do {
      index_t d = std::min(slab, terms - k), stride = (d + 1) * P;
      for (index_t j = mine.begin; j < mine.end; ++j) {
        index_t q = (first + j) * P, from_source = std::min(d, depth - k);
        source.pack(n, g, q, std::min<index_t>(P, positions - q), k, from_source, pb + j * stride);
        if (from_source < d) std::fill_n(pb + j * stride + from_source * P, P, A(1));
      }
      if (by_rows) barrier.wait();
      for (index_t b = own.begin; b < own.end; b += kGroupBlocks)
        for (index_t j = 0; j < count; ++j)
          for (index_t i = b; i < std::min(b + kGroupBlocks, own.end); ++i)
            store_block(n, g, i, (first + j) * P, packed(g, k, d, i), pb + j * stride, d, k > 0);
      if (by_rows) barrier.wait();
      k += d;
    } while (k < terms);
  }

  void store_block(index_t n, index_t g, index_t i, index_t q, const A* pa, const A* pb, index_t d, bool add) const {
    index_t columns = std::min<index_t>(P, target.grid.height * target.grid.width - q);
    if constexpr (kInPlace)
      if (target.flat() && columns == P)
        return panel_product<A>(height(i), pa, pb, d, target.at(n, g, block_begin[i]) + q, target.plane, add);
    A sums[kMaxTileRows * P];
    panel_product<A>(height(i), pa, pb, d, sums, P, false);
    for (int m = 0; m < height(i); ++m) put(target.at(n, g, block_begin[i] + m), q, columns, sums + m * P, add);
  }

  // Sums of neighbouring positions, from q on, into one row.
  void put(T* out, index_t q, index_t columns, const A* sums, bool add) const {
    if (target.flat()) {
      index_t v = 0;
      for (; v + L <= columns; v += L) store(out + q + v, add ? load(sums + v) + load(out + q + v) : load(sums + v));
      if (int tail = int(columns - v)) {
        Vec<A> x = load(sums + v);
        store_n(out + q + v, add ? x + load_n(out + q + v, tail) : x, tail);
      }
      return;
    }
    index_t w = q % target.grid.width;
    out += q / target.grid.width * target.row + w * target.column;
    for (index_t j = 0; j < columns; ++j, out += target.column, ++w) {
      if (w == target.grid.width) w = 0, out += target.row - target.grid.width * target.column;
      *out = to_storage<T>(add ? sums[j] + from_storage(*out) : sums[j]);
    }
  }

  // ---- few rows: the images are read in place ----

  void run_direct(Job& job, index_t images, int threads) {
    constexpr index_t kColumns = 32 * L;
    index_t chunks = ceil_div(target.grid.width, kColumns), height = target.grid.height;
    auto body = [&](int rank, int n, Barrier&) {
      Range own = share(images * groups * height * chunks, rank, n);
      for (index_t u = own.begin; u < own.end; ++u) {
        index_t w = u % chunks * kColumns, h = u / chunks % height, image = u / chunks / height;
        direct_row(image / groups, image % groups, h, w, std::min(w + kColumns, target.grid.width));
      }
    };
    job.run(threads, body);
  }

  void direct_row(index_t n, index_t g, index_t h, index_t begin, index_t end) const {
    if (rows == 1) direct_tiles<1, 8>(n, g, h, begin, end);
    if (rows == 2) direct_tiles<2, 4>(n, g, h, begin, end);
    if (rows == 3) direct_tiles<3, 3>(n, g, h, begin, end);
  }

  template <int MR, int NV>
  void direct_tiles(index_t n, index_t g, index_t h, index_t begin, index_t end) const {
    for (; end - begin > (NV - NV / 4 - 1) * L; begin += NV * L) direct_tile<MR, NV>(n, g, h, begin, end);
    if constexpr (NV > 1)
      if (begin < end) direct_tiles<MR, NV / 2>(n, g, h, begin, end);
  }

  template <int MR, int NV>
  void direct_tile(index_t n, index_t g, index_t h, index_t w, index_t end) const {
    if constexpr (std::is_same_v<Source, PaddedSource<A>>) {
      const A *from = source.at(n, g) + h * source.row_step + w, *a = packed(g, 0, depth, 0);
      Vec<A> acc[MR][NV];
      for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) acc[m][v] = splat(bias ? bias[g * rows + m] : A{});
      for (index_t k = 0; k < depth; ++k, a += MR)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          Vec<A> x = load(from + source.offset[k] + v * L);
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) acc[m][v] = splat(a[m]) * x + acc[m][v];
        }
      index_t q = h * target.grid.width + w, columns = std::min<index_t>(NV * L, end - w);
      for (int m = 0; m < MR; ++m) {
        A sums[NV * L];
        for (int v = 0; v < NV; ++v) store(sums + v * L, acc[m][v]);
        put(target.at(n, g, m), q, columns, sums, false);
      }
    }
  }
};

}  // namespace seqkern::SEQKERN_ISA
