// What the forward and backward walks of a recurrent layer on the GPU share.
//
// A cluster of blocks owns kRows batch rows for the whole sequence, each block a slice of the hidden units with all
// their gates; its slice of the weights stays in its shared memory when it fits (else it is read from L2 in every
// step). What all blocks need of a step, the state or the gate gradients, lies in an Exchange: every block writes
// its units into the copy of every block, through distributed shared memory. A warp computes one unit of all rows
// at a time, its lanes sharing the sum, so that weights are read once for all rows and in order.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "seqkern/recurrent.h"

namespace seqkern::cuda {

inline constexpr int kRows = 8, kMaxWarps = 8, kUnitsPerBlock = 16;

// Step t, row n, unit u.
struct Site {
  index_t t, n, u;
};

struct Range {
  index_t begin, end;
};
SEQKERN_INLINE Range own(index_t count) {
  return {count * cluster_rank() / cluster_size(), count * (cluster_rank() + 1) / cluster_size()};
}

// How a layer is laid out on the device.
struct Plan {
  int cluster = 1, threads = 32;
  bool weights_on_chip = false, exchange_on_chip = false;
  std::size_t shared_bytes = 0;
};

constexpr std::size_t padded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

// exchange: bytes of all exchanges. weights(cluster): bytes of a block's largest slice.
template <class Weights>
Plan make_plan(index_t units, std::size_t exchange, Weights weights) {
  Limits device = limits();
  auto limit = std::size_t(device.max_shared);
  Plan plan;
  plan.exchange_on_chip = exchange <= limit;
  std::size_t used = plan.exchange_on_chip ? exchange : 0;
  while (plan.cluster * 2 <= device.max_cluster &&
         (units > index_t(plan.cluster) * kUnitsPerBlock || used + weights(plan.cluster) > limit))
    plan.cluster *= 2;
  plan.weights_on_chip = used + weights(plan.cluster) <= limit;
  plan.shared_bytes = used + (plan.weights_on_chip ? weights(plan.cluster) : 0);
  index_t warps = ceil_div(units, index_t(plan.cluster));
  plan.threads = 32 * int(warps < 1 ? 1 : warps < kMaxWarps ? warps : kMaxWarps);
  return plan;
}

// Hands out consecutive pieces of a block of memory; counts alone when it has none.
struct Pieces {
  unsigned char* base;
  std::size_t used = 0;

  template <class T>
  __host__ __device__ T* take(index_t count) {
    auto piece = reinterpret_cast<T*>(base + used);
    used += padded(std::size_t(count) * sizeof(T));
    return piece;
  }
};

// [kRows, width], filled by all blocks of a cluster. `copies`: one in every block's shared memory; else one for
// the cluster in global memory.
template <class A>
struct Exchange {
  A* data = nullptr;
  index_t width = 0;
  bool copies = false;

  SEQKERN_INLINE void put(int row, index_t k, A v) const {
    index_t at = row * width + k;
    if (!copies) data[at] = v;
    else
      for (int c = 0; c < cluster_size(); ++c) peer(data, c)[at] = v;
  }
  SEQKERN_INLINE A get(int row, index_t k) const { return data[row * width + k]; }
};

// Rows (gate, unit) of a weight [gates * units, depth], in global memory or copied to this block's own.
template <class W>
struct GateRows {
  const W* data = nullptr;
  index_t units = 0, depth = 0, first = 0;

  SEQKERN_INLINE const W* row(int gate, index_t unit) const { return data + (gate * units + unit - first) * depth; }

  // A copy of the rows of units `mine` in shared memory. The block must synchronise before it reads them.
  SEQKERN_INLINE GateRows on_chip(int gates, Range mine, Pieces& shared) const {
    index_t count = mine.end - mine.begin;
    W* copy = shared.take<W>(gates * count * depth);
    for (int g = 0; g < gates; ++g) {
      const W* from = row(g, mine.begin);
      W* to = copy + g * count * depth;
      for (index_t e = threadIdx.x; e < count * depth; e += blockDim.x) to[e] = from[e];
    }
    return {copy, count, depth, mine.begin};
  }
};

constexpr int power_of_two(int n) { return n > 2 ? 4 : n; }

// sums[j] = sum over k of weights[j][k] in[row][k], for the row of this lane, lane % kRows.
template <int kCount, class A, class W>
SEQKERN_INLINE void row_products(const W* const (&weights)[kCount], const Exchange<A>& in, A (&sums)[kCount]) {
  constexpr int kPadded = power_of_two(kCount);
  A part[kPadded * kRows] = {};
  for (index_t k = lane_id(); k < in.width; k += 32) {
    A w[kCount];
    SEQKERN_UNROLL
    for (int j = 0; j < kCount; ++j) w[j] = load(weights[j] + k);
    SEQKERN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      A v = in.get(r, k);
      SEQKERN_UNROLL
      for (int j = 0; j < kCount; ++j) part[j * kRows + r] += w[j] * v;
    }
  }
  A mine = reduce_many(part);
  SEQKERN_UNROLL
  for (int j = 0; j < kCount; ++j) sums[j] = shuffle(mine, j * kRows + lane_id() % kRows);
}

// f(unit) for this warp's units of a range.
template <class F>
SEQKERN_INLINE void for_units(Range mine, F f) {
  for (index_t u = mine.begin + warp_id(); u < mine.end; u += warps()) f(u);
}

SEQKERN_INLINE bool active(const index_t* lengths, index_t n, index_t t) { return !lengths || t < lengths[n]; }

// Whether t is the first step a row takes, in the direction of the layer.
SEQKERN_INLINE bool first_step(const RecurrentInputs& p, index_t n, index_t t) {
  index_t length = p.lengths ? p.lengths[n] : p.seq_len;
  return p.reverse ? t + 1 >= length : t == 0;
}
// The state a row was in before step t, out of its outputs or the initial state.
template <class T>
SEQKERN_INLINE acc_t<T> state_before(const RecurrentInputs& p, const void* initial, const void* states, index_t width,
                                     Site at) {
  if (first_step(p, at.n, at.t)) return load_or_zero(static_cast<const T*>(initial), at.n * width + at.u);
  index_t t = p.reverse ? at.t + 1 : at.t - 1;
  return load(static_cast<const T*>(states) + (t * p.batch + at.n) * width + at.u);
}

}  // namespace seqkern::cuda
