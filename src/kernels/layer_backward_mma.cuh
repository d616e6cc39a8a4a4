// Backward pass of a recurrent layer on tensor cores: the walk of layer_backward.cuh for float16 and bfloat16 and a
// cell without a second product.
//
// A block owns tiles of 16 units. It multiplies the gate gradients of its own units alone with their rows of W_hh,
// which gives a part of dh of the step before for every unit; the parts go to the units' owners, which add them up in
// the order of the blocks. So what travels is dh in float, a quarter of the gate gradients, and these can be given to
// the product in parts (gemm_mma.cuh), as accurate as the forward pass; how the blocks share the units decides the
// order of the sums.
#pragma once
#include "layer_mma.cuh"

namespace seqkern::cuda {

struct BackStepArguments {
  RecurrentBackward p;
  float* dgates;          // [T, N, kSums*H]
  const Factor* weights;  // packed, [blocks, tiles, ...]
  int on_chip;            // groups of a warp in shared memory
};

// kGroups: of the depth, the gates of a block's units.
template <class T, class Cell, int kGroups>
struct BackStepWalk {
  static constexpr int G = Cell::kGates, X = Cell::kSums, kSlots = G == 1 ? 1 : 4, kThreads = 32 * kStepWarps;
  static constexpr int kUnits = kGroups * kGroup * 16 / kSlots;  // of a block, at most
  static constexpr int kCells = kUnits * kRows > kThreads ? kUnits * kRows / kThreads : 1;  // of a thread
  // No gate damps what two parts of bfloat16 cut off of a vanilla RNN's gradients.
  static constexpr int kParts = G == 1 && std::is_same_v<T, bf16> ? 3 : 2;
  static constexpr int kSteps = kGroups * kGroup;
  static constexpr int kHeldTiles = (kParts > 2 && kGroups < 4 ? 4 : 8) / kGroups;  // of a warp, in registers

  const BackStepArguments& a;
  const RecurrentBackward& p;
  const Cell& cell;
  index_t H, row0;
  int all, size, rank, bytes;  // tiles, blocks, this block, bytes a step brings
  Range tiles;
  std::uint64_t* full = nullptr;
  std::uint64_t* words;  // gate gradients of even and odd steps: [2, kParts, kSteps * 32]
  float* received;       // [2, blocks, kUnits, kRows]
  const Factor *global, *chip;
  float dstate[kCells] = {}, carried[kCells] = {};
  int length[kCells] = {};  // steps a row takes part in
  std::uint32_t held[kHeldTiles * kSteps][4];

  SEQKERN_INLINE BackStepWalk(const BackStepArguments& arguments, const Cell& c, unsigned char* shared)
      : a(arguments), p(a.p), cell(c), H(p.hidden_size), all(int(ceil_div(H, 16))), tiles(own(all)) {
    size = cluster_size(), rank = cluster_rank();
    row0 = index_t(blockIdx.x / unsigned(size)) * kRows;
    bytes = size * int(tiles.end - tiles.begin) * 16 * kRows * 4;
    if (size > 1) full = reinterpret_cast<std::uint64_t*>(shared);
    Pieces pieces{shared, kBarrierBytes};
    words = pieces.take<std::uint64_t>(2 * kParts * kSteps * 32);
    received = pieces.take<float>(2 * size * kUnits * kRows);
    global = a.weights + index_t(rank) * all * kSteps * 32;
    auto copy = pieces.take<Factor>(0);
    chip = copy;
    fetch(copy);
  }

  static constexpr int held_groups() { return kHeldTiles * kGroups; }
  static constexpr std::size_t shared_bytes(int cluster) {
    return kBarrierBytes + 2 * kParts * kSteps * 256 + std::size_t(2 * cluster * kUnits * kRows) * sizeof(float);
  }
  struct Columns {  // W_hh': row r of a tile is a unit of the step before, k a gate of a unit of the block
    const T* data;
    index_t H, all;
    int cluster;
    SEQKERN_INLINE T operator()(index_t tile, int r, index_t k) const {
      index_t block = tile / all, to = tile % all * 16 + r, gate = k % kSlots;
      index_t unit = all * block / cluster * 16 + k / kSlots, end = all * (block + 1) / cluster * 16;
      return gate < G && unit < min_of(end, H) && to < H ? data[(gate * H + unit) * H + to] : T{};
    }
  };

  // ---- this thread's units: consecutive pairs of (unit, batch row) ----

  SEQKERN_INLINE int pair(int c) const { return int(threadIdx.x) + c * kThreads; }
  SEQKERN_INLINE Site site(index_t t, int c) const {
    return {t, row0 + pair(c) % kRows, tiles.begin * 16 + pair(c) / kRows};
  }
  SEQKERN_INLINE bool exists(int c) const {
    Site at = site(0, c);
    return at.n < p.batch && at.u < min_of(tiles.end * 16, H);
  }

  // Of step i. A warp may still multiply with those of the step before while others write: nobody waits for it then.
  SEQKERN_INLINE RightFactor<T> gradients(index_t i) const { return {words + (i & 1) * kParts * kSteps * 32}; }

  // ---- weights: tile_of(j) of a warp ----

  SEQKERN_INLINE int tile_of(int j) const { return warp_id() + j * kStepWarps; }
  SEQKERN_INLINE const Factor* in_global(int j, int q) const {
    return global + (index_t(tile_of(j)) * kGroups + q) * kGroup * 32 + lane_id();
  }
  SEQKERN_INLINE const Factor* group(int j, int q) const {
    int i = (j - kHeldTiles) * kGroups + q;
    return i < a.on_chip ? chip + (i * kStepWarps + warp_id()) * kGroup * 32 + lane_id() : in_global(j, q);
  }
  SEQKERN_INLINE void fetch(Factor* copy) {
    SEQKERN_UNROLL
    for (int i = 0; i < kHeldTiles * kSteps; ++i) {
      if (tile_of(i / kSteps) < all) cuda::load(held[i], in_global(i / kSteps, 0) + i % kSteps * 32);
      else held[i][0] = held[i][1] = held[i][2] = held[i][3] = 0;
    }
    for (int i = 0; i < a.on_chip; ++i) {
      int j = kHeldTiles + i / kGroups;
      if (tile_of(j) >= all) break;
      for (int s = 0; s < kGroup; ++s)
        copy_async<16>(copy + ((i * kStepWarps + warp_id()) * kGroup + s) * 32 + lane_id(),
                       in_global(j, i % kGroups) + s * 32);
    }
  }

  SEQKERN_INLINE void run() {
    start();
    for (index_t i = 0; i < p.seq_len; ++i) step(i, p.reverse ? i : p.seq_len - 1 - i);
    float more[kCells] = {};
    if (p.seq_len) receive(p.seq_len - 1, more);
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      if (!exists(c)) continue;
      Site at = site(0, c);
      if (p.dh0) store(static_cast<T*>(p.dh0) + at.n * H + at.u, dstate[c] + more[c]);
      if (Cell::kCarries && p.dc0) static_cast<float*>(p.dc0)[at.n * H + at.u] = carried[c];
    }
  }

  SEQKERN_INLINE void start() {
    if (full && threadIdx.x == 0)
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(full + i, 1);
        mbarrier_expect(full + i, bytes);
      }
    for (int e = int(threadIdx.x); e < 2 * kParts * kSteps * 32; e += kThreads) words[e] = 0;
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      if (!exists(c)) continue;
      Site at = site(0, c);
      length[c] = int(p.lengths ? p.lengths[at.n] : p.seq_len);
      dstate[c] = load_or_zero(static_cast<const T*>(p.dh_n), at.n * H + at.u);
      if (Cell::kCarries) carried[c] = load_or_zero(static_cast<const float*>(p.dc_n), at.n * H + at.u);
    }
    copies_arrived();
    sync_cluster();
  }

  // What step i gave for this thread's units, once it is there.
  SEQKERN_INLINE void receive(index_t i, float (&sum)[kCells]) const {
    if (full) {
      mbarrier_wait(full + (i & 1), int(i / 2 & 1));
      if (threadIdx.x == 0) mbarrier_expect(full + (i & 1), bytes);
    }
    const float* from = received + (i & 1) * size * kUnits * kRows;
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c)
      if (exists(c))
        for (int b = 0; b < size; ++b) sum[c] += from[b * kUnits * kRows + pair(c)];
  }

  // The i-th step backwards, at time t.
  SEQKERN_INLINE void step(index_t i, index_t t) {
    typename Cell::Saved saved[kCells] = {};
    float dy[kCells] = {}, more[kCells] = {}, d[kCells][X] = {};
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      if (t >= length[c]) continue;
      Site at = site(t, c);
      saved[c] = cell.read(at);
      dy[c] = load_or_zero(static_cast<const T*>(p.dy), (t * p.batch + at.n) * H + at.u);
    }
    if (i) receive(i - 1, more);
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      dstate[c] += more[c];
      if (!exists(c)) continue;
      if (t < length[c]) dstate[c] = cell(saved[c], dstate[c] + dy[c], carried[c], d[c]);
      share(i, c, d[c]);
    }
    sync_block();
    SEQKERN_UNROLL
    for (int j = 0; j < kHeldTiles; j += 2)
      if (tile_of(j) < all)
        products(j, i, [&](int k, int s, std::uint32_t(&f)[4]) {
          SEQKERN_UNROLL
          for (int w = 0; w < 4; ++w) f[w] = held[(j + k) * kSteps + s][w];
        });
    for (int j = kHeldTiles; tile_of(j) < all; j += 2) {
      int other = tile_of(j + 1) < all ? j + 1 : j;
      products(j, i, [&](int k, int s, std::uint32_t(&f)[4]) {
        cuda::load(f, group(k ? other : j, s / kGroup) + s % kGroup * 32);
      });
    }
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      if (!exists(c)) continue;
      Site at = site(t, c);
      SEQKERN_UNROLL
      for (int g = 0; g < X; ++g) a.dgates[((t * p.batch + at.n) * X + g) * H + at.u] = d[c][g];
    }
    if (!full) sync_block();
  }

  // Gate gradients of the recurrent side, in parts, to the right factor.
  SEQKERN_INLINE void share(index_t i, int c, const float (&d)[X]) const {
    float values[kParts][4] = {};
    SEQKERN_UNROLL
    for (int g = 0; g < G; ++g) {
      T parts[kParts];
      split(g == G - 1 ? d[X - 1] : d[g], kParts, parts, 1);
      SEQKERN_UNROLL
      for (int q = 0; q < kParts; ++q) values[q][g] = load(parts + q);
    }
    int unit = pair(c) / kRows, row = pair(c) % kRows;
    SEQKERN_UNROLL
    for (int q = 0; q < kParts; ++q) {
      RightFactor<T> factor{gradients(i).words + q * kSteps * 32};
      if constexpr (kSlots == 4) *factor.at(unit, row) = word_of<T>(values[q]);
      else store(reinterpret_cast<T*>(factor.at(unit / 4, row)) + unit % 4, values[q][0]);
    }
  }

  static SEQKERN_INLINE float whole(const float (&sums)[kParts][4], int e) {
    float v = sums[kParts - 1][e];
    SEQKERN_UNROLL
    for (int q = kParts - 2; q >= 0; --q) v = sums[q][e] + v * (1 / kPartScale<T>);
    return v;
  }

  // The parts of dh of tiles j and j + 1 from step i, to their owners. left(k, s, f): the factor of tile j + k.
  template <class Left>
  SEQKERN_INLINE void products(int j, index_t i, Left left) const {
    float sums[2][kParts][4] = {};
    const std::uint64_t* right = gradients(i).lane();
    SEQKERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      std::uint32_t f[4];
      std::uint64_t r[kParts];
      SEQKERN_UNROLL
      for (int q = 0; q < kParts; ++q) r[q] = right[(q * kSteps + s) * 32];
      SEQKERN_UNROLL
      for (int k = 0; k < 2; ++k) {
        left(k, s, f);
        SEQKERN_UNROLL
        for (int q = 0; q < kParts; ++q)
          multiply<T>(sums[k][q], f, {std::uint32_t(r[q]), std::uint32_t(r[q] >> 32)});
      }
    }
    SEQKERN_UNROLL
    for (int k = 0; k < 2; ++k) {
      int tile = tile_of(j + k);
      if (tile >= all) break;
      int owner = ((tile + 1) * size - 1) / all, unit = (tile - all * owner / size) * 16 + lane_id() / 4;
      float* to = received + (((i & 1) * size + rank) * kUnits + unit) * kRows + lane_id() % 4 * 2;
      SEQKERN_UNROLL
      for (int e = 0; e < 4; e += 2, to += 8 * kRows) {
        float x = whole(sums[k], e), y = whole(sums[k], e + 1);
        std::uint64_t two = bit_cast<std::uint32_t>(x) | std::uint64_t(bit_cast<std::uint32_t>(y)) << 32;
        if (full) store_async(reinterpret_cast<std::uint64_t*>(to), two, full + (i & 1), owner);
        else to[0] = x, to[1] = y;
      }
    }
  }
};

template <class T, class Cell, int kGroups>
__global__ void __launch_bounds__(32 * kStepWarps, 1)
    back_step_kernel(const __grid_constant__ BackStepArguments a, const __grid_constant__ Cell cell) {
  SEQKERN_DYNAMIC_SHARED(shared);
  BackStepWalk<T, Cell, kGroups>(a, cell, shared).run();
}

// Groups of depth for a block of a cluster: 1, 2 or 4; 0 for more.
template <class Cell>
constexpr int back_groups(index_t hidden, int cluster) {
  index_t groups = depth_groups(ceil_div(ceil_div(hidden, 16), cluster) * 16 * (Cell::kGates == 1 ? 1 : 4));
  return groups > 4 ? 0 : groups > 2 ? 4 : int(groups);
}
// Room for the weights, however many blocks share them.
template <class Cell>
constexpr index_t back_factors(index_t hidden) {
  index_t most = 0;
  for (int cluster = 1; cluster <= 2 * kPortableCluster; cluster *= 2) {
    index_t factors = cluster * ceil_div(hidden, 16) * back_groups<Cell>(hidden, cluster) * kGroup * 32;
    if (factors > most) most = factors;
  }
  return most;
}

// The walk; false where it does not apply. weights: room for them packed.
template <class T, class Cell>
bool back_steps(const RecurrentBackward& p, float* dgates, Factor* weights, const Cell& cell, cudaStream_t stream) {
  index_t all = ceil_div(p.hidden_size, 16), clusters = ceil_div(p.batch, kRows);
  constexpr int kEnough = Cell::kGates == 1 ? 1 : 2;  // groups that are few
  auto groups = [&](int cluster) { return back_groups<Cell>(p.hidden_size, cluster); };
  auto many = [&](int cluster) { return !groups(cluster) || groups(cluster) > kEnough; };
  auto with = [&](int count, auto f) {
    if (count == 4) return f(std::integral_constant<int, 4>{});
    if (count == 2) return f(std::integral_constant<int, 2>{});
    return count == 1 && f(std::integral_constant<int, 1>{});
  };
  auto kernel_of = [](auto count) { return back_step_kernel<T, Cell, decltype(count)::value>; };
  Limits device = limits(reinterpret_cast<const void*>(kernel_of(std::integral_constant<int, 1>{})));
  auto limit = std::size_t(device.max_shared);
  int cluster = 1;
  while (cluster * 2 <= min_of(device.max_cluster, all) && many(cluster)) cluster *= 2;
  if (cluster == kPortableCluster && many(cluster) && 2 * cluster <= all)
    with(groups(2 * cluster), [&](auto count) {
      auto kernel = reinterpret_cast<const void*>(kernel_of(count));
      if (active_clusters(kernel, 2 * cluster, 32 * kStepWarps, limit) >= clusters) cluster *= 2;
      return true;
    });
  return with(groups(cluster), [&](auto count) {
    using Walk = BackStepWalk<T, Cell, decltype(count)::value>;
    std::size_t shared = Walk::shared_bytes(cluster), group = kStepWarps * kGroup * 32 * sizeof(Factor);
    if (shared > limit) return false;
    index_t wanted = ceil_div(all, kStepWarps) * decltype(count)::value - Walk::held_groups();
    int on_chip = int(min_of(wanted < 0 ? 0 : wanted, index_t((limit - shared) / group)));
    pack(cluster * all, decltype(count)::value,
         typename Walk::Columns{static_cast<const T*>(p.weight_hh), p.hidden_size, all, cluster}, weights, stream);
    Launch l{dim3(unsigned(clusters) * unsigned(cluster)), dim3(32 * kStepWarps),
             shared + std::size_t(on_chip) * group, cluster, stream};
    launch(l, kernel_of(count), BackStepArguments{p, dgates, weights, on_chip}, cell);
    return true;
  });
}

}  // namespace seqkern::cuda
