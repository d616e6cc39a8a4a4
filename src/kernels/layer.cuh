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
inline constexpr std::size_t kBarrierBytes = 64;  // at the start of shared memory

// Step t, row n, unit u.
struct Site {
  index_t t, n, u;
};

struct Range {
  index_t begin, end;
};
SEQKERN_INLINE Range own(index_t count, int rank, int size) { return {count * rank / size, count * (rank + 1) / size}; }
SEQKERN_INLINE Range own(index_t count) { return own(count, cluster_rank(), cluster_size()); }

// How a layer is laid out on the device.
struct Plan {
  int cluster = 1, threads = 32;
  bool weights_on_chip = false, exchange_on_chip = false;
  std::size_t shared_bytes = 0;
};

constexpr std::size_t padded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

// exchange: bytes of all exchanges. weights(cluster): bytes of a block's largest slice.
template <class Weights>
Plan make_plan(Limits device, index_t units, std::size_t exchange, Weights weights) {
  auto limit = std::size_t(device.max_shared);
  Plan plan;
  plan.exchange_on_chip = kBarrierBytes + exchange <= limit;
  std::size_t used = kBarrierBytes + (plan.exchange_on_chip ? exchange : 0);
  while (plan.cluster * 2 <= min_of(device.max_cluster, units) &&
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

// `buffers` arrays [kRows, width] that all blocks of a cluster fill together, each its own columns.
//
// On chip every block has a copy. In a cluster the values arrive on a barrier of the buffer, and whoever has seen a
// use of a buffer complete also knows that the use before it has been read: its readers sent their next values only
// afterwards. So nothing else is waited for, and no block for another's whole step. A lone block, and blocks that
// share one copy in global memory, meet at sync_cluster instead.
template <class A>
struct Exchange {
  A* data = nullptr;
  std::uint64_t* full = nullptr;  // a barrier for every buffer; null: sync_cluster
  index_t width = 0;
  int bytes = 0;  // of one use
  bool copies = false;

  template <class Pieces>
  SEQKERN_INLINE void place(Pieces& from, std::uint64_t*& barriers, int buffers, index_t columns, index_t rows,
                            bool on_chip) {
    data = from.template take<A>(buffers * kRows * columns);
    width = columns, bytes = int(rows * columns * index_t(sizeof(A))), copies = on_chip;
    if (!on_chip || cluster_size() == 1) return;
    full = barriers;
    barriers += buffers;
    if (threadIdx.x) return;
    for (int i = 0; i < buffers; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_expect(full + i, bytes);
    }
  }

  SEQKERN_INLINE const A* buffer(int i) const { return data + i * kRows * width; }
  SEQKERN_INLINE A get(int i, int row, index_t k) const { return buffer(i)[row * width + k]; }

  // Before the walk; sync_cluster follows.
  SEQKERN_INLINE void set(int i, int row, index_t k, A v) const {
    A* at = data + (i * kRows + row) * width + k;
    if (!copies) *at = v;
    else
      for (int c = 0; c < cluster_size(); ++c) *peer(at, c) = v;
  }
  SEQKERN_INLINE void put(int i, int row, index_t k, A v) const {
    A* at = data + (i * kRows + row) * width + k;
    if (!full) *at = v;
    else
      for (int c = 0; c < cluster_size(); ++c) store_async(at, v, full + i, c);
  }
  // Until everybody's values of buffer i are there, for the `use`th time.
  SEQKERN_INLINE void wait(int i, index_t use) const {
    if (!full) return sync_cluster();
    mbarrier_wait(full + i, int(use & 1));
    if (threadIdx.x == 0) mbarrier_expect(full + i, bytes);
  }
};

// to[0 .. count) = from[0 .. count) by all threads of the block, in the background where the alignment allows.
template <class W>
SEQKERN_INLINE void copy_to_shared(W* to, const W* from, index_t count) {
  constexpr int kWord = 16 / int(sizeof(W));
  if ((std::uintptr_t(to) | std::uintptr_t(from) | std::uintptr_t(count * index_t(sizeof(W)))) % 16) {
    for (index_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
  } else {
    for (index_t i = index_t(threadIdx.x) * kWord; i < count; i += index_t(blockDim.x) * kWord)
      copy_async<16>(to + i, from + i);
  }
}
SEQKERN_INLINE void copies_arrived() {
  copy_commit();
  copy_wait<0>();
}

// Rows (gate, unit) of a weight [gates * units, depth], in global memory or copied to this block's own.
template <class W>
struct GateRows {
  const W* data = nullptr;
  index_t units = 0, depth = 0, first = 0;

  SEQKERN_INLINE const W* row(int gate, index_t unit) const { return data + (gate * units + unit - first) * depth; }

  // A copy of the rows of units `mine` in shared memory, on its way until copies_arrived and a barrier.
  SEQKERN_INLINE GateRows on_chip(int gates, Range mine, Pieces& shared) const {
    index_t count = mine.end - mine.begin;
    W* copy = shared.take<W>(gates * count * depth);
    for (int g = 0; g < gates; ++g) copy_to_shared(copy + g * count * depth, row(g, mine.begin), count * depth);
    return {copy, count, depth, mine.begin};
  }
};

constexpr int power_of_two(int n) { return n > 2 ? 4 : n; }

// sums[j] = sum over k < width of weights[j][k] in[row][k], for the row of this lane, lane % kRows.
template <int kCount, class A, class W>
SEQKERN_INLINE void row_products(const W* const (&weights)[kCount], const A* in, index_t width, A (&sums)[kCount]) {
  constexpr int kPadded = power_of_two(kCount);
  A part[kPadded * kRows] = {};
  for (index_t k = lane_id(); k < width; k += 32) {
    A w[kCount];
    SEQKERN_UNROLL
    for (int j = 0; j < kCount; ++j) w[j] = load(weights[j] + k);
    SEQKERN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      A v = in[r * width + k];
      SEQKERN_UNROLL
      for (int j = 0; j < kCount; ++j) part[j * kRows + r] += w[j] * v;
    }
  }
  A mine = reduce_many(part);
  sync_warp();  // all lanes have read `in` before one of them sends what came of it: the next may then arrive
  SEQKERN_UNROLL
  for (int j = 0; j < kCount; ++j) sums[j] = shuffle(mine, j * kRows + lane_id() % kRows);
}

// Whether this warp has none of either. Such a warp must not wait on barriers: nobody waits for it, so that it could
// fall behind by two phases and see the parity it waits for come round again.
SEQKERN_INLINE bool idle(Range units, Range states) {
  return units.begin + warp_id() >= units.end && states.begin + warp_id() >= states.end;
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
