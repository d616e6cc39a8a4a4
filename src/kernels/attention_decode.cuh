// Attention forward for few rows, as in decoding: a warp takes a piece of the keys for all rows of a group, so that K
// and V are read once, and a second kernel joins the pieces in order. Keys: KeyRows or PageRows.
#pragma once
#include "attention_pages.cuh"
#include "attention_stream.cuh"
#include "attention_walk.cuh"

namespace seqkern::cuda {

template <class A>
inline constexpr int kDecodeWarps = sizeof(A) == 8 ? 2 : 4;
inline constexpr int kJoinWarps = 16;
inline constexpr index_t kMinPieceKeys = 64;

inline bool decodes(const AttentionForward& p) { return p.group() * p.query_len <= kMine && !p.probs; }

// Keys a warp takes, so that the rounds in which blocks fill the device come to the least; a round costs a few more.
inline index_t piece_keys(const AttentionForward& p) {
  constexpr index_t kWarps = kDecodeWarps<float>, kBlocks = 3, kRound = 32;
  index_t pairs = p.batch * p.kv_heads, at_once = multiprocessors() * kBlocks, best = 0, least = 0;
  if (!pairs) return kMinPieceKeys;
  for (index_t rounds = 1; rounds <= 8; ++rounds) {
    index_t blocks = min_of(rounds * at_once / pairs, p.key_len / (kWarps * kMinPieceKeys));
    if (blocks < 1) blocks = 1;
    index_t keys = round_up(ceil_div(p.key_len, blocks * kWarps), kSide);
    index_t cost = ceil_div(pairs * blocks, at_once) * (keys + kRound);
    if (!least || cost < least) best = keys, least = cost;
  }
  return best < kMinPieceKeys ? kMinPieceKeys : best;
}
inline index_t pieces_of(const AttentionForward& p) { return p.key_len ? ceil_div(p.key_len, piece_keys(p)) : 1; }

// In plain arithmetic.
template <int kColumns, class Keys, class T, class A>
SEQKERN_INLINE void walk_piece(const AttentionForward& p, const Score<T>& score, const Team<A, 1>& team,
                               const QueryRow<A>* rows, const Piece& piece, index_t column, const Partial<A>& partial) {
  Walk<T, kColumns, Keys> walk{p, score, rows, piece.b, piece.kv_head, column};
  if (piece.first == 0)
    for (int m = 0; m < kMine; ++m) walk.state[m].start(p, rows[m]);
  Interval seen = keys_seen(rows, kMine);
  for (index_t key = piece.first; key < min_of(piece.end, seen.high); key += kSide)
    if (key + kSide > seen.low) walk.step(team, key);
  SEQKERN_UNROLL
  for (int m = 0; m < kMine; ++m) {
    walk.for_own_columns([&](index_t d, int c) { partial.out[(piece.at + m) * p.value_dim + d] = walk.out[m][c]; });
    if (column == 0 && lane_id() == 0) partial.state[piece.at + m] = walk.state[m];
  }
}

// kWidth 0: in plain arithmetic alone.
template <class T, int kColumns, int kWidth, class Keys>
__global__ void __launch_bounds__(32 * kDecodeWarps<acc_t<T>>, kWidth ? 3 : 2)
    attention_decode_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                            index_t pieces, index_t keys, Partial<acc_t<T>> partial) {
  using A = acc_t<T>;
  constexpr int kWarps = kDecodeWarps<A>;
  SEQKERN_SHARED(LeftRow<A>, left, kWarps * kMine);
  SEQKERN_SHARED(LeftRow<A>, weights, kWarps * kMine);
  SEQKERN_SHARED(A, right, kWarps * kSide * kRightPitch);
  SEQKERN_SHARED(QueryRow<A>, rows, kMine);
  index_t groups = ceil_div(pieces, kWarps), pair = blockIdx.x / groups, all = p.group() * p.query_len;
  index_t i = blockIdx.x % groups * kWarps + warp_id(), b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  let_next_start();
  describe_rows(score, b, kv_head * p.group(), 0, kMine, all, int(threadIdx.x), &rows[0]);
  sync_block();
  if (i >= pieces) return;
  Piece piece{b, kv_head, i * keys, (i + 1) * keys, (pair * pieces + i) * kMine};
  if constexpr (kWidth > 0) {
    Interval seen = keys_seen(&rows[0], kMine);
    if constexpr (sizeof(T) == 2) {
      SEQKERN_SHARED(Four<std::uint32_t>, q, kWarps * kWidth);
      StreamWalk<T, kWidth, Keys> walk(p, score, &rows[0], piece, seen, &q[warp_id() * kWidth]);
      walk.run();
      if (walk.finish(piece, int(all), partial)) return;
    } else {
      FloatWalk<Keys> walk(p, score, &rows[0], piece, seen);
      walk.run();
      return walk.finish(piece, int(all), partial);
    }
  }
  Team<A, 1> team(&left[0], &weights[0], &right[0]);
  walk_piece<kColumns, Keys>(p, score, team, &rows[0], piece, index_t(blockIdx.y) * kColumns * kSide, partial);
}

// A block for a row, or for 32 columns of it where rows are few: the pieces in order, as if they had been one walk.
template <class T>
__global__ void __launch_bounds__(32 * kJoinWarps)
    attention_join_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                          index_t pieces, Partial<acc_t<T>> partial) {
  using A = acc_t<T>;
  SEQKERN_SHARED(A, factors, 32 * kJoinWarps);
  SEQKERN_SHARED(A, sums, 32 * kJoinWarps);
  index_t all = p.group() * p.query_len, pair = blockIdx.x / all, r = blockIdx.x % all, b = pair / p.kv_heads;
  QueryRow<A> row = score.row(b, pair % p.kv_heads * p.group(), r);
  wait_for_previous();
  if (row.i < 0) return;
  const Softmax<A>* states = partial.state + pair * pieces * kMine + r;
  Softmax<A> state;
  for (index_t i = threadIdx.x; i < pieces; i += blockDim.x) state.max = Max{}(states[i * kMine].max, state.max);
  state.max = reduce_row(Max{}, state.max);
  auto factor = [&](index_t i) { return power(states[i * kMine].max - state.base()); };
  for (index_t i = threadIdx.x; i < pieces; i += blockDim.x) state.sum += states[i * kMine].sum * factor(i);
  state.sum = reduce_row(Sum{}, state.sum);
  T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, b, row.head, row.i);
  for (index_t column = blockIdx.y * kSide; column < p.value_dim; column += gridDim.y * kSide) {
    index_t d = column + lane_id();
    const A* out = partial.out + (pair * pieces * kMine + r) * p.value_dim + (d < p.value_dim ? d : 0);
    A sum = 0;
    for (index_t first = 0; first < pieces; first += blockDim.x) {
      index_t i = first + threadIdx.x, many = min_of(pieces - first, index_t(blockDim.x));
      sync_block();  // the factors of the last round, and the sums of the last columns
      if (i < pieces) factors[threadIdx.x] = factor(i);
      sync_block();
      SEQKERN_UNROLL_BY(8)
      for (index_t j = warp_id(); j < many; j += warps()) sum += out[(first + j) * kMine * p.value_dim] * factors[j];
    }
    sums[threadIdx.x] = sum;
    sync_block();
    if (warp_id() || d >= p.value_dim) continue;
    for (int w = 1; w < warps(); ++w) sum += sums[w * 32 + lane_id()];
    store(to + d, state.sum == 0 ? A(0) : sum * state.inverse());
  }
  if (threadIdx.x == 0 && blockIdx.y == 0) state.keep(p, row);
}

// Whether rows are whole words of sixteen bytes, of widths up to 128.
inline bool streams(const AttentionForward& p) {
  if (p.dtype != DType::f32) return fits_mma(p);
  return p.head_dim % 4 == 0 && p.value_dim % 4 == 0 && p.head_dim <= kMaxMmaWidth && p.value_dim <= kMaxMmaWidth &&
         starts_words(p.q, p.q_strides, 4) && starts_words(p.k, p.k_strides, 4) && starts_words(p.v, p.v_strides, 4);
}

inline index_t decode_partials(const AttentionForward& p) { return p.batch * p.kv_heads * pieces_of(p) * kMine; }

template <class T, class Keys>
void walk_pieces(const AttentionForward& p, const Score<T>& score, const Partial<acc_t<T>>& partial,
                 cudaStream_t stream) {
  index_t pairs = p.batch * p.kv_heads, pieces = pieces_of(p);
  auto run = [&](auto kernel, unsigned columns) {
    constexpr int kWarps = kDecodeWarps<acc_t<T>>;
    Launch l{dim3(unsigned(pairs * ceil_div(pieces, kWarps)), columns), dim3(32 * kWarps)};
    l.stream = stream;
    launch(l, kernel, p, score, pieces, piece_keys(p), partial);
  };
  auto plain = [&] {
    for_columns_of(p.value_dim, [&]<int kColumns>(unsigned blocks) {
      run(attention_decode_kernel<T, kColumns, 0, Keys>, blocks);
    });
  };
  bool narrow = p.head_dim <= 64 && p.value_dim <= 64;
  if constexpr (sizeof(T) == 8) plain();
  else if (!streams(p)) plain();
  else if constexpr (sizeof(T) == 4) run(attention_decode_kernel<T, 4, 128, Keys>, 1);
  else if (narrow) run(attention_decode_kernel<T, 2, 64, Keys>, 1);
  else run(attention_decode_kernel<T, 4, 128, Keys>, 1);
}

template <class T>
void decode(const AttentionForward& p, void* workspace, cudaStream_t stream) {
  index_t pairs = p.batch * p.kv_heads, pieces = pieces_of(p);
  Score<T> score(p);
  Partial<acc_t<T>> partial(workspace, decode_partials(p));
  if (p.block_table) walk_pieces<T, PageRows<T>>(p, score, partial, stream);
  else walk_pieces<T, KeyRows<T>>(p, score, partial, stream);
  index_t rows = pairs * p.group() * p.query_len, joining = min_of(ceil_div(pieces, 4), kJoinWarps);
  bool few = rows < 4 * multiprocessors() && p.value_dim;
  Launch l{dim3(unsigned(rows), unsigned(few ? ceil_div(p.value_dim, kSide) : 1)), dim3(32 * unsigned(joining))};
  l.stream = stream;
  l.early = limits(reinterpret_cast<const void*>(attention_join_kernel<T>)).max_cluster > 1;
  launch(l, attention_join_kernel<T>, p, score, pieces, partial);
}

}  // namespace seqkern::cuda
