// Forward pass of a recurrent layer on tensor cores: the walk of layer_forward.cuh for a state in float16 or bfloat16
// and a cell without a second product.
//
// A block owns tiles of units with all their gates; their weights stay on chip, as far as they fit in registers and
// shared memory (layer_mma.cuh). The sums of a unit's gates end in one lane, which computes its cell in place and
// carries its state. What a warp has of the new state goes out in words of four units to every block of the cluster
// before anything else is stored.
//
// Weights that a cluster cannot hold are spread over a team of more blocks, which run at the same time and send each
// other their words through global memory.
#pragma once
#include "layer_mma.cuh"

namespace seqkern::cuda {

struct StepArguments {
  RecurrentForward p;
  const float* gate_sums;  // x W_ih' + biases, [T, N, G*H]
  const Factor* weights;   // packed
  int on_chip;             // groups of a warp in shared memory
  int team;                // blocks of a team; 0: clusters
  FlaggedWord* mail;       // of a team: [teams, 2, words of a state]; cleared before
  index_t first;           // batch row of the first team
};

// Words of a team's states on their way.
constexpr index_t step_mail(index_t hidden) { return 2 * kRows * ceil_div(hidden, 16) * 4; }

// kOne: a warp has one tile at most. kTeam: blocks of teams, not of clusters.
template <class T, class Cell, bool kOne, bool kTeam>
struct StepWalk {
  static constexpr int G = Cell::kGates, kSlots = G == 1 ? 1 : 4;      // rows of a quad for a unit
  static constexpr int kCells = 4 / kSlots, kUnits = 4 * kCells;       // units of a lane and of a tile; words of a tile
  static constexpr int kCarried = kCells * (1 + Cell::kCarries) * 32;  // of a tile: h, and c

  struct Inputs {  // of a lane's units, read ahead of the sums
    float x[kCells][G], h[kCells], c[kCells];
    typename Cell::Constants constants[kCells];
  };

  const StepArguments& a;
  const RecurrentForward& p;
  const Cell& cell;
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
      : a(arguments), p(a.p), cell(c), H(p.hidden_size), groups(depth_groups(H)) {
    size = kTeam ? a.team : cluster_size();
    tiles = own(ceil_div(H, kUnits), kTeam ? int(blockIdx.x % unsigned(size)) : cluster_rank(), size);
    row = lane_row();
    n = a.first + index_t(blockIdx.x / unsigned(size)) * kRows + row;
    there = n < p.batch;
    length = there ? int(p.lengths ? p.lengths[n] : p.seq_len) : 0;
    if (!kTeam && size > 1) full = reinterpret_cast<std::uint64_t*>(shared);
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
  template <class W>
  struct Rows {  // W_hh, by rows of quads
    const W* data;
    index_t H;
    SEQKERN_INLINE W operator()(index_t tile, int r, index_t k) const {
      index_t row = tile * 16 + quad_row(r), unit = row / kSlots, gate = row % kSlots;
      return gate < G && unit < H && k < H ? data[(gate * H + unit) * H + k] : W{};
    }
  };

  SEQKERN_INLINE RightFactor<T> state(index_t s) const { return {words + (s & 1) * groups * kGroup * 32}; }
  SEQKERN_INLINE index_t unit(int j, int c) const {
    return (tiles.begin + weights.tile_of(j)) * kUnits + lane_quad() * kCells + c;
  }
  SEQKERN_INLINE float& h(int j, int c) const { return carried[weights.tile_of(j) * kCarried + c * 32 + lane_id()]; }
  SEQKERN_INLINE float& c_of(int j, int c) const { return (&h(j, c))[kCells * 32]; }
  // f(j, c, unit) for this lane's units that exist.
  template <class F>
  SEQKERN_INLINE void for_cells(F f) const {
    for (int j = 0; weights.tile_of(j) < weights.tiles; ++j)
      for (int c = 0; c < kCells; ++c) f(j, c, unit(j, c));
  }

  SEQKERN_INLINE void run() {
    start();
    if (full && weights.tile_of(0) >= weights.tiles) return;  // as in layer.cuh: nobody waits for such a warp
    for (index_t s = 0; s < p.seq_len; ++s) {
      index_t t = p.reverse ? p.seq_len - 1 - s : s;
      if (kTeam && s && weights.tile_of(0) >= weights.tiles) await(s);
      for (int j = 0; weights.tile_of(j) < weights.tiles; j += 2) {
        if (!kOne && weights.tile_of(j + 1) < weights.tiles) step<kOne ? 1 : 2>(s, t, j);
        else step<1>(s, t, j);
      }
      if (!full && !kTeam) sync_block();
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
    Inputs inputs[kTiles];
    SEQKERN_UNROLL
    for (int i = 0; i < kTiles; ++i) read(inputs[i], t, j + i);
    if (s && j == 0) await(s);
    float sums[kTiles][4];
    weights.template products<kTiles>(j, state(s).lane(), sums);
    SEQKERN_UNROLL
    for (int i = 0; i < kTiles; ++i) finish(inputs[i], sums[i], s, t, j + i);
  }

  // Until all of state s is there.
  SEQKERN_INLINE void await(index_t s) const {
    if constexpr (kTeam) return collect(s);
    if (!full) return;
    mbarrier_wait(full + (s & 1), int((s - 1) / 2 & 1));
    if (threadIdx.x == 0) mbarrier_expect(full + (s & 1), bytes);
  }
  // The words the blocks of the team have sent.
  SEQKERN_INLINE void collect(index_t s) const {
    constexpr int kAtOnce = 8;
    int count = bytes / 8;
    for (int e = int(threadIdx.x); e < count; e += int(blockDim.x) * kAtOnce) {
      std::uint64_t word[kAtOnce];
      for (bool there = false; !there;) {
        there = true;
        SEQKERN_UNROLL
        for (int i = 0; i < kAtOnce; ++i)
          if (int at = e + i * int(blockDim.x); at < count)
            there = load_flagged(mail(s) + at, word[i], std::uint32_t(s)) && there;
        if (!there) let_others_run();
      }
      SEQKERN_UNROLL
      for (int i = 0; i < kAtOnce; ++i)
        if (int at = e + i * int(blockDim.x); at < count) *state(s).at(at / kRows, at % kRows) = word[i];
    }
    sync_block();
  }
  SEQKERN_INLINE FlaggedWord* mail(index_t s) const {
    return a.mail + (index_t(blockIdx.x / unsigned(size)) * 2 + (s & 1)) * (bytes / 8);
  }

  SEQKERN_INLINE void read(Inputs& in, index_t t, int j) const {
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      index_t u = unit(j, c);
      bool here = there && u < H;
      SEQKERN_UNROLL
      for (int g = 0; g < G; ++g) in.x[c][g] = here ? a.gate_sums[((t * p.batch + n) * G + g) * H + u] : 0.0f;
      in.h[c] = h(j, c);
      in.c[c] = Cell::kCarries ? c_of(j, c) : 0.0f;
      in.constants[c] = cell.constants(here ? u : 0);
    }
  }

  // A row that is over keeps its state.
  SEQKERN_INLINE void finish(Inputs& in, const float (&sums)[4], index_t s, index_t t, int j) const {
    float quad[4], value[kCells], next[kCells];
    typename Cell::Kept kept[kCells];
    bool on = t < length;
    to_quad(sums, quad);
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      float sum[G];
      SEQKERN_UNROLL
      for (int g = 0; g < G; ++g) sum[g] = quad[c * kSlots + g];
      value[c] = cell(in.x[c], sum, in.h[c], in.constants[c], in.c[c], kept[c]);
      next[c] = on && unit(j, c) < H ? rounded<T>(value[c]) : in.h[c];
    }
    sync_warp();  // all lanes have read the state before one of them sends: the next may then arrive
    if (s + 1 < p.seq_len) send(s + 1, tiles.begin + weights.tile_of(j), next);
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      index_t u = unit(j, c);
      if (!there || u >= H) continue;
      if (p.y) store(static_cast<T*>(p.y) + (t * p.batch + n) * H + u, on ? value[c] : 0.0f);
      h(j, c) = next[c];
      if (Cell::kCarries && on) c_of(j, c) = in.c[c];
      cell.keep({t, n, u}, kept[c], on);
    }
  }

  // This lane's units of state s to all blocks. Lanes that share a word share the blocks among them.
  SEQKERN_INLINE void send(index_t s, index_t tile, const float (&v)[kCells]) const {
    int quad = lane_quad(), first = 0, every = 1;
    std::uint64_t word;
    if constexpr (kCells == 4) {
      word = word_of<T>(v);
    } else {
      std::uint32_t one = pack<T>(v[0], 0.0f), other = shuffle_xor(one, 8);
      std::uint32_t two = quad & 1 ? other | one << 16 : one | other << 16, rest = shuffle_xor(two, 16);
      word = quad & 2 ? rest | std::uint64_t(two) << 32 : two | std::uint64_t(rest) << 32;
      first = quad, every = 4;
    }
    index_t at = tile * kCells + (kCells == 4 ? quad : 0);
    std::uint64_t* to = state(s).at(at, row);
    if constexpr (kTeam) {
      if (first == 0) store_flagged(mail(s) + at * kRows + row, word, std::uint32_t(s));
    } else if (full) {
      for (int c = first; c < size; c += every) store_async(to, word, full + (s & 1), c);
    } else if (first == 0) {
      *to = word;
    }
  }
};

template <class T, class Cell, bool kOne, bool kTeam>
__global__ void __launch_bounds__(32 * kStepWarps, 1)
    layer_step_kernel(const __grid_constant__ StepArguments a, const __grid_constant__ Cell cell) {
  SEQKERN_DYNAMIC_SHARED(shared);
  StepWalk<T, Cell, kOne, kTeam>(a, cell, shared).run();
}

// The walk, after x W; false where it does not apply. weights: room for them packed; mail: for step_mail words.
template <class T, class Cell>
bool layer_steps(const RecurrentForward& p, const float* gate_sums, Factor* weights, FlaggedWord* mail,
                 const Cell& cell, cudaStream_t stream) {
  using Walk = StepWalk<T, Cell, true, false>;
  auto kernel = layer_step_kernel<T, Cell, true, false>, of_team = layer_step_kernel<T, Cell, true, true>;
  auto address = [](auto k) { return reinterpret_cast<const void*>(k); };
  index_t tiles = ceil_div(p.hidden_size, Walk::kUnits), groups = depth_groups(p.hidden_size);
  index_t clusters = ceil_div(p.batch, kRows), teams = 0;
  auto fixed = [&](index_t mine, int warps) { return Walk::shared_bytes(p, mine, warps); };
  StepPlan plan = step_plan(address(kernel), tiles, groups, clusters, fixed);
  if (!plan.one_tile) kernel = layer_step_kernel<T, Cell, false, false>;
  if (!plan.whole) {
    int size = int(ceil_div(tiles, kStepWarps));
    StepPlan spread = block_plan(std::size_t(limits(address(of_team)).max_shared), tiles, groups, size, fixed);
    if (spread.whole) teams = blocks_together(address(of_team), spread.threads, spread.shared_bytes) / size;
    if (teams) plan = spread, kernel = of_team;
  }
  if (!plan.cluster) return false;
  pack(tiles, groups, typename Walk::template Rows<T>{static_cast<const T*>(p.weight_hh), p.hidden_size}, weights,
       stream);
  StepArguments a{p, gate_sums, weights, plan.on_chip, teams ? plan.cluster : 0, mail, 0};
  if (!teams) teams = clusters;
  for (index_t left = clusters; left > 0; left -= teams, a.first += teams * kRows) {
    index_t now = min_of(left, teams);
    if (a.team) clear(mail, std::size_t(now * step_mail(p.hidden_size)) * sizeof(FlaggedWord), stream);
    Launch l{dim3(unsigned(now) * unsigned(plan.cluster)), dim3(unsigned(plan.threads)), plan.shared_bytes,
             a.team ? 1 : plan.cluster, stream, a.team > 0};
    launch(l, kernel, a, cell);
  }
  return true;
}

}  // namespace seqkern::cuda
