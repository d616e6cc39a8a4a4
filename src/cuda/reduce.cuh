// Reductions over a warp and over a block, the same in every run: each adds in a fixed tree.
#pragma once
#include "cuda/device.cuh"

namespace seqkern::cuda {

struct Sum {
  template <class V>
  SEQKERN_INLINE V operator()(V a, V b) const {
    return a + b;
  }
  template <class V>
  SEQKERN_INLINE V identity() const {
    return V(0);
  }
};
struct Max {  // NaN wins
  template <class V>
  SEQKERN_INLINE V operator()(V a, V b) const {
    return max_or_nan(a, b);
  }
  template <class V>
  SEQKERN_INLINE V identity() const {
    return -infinity<V>();
  }
};

template <class Op, class V>
SEQKERN_INLINE V reduce_warp(Op op, V v) {
  for (int with = 16; with; with /= 2) v = op(v, shuffle_xor(v, with));
  return v;
}

// Over threads of one threadIdx.y; more than a warp of them must be the whole block. Every thread gets the result.
template <class Op, class V>
SEQKERN_INLINE V reduce_row(Op op, V v) {
  SEQKERN_SHARED(V, parts, 32);
  v = reduce_warp(op, v);
  if (blockDim.x == 32) return v;
  sync_block();  // the previous reduction has been read
  if (lane_id() == 0) parts[warp_id()] = v;
  sync_block();
  return reduce_warp(op, lane_id() < warps() ? parts[lane_id()] : op.template identity<V>());
}

// values[i] += values[i] of the lane `kHalf` away, for the half of the values this lane keeps; then half of those.
// A template, since a loop that is not unrolled would put the values in memory.
template <int kHalf, int kCount, class V>
SEQKERN_INLINE void fold(V (&values)[kCount]) {
  if constexpr (kHalf > 0) {
    bool upper = lane_id() & kHalf;
    SEQKERN_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      V mine = upper ? values[i + kHalf] : values[i], other = upper ? values[i] : values[i + kHalf];
      values[i] = mine + shuffle_xor(other, kHalf);
    }
    fold<kHalf / 2>(values);
  }
}

// kCount sums of a warp at once, kCount <= 32: lane i leaves with that of values[i]. Each step halves what a lane
// still carries by handing the other half to its partner: kCount - 1 shuffles and a few, not five for every sum.
template <int kCount, class V>
SEQKERN_INLINE V reduce_many(V (&values)[kCount]) {
  static_assert((kCount & (kCount - 1)) == 0 && kCount <= 32);
  fold<kCount / 2>(values);
  V v = values[0];
  SEQKERN_UNROLL
  for (int with = kCount; with < 32; with *= 2) v += shuffle_xor(v, with);
  return v;
}

}  // namespace seqkern::cuda
