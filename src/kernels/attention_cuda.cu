// Attention forward on any GPU (attention_tile.cuh): a block takes 32 query rows, those of all heads of a group side by
// side, and walks over the keys they see, softmax online. Few rows, as in decoding: every warp takes a piece of the
// keys for all rows of a group, and a second kernel joins the pieces in order. What fits tensor cores goes there first
// (attention_mma.cuh).
#include "attention_mma.cuh"
#include "attention_tile.cuh"
#include "cuda/types.cuh"
#include "seqkern/attention.h"

namespace seqkern::cuda {
namespace {

constexpr int kDecodeWarps = 2;
constexpr index_t kPieceKeys = 256, kMaxPieces = 64;

// Eight rows of a warp on their way over the keys.
template <class T, int kColumns>
struct Walk {
  using A = acc_t<T>;
  const AttentionForward& p;
  const Score<T>& score;
  const QueryRow<A>* rows;  // of the team
  index_t b, kv_head, column;
  Softmax<A> state[kMine] = {};
  A out[kMine][kColumns] = {};

  template <class Team>
  SEQKERN_INLINE void scores(const Team& team, index_t key, A (&s)[kMine], unsigned (&live)[kMine]) const {
    QueryRows<T> queries{rows, static_cast<const T*>(p.q), p.q_strides, p.cu_q};
    team.product(queries, KeyRows<T>(p.k, p.k_strides, p, b, kv_head, key), p.head_dim, s);
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      A capped;
      s[m] = score(s[m], rows[team.first() + m], key + lane_id(), capped);
      live[m] = ballot(s[m] != -infinity<A>());
    }
  }

  // Keys [key, key + 32).
  template <class Team>
  SEQKERN_INLINE void step(const Team& team, index_t key) {
    A s[kMine];
    unsigned live[kMine];
    scores(team, key, s, live);
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      A factor = state[m].raise(reduce_warp(Max{}, s[m]));
      s[m] = power(s[m] - state[m].base());
      state[m].sum += reduce_warp(Sum{}, s[m]);
      if (p.dropout > 0) s[m] *= score.kept(rows[team.first() + m], key + lane_id());
      SEQKERN_UNROLL
      for (int c = 0; c < kColumns; ++c) out[m][c] *= factor;
    }
    team.put_weights(s);
    team.accumulate(KeyRows<T>(p.v, p.v_strides, p, b, kv_head, key), column, p.value_dim, live, out);
  }

  // f(d, c): column d of the output, which this lane keeps at c.
  template <class F>
  SEQKERN_INLINE void for_own_columns(F f) const {
    SEQKERN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      index_t d = column + c * kSide + lane_id();
      if (d < p.value_dim) f(d, c);
    }
  }

  SEQKERN_INLINE void finish(int first) const {
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      const QueryRow<A>& row = rows[first + m];
      if (row.i < 0) continue;
      T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, b, row.head, row.i);
      bool nothing = state[m].sum == 0;
      A inverse = state[m].inverse();
      for_own_columns([&](index_t d, int c) { store(to + d, nothing ? A(0) : out[m][c] * inverse); });
      if (column == 0 && lane_id() == 0) state[m].keep(p, row);
    }
  }

  // The probabilities of all keys, for who wants to see them.
  template <class Team>
  SEQKERN_INLINE void write_probs(const Team& team) const {
    for (index_t key = 0; key < p.key_len; key += kSide) {
      A s[kMine];
      unsigned live[kMine];
      scores(team, key, s, live);
      SEQKERN_UNROLL
      for (int m = 0; m < kMine; ++m) {
        const QueryRow<A>& row = rows[team.first() + m];
        if (row.i < 0 || key + lane_id() >= p.key_len) continue;
        T* to = static_cast<T*>(p.probs) + ((b * p.heads + row.head) * p.query_len + row.i) * p.key_len;
        bool on = live[m] >> lane_id() & 1;
        store(to + key + lane_id(), on ? power(s[m] - state[m].base()) * state[m].inverse() : A(0));
      }
    }
  }
};

template <class T, int kColumns>
__global__ void __launch_bounds__(32 * kBlockWarps, 2)
    attention_forward_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                             const unsigned char* wanted) {
  using A = acc_t<T>;
  using Block = Team<A, kBlockWarps>;
  SEQKERN_SHARED(LeftRow<A>, left, Block::kLeft);
  SEQKERN_SHARED(LeftRow<A>, weights, Block::kLeft);
  SEQKERN_SHARED(A, right, kSide * kRightPitch);
  SEQKERN_SHARED(QueryRow<A>, rows, Block::kLeft);
  index_t all = p.group() * p.query_len, tiles = ceil_div(all, Block::kLeft);
  index_t pair = blockIdx.x / tiles, tile = tiles - 1 - blockIdx.x % tiles;  // causal: the longest first
  index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  if (wanted) {  // a byte for every 16 rows, of which the mma kernel took 64 at a time
    const unsigned char* mine = wanted + pair * ceil_div(all, kMmaRows) * kMmaWarps + tile * (Block::kLeft / 16);
    if (!mine[0] && !mine[1]) return;
  }
  Block team(&left[0], &weights[0], &right[0]);
  describe_rows(score, b, kv_head * p.group(), tile * Block::kLeft, Block::kLeft, all, team.rank(), &rows[0]);
  sync_block();
  Interval seen = keys_seen(&rows[0], Block::kLeft);
  Walk<T, kColumns> walk{p, score, &rows[0], b, kv_head, index_t(blockIdx.y) * kColumns * kSide};
  SEQKERN_UNROLL
  for (int m = 0; m < kMine; ++m) walk.state[m].start(p, rows[team.first() + m]);
  for (index_t key = seen.low / kSide * kSide; key < seen.high; key += kSide) walk.step(team, key);
  walk.finish(team.first());
  if (p.probs && walk.column == 0) walk.write_probs(team);
}

// ---- few rows ----

bool decodes(const AttentionForward& p) { return p.group() * p.query_len <= kMine && !p.probs; }
index_t pieces_of(const AttentionForward& p) {
  index_t pieces = min_of(ceil_div(p.key_len, kPieceKeys), kMaxPieces);
  return pieces < 1 ? 1 : pieces;
}

// What a piece of the keys gives for a row: [pairs, pieces, kMine] of these, the values after them.
template <class A>
struct Partial {
  Softmax<A>* state;
  A* out;  // [..., value_dim]

  explicit Partial(void* workspace, index_t count)
      : state(static_cast<Softmax<A>*>(workspace)), out(reinterpret_cast<A*>(state + count)) {}
};

template <class T, int kColumns>
__global__ void __launch_bounds__(32 * kDecodeWarps, 4)
    attention_decode_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                            index_t pieces, Partial<acc_t<T>> partial) {
  using A = acc_t<T>;
  SEQKERN_SHARED(LeftRow<A>, left, kDecodeWarps * kMine);
  SEQKERN_SHARED(LeftRow<A>, weights, kDecodeWarps * kMine);
  SEQKERN_SHARED(A, right, kDecodeWarps * kSide * kRightPitch);
  SEQKERN_SHARED(QueryRow<A>, rows, kMine);
  index_t groups = ceil_div(pieces, kDecodeWarps), pair = blockIdx.x / groups;
  index_t piece = blockIdx.x % groups * kDecodeWarps + warp_id(), b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  Team<A, 1> team(&left[0], &weights[0], &right[0]);
  index_t all = p.group() * p.query_len;
  describe_rows(score, b, kv_head * p.group(), 0, kMine, all, int(threadIdx.x), &rows[0]);
  sync_block();
  if (piece >= pieces) return;
  Interval seen = keys_seen(&rows[0], kMine);
  index_t tiles = ceil_div(ceil_div(p.key_len, kSide), pieces), first = piece * tiles * kSide;
  Walk<T, kColumns> walk{p, score, &rows[0], b, kv_head, index_t(blockIdx.y) * kColumns * kSide};
  if (piece == 0)
    for (int m = 0; m < kMine; ++m) walk.state[m].start(p, rows[m]);
  for (index_t key = first; key < min_of(first + tiles * kSide, seen.high); key += kSide)
    if (key + kSide > seen.low) walk.step(team, key);
  SEQKERN_UNROLL
  for (int m = 0; m < kMine; ++m) {
    index_t at = (pair * pieces + piece) * kMine + m;
    walk.for_own_columns([&](index_t d, int c) { partial.out[at * p.value_dim + d] = walk.out[m][c]; });
    if (walk.column == 0 && lane_id() == 0) partial.state[at] = walk.state[m];
  }
}

// A block for every row: the pieces in order, as if they had been one walk.
template <class T>
__global__ void attention_join_kernel(const __grid_constant__ AttentionForward p,
                                      const __grid_constant__ Score<T> score, index_t pieces,
                                      Partial<acc_t<T>> partial) {
  using A = acc_t<T>;
  index_t all = p.group() * p.query_len, pair = blockIdx.x / all, r = blockIdx.x % all, b = pair / p.kv_heads;
  QueryRow<A> row = score.row(b, pair % p.kv_heads * p.group(), r);
  if (row.i < 0) return;
  auto at = [&](index_t piece) { return (pair * pieces + piece) * kMine + r; };
  Softmax<A> state;
  for (index_t i = 0; i < pieces; ++i) state.max = Max{}(partial.state[at(i)].max, state.max);
  auto factor = [&](index_t i) { return power(partial.state[at(i)].max - state.base()); };
  for (index_t i = 0; i < pieces; ++i) state.sum += partial.state[at(i)].sum * factor(i);
  T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, b, row.head, row.i);
  for (index_t d = threadIdx.x; d < p.value_dim; d += blockDim.x) {
    A sum = 0;
    for (index_t i = 0; i < pieces; ++i)
      if (partial.state[at(i)].sum != 0) sum += partial.out[at(i) * p.value_dim + d] * factor(i);
    store(to + d, state.sum == 0 ? A(0) : sum * state.inverse());
  }
  if (threadIdx.x == 0) state.keep(p, row);
}

template <class T>
void decode(const AttentionForward& p, void* workspace, cudaStream_t stream) {
  using A = acc_t<T>;
  index_t pairs = p.batch * p.kv_heads, pieces = pieces_of(p);
  Score<T> score(p);
  Partial<A> partial(workspace, pairs * pieces * kMine);
  for_columns_of(p.value_dim, [&]<int kColumns>(unsigned blocks) {
    Launch l{dim3(unsigned(pairs * ceil_div(pieces, kDecodeWarps)), blocks), dim3(32 * kDecodeWarps)};
    l.stream = stream;
    launch(l, attention_decode_kernel<T, kColumns>, p, score, pieces, partial);
  });
  Launch l{dim3(unsigned(pairs * p.group() * p.query_len)), dim3(64)};
  l.stream = stream;
  launch(l, attention_join_kernel<T>, p, score, pieces, partial);
}

// What is masked may be NaN: whatever is looked at tile by tile can have such a position beside a live one.
bool masks(const AttentionForward& p) { return p.mask || p.causal || p.left >= 0 || p.right >= 0; }

template <class T>
void forward(const AttentionForward& p, void* workspace, cudaStream_t stream) {
  index_t tiles = ceil_div(p.group() * p.query_len, kMine * kBlockWarps);
  Score<T> score(p);
  const unsigned char* wanted = nullptr;
  if constexpr (sizeof(T) == 2)
    if (fits_mma(p)) {
      auto spoiled = masks(p) ? static_cast<unsigned char*>(workspace) : nullptr;
      bool narrow = p.head_dim <= 64 && p.value_dim <= 64;
      bool done = narrow ? launch_mma<T, 64>(p, score, spoiled, stream)
                         : launch_mma<T, kMaxMmaWidth>(p, score, spoiled, stream);
      if (done && !spoiled) return;
      if (done) wanted = spoiled;
    }
  for_columns_of(p.value_dim, [&]<int kColumns>(unsigned blocks) {
    Launch l{dim3(unsigned(p.batch * p.kv_heads * tiles), blocks), dim3(32 * kBlockWarps)};
    l.stream = stream;
    launch(l, attention_forward_kernel<T, kColumns>, p, score, wanted);
  });
}

}  // namespace

std::size_t attention_forward_workspace(const AttentionForward& p) {
  if (!decodes(p)) return fits_mma(p) && masks(p) ? std::size_t(mma_warps(p)) : 0;
  index_t partials = p.batch * p.kv_heads * pieces_of(p) * kMine;
  return std::size_t(partials * (2 + p.value_dim)) * (p.dtype == DType::f64 ? 8 : 4);
}

void attention_forward(const AttentionForward& p, void* workspace, void* stream_) {
  if (!(p.batch && p.heads && p.query_len)) return;
  auto stream = static_cast<cudaStream_t>(stream_);
  for_type(p.dtype, [&]<class T>() {
    if (decodes(p)) decode<T>(p, workspace, stream);
    else forward<T>(p, workspace, stream);
  });
}

}  // namespace seqkern::cuda
