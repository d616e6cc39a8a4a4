// Forward pass of a recurrent layer over any cell.
//
// Every thread owns blocks of hidden units with all their gates. It multiplies x by its part of W_ih for a
// chunk of steps at a time, then walks the steps: its part of h W_hh', the cell on what is still in L1, the
// new h into the operand of the next step, one barrier. The operand is double-buffered, so that one barrier
// a step is enough. Blocks are walked forwards and backwards in turn: what is still in the cache comes first.
//
// Rows stand in the operands in descending order of length, so that those which take part in a step are its first
// ones, and neither products nor cells are computed for the others.
//
// A Cell gives
//   kGates, kLate          number of gates, and how many of them need a second product in the step (GRU with
//                          the reset gate before it)
//   kProjects              whether there may be a projection
//   kFolded                leading gates whose bias_hh can be added to the input side
//   operator()(...)        the cell at one row and one register of units
#pragma once
#include <algorithm>

#include "layer.h"
#include "row_order.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr index_t kStreamSteps = 16;

template <class T, class W, class Cell>
class ForwardLayer {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int L = kLanes<A>;
  static constexpr int G = Cell::kGates;
  static constexpr int kEarly = G - Cell::kLate;

 public:
  explicit ForwardLayer(const RecurrentForward& params)
      : p(params),
        cell(params),
        N(p.batch),
        H(p.hidden_size),
        S(p.state_size()),
        split(layer_parts<T, W>(params)),
        inner(layer_parts<A, W>(params)),
        block(on_tiles() ? kTilePanel : unit_block<A>(N)),
        input{static_cast<const W*>(p.weight_ih), H, p.input_size, G, block, p.frozen_ih},
        hidden{static_cast<const W*>(p.weight_hh), H, S, G, block, p.frozen_hh},
        projection{static_cast<const W*>(p.weight_hr), S, H, 1, block, p.frozen_hr},
        state{Operand<A, W>(N, S, on_tiles() ? split.a : 0, kDotPairs<T, W>),
              Operand<A, W>(N, S, on_tiles() ? split.a : 0, kDotPairs<T, W>)},
        full(N, H, on_tiles() ? inner.a : 0),
        single(p.seq_len == 1 && !packs(N)) {}

  void run() {
    if (N == 0 || S == 0) return;
    Job job;
    odd = job.odd();
    int threads = layer_threads(p.seq_len, N, double(N * G * H) * double(p.input_size + S));
    threads = int(std::min<index_t>(threads, std::max<index_t>(hidden.blocks(), 1)));
    take(job, threads);
    auto body = [this](int rank, int n, Barrier& barrier) { walk(rank, n, barrier); };
    job.run(threads, body);
    for (auto w : {&input, &hidden, &projection}) w->keep();
  }

 private:
  bool projects() const { return Cell::kProjects && p.proj_size; }

  // All products of the layer or none.
  bool on_tiles() const { return split && (inner || !(projects() || Cell::kLate)); }

  void take(Job& job, int threads) {
    order.take(job, N, p.seq_len, p.lengths);
    bool pack = packs(N);
    index_t wanted = std::clamp<index_t>((index_t(1) << 17) / std::max<index_t>(p.input_size, 1), 32, 512);
    chunk = std::clamp<index_t>(wanted / N, 1, std::max<index_t>(p.seq_len, 1));
    for (auto& s : state) s.take(job);
    bias = job.take<A>(hidden.blocks() * G * block);
    gate_sums = job.take<A>(chunk * N * hidden.blocks() * G * block);
    if (pack) {
      int parts = on_tiles() ? split.b : 0;
      for (auto w : {&input, &hidden, &projection})
        if (w == &projection && !projects()) continue;
        else if (p.seq_len == 1 && !parts && !w->frozen) w->take_passing(job, threads);
        else w->take(job, parts);
      if (parts) tiled_x = job.take<Half>(threads * TileRows{chunk * N, p.input_size, split.a}.size());
      else packed_x = job.take<A>(threads * chunk * N * p.input_size);
    } else {
      bool many = p.seq_len >= kStreamSteps;
      if (input.frozen) input.take_stream(job);
      else if (many) input_stream = job.take<W>(threads * stream_size<W>(p.input_size));
      if (hidden.frozen || many) hidden.take_stream(job);
      if (projects() && (projection.frozen || many)) projection.take_stream(job);
    }
    if (!pack && !kInPlace) {
      split_x = Operand<A, W>(chunk * N, p.input_size);
      split_x.packed = false;
      split_x.data = job.take<A>(threads * split_x.size());
      std::memset(split_x.data, 0, std::size_t(threads * split_x.size()) * sizeof(A));
    }
    if (p.lengths) live_x = job.take<T>(threads * chunk * N * p.input_size);
    products = job.take<A>(threads * product_size());
    if (projects() || Cell::kLate) full.take(job);
    cell.take(job);
  }

  // Few rows: of all own blocks, else of one.
  index_t product_size() const {
    return N * G * block * (packs(N) ? 1 : std::max(hidden.blocks(), projection.blocks()));
  }

  void walk(int rank, int threads, Barrier& barrier) {
    Range own = share(hidden.blocks(), rank, threads), own_state = share(projection.blocks(), rank, threads);
    input.pack(own);
    hidden.pack(own);
    projection.pack(own_state);
    TileScope scope(on_tiles());
    start(own, own_state);
    if (p.lengths) clear_padding(own, own_state);
    barrier.wait();
    for (index_t s = 0; s < p.seq_len; ++s) {
      if (s % chunk == 0 && !single) project_input(s, rank, own);
      step(s, rank, own, own_state, barrier);
    }
  }

  index_t time(index_t s) const { return p.reverse ? p.seq_len - 1 - s : s; }

  void start(Range own, Range own_state) {
    for_rows(own_state, S, [&](index_t row, index_t begin, int height, index_t u, auto lanes) {
      index_t n = order.row[row];
      V h = load_or_zero(static_cast<const T*>(p.h0), n * S + u, lanes);
      store_n(h_n() + n * S + u, h, lanes);
      for (int i = 0; i < (p.lengths ? 2 : 1); ++i)  // a row may start at any step
        state[i].put(row, begin, height, u, h, lanes);
    });
    if (p.c_n)
      for_rows(own, H, [&](index_t n, index_t, int, index_t u, auto lanes) {
        store_n(static_cast<A*>(p.c_n) + n * H + u, load_or_zero(static_cast<const A*>(p.c0), n * H + u, lanes), lanes);
      });
    auto b_ih = static_cast<const A*>(p.bias_ih), b_hh = static_cast<const A*>(p.bias_hh);
    for (index_t b = own.begin; b < own.end; ++b)
      for (int g = 0; g < G; ++g)
        for (index_t j = 0; j < block; j += L) {
          index_t u = b * block + j;
          int lanes = int(std::clamp<index_t>(H - u, 0, L));
          V sum = load_or_zero(b_ih, g * H + u, lanes);
          if (g < Cell::kFolded) sum = sum + load_or_zero(b_hh, g * H + u, lanes);
          store(bias + (b * G + g) * block + j, sum);
        }
  }

  // What a row's steps past its length leave behind.
  void clear_padding(Range own, Range own_state) {
    auto units = [&](Range r, index_t all) {
      return Range{std::min(r.begin * block, all), std::min(r.end * block, all)};
    };
    Range u = units(own, H), v = units(own_state, S);
    auto clear = [](auto* array, index_t at, Range r) {
      if (array) std::fill(array + at + r.begin, array + at + r.end, std::decay_t<decltype(*array)>{});
    };
    for (index_t n = 0; n < N; ++n)
      for (index_t t = p.lengths[n]; t < p.seq_len; ++t) {
        index_t row = t * N + n;
        clear(static_cast<T*>(p.y), row * S, v);
        for (int g = 0; g < G; ++g) clear(static_cast<A*>(p.gates), (row * G + g) * H, u);
        clear(static_cast<A*>(p.cells), row * H, u);
        clear(static_cast<A*>(p.hidden_n), row * H, u);
      }
  }

  // f(row, begin and height of its row block, unit, lanes) over own units of every row.
  template <class F>
  SEQKERN_INLINE void for_rows(Range own, index_t units, F f) {
    RowBlocks blocks(N);
    for (index_t i = 0; i < blocks.count; ++i)
      for (index_t n = blocks.begin(i); n < blocks.begin(i + 1); ++n)
        for (index_t u = own.begin * block; u < std::min(own.end * block, units); u += L)
          with_lanes<A>(units - u, [&](auto lanes) { f(n, blocks.begin(i), blocks.height(i), u, lanes); });
  }

  // Rows of x as few rows are multiplied: where they lie, or split where W is bf16.
  static constexpr bool kInPlace = kDotParts<W> == 1 || kDotPairs<T, W>;
  struct FewRows {
    const std::conditional_t<kInPlace, T, A>* data;
    index_t stride;
  };
  FewRows few_rows(const T* x, index_t rows, int rank) const {
    if constexpr (kInPlace) return {x, p.input_size};
    else {
      A* split_rows_of = split_x.data + rank * split_x.size();
      split_rows<W>(rows, x, p.input_size, split_rows_of, split_x.stride());
      return {split_rows_of, split_x.stride()};
    }
  }

  // The lowest t of the chunk that step s is in, how many steps it has, and how many rows take part in them.
  index_t first_time(index_t s) const {
    return p.reverse ? p.seq_len - s / chunk * chunk - chunk_steps(s) : s / chunk * chunk;
  }
  index_t chunk_steps(index_t s) const { return std::min(chunk, p.seq_len - s / chunk * chunk); }
  index_t chunk_rows(index_t s) const { return order.count(first_time(s), first_time(s) + chunk_steps(s)); }

  // Those rows of x, in order of t and then as in the operands.
  const T* chunk_x(index_t s, int rank) const {
    index_t t = first_time(s), I = p.input_size;
    auto x = static_cast<const T*>(p.x);
    if (!p.lengths) return x + t * N * I;
    T *rows = live_x + rank * chunk * N * I, *to = rows;
    for (index_t end = t + chunk_steps(s); t < end; ++t)
      for (index_t r = 0; r < order.live[t]; ++r, to += I) std::copy_n(x + (t * N + order.row[r]) * I, I, to);
    return rows;
  }

  // gate_sums[block][chunk row][gate][unit] = x W_ih' for the chunk that starts at step s.
  void project_input(index_t s, int rank, Range own) {
    index_t I = p.input_size, rows = chunk_rows(s);
    const T* x = chunk_x(s, rank);
    if (!packs(N)) {
      FewRows few = few_rows(x, rows, rank);
      W* scratch = input_stream ? input_stream + rank * stream_size<W>(I) : nullptr;
      for (index_t b = own.begin; b < own.end; ++b) input.dot(few.data, few.stride, rows, b, 0, G, sums(b, 0), scratch);
      return;
    }
    if (on_tiles()) return project_tiles(x, rows, rank, own);
    A* packed = packed_x + rank * chunk * N * I;
    RowBlocks blocks(rows);
    for (index_t i = 0; i < blocks.count; ++i)
      pack_rows(x + blocks.begin(i) * I, I, blocks.height(i), I, packed + blocks.begin(i) * I);
    GateWeight<A, W> weight = input.of(rank);
    for (index_t b = own.begin; b < own.end; ++b) {
      weight.meet(b, 0, G);
      for (int g = 0; g < G; ++g)
        for (index_t i = 0; i < blocks.count; ++i)
          weight.packed_product(packed + blocks.begin(i) * I, blocks.height(i), b, g, g + 1, sums(b, blocks.begin(i)));
    }
  }

  void project_tiles(const T* x, index_t rows, int rank, Range own) {
    index_t I = p.input_size;
    TileRows a{rows, I, split.a, tiled_x + rank * TileRows{chunk * N, I, split.a}.size()};
    for (index_t i = 0; i < a.panels(); ++i)
      pack_tiles<true, true>(x + i * kTilePanel * I, I, 1, rows - i * kTilePanel, I, a.parts, a.panel(i));
    bool wide = !kPlainTiles<T, W> && a.wide();
    for (index_t b = own.begin; b < own.end; ++b)
      for (index_t i = 0; i < a.panels(); ++i)
        input.tile_product(a, i, wide, x + i * kTilePanel * I, I, b, 0, G, sums(b, i * kTilePanel));
  }

  A* sums(index_t b, index_t row) const { return gate_sums + (b * chunk * N + row) * G * block; }
  T* h_n() const { return static_cast<T*>(p.h_n); }

  // Rows of the operands that are computed together: `live` of `height` from `begin` on.
  struct Rows {
    index_t begin;
    int height, live;
  };

  // f(block of units, rows, products) over own blocks and live rows, each with gates [first, last) of a W'; direction
  // alternates with the step. Few rows: `beside` is done after each block, and the cells after all of them, for a cell
  // is one long chain of operations and the next block's reads would wait behind it.
  template <class F, class Beside>
  SEQKERN_INLINE void products_of(const Operand<A, W>& a, const GateWeight<A, W>& w, index_t rows, Range own,
                                  bool backwards, int first, int last, A* out, F f, Beside beside) {
    RowBlocks blocks(N);
    bool wide = a.tiles && (sizeof(T) == sizeof(A) || &a == &full) && a.tiles.wide();
    auto each_block = [&](auto g) {
      for (index_t i = own.begin; i < own.end; ++i) g(backwards ? own.begin + own.end - 1 - i : i);
    };
    if (a.tiles) {
      each_block([&](index_t b) {
        for (index_t begin = 0; begin < rows; begin += kTilePanel) {
          w.tile_product(a.tiles, begin / kTilePanel, wide, a.data + begin * a.stride(), a.stride(), b, first, last,
                         out);
          f(b, Rows{begin, int(std::min(kTilePanel, N - begin)), int(std::min(kTilePanel, rows - begin))}, out);
        }
      });
    } else if (a.packed) {
      each_block([&](index_t b) {
        w.meet(b, first, last);
        for (index_t r = 0; r < blocks.count && blocks.begin(r) < rows; ++r) {
          index_t begin = blocks.begin(r);
          int height = blocks.height(r);
          w.packed_product(a.data + begin * a.depth, height, b, first, last, out);
          f(b, Rows{begin, height, int(std::min<index_t>(height, rows - begin))}, out);
        }
      });
    } else {
      auto products_at = [&](index_t b) { return out + (b - own.begin) * N * w.gates * block; };
      each_block([&](index_t b) {
        if (!a.in_pairs()) w.dot(a.data, a.stride(), rows, b, first, last, products_at(b));
        if constexpr (kDotPairs<T, W>)
          if (a.in_pairs()) w.dot(a.pairs(), a.stride(), rows, b, first, last, products_at(b));
        beside(b);
      });
      for (index_t b = own.begin; b < own.end; ++b) f(b, Rows{0, int(N), int(rows)}, products_at(b));
    }
  }

  // f(site, row, x-side sums, h-side sums, bias) at every register of units of some rows.
  template <class F>
  SEQKERN_INLINE void cells_of(index_t s, index_t b, const Rows& rows, const A* out, F f) {
    index_t t = time(s), first = order.count(first_time(s), t);
    for (int r = 0; r < rows.live; ++r) {
      index_t row = rows.begin + r;
      const A* x = sums(b, first + row);
      for (index_t j = 0; j < block && b * block + j < H; j += L)
        with_lanes<A>(H - b * block - j, [&](auto lanes) {
          f(Site<decltype(lanes)>{t, order.row[row], b * block + j, lanes}, row, x + j, out + r * G * block + j,
            bias + b * G * block + j);
        });
    }
  }

  void step(index_t s, int rank, Range own, Range own_state, Barrier& barrier) {
    const Operand<A, W>&now = state[s & 1], &next = state[(s + 1) & 1];
    A* out = products + rank * product_size();
    bool backwards = (s & 1) != odd;
    index_t t = time(s), rows = order.live[t];
    FewRows inputs{};
    if (single) inputs = few_rows(chunk_x(s, rank), rows, rank);
    auto input_products = [&](index_t b) {
      if (single) input.dot(inputs.data, inputs.stride, rows, b, 0, G, sums(b, 0));
    };
    auto nothing = [](index_t) {};

    products_of(
        now, hidden.of(rank), rows, own, backwards, 0, kEarly, out,
        [&](index_t b, const Rows& at_rows, const A* products) {
          cells_of(s, b, at_rows, products, [&](auto at, index_t row, const A* x, const A* h, const A* bias_at) {
            V sum[G];
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) sum[g] = load(x + g * block) + load(bias_at + g * block);
            if constexpr (Cell::kLate) {
              full.put(row, at_rows.begin, at_rows.height, at.u, cell.early(at, sum, h, block), at.lanes);
            } else {
              V value = cell(at, sum, h, block);
              if (projects()) full.put(row, at_rows.begin, at_rows.height, at.u, value, at.lanes);
              else finish(at, row, at_rows, value, next);
            }
          });
        },
        input_products);
    if (Cell::kLate || projects()) barrier.wait();
    if constexpr (Cell::kLate) {
      products_of(
          full, hidden.of(rank), rows, own, !backwards, kEarly, G, out,
          [&](index_t b, const Rows& at_rows, const A* products) {
            cells_of(s, b, at_rows, products, [&](auto at, index_t row, const A* x, const A* h, const A* bias_at) {
              V sum = load(x + kEarly * block) + load(bias_at + kEarly * block) + load(h + kEarly * block);
              finish(at, row, at_rows, cell.late(at, sum), next);
            });
          },
          nothing);
    } else if constexpr (Cell::kProjects) {
      if (p.proj_size)
        products_of(
            full, projection.of(rank), rows, own_state, !backwards, 0, 1, out,
            [&](index_t b, const Rows& at_rows, const A* products) {
              for (int r = 0; r < at_rows.live; ++r)
                for (index_t j = 0; j < block && b * block + j < S; j += L)
                  with_lanes<A>(S - b * block - j, [&](auto lanes) {
                    index_t row = at_rows.begin + r;
                    Site<decltype(lanes)> at{t, order.row[row], b * block + j, lanes};
                    finish(at, row, at_rows, load(products + r * block + j), next);
                  });
            },
            nothing);
    }
    barrier.wait();
  }

  // The new state of a row: into y, h_n and the operand of the next step.
  template <class At>
  SEQKERN_INLINE void finish(At at, index_t row, const Rows& rows, V h, const Operand<A, W>& next) {
    T* last = h_n() + at.n * S + at.u;
    if (p.y) store_n(static_cast<T*>(p.y) + (at.t * N + at.n) * S + at.u, h, at.lanes);
    store_n(last, h, at.lanes);
    if (sizeof(T) < sizeof(A)) h = load_n(last, at.lanes);  // as stored: what a later call would see
    next.put(row, rows.begin, rows.height, at.u, h, at.lanes);
  }

  const RecurrentForward& p;
  Cell cell;
  index_t N, H, S;
  Parts split, inner;  // of x and h with W, of r h or the unprojected h with W
  index_t block;
  GateWeight<A, W> input, hidden, projection;
  Operand<A, W> state[2], full, split_x{0, 0};
  bool single;       // one step of few rows: both weights are read once, block by block
  bool odd = false;  // Job::odd
  index_t chunk = 1;
  RowOrder order;
  A *bias = nullptr, *gate_sums = nullptr, *packed_x = nullptr, *products = nullptr;
  T* live_x = nullptr;
  W* input_stream = nullptr;
  Half* tiled_x = nullptr;
};

}  // namespace seqkern::SEQKERN_ISA
