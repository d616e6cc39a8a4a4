// Backward pass of a recurrent layer over any cell, on the GPU: the forward walk in reverse, then the weight
// gradients as products over all steps.
//
// At each step a block turns dh of its units into gradients of the gate sums (dgates), shares them, and multiplies
// all of them with its columns of W_hh, transposed once before, to get its part of dh of the step before.
//
// A Cell gives
//   kGates, kSums, kLate       as on the CPU: gates, gate gradients kept per unit, and whether the last gate
//                              multiplies r h instead of h
//   read(site)                 what the forward pass saved
//   operator()(saved, dh, dc, d)   gradients d[kSums] of the sums; returns the direct part of dh_{t-1}. With kCarries
//                              dc, the gradient of a state of its own, runs along; operator()(site, dh, d) keeps it
//   start, finish, output, reset
#pragma once
#include "layer_backward_mma.cuh"
#include "layer_forward.cuh"

namespace seqkern::cuda {

template <class A>
struct BackwardArguments {
  RecurrentBackward p;
  Plan plan = {};
  A* dgates = nullptr;                              // [T, N, kSums*H]
  A* dstate = nullptr;                              // [N, S], running
  A *dprojected = nullptr, *unprojected = nullptr;  // with a projection: dh [T, N, S], h before it [T, N, H]
  const void *hidden = nullptr, *before = nullptr;  // W_hh' of the early gates [S, kEarly*H]; W_hr' [H, S] or
                                                    // W_hn' [H, H] of the late gate
  A* exchange = nullptr;
  void* parts = nullptr;  // dgates in 16 bit, [up to 3, part] (gemm_mma.cuh)
  index_t part = 0;
};

template <class T, class W, class Cell>
struct BackwardWalk {
  using A = acc_t<T>;
  static constexpr int G = Cell::kGates, X = Cell::kSums, kEarly = G - Cell::kLate;

  const BackwardArguments<A>& a;
  const RecurrentBackward& p;
  const Cell& cell;
  index_t H, S, n;
  int row;
  bool there;
  Range units, states;
  Exchange<A> gates, late;
  GateRows<W> hidden, before;

  SEQKERN_INLINE BackwardWalk(const BackwardArguments<A>& arguments, const Cell& c, unsigned char* shared)
      : a(arguments), p(a.p), cell(c), H(p.hidden_size), S(p.state_size()), units(own(H)), states(own(S)) {
    index_t cluster = blockIdx.x / unsigned(cluster_size());
    row = lane_id() % kRows;
    n = cluster * kRows + row;
    there = lane_id() < kRows && n < p.batch;
    auto barriers = reinterpret_cast<std::uint64_t*>(shared);
    unsigned char* off_chip = reinterpret_cast<unsigned char*>(a.exchange) + cluster * index_t(bytes(p));
    Pieces pieces{a.plan.exchange_on_chip ? shared : off_chip, a.plan.exchange_on_chip ? kBarrierBytes : 0};
    index_t rows = min_of(kRows, p.batch - cluster * kRows);
    gates.place(pieces, barriers, 2, kEarly * H, rows, a.plan.exchange_on_chip);
    if (has_before(p)) late.place(pieces, barriers, 1, late_width(p), rows, a.plan.exchange_on_chip);
    hidden = {static_cast<const W*>(a.hidden), S, kEarly * H};
    before = {static_cast<const W*>(a.before), H, late_width(p)};
    if (!a.plan.weights_on_chip) return;
    if (!a.plan.exchange_on_chip) pieces = {shared, kBarrierBytes};
    hidden = hidden.on_chip(1, states, pieces);
    if (has_before(p)) before = before.on_chip(1, units, pieces);
  }

  static __host__ __device__ bool has_before(const RecurrentBackward& p) { return p.proj_size || Cell::kLate; }
  static __host__ __device__ index_t late_width(const RecurrentBackward& p) {
    return p.proj_size ? p.proj_size : p.hidden_size;
  }
  static __host__ __device__ std::size_t bytes(const RecurrentBackward& p) {
    std::size_t rows = kRows * sizeof(A);
    return padded(2 * rows * kEarly * p.hidden_size) + (has_before(p) ? padded(rows * late_width(p)) : 0);
  }
  static std::size_t weight_bytes(const RecurrentBackward& p, int cluster) {
    index_t H = p.hidden_size;
    std::size_t own_hidden = padded(std::size_t(ceil_div(p.state_size(), cluster) * kEarly * H) * sizeof(W));
    return own_hidden + (has_before(p) ? padded(std::size_t(ceil_div(H, cluster) * late_width(p)) * sizeof(W)) : 0);
  }

  SEQKERN_INLINE void run() {
    start();
    if (gates.full && idle(units, states)) return;
    for (index_t s = p.seq_len; s-- > 0;) step(p.seq_len - 1 - s, p.reverse ? p.seq_len - 1 - s : s);
    for_units(states, [&](index_t u) {
      if (there && p.dh0) store(static_cast<T*>(p.dh0) + n * S + u, a.dstate[n * S + u]);
    });
    for_units(units, [&](index_t u) {
      if (there) cell.finish({0, n, u});
    });
  }

  SEQKERN_INLINE void start() {
    for_units(states, [&](index_t u) {
      if (there) a.dstate[n * S + u] = load_or_zero(static_cast<const T*>(p.dh_n), n * S + u);
      if (lane_id() < kRows && p.proj_size) late.set(0, row, u, A(0));
    });
    for_units(units, [&](index_t u) {
      if (there) cell.start({0, n, u});
      if (lane_id() >= kRows) return;
      for (int g = 0; g < kEarly; ++g)
        for (int i = 0; i < 2; ++i) gates.set(i, row, g * H + u, A(0));
      if (Cell::kLate) late.set(0, row, u, A(0));
    });
    copies_arrived();
    sync_cluster();
  }

  // The i-th step backwards, at time t.
  SEQKERN_INLINE void step(index_t i, index_t t) {
    int now = int(i & 1);
    bool on = there && active(p.lengths, n, t);
    if (p.proj_size) {
      for_units(states, [&](index_t u) {
        if (!there) return;
        A dh = on ? dh_of(t, u) : A(0);
        a.dprojected[(t * p.batch + n) * S + u] = dh;
        if (on) a.dstate[n * S + u] = 0;
        late.put(0, row, u, dh);
      });
      late.wait(0, i);
      for_units(units, [&](index_t u) {
        A dh = product(before.row(0, u), late.buffer(0), late.width);
        if (!there) return;
        Site at{t, n, u};
        a.unprojected[(t * p.batch + n) * H + u] = on ? cell.output(at) : A(0);
        through_cell(at, dh, on, now);
      });
    } else {
      for_units(units, [&](index_t u) {
        if (!there) return;
        A direct = through_cell({t, n, u}, dh_of(t, u), on, now);
        if (on) a.dstate[n * S + u] = direct;
      });
    }
    if constexpr (Cell::kLate) {
      late.wait(0, i);
      for_units(units, [&](index_t u) {
        A d_reset_h = product(before.row(0, u), late.buffer(0), late.width), dr = 0;
        if (!there) return;
        if (on) a.dstate[n * S + u] += cell.reset({t, n, u}, d_reset_h, dr);
        keep(t, 0, u, dr);
        gates.put(now, row, u, dr);
      });
    }
    gates.wait(now, i / 2);
    for_units(states, [&](index_t u) {
      A dh = product(hidden.row(0, u), gates.buffer(now), gates.width);
      if (there) a.dstate[n * S + u] += dh;
    });
  }

  SEQKERN_INLINE A product(const W* weights, const A* in, index_t width) const {
    const W* rows[1] = {weights};
    A sums[1];
    row_products(rows, in, width, sums);
    return sums[0];
  }
  SEQKERN_INLINE A dh_of(index_t t, index_t u) const {
    return a.dstate[n * S + u] + load_or_zero(static_cast<const T*>(p.dy), (t * p.batch + n) * S + u);
  }
  SEQKERN_INLINE void keep(index_t t, int g, index_t u, A d) const {
    a.dgates[((t * p.batch + n) * X + g) * H + u] = d;
  }

  // Gate gradients into the record for the weight gradients and to the other blocks.
  SEQKERN_INLINE A through_cell(Site at, A dh, bool on, int now) const {
    A d[X] = {}, direct = 0;
    if (on) direct = cell(at, dh, d);
    for (int g = Cell::kLate; g < X; ++g) keep(at.t, g, at.u, d[g]);
    for (int g = Cell::kLate; g < kEarly; ++g) gates.put(now, row, g * H + at.u, g == G - 1 ? d[X - 1] : d[g]);
    if (Cell::kLate) late.put(0, row, at.u, d[G - 1]);
    return direct;
  }
};

template <class T, class W, class Cell>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    layer_backward_kernel(const __grid_constant__ BackwardArguments<acc_t<T>> a, const __grid_constant__ Cell cell) {
  SEQKERN_DYNAMIC_SHARED(shared);
  BackwardWalk<T, W, Cell>(a, cell, shared).run();
}

// ---- operands of the weight gradients: k counts the rows (t, n) of the whole sequence ----

// t and n of row k; divisions of 64 bits are slow.
SEQKERN_INLINE Site row_site(index_t k, index_t batch, index_t u) {
  if (((k | batch) >> 31) != 0) return {k / batch, k % batch, u};
  auto small = std::uint32_t(k), n = std::uint32_t(batch);
  return {small / n, small % n, u};
}

// x, with zeros past every row's length: its gradient there is 0, but 0 times a NaN in the padding is not.
template <class T>
struct LiveInput {
  using type = T;
  static constexpr bool kDepthFirst = false;
  RecurrentInputs p;
  const T* data = static_cast<const T*>(p.x);
  SEQKERN_INLINE const T* line(index_t k, int) const {
    if (p.lengths) {
      Site at = row_site(k, p.batch, 0);
      if (at.t >= p.lengths[at.n]) return nullptr;
    }
    return data + k * p.input_size;
  }
  SEQKERN_INLINE acc_t<T> operator()(index_t i, index_t k) const { return load_or_zero(line(k, 0), i); }
  bool aligned() const { return (std::uintptr_t(data) | std::uintptr_t(2 * p.input_size)) % 16 == 0; }
};
// The state before each step, or with `reset` the reset gate times it.
template <class T>
struct StateBefore {
  using type = T;
  static constexpr bool kDepthFirst = false;
  RecurrentBackward p;
  bool reset;
  const T* data = static_cast<const T*>(p.y);
  SEQKERN_INLINE const T* line(index_t k, int) const {
    index_t S = p.state_size(), before = p.reverse ? k + p.batch : k - p.batch;
    if (!p.lengths && before >= 0 && before < p.seq_len * p.batch) return data + before * S;
    Site at = row_site(k, p.batch, 0);
    if (!active(p.lengths, at.n, at.t)) return nullptr;
    if (!first_step(p, at.n, at.t)) return data + before * S;
    return p.h0 ? static_cast<const T*>(p.h0) + at.n * S : nullptr;
  }
  SEQKERN_INLINE acc_t<T> operator()(index_t i, index_t k) const {
    auto h = load_or_zero(line(k, 0), i);
    return reset ? h * static_cast<const acc_t<T>*>(p.gates)[k * 3 * p.hidden_size + i] : h;
  }
  bool aligned() const {
    return (std::uintptr_t(data) | std::uintptr_t(p.h0) | std::uintptr_t(2 * p.state_size())) % 16 == 0;
  }
};
// Gate gradients of the input side, or of the recurrent side, whose last gate may differ.
template <class A>
struct GateGradient {
  const A* dgates;
  index_t width, last, moved;  // columns from `last` on lie `moved` further
  SEQKERN_INLINE A operator()(index_t row, index_t j) const { return dgates[row * width + (j < last ? j : j + moved)]; }
};

template <class T, class W, class Cell>
void weight_gradients(const BackwardArguments<acc_t<T>>& a, cudaStream_t stream) {
  using A = acc_t<T>;
  constexpr int G = Cell::kGates, X = Cell::kSums, kPlain = X > G ? G - 1 : G - Cell::kLate;
  const RecurrentBackward& p = a.p;
  index_t H = p.hidden_size, I = p.input_size, S = p.state_size(), XH = X * H, rows = p.seq_len * p.batch;
  auto dgates = [&](int gate) { return Transposed<A>{a.dgates + gate * H, XH}; };
  auto to = [](void* data, index_t offset, index_t stride) {
    return StoreTo<A>{static_cast<A*>(data) + offset, stride};
  };
  auto weight_ih = static_cast<const W*>(p.weight_ih);
  StoreTo<T> dx{static_cast<T*>(p.dx), I};
  auto dweight_ih = to(p.dweight_ih, 0, I), plain = to(p.dweight_hh, 0, S), last = to(p.dweight_hh, kPlain * H * S, S);
  if (mma_fits<T>()) {
    if constexpr (kHasMma<T>) {
      int inputs = parts_for(G * H), weights = parts_for(rows);
      auto parts = static_cast<T*>(a.parts);
      split(rows * XH, parts_for(min_of(rows, G * H)), a.dgates, parts, a.part, stream);
      Lines<T, true> of_rows{parts, XH, a.part};
      auto left = [&](int gate) { return Lines<T, false>{parts + gate * H, XH, a.part}; };
      if (p.dx) gemm_mma(rows, I, G * H, of_rows, Lines<W, false>{weight_ih, I}, dx, stream, inputs);
      if (p.dweight_ih) gemm_mma(G * H, I, rows, left(0), LiveInput<T>{p}, dweight_ih, stream, weights);
      if (p.dweight_hh) {
        gemm_mma(kPlain * H, S, rows, left(0), StateBefore<T>{p, false}, plain, stream, weights);
        if (X > G) gemm_mma(H, S, rows, left(X - 1), StateBefore<T>{p, false}, last, stream, weights);
      }
    }
  } else {
    if (p.dx) gemm<A>(rows, I, G * H, RowMajor<A>{a.dgates, XH}, Transposed<W>{weight_ih, I}, dx, stream);
    if (p.dweight_ih) gemm<A>(G * H, I, rows, dgates(0), LiveInput<T>{p}, dweight_ih, stream);
    if (p.dweight_hh) {
      gemm<A>(kPlain * H, S, rows, dgates(0), StateBefore<T>{p, false}, plain, stream);
      if (X > G) gemm<A>(H, S, rows, dgates(X - 1), StateBefore<T>{p, false}, last, stream);
    }
  }
  if (p.dweight_hh && Cell::kLate) gemm<A>(H, S, rows, dgates(X - 1), StateBefore<T>{p, true}, last, stream);
  if (p.dweight_hr)
    gemm<A>(S, H, rows, Transposed<A>{a.dprojected, S}, Transposed<A>{a.unprojected, H}, to(p.dweight_hr, 0, H),
            stream);
  auto dbias_ih = static_cast<A*>(p.dbias_ih), dbias_hh = static_cast<A*>(p.dbias_hh);
  bool same = X == G && dbias_ih;
  column_sums(rows, G * H, GateGradient<A>{a.dgates, XH, G * H, 0}, dbias_ih, stream, same ? dbias_hh : nullptr);
  if (!same)
    column_sums(rows, G * H, GateGradient<A>{a.dgates, XH, (G - 1) * H, (X - G) * H}, dbias_hh, stream);
}

// Runs the layer, or with no workspace only returns the bytes it needs. make(pieces): the cell. Leaves the gate
// gradients where `record` says, for sums of the cell's own.
template <class T, class W, class Cell, class Make>
std::size_t layer_backward(const RecurrentBackward& p, void* workspace, void* stream_, Make make,
                           const acc_t<T>** record = nullptr) {
  using A = acc_t<T>;
  using Walk = BackwardWalk<T, W, Cell>;
  auto stream = static_cast<cudaStream_t>(stream_);
  index_t H = p.hidden_size, S = p.state_size(), rows = p.seq_len * p.batch, clusters = ceil_div(p.batch, kRows);
  Pieces pieces{static_cast<unsigned char*>(workspace)};
  BackwardArguments<A> a{p};
  a.dgates = pieces.take<A>(rows * Cell::kSums * H);
  a.dstate = pieces.take<A>(p.batch * S);
  if (p.proj_size) {
    a.dprojected = pieces.take<A>(rows * S);
    a.unprojected = pieces.take<A>(rows * H);
  }
  if constexpr (kHasMma<T>) {
    a.part = (rows * Cell::kSums * H + 7) / 8 * 8;
    a.parts = pieces.take<T>(parts_for(min_of(rows, Cell::kGates * H)) * a.part);
  }
  W* hidden = pieces.take<W>(S * Walk::kEarly * H);
  W* before = pieces.take<W>(Walk::has_before(p) ? H * Walk::late_width(p) : 0);
  Cell cell = make(pieces);
  a.exchange = reinterpret_cast<A*>(pieces.take<unsigned char>(clusters * index_t(Walk::bytes(p))));
  constexpr bool kSteps = kHasMma<T> && !Cell::kLate;
  Factor* packed = nullptr;
  if constexpr (kSteps)
    if (!p.proj_size) packed = pieces.take<Factor>(back_factors<Cell>(H));
  if (record) *record = a.dgates;
  if (!workspace) return pieces.used;

  bool walked = !clusters;
  if constexpr (kSteps) walked = walked || (packed && back_steps<T>(p, a.dgates, packed, cell, stream));
  if (!walked) {
    auto weight_hh = static_cast<const W*>(p.weight_hh);
    a.hidden = hidden, a.before = before;
    transpose(Walk::kEarly * H, S, weight_hh, hidden, stream);
    if (p.proj_size) transpose(S, H, static_cast<const W*>(p.weight_hr), before, stream);
    if (Cell::kLate) transpose(H, H, weight_hh + Walk::kEarly * H * S, before, stream);
    auto kernel = layer_backward_kernel<T, W, Cell>;
    a.plan = make_plan(limits(reinterpret_cast<const void*>(kernel)), H > S ? H : S, Walk::bytes(p),
                       [&](int cluster) { return Walk::weight_bytes(p, cluster); });
    Launch l{dim3(unsigned(clusters) * unsigned(a.plan.cluster)), dim3(unsigned(a.plan.threads)), a.plan.shared_bytes,
             a.plan.cluster, stream};
    launch(l, kernel, a, cell);
  }
  weight_gradients<T, W, Cell>(a, stream);
  return pieces.used;
}

}  // namespace seqkern::cuda
