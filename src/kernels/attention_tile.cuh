// Tiles of attention on any GPU, in plain arithmetic: rows of one side, eight to a warp, against 32 rows of the other,
// one to a lane.
//
//   product      sums[m] = left row m . right row of this lane
//   accumulate   out[m][c] += sum over k of weights[m][k] row k, column 32 c + lane
//
// Whose rows stand on which side differs: queries left for the outputs and dq, keys left for dk and dv. A Team is the
// block, whose warps share the right rows, or each warp alone. Both walk in chunks of 32 columns through shared
// memory, so that any width fits. A weight whose bit of `live` is not set is not multiplied: what is masked may be NaN.
#pragma once
#include "attention_score.cuh"

namespace seqkern::cuda {

inline constexpr int kMine = 8, kSide = 32;  // left rows of a warp, right rows of a tile
inline constexpr int kRightPitch = kSide + 1, kBlockWarps = 4, kBlockRows = kBlockWarps * kMine;

template <class A>
struct alignas(16) Four {
  A v[4];
};

// One row of 32 values, 4 apart from the next so that reading four at a time stays aligned.
template <class A>
struct LeftRow {
  Four<A> four[kSide / 4];
  SEQKERN_INLINE A& operator[](int k) { return four[k / 4].v[k % 4]; }
};

template <class A, int kWarps>
struct Team {
  static constexpr int kThreads = 32 * kWarps, kLeft = kMine * kWarps;
  LeftRow<A>*left, *weights;  // [kLeft] each
  A* right;                   // [kSide, kRightPitch]

  // kTeams of them share the block, in `left` and so on of the block.
  SEQKERN_INLINE Team(LeftRow<A>* l, LeftRow<A>* w, A* r) {
    int team = warp_id() / kWarps;
    left = l + team * kLeft, weights = w + team * kLeft, right = r + team * kSide * kRightPitch;
  }
  SEQKERN_INLINE int rank() const { return int(threadIdx.x) % kThreads; }
  SEQKERN_INLINE int first() const { return warp_id() % kWarps * kMine; }  // this warp's left rows
  SEQKERN_INLINE void sync() const {
    if (kWarps == 1) sync_warp();
    else sync_block();
  }

  // to(row, column) = columns [from, from + 32) of `count` rows; zeros past `width` and where there is no row.
  template <class Rows, class To>
  SEQKERN_INLINE void load_chunk(const Rows& rows, int count, index_t from, index_t width, To to) const {
    int lane = lane_id();
    for (int r = rank() / 32; r < count; r += kWarps) {
      auto row = rows(r);
      to(r, lane) = row && from + lane < width ? load(row + from + lane) : A(0);
    }
  }

  template <class Left, class Right>
  SEQKERN_INLINE void product(const Left& left_rows, const Right& right_rows, index_t width, A (&sums)[kMine]) const {
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) sums[m] = 0;
    for (index_t d = 0; d < width; d += kSide) {
      sync();
      load_chunk(left_rows, kLeft, d, width, [&](int r, int k) -> A& { return left[r][k]; });
      load_chunk(right_rows, kSide, d, width, [&](int r, int k) -> A& { return right[r * kRightPitch + k]; });
      sync();
      const A* mine = right + lane_id() * kRightPitch;
      SEQKERN_UNROLL
      for (int k = 0; k < kSide; k += 4) {
        A v[4] = {mine[k], mine[k + 1], mine[k + 2], mine[k + 3]};
        SEQKERN_UNROLL
        for (int m = 0; m < kMine; ++m) {
          Four<A> u = left[first() + m].four[k / 4];
          SEQKERN_UNROLL
          for (int i = 0; i < 4; ++i) sums[m] += u.v[i] * v[i];
        }
      }
    }
  }

  // This warp's weights of the tile; accumulate reads them, once the team has met.
  SEQKERN_INLINE void put_weights(const A (&values)[kMine]) const {
    sync_warp();  // what accumulate read last time
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) weights[first() + m][lane_id()] = values[m];
  }

  // Columns [from, width) of the rows, 32 for every c as far as there are any.
  template <int kColumns, class Rows>
  SEQKERN_INLINE void accumulate(const Rows& rows, index_t from, index_t width, const unsigned (&live)[kMine],
                                 A (&out)[kMine][kColumns]) const {
    unsigned all = kAllLanes;
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) all &= live[m];
    SEQKERN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      if (from + c * kSide >= width) continue;
      sync();
      load_chunk(rows, kSide, from + c * kSide, width, [&](int r, int k) -> A& { return right[r * kRightPitch + k]; });
      sync();
      for (int k = 0; k < kSide; k += 4) {
        A v[4];
        SEQKERN_UNROLL
        for (int i = 0; i < 4; ++i) v[i] = right[(k + i) * kRightPitch + lane_id()];
        SEQKERN_UNROLL
        for (int m = 0; m < kMine; ++m) {
          Four<A> w = weights[first() + m].four[k / 4];
          SEQKERN_UNROLL
          for (int i = 0; i < 4; ++i)
            if (all == kAllLanes || live[m] >> (k + i) & 1) out[m][c] += w.v[i] * v[i];
        }
      }
    }
  }
};

// Columns a lane keeps: 2 up to a width of 64, else 4, and those past 128 are shared out over blocks (grid.y).
template <class Run>
void for_columns_of(index_t width, Run run) {
  auto blocks = [&](index_t columns) { return unsigned(width > columns ? ceil_div(width, columns) : 1); };
  if (width <= 2 * kSide) run.template operator()<2>(blocks(2 * kSide));
  else run.template operator()<4>(blocks(4 * kSide));
}

// Rows of k or v, from row `first`, as far as the sequence goes.
template <class T>
struct KeyRows {
  const T* base;
  index_t stride;
  int count;

  SEQKERN_INLINE KeyRows(const void* data, const AttentionStrides& s, const AttentionInputs& p, index_t b, index_t head,
                         index_t first)
      : base(row_of(static_cast<const T*>(data), s, p.cu_k, b, head, first)),
        stride(s.row),
        count(int(min_of(p.keys(b) - first, 1 << 30))) {}
  SEQKERN_INLINE const T* operator()(int r) const { return r < count ? base + r * stride : nullptr; }
  // For who knows whether there is such a row, and goes on by `rows`. Strides of a parameter take no registers.
  SEQKERN_INLINE const T* at(int r, bool, const AttentionStrides& s) const { return base + r * s.row; }
  SEQKERN_INLINE void skip(int rows, const AttentionStrides& s) { base += rows * s.row; }
};

// Rows of q, out or dout.
template <class T>
struct QueryRows {
  using A = acc_t<T>;
  const QueryRow<A>* rows;
  const T* base;
  AttentionStrides strides;
  const index_t* cu;

  SEQKERN_INLINE const T* operator()(int r) const {
    const QueryRow<A>& row = rows[r];
    return row.live() ? row_of(base, strides, cu, row.b, row.head, row.i) : nullptr;
  }
};

// Row descriptions of a tile: rows [first, first + count) of the stack from head `head` on, of which there are `all`.
// The team meets afterwards.
template <class T, class A = acc_t<T>>
SEQKERN_INLINE void describe_rows(const Score<T>& score, index_t b, index_t head, index_t first, int count, index_t all,
                                  int rank, QueryRow<A>* rows) {
  if (rank >= count) return;
  if (first + rank < all) rows[rank] = score.row(b, head, first + rank);
  else rows[rank] = {b, 0, -1, 0, 0, 0, 0, nullptr, A(0)};
}

// The keys that any of `count` rows sees.
struct Interval {
  index_t low, high;
};
template <class A>
SEQKERN_INLINE Interval keys_seen(const QueryRow<A>* rows, int count) {
  Interval seen{index_t(1) << 62, 0};
  for (int r = 0; r < count; ++r) {
    if (!rows[r].live()) continue;
    seen.low = min_of(seen.low, rows[r].low);
    if (rows[r].high > seen.high) seen.high = rows[r].high;
  }
  return seen;
}

}  // namespace seqkern::cuda
