// Forward pass of a recurrent layer over any cell, on the GPU: x W_ih' of all steps in one product, then one launch
// that walks the steps (layer.cuh). The state is double-buffered, so that one exchange a step is enough.
//
// A Cell gives
//   kGates, kLate, kFolded     as on the CPU: gates, those that need a second product in the step, and those whose
//                              bias_hh is added to the input side
//   operator()(x, h, h_prev, constants, c, kept)   the new state from the two sides of the sums, the unit's constants
//                              and, with kCarries, a state c of its own, in c_n
//   keep(site, kept, on)       stores what a backward pass will want; or, with kLate,
//   early(...), late(...)      the operand of the second product, and the state from its sum
#pragma once
#include "cuda/gemm_mma.cuh"
#include "cuda/types.cuh"
#include "layer_forward_mma.cuh"

namespace seqkern::cuda {

template <class A>
struct ForwardArguments {
  RecurrentForward p;
  Plan plan;
  const A* gate_sums;  // x W_ih' + biases, [T, N, G*H]
  A* exchange;         // in global memory, a set for every cluster; unless it is on chip
};

template <class T, class W, class Cell>
struct ForwardWalk {
  using A = acc_t<T>;
  static constexpr int G = Cell::kGates, kEarly = G - Cell::kLate;

  const ForwardArguments<A>& a;
  const RecurrentForward& p;
  const Cell& cell;
  index_t H, S, n;
  int row;
  bool there;  // this lane has a row and speaks for it
  Range units, states;
  Exchange<A> state, full;
  GateRows<W> hidden, projection;

  SEQKERN_INLINE ForwardWalk(const ForwardArguments<A>& arguments, const Cell& c, unsigned char* shared)
      : a(arguments), p(a.p), cell(c), H(p.hidden_size), S(p.state_size()), units(own(H)), states(own(S)) {
    index_t cluster = blockIdx.x / unsigned(cluster_size());
    row = lane_id() % kRows;
    n = cluster * kRows + row;
    there = lane_id() < kRows && n < p.batch;
    auto barriers = reinterpret_cast<std::uint64_t*>(shared);
    unsigned char* off_chip = reinterpret_cast<unsigned char*>(a.exchange) + cluster * index_t(bytes(p));
    Pieces pieces{a.plan.exchange_on_chip ? shared : off_chip, a.plan.exchange_on_chip ? kBarrierBytes : 0};
    index_t rows = min_of(kRows, p.batch - cluster * kRows);
    state.place(pieces, barriers, 2, S, rows, a.plan.exchange_on_chip);
    if (needs_full(p)) full.place(pieces, barriers, 1, H, rows, a.plan.exchange_on_chip);
    hidden = {static_cast<const W*>(p.weight_hh), H, S};
    projection = {static_cast<const W*>(p.weight_hr), S, H};
    if (!a.plan.weights_on_chip) return;
    if (!a.plan.exchange_on_chip) pieces = {shared, kBarrierBytes};
    hidden = hidden.on_chip(G, units, pieces);
    if (p.proj_size) projection = projection.on_chip(1, states, pieces);
  }

  static __host__ __device__ bool needs_full(const RecurrentForward& p) { return p.proj_size || Cell::kLate; }
  static __host__ __device__ std::size_t bytes(const RecurrentForward& p) {
    std::size_t rows = kRows * sizeof(A);
    return padded(2 * rows * p.state_size()) + (needs_full(p) ? padded(rows * p.hidden_size) : 0);
  }
  static std::size_t weight_bytes(const RecurrentForward& p, int cluster) {
    index_t H = p.hidden_size, S = p.state_size();
    std::size_t own_hidden = padded(std::size_t(ceil_div(H, cluster) * G * S) * sizeof(W));
    return own_hidden + (p.proj_size ? padded(std::size_t(ceil_div(S, cluster) * H) * sizeof(W)) : 0);
  }

  SEQKERN_INLINE void run() {
    start();
    if (state.full && idle(units, states)) return;
    for (index_t s = 0; s < p.seq_len; ++s) step(s, p.reverse ? p.seq_len - 1 - s : s);
    for_units(states, [&](index_t u) {
      if (there) store(static_cast<T*>(p.h_n) + n * S + u, state.get(int(p.seq_len & 1), row, u));
    });
  }

  SEQKERN_INLINE void start() {
    for_units(states, [&](index_t u) {
      if (lane_id() >= kRows) return;
      state.set(0, row, u, there ? load_or_zero(static_cast<const T*>(p.h0), n * S + u) : A(0));
      state.set(1, row, u, A(0));
    });
    for_units(units, [&](index_t u) {
      if (lane_id() < kRows && full.data) full.set(0, row, u, A(0));
      if (there && p.c_n) static_cast<A*>(p.c_n)[n * H + u] = load_or_zero(static_cast<const A*>(p.c0), n * H + u);
    });
    copies_arrived();
    sync_cluster();
  }

  // The s-th step, at time t: the state from buffer s & 1 into the other.
  SEQKERN_INLINE void step(index_t s, index_t t) {
    int now = int(s & 1), next = now ^ 1;
    bool on = there && active(p.lengths, n, t);
    for_units(units, [&](index_t u) {
      const W* rows[kEarly];
      A x[kEarly], h[kEarly];
      SEQKERN_UNROLL
      for (int g = 0; g < kEarly; ++g) {
        rows[g] = hidden.row(g, u);
        x[g] = there ? sums(t, g, u) : A(0);
      }
      row_products(rows, state.buffer(now), S, h);
      if (!there) return;
      Site at{t, n, u};
      if constexpr (Cell::kLate) {
        full.put(0, row, u, cell.early(at, x, h, state.get(now, row, u), on));
      } else {
        A value = through_cell(at, x, h, p.proj_size ? A(0) : state.get(now, row, u), on);
        if (p.proj_size) full.put(0, row, u, value);
        else finish(at, value, on, now);
      }
    });
    if (full.data) full.wait(0, s);
    if constexpr (Cell::kLate) {
      for_units(units, [&](index_t u) {
        A h = product(hidden.row(kEarly, u));
        Site at{t, n, u};
        if (there) finish(at, cell.late(at, sums(t, kEarly, u) + h, state.get(now, row, u), on), on, now);
      });
    } else if (p.proj_size) {
      for_units(states, [&](index_t u) {
        A h = product(projection.row(0, u));
        if (there) finish({t, n, u}, h, on, now);
      });
    }
    state.wait(next, s / 2);
  }

  SEQKERN_INLINE A through_cell(Site at, const A (&x)[kEarly], const A (&h)[kEarly], A h_prev, bool on) const {
    typename Cell::Kept kept;
    A c = 0, *running = Cell::kCarries ? static_cast<A*>(p.c_n) + n * H + at.u : &c;
    c = *running;
    A value = cell(x, h, h_prev, cell.constants(at.u), c, kept);
    if (on) *running = c;
    cell.keep(at, kept, on);
    return value;
  }
  SEQKERN_INLINE A product(const W* weights) const {
    const W* rows[1] = {weights};
    A sums[1];
    row_products(rows, full.buffer(0), H, sums);
    return sums[0];
  }
  SEQKERN_INLINE A sums(index_t t, int gate, index_t u) const {
    return a.gate_sums[((t * p.batch + n) * G + gate) * H + u];
  }

  // The new state of a row, as stored: what a later call would see. A row that is over keeps its state.
  SEQKERN_INLINE void finish(Site at, A h, bool on, int now) const {
    if (p.y) store(static_cast<T*>(p.y) + (at.t * p.batch + n) * S + at.u, on ? h : A(0));
    state.put(now ^ 1, row, at.u, on ? rounded<T>(h) : state.get(now, row, at.u));
  }
};

template <class T, class W, class Cell>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    layer_forward_kernel(const __grid_constant__ ForwardArguments<acc_t<T>> a, const __grid_constant__ Cell cell) {
  SEQKERN_DYNAMIC_SHARED(shared);
  ForwardWalk<T, W, Cell>(a, cell, shared).run();
}

// gate_sums, with the biases that can be added before the time loop.
template <class A>
struct StoreSums {
  A* data;
  const A *bias_ih, *bias_hh;
  index_t columns, folded;
  SEQKERN_INLINE void operator()(index_t i, index_t j, A v) const {
    if (bias_ih) v += bias_ih[j];
    if (bias_hh && j < folded) v += bias_hh[j];
    data[i * columns + j] = v;
  }
};

// Runs the layer, or with no workspace only returns the bytes it needs. make(pieces): the cell.
template <class T, class W, class Cell, class Make>
std::size_t layer_forward(const RecurrentForward& p, void* workspace, void* stream_, Make make) {
  using A = acc_t<T>;
  using Walk = ForwardWalk<T, W, Cell>;
  auto stream = static_cast<cudaStream_t>(stream_);
  index_t rows = p.seq_len * p.batch, columns = Cell::kGates * p.hidden_size, clusters = ceil_div(p.batch, kRows);
  Pieces pieces{static_cast<unsigned char*>(workspace)};
  A* gate_sums = pieces.take<A>(rows * columns);
  Cell cell = make(pieces);
  A* exchange = reinterpret_cast<A*>(pieces.take<unsigned char>(clusters * index_t(Walk::bytes(p))));
  constexpr bool kSteps = kHasMma<T> && !Cell::kLate;
  Factor* packed = nullptr;
  FlaggedWord* mail = nullptr;
  if constexpr (kSteps)
    if (!p.proj_size) {
      packed = pieces.take<Factor>(StepWalk<T, Cell, true>::factors(p.hidden_size));
      mail = pieces.take<FlaggedWord>(clusters * 2 * state_mail(p.hidden_size));
    }
  if (!workspace || !clusters) return pieces.used;

  StoreSums<A> sums{gate_sums, static_cast<const A*>(p.bias_ih), static_cast<const A*>(p.bias_hh), columns,
                    Cell::kFolded * p.hidden_size};
  auto x = static_cast<const T*>(p.x);
  auto weight_ih = static_cast<const W*>(p.weight_ih);
  index_t I = p.input_size;
  if (mma_fits<T>()) {
    if constexpr (kHasMma<T>)
      gemm_mma(rows, columns, I, Lines<T, true>{x, I}, Lines<W, true>{weight_ih, I}, sums, stream);
  } else {
    gemm<A>(rows, columns, I, RowMajor<T>{x, I}, RowMajor<W>{weight_ih, I}, sums, stream);
  }
  if constexpr (kSteps)
    if (packed && layer_steps<T>(p, gate_sums, packed, mail, cell, stream)) return pieces.used;
  index_t widest = p.hidden_size > p.state_size() ? p.hidden_size : p.state_size();
  auto kernel = layer_forward_kernel<T, W, Cell>;
  Plan plan = make_plan(limits(reinterpret_cast<const void*>(kernel)), widest, Walk::bytes(p),
                        [&](int cluster) { return Walk::weight_bytes(p, cluster); });
  Launch l{dim3(unsigned(clusters) * unsigned(plan.cluster)), dim3(unsigned(plan.threads)), plan.shared_bytes,
           plan.cluster, stream};
  launch(l, kernel, ForwardArguments<A>{p, plan, gate_sums, exchange}, cell);
  return pieces.used;
}

}  // namespace seqkern::cuda
