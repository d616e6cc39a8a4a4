// Forward pass of a recurrent layer on tensor cores: the walk of layer_forward.cuh for a state in float16 or bfloat16
// and a cell without a second product.
//
// A block owns tiles of units with all their gates; their weights stay on chip, as far as they fit in registers and
// shared memory (layer_mma.cuh). The sums of a unit's gates end in one lane, which computes its cell in place and
// carries its state. What a warp has of the new state goes out in words of four units to every block of the cluster
// before anything else is stored.
//
// Weights that a cluster cannot hold go to layer_team_mma.cuh.
#pragma once
#include "layer_team_mma.cuh"

namespace seqkern::cuda {

struct StepArguments {
  RecurrentForward p;
  const float* gate_sums;  // x W_ih' + biases, [T, N, G*H]
  const Factor* weights;   // packed
  int on_chip;             // groups of a warp in shared memory
};

// kOne: a warp has one tile at most.
template <class T, class Cell, bool kOne>
struct StepWalk {
  using Cells = LaneCells<T, Cell>;
  static constexpr int kCells = Cells::kCells, kUnits = Cells::kUnits;
  static constexpr int kCarried = kCells * (1 + Cell::kCarries) * 32;  // of a tile: h, and c

  const StepArguments& a;
  const RecurrentForward& p;
  Cells cells;
  index_t H, n, groups;
  int size, row, length;
  bool there;
  Range tiles;
  std::uint64_t* full = nullptr;  // a barrier for either state; null in a lone block
  int bytes;                      // of a state
  std::uint64_t* words;
  float* carried;
  HeldWeights<T, held_groups(kOne)> weights;

  SEQKERN_INLINE StepWalk(const StepArguments& arguments, const Cell& c, unsigned char* shared)
      : a(arguments), p(a.p), cells{a.p, a.gate_sums, c}, H(p.hidden_size), groups(depth_groups(H)) {
    size = cluster_size();
    tiles = own(ceil_div(H, kUnits));
    row = lane_row();
    n = index_t(blockIdx.x / unsigned(size)) * kRows + row;
    there = n < p.batch;
    length = there ? int(p.lengths ? p.lengths[n] : p.seq_len) : 0;
    if (size > 1) full = reinterpret_cast<std::uint64_t*>(shared);
    bytes = int(ceil_div(H, kUnits)) * kCells * 64;
    Pieces pieces{shared, kBarrierBytes};
    int mine = int(tiles.end - tiles.begin);
    words = reinterpret_cast<std::uint64_t*>(pieces.take<unsigned char>(index_t(2 * RightFactor<T>::bytes(groups))));
    carried = pieces.take<float>(ceil_div(mine, warps()) * warps() * kCarried);
    weights.global = a.weights + tiles.begin * groups * kGroup * 32;
    weights.groups = int(groups), weights.tiles = mine, weights.on_chip = a.on_chip;
    weights.fetch(pieces.take<Factor>(0));
  }

  static constexpr index_t factors(index_t H) { return ceil_div(H, kUnits) * depth_groups(H) * kGroup * 32; }
  static std::size_t shared_bytes(const RecurrentForward& p, index_t tiles, int warps) {
    return kBarrierBytes + 2 * RightFactor<T>::bytes(depth_groups(p.hidden_size)) +
           padded(std::size_t(ceil_div(tiles, warps) * warps * kCarried) * sizeof(float));
  }

  SEQKERN_INLINE RightFactor<T> state(index_t s) const { return {words + (s & 1) * groups * kGroup * 32}; }
  SEQKERN_INLINE index_t tile(int j) const { return tiles.begin + weights.tile_of(j); }
  SEQKERN_INLINE index_t unit(int j) const { return tile(j) * kUnits + lane_quad() * kCells; }
  SEQKERN_INLINE float& h(int j, int c) const { return carried[weights.tile_of(j) * kCarried + c * 32 + lane_id()]; }
  SEQKERN_INLINE float& c_of(int j, int c) const { return (&h(j, c))[kCells * 32]; }
  // f(j, c, unit) for this lane's units that exist.
  template <class F>
  SEQKERN_INLINE void for_cells(F f) const {
    for (int j = 0; weights.tile_of(j) < weights.tiles; ++j)
      for (int c = 0; c < kCells; ++c) f(j, c, unit(j) + c);
  }

  SEQKERN_INLINE void run() {
    start();
    if (full && weights.tile_of(0) >= weights.tiles) return;  // as in layer.cuh: nobody waits for such a warp
    for (index_t s = 0; s < p.seq_len; ++s) {
      index_t t = p.reverse ? p.seq_len - 1 - s : s;
      for (int j = 0; weights.tile_of(j) < weights.tiles; j += 2) {
        if (!kOne && weights.tile_of(j + 1) < weights.tiles) step<kOne ? 1 : 2>(s, t, j);
        else step<1>(s, t, j);
      }
      if (!full) sync_block();
    }
    for_cells([&](int j, int c, index_t u) {
      if (!there || u >= H) return;
      store(static_cast<T*>(p.h_n) + n * H + u, h(j, c));
      if (Cell::kCarries) static_cast<float*>(p.c_n)[n * H + u] = c_of(j, c);
    });
  }

  SEQKERN_INLINE void start() {
    if (full && threadIdx.x == 0)
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(full + i, 1);
        mbarrier_expect(full + i, bytes);
      }
    auto h0 = static_cast<const T*>(p.h0);
    index_t first = n - row;
    for (int e = int(threadIdx.x); e < groups * kGroup * 32; e += int(blockDim.x)) {
      index_t word = e / kRows, r = e % kRows;
      float v[4];
      for (int i = 0; i < 4; ++i) {
        index_t u = word * 4 + i;
        v[i] = first + r < p.batch && u < H ? load_or_zero(h0, (first + r) * H + u) : 0.0f;
      }
      *state(0).at(word, int(r)) = word_of<T>(v);
      *state(1).at(word, int(r)) = 0;
    }
    for_cells([&](int j, int c, index_t u) {
      bool here = there && u < H;
      h(j, c) = here ? load_or_zero(h0, n * H + u) : 0.0f;
      if (Cell::kCarries) c_of(j, c) = here ? load_or_zero(static_cast<const float*>(p.c0), n * H + u) : 0.0f;
    });
    copies_arrived();
    sync_cluster();
  }

  // The s-th step, at time t, of tiles j and, with two, j + 1.
  template <int kTiles>
  SEQKERN_INLINE void step(index_t s, index_t t, int j) const {
    typename Cells::Inputs inputs[kTiles];
    SEQKERN_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      cells.read(inputs[i], t, n, unit(j + i));
      SEQKERN_UNROLL
      for (int c = 0; c < kCells; ++c) {
        inputs[i].h[c] = h(j + i, c);
        inputs[i].c[c] = Cell::kCarries ? c_of(j + i, c) : 0.0f;
      }
    }
    if (s && j == 0) await(s);
    float sums[kTiles][4];
    weights.template products<kTiles>(j, state(s).lane(), sums);
    SEQKERN_UNROLL
    for (int i = 0; i < kTiles; ++i) finish(inputs[i], sums[i], s, t, j + i);
  }

  // Until all of state s is there.
  SEQKERN_INLINE void await(index_t s) const {
    if (!full) return;
    mbarrier_wait(full + (s & 1), int((s - 1) / 2 & 1));
    if (threadIdx.x == 0) mbarrier_expect(full + (s & 1), bytes);
  }

  SEQKERN_INLINE void finish(typename Cells::Inputs& in, const float (&sums)[4], index_t s, index_t t, int j) const {
    float quad[4];
    to_quad(sums, quad);
    bool on = t < length;
    typename Cells::Outputs out;
    cells.advance(in, quad, on, unit(j), out);
    sync_warp();  // all lanes have read the state before one of them sends: the next may then arrive
    if (s + 1 < p.seq_len) send(s + 1, tile(j), out.next);
    cells.keep(out, on, t, n, unit(j));
    cells.for_cells(n, unit(j), [&](int c, bool here) {
      if (!here) return;
      h(j, c) = out.next[c];
      if (Cell::kCarries && on) c_of(j, c) = in.c[c];
    });
  }

  // This lane's units of state s to all blocks. Lanes that share a word share the blocks among them.
  SEQKERN_INLINE void send(index_t s, index_t tile, const float (&v)[kCells]) const {
    int first = kCells == 4 ? 0 : lane_quad(), every = kCells == 4 ? 1 : 4;
    std::uint64_t word = Cells::word(v), *to = state(s).at(Cells::word_at(tile), row);
    if (full) {
      for (int c = first; c < size; c += every) store_async(to, word, full + (s & 1), c);
    } else if (first == 0) {
      *to = word;
    }
  }
};

template <class T, class Cell, bool kOne>
__global__ void __launch_bounds__(32 * kStepWarps, 1)
    layer_step_kernel(const __grid_constant__ StepArguments a, const __grid_constant__ Cell cell) {
  SEQKERN_DYNAMIC_SHARED(shared);
  StepWalk<T, Cell, kOne>(a, cell, shared).run();
}

// The walk, after x W; false where it does not apply. weights: room for them packed; mail: for the states of the batch,
// twice.
template <class T, class Cell>
bool layer_steps(const RecurrentForward& p, const float* gate_sums, Factor* weights, FlaggedWord* mail,
                 const Cell& cell, cudaStream_t stream) {
  using Walk = StepWalk<T, Cell, true>;
  auto kernel = layer_step_kernel<T, Cell, true>;
  index_t tiles = ceil_div(p.hidden_size, Walk::kUnits), groups = depth_groups(p.hidden_size);
  index_t clusters = ceil_div(p.batch, kRows);
  auto fixed = [&](index_t mine, int warps) { return Walk::shared_bytes(p, mine, warps); };
  StepPlan plan = step_plan(reinterpret_cast<const void*>(kernel), tiles, groups, clusters, fixed);
  if (!plan.one_tile) kernel = layer_step_kernel<T, Cell, false>;
  if (!plan.cluster) return false;
  pack(tiles, groups, typename Walk::Cells::template Rows<T>{static_cast<const T*>(p.weight_hh), p.hidden_size},
       weights, stream);
  // Teams of half as many blocks where those would not all run at once, if their weights fit.
  if (!plan.whole && (team_steps<T, Cell, 4>(p, gate_sums, weights, mail, cell, false, stream) ||
                      team_steps<T, Cell, 8>(p, gate_sums, weights, mail, cell, true, stream) ||
                      team_steps<T, Cell, 4>(p, gate_sums, weights, mail, cell, true, stream)))
    return true;
  Launch l{dim3(unsigned(clusters) * unsigned(plan.cluster)), dim3(unsigned(plan.threads)), plan.shared_bytes,
           plan.cluster, stream};
  launch(l, kernel, StepArguments{p, gate_sums, weights, plan.on_chip}, cell);
  return true;
}

}  // namespace seqkern::cuda
