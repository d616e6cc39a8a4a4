// The weight gradient of a convolution, a product over positions:
//
//   dweight[g, o, k] (+)= sum over n, q of dy[n, g, o, q] images[n, g, offset[k] + place(q)]
//
// Threads split the panels of k of all groups, or the rows o when panels are few; every thread walks the images
// and positions in order, so the sums are the same for any number of threads.
#pragma once
#include "conv_product.h"

namespace seqkern::SEQKERN_ISA {

template <class T>
class ConvWeightGradient {
  using A = acc_t<T>;
  static constexpr int L = kLanes<A>, P = kPanel<A>;

 public:
  index_t groups, rows, depth;  // per group: output channels, weights of one
  PaddedSource<A> source;       // of as many images as a run has
  A* dweight;

  int most = 1;  // threads there is memory for
  index_t panels = 0;
  A *left = nullptr, *right = nullptr;

  void take(Job& job) {
    most = num_threads();
    panels = ceil_div(depth, P);
    left = job.take<A>(most * left_size());
    right = job.take<A>(most * kConvPanels * kConvDepth * P);
  }

  // Adds to dweight, or begins it.
  void run(Job& job, const T* dy, index_t images, bool add) {
    index_t positions = source.grid.height * source.grid.width;
    double work = double(images * groups * rows) * double(positions) * double(depth);
    int threads = std::min(threads_for(work, 2.0e5), most);
    if (rows <= kDirectRows) return run_direct(job, dy, images, add, threads);
    index_t blocks = RowBlocks(rows).count;
    bool by_rows = groups * panels < 4 * threads && blocks > panels;
    auto body = [&](int rank, int n, Barrier&) {
      Range own = share(groups * (by_rows ? blocks : panels), rank, n);
      for (index_t u = own.begin; u < own.end;) {
        index_t all = by_rows ? blocks : panels, begin = u % all, count = std::min(own.end - u, all - begin);
        Range part{begin, begin + count};
        for (index_t j = by_rows ? 0 : begin, end = by_rows ? panels : part.end; j < end; j += kConvPanels)
          multiply(dy, images, u / all, by_rows ? part : Range{0, blocks}, {j, std::min(j + kConvPanels, end)}, add,
                   rank);
        u += count;
      }
    };
    job.run(threads, body);
  }

 private:
  index_t left_size() const { return kGroupBlocks * kMaxTileRows * kConvDepth; }

  void multiply(const T* dy, index_t images, index_t g, Range block, Range panel, bool add, int rank) {
    RowBlocks blocks(rows);
    A *pa = left + rank * left_size(), *pb = right + rank * kConvPanels * kConvDepth * P;
    index_t positions = source.grid.height * source.grid.width;
    for (index_t n = 0; n < images; ++n)
      for (index_t q = 0; q < positions; q += kConvDepth) {
        index_t d = std::min(kConvDepth, positions - q);
        const T* from = dy + ((n * groups + g) * rows) * positions + q;
        for (index_t j = panel.begin; j < panel.end; ++j) pack_terms(n, g, j * P, q, d, pb + (j - panel.begin) * d * P);
        for (index_t b = block.begin; b < block.end; b += kGroupBlocks) {
          index_t end = std::min(b + kGroupBlocks, block.end), first = blocks.begin(b);
          for (index_t i = b; i < end; ++i)
            pack_rows(from + blocks.begin(i) * positions, positions, blocks.height(i), d,
                      pa + (blocks.begin(i) - first) * d);
          for (index_t j = panel.begin; j < panel.end; ++j)
            for (index_t i = b; i < end; ++i)
              add_block(g, blocks.begin(i), blocks.height(i), j * P, pa + (blocks.begin(i) - first) * d,
                        pb + (j - panel.begin) * d * P, d, add || n || q);
        }
      }
  }

  // out[p][j] = term k + j at position q + p, by squares of positions of one grid row.
  void pack_terms(index_t n, index_t g, index_t k, index_t q, index_t d, A* out) const {
    const A* image = source.at(n, g);
    index_t width = source.grid.width, h = q / width, w = q % width;
    for (index_t p = 0; p < d; ++h, w = 0)
      for (index_t end = p + std::min(width - w, d - p); p < end;) {
        int here = int(std::min<index_t>(L, end - p));
        const A* from = image + h * source.row_step + w;
        for (int v = 0; v < P; v += L) {
          Vec<A> square[L];
          for (int j = 0; j < L; ++j) square[j] = load(from + source.offset[std::min(k + v + j, depth - 1)]);
          transpose<A>(square);
          for (int i = 0; i < here; ++i) store(out + (p + i) * P + v, square[i]);
        }
        p += here;
        w += here;
      }
  }

  void add_block(index_t g, index_t m, int mr, index_t k, const A* pa, const A* pb, index_t d, bool add) {
    A* out = dweight + (g * rows + m) * depth + k;
    index_t columns = std::min<index_t>(P, depth - k);
    if (columns == P) return panel_product<A>(mr, pa, pb, d, out, depth, add);
    A sums[kMaxTileRows * P];
    panel_product<A>(mr, pa, pb, d, sums, P, false);
    for (int i = 0; i < mr; ++i)
      for (index_t v = 0; v < columns; v += L) {
        int c = int(std::min<index_t>(L, columns - v));
        Vec<A> x = load(sums + i * P + v);
        store_n(out + i * depth + v, add ? x + load_n(out + i * depth + v, c) : x, c);
      }
  }

  // Few output channels: kTaps weights of one channel at a time, lanes along the columns.
  void run_direct(Job& job, const T* dy, index_t images, bool add, int threads) {
    constexpr int kTaps = 4;
    index_t parts = ceil_div(depth, kTaps);
    auto body = [&](int rank, int n, Barrier&) {
      Range own = share(groups * rows * parts, rank, n);
      for (index_t u = own.begin; u < own.end; ++u) {
        index_t channel = u / parts, k = u % parts * kTaps;
        Vec<A> acc[kTaps] = {};
        for (index_t i = 0; i < images; ++i)
          dot_taps(dy + i * groups * rows * source.grid.height * source.grid.width, i, channel, k, acc);
        for (int t = 0; t < kTaps && k + t < depth; ++t) {
          A* out = dweight + channel * depth + k + t;
          *out = (add ? *out : A{}) + sum_lanes(acc[t]);
        }
      }
    };
    job.run(threads, body);
  }

  template <int N>
  void dot_taps(const T* dy, index_t n, index_t channel, index_t k, Vec<A> (&acc)[N]) const {
    index_t width = source.grid.width, height = source.grid.height;
    const A* image = source.at(n, channel / rows);
    const A* tap[N];
    for (int t = 0; t < N; ++t) tap[t] = image + source.offset[std::min(k + t, depth - 1)];
    dy += channel * height * width;
    for (index_t h = 0; h < height; ++h, dy += width) {
      auto step = [&](index_t w, auto read) {
        Vec<A> g = read(dy + w);
        for (int t = 0; t < N; ++t) acc[t] = g * read(tap[t] + h * source.row_step + w) + acc[t];
      };
      index_t w = 0;
      for (; w + L <= width; w += L) step(w, [](const auto* p) { return load(p); });
      if (int tail = int(width - w)) step(w, [tail](const auto* p) { return load_n(p, tail); });
    }
  }
};

}  // namespace seqkern::SEQKERN_ISA
