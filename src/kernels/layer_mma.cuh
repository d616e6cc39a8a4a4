// What the walks of a recurrent layer on tensor cores share (float16 and bfloat16; layer.cuh: the rest).
//
// Rows of weights are the left factor, the cluster's kRows batch rows the columns of the right one. Weights are packed
// once as the lanes of a warp hold them, so that a lane reads its part of a factor in one piece, from registers, shared
// memory or L2, wherever it is kept for the sequence. A tile of 16 rows of weights is four quads of rows; a lane ends
// up with one quad for one batch row: the gates of a unit, or four units where there is one gate.
#pragma once
#include "cuda/gemm_mma.cuh"
#include "layer.cuh"

namespace seqkern::cuda {

inline constexpr int kStepWarps = 8, kGroup = 4;  // steps of depth 16 that are read together
// Groups of a warp's first tile in registers, for a warp with one tile or more.
constexpr int held_groups(bool one) { return one ? 8 : 6; }

struct alignas(16) Factor {  // a lane's part of a left factor
  std::uint32_t words[4];
};
SEQKERN_INLINE void load(std::uint32_t (&a)[4], const Factor* from) {
  Factor f = *from;
  SEQKERN_UNROLL
  for (int i = 0; i < 4; ++i) a[i] = f.words[i];
}

// The quad and the batch row of this lane.
SEQKERN_INLINE int lane_quad() { return lane_id() / 8; }
SEQKERN_INLINE int lane_row() { return lane_id() % 4 * 2 + lane_id() / 4 % 2; }
// The row of a tile's quads that lies in row r of the factor.
constexpr int quad_row(int r) { return r % 8 / 2 * 4 + r % 2 + r / 8 * 2; }

// A tile's sums as the matrix instruction leaves them, to this lane's quad of its batch row.
SEQKERN_INLINE void to_quad(const float (&d)[4], float (&quad)[4]) {
  bool odd = lane_id() & 4;
  SEQKERN_UNROLL
  for (int i = 0; i < 4; i += 2) {
    float other = shuffle_xor(odd ? d[i] : d[i + 1], 4);
    quad[i] = odd ? other : d[i];
    quad[i + 1] = odd ? d[i + 1] : other;
  }
}

constexpr index_t depth_groups(index_t depth) { return ceil_div(depth, 16 * kGroup); }

// to [tiles, groups, kGroup, 32 lanes]: weight(tile, row of it, k) is 0 outside the matrix.
template <class Weight>
__global__ void pack_kernel(index_t tiles, index_t groups, Weight weight, Factor* to) {
  index_t steps = groups * kGroup, step = index_t(gridDim.x) * blockDim.x;
  for (index_t e = index_t(blockIdx.x) * blockDim.x + threadIdx.x; e < tiles * steps * 32; e += step) {
    int lane = int(e % 32);
    index_t k = e / 32 % steps * 16 + lane % 4 * 4, tile = e / 32 / steps;
    Factor f;
    SEQKERN_UNROLL
    for (int i = 0; i < 4; ++i) {  // rows g and g + 8, then both two columns further
      int row = lane / 4 + i % 2 * 8;
      index_t column = k + i / 2 * 2;
      f.words[i] = weight(tile, row, column).bits | std::uint32_t(weight(tile, row, column + 1).bits) << 16;
    }
    to[e] = f;
  }
}
template <class Weight>
void pack(index_t tiles, index_t groups, Weight weight, Factor* to, cudaStream_t stream) {
  index_t blocks = ceil_div(tiles * groups * kGroup * 32, 256);
  Launch l{dim3(unsigned(min_of(blocks, 65536))), dim3(256)};
  l.stream = stream;
  if (blocks) launch(l, pack_kernel<Weight>, tiles, groups, weight, to);
}

// The right factor in shared memory: words of four values along the depth, the batch rows of a word side by side, so
// that a word of all rows is one piece of 64 bytes to send, and a step of depth one of 256 to read.
template <class T>
struct RightFactor {
  std::uint64_t* words;

  static constexpr std::size_t bytes(index_t groups) { return std::size_t(groups) * kGroup * 256; }
  // Rows 0-3 and 4-7 change places in every other pair of words: no bank conflicts.
  SEQKERN_INLINE std::uint64_t* at(index_t word, int row) const {
    return words + word * kRows + (row ^ word / 2 % 2 * 4);
  }
  // What this lane holds of the factor of a step: lane() [32 step].
  SEQKERN_INLINE const std::uint64_t* lane() const { return at(lane_id() % 4, lane_id() / 4); }
};
template <class T>
SEQKERN_INLINE std::uint64_t word_of(const float (&v)[4]) {
  return pack<T>(v[0], v[1]) | std::uint64_t(pack<T>(v[2], v[3])) << 32;
}

// How the steps are laid out; no cluster: they do not fit.
struct StepPlan {
  int cluster = 0, threads = 32, on_chip = 0;
  bool one_tile = true;  // a warp has at most one
  bool whole = false;    // all weights are on chip
  std::size_t shared_bytes = 0;
};

// A block's part of the tiles, in `blocks` blocks. fixed(tiles, warps): bytes it needs besides weights.
template <class Fixed>
StepPlan block_plan(std::size_t limit, index_t tiles, index_t groups, int blocks, Fixed fixed) {
  StepPlan plan;
  index_t mine = ceil_div(tiles, blocks);
  int warps = int(min_of(mine, kStepWarps));
  plan.threads = 32 * warps;
  plan.shared_bytes = fixed(mine, warps);
  if (plan.shared_bytes > limit) return {};
  plan.cluster = blocks, plan.one_tile = mine <= warps;
  std::size_t group = std::size_t(warps) * kGroup * 32 * sizeof(Factor);
  index_t wanted = ceil_div(mine, warps) * groups - min_of(groups, held_groups(plan.one_tile));
  plan.on_chip = int(min_of(wanted, index_t((limit - plan.shared_bytes) / group)));
  plan.whole = plan.on_chip == wanted;
  plan.shared_bytes += std::size_t(plan.on_chip) * group;
  return plan;
}
// A tile for every warp where the cluster can grow so far, a cluster of 16 where the device runs all `clusters` at
// once.
template <class Fixed>
StepPlan step_plan(const void* kernel, index_t tiles, index_t groups, index_t clusters, Fixed fixed) {
  Limits device = limits(kernel);
  auto limit = std::size_t(device.max_shared);
  int cluster = 1;
  while (cluster * 2 <= device.max_cluster && ceil_div(tiles, cluster) > kStepWarps) cluster *= 2;
  if (cluster == kPortableCluster && ceil_div(tiles, cluster) > kStepWarps &&
      active_clusters(kernel, 2 * cluster, 32 * kStepWarps, limit) >= clusters)
    cluster *= 2;
  return block_plan(limit, tiles, groups, cluster, fixed);
}

// A warp's tiles of packed weights: the first kHeldGroups groups of its first tile in registers, as many of the next
// as fit in shared memory, the rest in global memory.
template <class T, int kHeldGroups>
struct HeldWeights {
  const Factor* global;  // of the block's first tile
  const Factor* shared;  // [chip groups, warps, kGroup, 32]
  int groups, tiles, on_chip;
  std::uint32_t held[kHeldGroups * kGroup][4];

  SEQKERN_INLINE int in_registers() const { return groups < kHeldGroups ? groups : kHeldGroups; }
  SEQKERN_INLINE int tile_of(int j) const { return warp_id() + j * warps(); }
  SEQKERN_INLINE const Factor* group(int j, int q) const {
    int i = j * groups + q - in_registers();
    if (i < on_chip) return shared + ((i * warps() + warp_id()) * kGroup * 32 + lane_id());
    return global + ((index_t(tile_of(j)) * groups + q) * kGroup * 32 + lane_id());
  }

  SEQKERN_INLINE void fetch(Factor* chip) {
    shared = chip;
    if (tile_of(0) < tiles) {
      SEQKERN_UNROLL
      for (int s = 0; s < kHeldGroups * kGroup; ++s) {
        const Factor* from = global + (index_t(tile_of(0)) * groups * kGroup + s) * 32 + lane_id();
        if (s / kGroup < groups) cuda::load(held[s], from);
        else held[s][0] = held[s][1] = held[s][2] = held[s][3] = 0;
      }
    }
    for (int i = 0; i < on_chip; ++i) {
      int at = i + in_registers(), j = at / groups, q = at % groups;
      if (tile_of(j) >= tiles) break;
      for (int s = 0; s < kGroup; ++s)
        copy_async<16>(chip + ((i * warps() + warp_id()) * kGroup + s) * 32 + lane_id(),
                       global + ((index_t(tile_of(j)) * groups + q) * kGroup + s) * 32 + lane_id());
    }
  }

  // sums[i] of tiles j and, with two, j + 1, each in four sums over every fourth step: the order does not depend on
  // where the weights are and how many tiles a warp has.
  template <int kTiles>
  SEQKERN_INLINE void products(int j, const std::uint64_t* right, float (&sums)[kTiles][4]) const {
    float part[kTiles][kGroup][4] = {};
    if (j > 0) {
      add<kTiles>(j, 0, right, part);
    } else if (groups >= kHeldGroups) {  // no branches between the groups
      SEQKERN_UNROLL
      for (int g = 0; g < kHeldGroups; ++g) add_held(g, right, part);
      add<kTiles>(0, kHeldGroups, right, part);
    } else {
      SEQKERN_UNROLL
      for (int g = 0; g < kHeldGroups - 1; ++g)
        if (g < groups) add_held(g, right, part);
    }
    SEQKERN_UNROLL
    for (int i = 0; i < kTiles; ++i) SEQKERN_UNROLL
    for (int e = 0; e < 4; ++e) sums[i][e] = part[i][0][e] + part[i][1][e] + (part[i][2][e] + part[i][3][e]);
  }

 private:
  static SEQKERN_INLINE void load_right(std::uint32_t (&b)[2], const std::uint64_t* from) {
    std::uint64_t both = *from;
    b[0] = std::uint32_t(both), b[1] = std::uint32_t(both >> 32);
  }
  // Group g, in registers, of the first tile, and of the second.
  template <int kTiles>
  SEQKERN_INLINE void add_held(int g, const std::uint64_t* right, float (&part)[kTiles][kGroup][4]) const {
    const Factor* second = kTiles == 2 ? group(1, g) : nullptr;
    SEQKERN_UNROLL
    for (int s = 0; s < kGroup; ++s) {
      std::uint32_t a[4], b[2];
      load_right(b, right + (g * kGroup + s) * 32);
      multiply<T>(part[0][s], held[g * kGroup + s], b);
      if constexpr (kTiles == 2) {
        cuda::load(a, second + s * 32);
        multiply<T>(part[1][s], a, b);
      }
    }
  }
  template <int kTiles>
  SEQKERN_INLINE void add(int j, int first, const std::uint64_t* right, float (&part)[kTiles][kGroup][4]) const {
#if !SEQKERN_HOSTCUDA
#pragma unroll 2
#endif
    for (int q = first; q < groups; ++q) {
      SEQKERN_UNROLL
      for (int s = 0; s < kGroup; ++s) {
        std::uint32_t a[4], b[2];
        load_right(b, right + (q * kGroup + s) * 32);
        SEQKERN_UNROLL
        for (int i = 0; i < kTiles; ++i) {
          cuda::load(a, group(j + i, q) + s * 32);
          multiply<T>(part[i][s], a, b);
        }
      }
    }
  }
};

}  // namespace seqkern::cuda
