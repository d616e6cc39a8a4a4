// Backward pass of a recurrent layer over any cell: the forward walk in reverse.
//
// Every thread owns units. At each step it turns dh of its units into gradients of the gate sums (dgates),
// shares them through an operand, and after one barrier multiplies all of them with its columns of W_hh to
// get its part of dh of the step before. Weight gradients are products over all steps after the walk.
//
// A Cell gives
//   kGates, kSums    gates, and gate gradients kept per unit: equal, except that the GRU with reset_after keeps
//                    a fourth, of the recurrent half of n, behind the three of the input side
//   kLate            1 when the last gate multiplies r h instead of h (GRU, reset gate before the product)
//   kProjects        whether there may be a projection: output(site) is h before it
//   operator()(site, dh, d, on)          gradients d[kSums] of the sums; returns the direct part of dh_{t-1}
#pragma once
#include "layer_forward.h"

namespace seqkern::SEQKERN_ISA {

template <class T, class W, class Cell>
class BackwardLayer {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int L = kLanes<A>;
  static constexpr int G = Cell::kGates, X = Cell::kSums;
  static constexpr int kEarly = G - Cell::kLate;

 public:
  explicit BackwardLayer(const RecurrentBackward& params)
      : p(params),
        cell(params),
        N(p.batch),
        H(p.hidden_size),
        S(p.state_size()),
        rows(p.seq_len * N),
        split(layer_parts<A, W>(params)),
        block(split      ? kTilePanel
              : packs(N) ? kPanel<A>
                         : L),
        shared{operand(kEarly * H), operand(kEarly * H)},
        late(operand(projects() ? S : H)) {}

  void run() {
    if (H == 0 || S == 0) return;
    Job job;
    int threads = layer_threads(p.seq_len, N, double(N * G * H) * double(p.input_size + S));
    threads = int(std::min<index_t>(threads, ceil_div(H, block)));
    take(job, threads);
    auto body = [this](int rank, int n, Barrier& barrier) { walk(rank, n, barrier); };
    job.run(threads, body);
    weight_gradients(job);
  }

 private:
  bool projects() const { return Cell::kProjects && p.proj_size; }

  // Columns [u, u + block) of a matrix stored [depth, columns].
  struct Columns {
    const W* raw;
    index_t depth, columns;
    A* packed = nullptr;
    TilePanels tiles{};
  };

  Operand<A> operand(index_t depth) const {
    Operand<A> o(N, depth, split.a);
    o.packed = !split;  // k-major at every batch size: row_product reads it so
    return o;
  }

  void take(Job& job, int threads) {
    for (auto& s : shared) s.take(job);
    dgates = job.take<A>(rows * X * H);
    dbias = job.take<A>(X * H);
    dstate = job.take<A>(N * S);
    products = job.take<A>(threads * std::max<index_t>(N, 1) * (packs(N) ? kPanel<A> : std::max(H, S) + L));
    if (projects() || Cell::kLate) late.take(job);
    if (projects()) {
      dprojected = job.take<A>(rows * S);
      unprojected = job.take<A>(rows * H);
    }
    if (Cell::kLate) reset_h = job.take<A>(rows * H);
    hidden = {static_cast<const W*>(p.weight_hh), kEarly * H, S};
    if (projects()) before = {static_cast<const W*>(p.weight_hr), S, H};
    if (Cell::kLate) before = {static_cast<const W*>(p.weight_hh) + kEarly * H * S, H, H};
    for (auto w : {&hidden, &before})
      if (split && w->raw) {
        w->tiles.depth = w->depth, w->tiles.parts = split.b;
        w->tiles.take(job, ceil_div(w->columns, block));
      }
    if (packs(N) && !split) {
      hidden.packed = job.take<A>(ceil_div(S, block) * hidden.depth * kPanel<A>);
      if (before.raw) before.packed = job.take<A>(ceil_div(H, block) * before.depth * kPanel<A>);
    }
    cell.take(job);
  }

  void pack(const Columns& w, Range own) const {
    for (index_t b = own.begin; b < own.end; ++b)
      if (split) w.tiles.template pack<false>(b, w.raw + b * block, 1, w.columns, w.columns - b * block);
      else
        pack_panel(w.raw + b * block, w.columns, std::min(block, w.columns - b * block), w.depth,
                   w.packed + b * w.depth * kPanel<A>);
  }

  void walk(int rank, int threads, Barrier& barrier) {
    Range own = share(ceil_div(H, block), rank, threads), own_state = share(ceil_div(S, block), rank, threads);
    if (packs(N)) {
      pack(hidden, own_state);
      if (before.raw) pack(before, own);
    }
    TileScope scope{bool(split)};
    auto dh_n = static_cast<const T*>(p.dh_n);
    for_units(own_state, S, [&](index_t n, index_t, int, index_t u, auto lanes) {
      store_n(dstate + n * S + u, load_or_zero(dh_n, n * S + u, lanes), lanes);
    });
    for_units(own, H, [&](index_t n, index_t, int, index_t u, auto lanes) { cell.start(n, u, lanes); });
    index_t begin = std::min(own.begin * block, H), end = std::min(own.end * block, H);
    for (int g = 0; g < X; ++g) std::fill(dbias + g * H + begin, dbias + g * H + end, A{});
    for (index_t s = p.seq_len; s-- > 0;) step(s, rank, own, own_state, barrier);
    barrier.wait();
    if (p.dh0)
      for_units(own_state, S, [&](index_t n, index_t, int, index_t u, auto lanes) {
        store_n(static_cast<T*>(p.dh0) + n * S + u, load_n(dstate + n * S + u, lanes), lanes);
      });
    cell.finish(begin, end);
    write_bias(static_cast<A*>(p.dbias_ih), begin, end, false);
    write_bias(static_cast<A*>(p.dbias_hh), begin, end, true);
  }

  void write_bias(A* out, index_t begin, index_t end, bool hidden_side) const {
    if (!out) return;
    for (int g = 0; g < G; ++g) {
      const A* from = dbias + (hidden_side && g == G - 1 ? X - 1 : g) * H;
      std::copy(from + begin, from + end, out + g * H + begin);
    }
  }

  template <class F>
  SEQKERN_INLINE void for_units(Range own, index_t units, F f) {
    RowBlocks blocks(N);
    for (index_t i = 0; i < blocks.count; ++i)
      for (index_t n = blocks.begin(i); n < blocks.begin(i + 1); ++n)
        for (index_t u = own.begin * block; u < std::min(own.end * block, units); u += L)
          with_lanes<A>(units - u, [&](auto lanes) { f(n, blocks.begin(i), blocks.height(i), u, lanes); });
  }

  // f(row, begin and height of its block, unit, lanes, value) over own columns of a W.
  template <class F>
  SEQKERN_INLINE void products_of(const Operand<A>& a, const Columns& w, Range own, bool backwards, A* out, F f) {
    RowBlocks blocks(N);
    if (!packs(N)) {
      index_t u0 = own.begin * block, u1 = std::min(own.end * block, w.columns);
      if (u0 >= u1) return;
      row_product(N, a.data, w.raw + u0, w.columns, w.depth, u1 - u0, out, u1 - u0);
      for (index_t n = 0; n < N; ++n)
        for (index_t u = u0; u < u1; u += L)
          with_lanes<A>(u1 - u,
                        [&](auto lanes) { f(n, 0, int(N), u, lanes, load_n(out + n * (u1 - u0) + u - u0, lanes)); });
      return;
    }
    if constexpr (std::is_same_v<A, float>)
      if (split) return tile_products_of(a, w, own, backwards, f);
    for (index_t i = own.begin; i < own.end; ++i) {
      index_t b = backwards ? own.begin + own.end - 1 - i : i;
      for (index_t r = 0; r < blocks.count; ++r) {
        index_t begin = blocks.begin(r);
        panel_product<A>(blocks.height(r), a.data + begin * a.depth, w.packed + b * w.depth * kPanel<A>, w.depth, out,
                         kPanel<A>, false);
        for (int m = 0; m < blocks.height(r); ++m)
          for (index_t u = b * block; u < std::min((b + 1) * block, w.columns); u += L)
            with_lanes<A>(w.columns - u, [&](auto lanes) {
              f(begin + m, begin, blocks.height(r), u, lanes, load(out + m * kPanel<A> + u - b * block));
            });
      }
    }
  }

  template <class F>
  void tile_products_of(const Operand<A>& a, const Columns& w, Range own, bool backwards, F f) {
    float out[kTilePanel * kTilePanel];
    bool wide = a.tiles.wide();
    for (index_t i = own.begin; i < own.end; ++i) {
      index_t b = backwards ? own.begin + own.end - 1 - i : i, column = b * block;
      index_t width = std::min(block, w.columns - column);
      for (index_t r = 0; r < a.tiles.panels(); ++r) {
        index_t begin = r * kTilePanel, height = std::min(kTilePanel, N - begin);
        layer_product(a.tiles, r, height, wide, w.tiles, b, width, out, kTilePanel, [&](index_t m, index_t j) {
          float sum;
          row_product(1, a.data + (begin + m) * a.stride(), w.raw + column + j, w.columns, w.depth, 1, &sum, 1);
          return sum;
        });
        for (index_t m = 0; m < height; ++m)
          for (index_t j = 0; j < width; j += L)
            f(begin + m, begin, int(height), column + j, int(std::min<index_t>(L, width - j)),
              load(out + m * kTilePanel + j));
      }
    }
  }

  void step(index_t s, int rank, Range own, Range own_state, Barrier& barrier) {
    index_t t = p.reverse ? p.seq_len - 1 - s : s;
    A* out = products + rank * std::max<index_t>(N, 1) * (packs(N) ? kPanel<A> : std::max(H, S) + L);
    const Operand<A>& gates = shared[s & 1];
    bool backwards = s & 1;
    auto dy = static_cast<const T*>(p.dy);

    auto dh_of = [&](index_t n, index_t u, auto lanes) {
      return load_n(dstate + n * S + u, lanes) + load_or_zero(dy, (t * N + n) * S + u, lanes);
    };
    auto through_cell = [&](index_t n, index_t begin, int height, index_t u, auto lanes, V dh, bool on) {
      V d[X] = {};
      V direct{};
      Site<decltype(lanes)> at{t, n, u, lanes};
      if (on) direct = cell(at, dh, d);
      keep(at, d, begin, height, gates);
      return direct;
    };

    if constexpr (Cell::kProjects)
      if (p.proj_size) {
        for_units(own_state, S, [&](index_t n, index_t begin, int height, index_t u, auto lanes) {
          bool on = active(p.lengths, n, t);
          V dh = on ? dh_of(n, u, lanes) : V{};
          store_n(dprojected + (t * N + n) * S + u, dh, lanes);
          if (on) store_n(dstate + n * S + u, V{}, lanes);
          late.put(n, begin, height, u, dh, lanes);
        });
        barrier.wait();
        products_of(late, before, own, !backwards, out,
                    [&](index_t n, index_t begin, int height, index_t u, auto lanes, V dh) {
                      bool on = active(p.lengths, n, t);
                      store_n(unprojected + (t * N + n) * H + u,
                              on ? cell.output(Site<decltype(lanes)>{t, n, u, lanes}) : V{}, lanes);
                      through_cell(n, begin, height, u, lanes, dh, on);
                    });
      }
    if (!projects()) {
      for_units(own, H, [&](index_t n, index_t begin, int height, index_t u, auto lanes) {
        bool on = active(p.lengths, n, t);
        V direct = through_cell(n, begin, height, u, lanes, dh_of(n, u, lanes), on);
        if (on) store_n(dstate + n * S + u, direct, lanes);
      });
    }
    if constexpr (Cell::kLate) {
      barrier.wait();
      products_of(late, before, own, !backwards, out,
                  [&](index_t n, index_t begin, int height, index_t u, auto lanes, V d_reset_h) {
                    Site<decltype(lanes)> at{t, n, u, lanes};
                    V direct{}, dr{}, reset{};
                    if (active(p.lengths, n, t)) direct = cell.reset(at, d_reset_h, dr, reset);
                    store_n(reset_h + (t * N + n) * H + u, reset, lanes);
                    keep_gate(at, 0, dr);
                    gates.put(n, begin, height, u, dr, lanes);
                    store_n(dstate + n * S + u, load_n(dstate + n * S + u, lanes) + direct, lanes);
                  });
    }
    barrier.wait();
    products_of(gates, hidden, own_state, backwards, out, [&](index_t n, index_t, int, index_t u, auto lanes, V dh) {
      A* to = dstate + n * S + u;
      store_n(to, load_n(to, lanes) + dh, lanes);
    });
  }

  template <class At>
  SEQKERN_INLINE void keep_gate(At at, int g, V d) {
    store_n(dgates + ((at.t * N + at.n) * X + g) * H + at.u, d, at.lanes);
    A* sum = dbias + g * H + at.u;
    store_n(sum, load_n(sum, at.lanes) + d, at.lanes);
  }

  // Gate gradients into the record for the weight gradients, the bias sums and the operand of W_hh.
  template <class At>
  SEQKERN_INLINE void keep(At at, const V (&d)[X], index_t begin, int height, const Operand<A>& gates) {
    for (int g = Cell::kLate; g < X; ++g) keep_gate(at, g, d[g]);
    for (int g = Cell::kLate; g < kEarly; ++g)
      gates.put(at.n, begin, height, g * H + at.u, g == G - 1 ? d[X - 1] : d[g], at.lanes);
    if constexpr (Cell::kLate) late.put(at.n, begin, height, at.u, d[G - 1], at.lanes);
  }

  // dx, dW_ih, dW_hh, dW_hr: products over all steps.
  void weight_gradients(Job& job) {
    index_t I = p.input_size, XH = X * H;
    auto transposed = [&](const A* d, index_t gate) { return Matrix<A>{d + gate * H, 1, XH}; };
    if (p.dx)
      Gemm<A, W, T>(rows, I, G * H, {dgates, XH, 1}, {static_cast<const W*>(p.weight_ih), I, 1}, static_cast<T*>(p.dx),
                    I)
          .in(p.precision)
          .run(job);
    if (p.dweight_ih)
      Gemm<A, T, A>(G * H, I, rows, transposed(dgates, 0), {live_input(job), I, 1}, static_cast<A*>(p.dweight_ih), I)
          .in(p.precision)
          .run(job);
    if (p.dweight_hh) {
      if constexpr (X > G) {
        hidden_gradient(job, 0, 0, G - 1);
        hidden_gradient(job, X - 1, G - 1, 1);
      } else {
        hidden_gradient(job, 0, 0, kEarly);
      }
      if constexpr (Cell::kLate)
        Gemm<A, A, A>(H, H, rows, transposed(dgates, G - 1), {reset_h, H, 1},
                      static_cast<A*>(p.dweight_hh) + kEarly * H * S, S)
            .in(p.precision)
            .run(job);
    }
    if (Cell::kProjects && p.dweight_hr)
      Gemm<A, A, A>(S, H, rows, {dprojected, 1, S}, {unprojected, H, 1}, static_cast<A*>(p.dweight_hr), H)
          .in(p.precision)
          .run(job);
  }

  // x with zeros past every row's length: its gradient there is 0, but 0 times a NaN in the padding is not.
  const T* live_input(Job& job) {
    auto x = static_cast<const T*>(p.x);
    if (!p.lengths) return x;
    T* live = job.take<T>(rows * p.input_size);
    for (index_t t = 0; t < p.seq_len; ++t)
      for (index_t n = 0; n < N; ++n) {
        index_t at = (t * N + n) * p.input_size;
        if (active(p.lengths, n, t)) std::copy_n(x + at, p.input_size, live + at);
        else std::fill_n(live + at, p.input_size, T{});
      }
    return live;
  }

  // Rows of dW_hh of `count` gates from `gate` on: gradients times the state before each step. That is y one
  // step earlier, and h0 at a row's first step (where y holds nothing, or the zeros past the row's length).
  void hidden_gradient(Job& job, int from, int gate, int count) {
    A* out = static_cast<A*>(p.dweight_hh) + gate * H * S;
    index_t XH = X * H, steps = std::max<index_t>(rows - N, 0);
    const A* d = dgates + from * H + (p.reverse ? 0 : N * XH);
    const T* y = static_cast<const T*>(p.y) + (p.reverse ? N * S : 0);
    Gemm<A, T, A>(count * H, S, steps, {d, 1, XH}, {y, S, 1}, out, S).in(p.precision).run(job);
    if (!p.h0 || rows == 0) return;
    A* first = job.take<A>(N * count * H);
    for (index_t n = 0; n < N; ++n) {
      index_t length = p.lengths ? p.lengths[n] : p.seq_len, t = p.reverse ? length - 1 : 0;
      if (length > 0) std::copy_n(dgates + (t * N + n) * XH + from * H, count * H, first + n * count * H);
      else std::fill_n(first + n * count * H, count * H, A{});
    }
    Gemm<A, T, A>(count * H, S, N, {first, 1, count * H}, {static_cast<const T*>(p.h0), S, 1}, out, S, nullptr, true)
        .in(p.precision)
        .run(job);
  }

  const RecurrentBackward& p;
  Cell cell;
  index_t N, H, S, rows;
  Parts split;
  index_t block;
  Operand<A> shared[2], late;
  Columns hidden{}, before{};
  A *dgates = nullptr, *dbias = nullptr, *dstate = nullptr, *products = nullptr;
  A *dprojected = nullptr, *unprojected = nullptr, *reset_h = nullptr;
};

}  // namespace seqkern::SEQKERN_ISA
