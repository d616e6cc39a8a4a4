// Attention backward on any GPU (attention_tile.cuh). Probabilities are computed again from the scores, and whoever
// owns a gradient sums it up alone and in order, so that no run differs from another: a block its 32 keys (dk, dv)
// over all rows, its 32 rows (dq) over all keys, its 32 x 32 elements of the mask (dmask) over all they were broadcast
// to, its head (dsinks). What fits tensor cores goes there first (attention_backward_mma.cuh).
#include "attention_backward_mma.cuh"
#include "attention_tile.cuh"
#include "cuda/types.cuh"
#include "seqkern/attention.h"

namespace seqkern::cuda {
namespace {

template <class T>
struct Arguments {
  using A = acc_t<T>;
  AttentionBackward p;
  Score<T> score;
  const A* delta;  // dout . out of every row, [B, Hq, query_len]

  SEQKERN_INLINE index_t at(const QueryRow<A>& row) const { return (row.b * p.heads + row.head) * p.query_len + row.i; }
  SEQKERN_INLINE QueryRows<T> q(const QueryRow<A>* rows) const {
    return {rows, static_cast<const T*>(p.q), p.q_strides, p.cu_q};
  }
  SEQKERN_INLINE QueryRows<T> dout(const QueryRow<A>* rows) const {
    return {rows, static_cast<const T*>(p.dout), p.out_strides, p.cu_q};
  }
  SEQKERN_INLINE KeyRows<T> k(index_t b, index_t head, index_t key) const {
    return KeyRows<T>(p.k, p.k_strides, p, b, head, key);
  }
  SEQKERN_INLINE KeyRows<T> v(index_t b, index_t head, index_t key) const {
    return KeyRows<T>(p.v, p.v_strides, p, b, head, key);
  }
};

// dropout(P), and the gradient of the score before the cap, of one position.
template <class A>
struct Gradient {
  A probability = 0, score = 0, capped = 0;
  bool live = false;
};
template <class T, class A = acc_t<T>>
SEQKERN_INLINE Gradient<A> gradient(const Arguments<T>& a, const QueryRow<A>& row, index_t j, A qk, A dp) {
  Gradient<A> g;
  A s = a.score(qk, row, j, g.capped);
  g.live = s != -infinity<A>();
  if (!g.live) return g;
  auto stats = static_cast<const A*>(a.p.stats) + a.p.row(row.b, row.head, row.i);
  A e = power(s - stats[0]) * stats[a.p.rows()], kept = a.score.kept(row, j);
  g.probability = e * kept;
  g.score = e * (dp * kept - a.delta[a.at(row)]);
  return g;
}
// ... and of the product q . k.
template <class T, class A = acc_t<T>>
SEQKERN_INLINE A through_cap(const Arguments<T>& a, const Gradient<A>& g) {
  A d = a.p.softcap != 0 ? g.score * (1 - g.capped * g.capped) : g.score;
  return d * A(a.p.scale);
}

// A block of kBlockWarps and its shared memory.
#define SEQKERN_ATTENTION_BLOCK(A)                 \
  SEQKERN_SHARED(LeftRow<A>, left, kBlockRows);    \
  SEQKERN_SHARED(LeftRow<A>, weights, kBlockRows); \
  SEQKERN_SHARED(A, right, kSide* kRightPitch);    \
  SEQKERN_SHARED(QueryRow<A>, rows_, kSide);       \
  QueryRow<A>* rows = &rows_[0];                   \
  Team<A, kBlockWarps> team(&left[0], &weights[0], &right[0])
static_assert(kBlockRows == kSide);

// Columns `from` on of a row of T from this lane's sums.
template <class T, class A, int kColumns>
SEQKERN_INLINE void store_columns(T* to, index_t from, index_t width, const A (&sums)[kColumns]) {
  SEQKERN_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    index_t d = from + c * kSide + lane_id();
    if (d < width) store(to + d, sums[c]);
  }
}

// delta, and what tensor cores want to know of a row, if they do: eight lanes a row. kWord: values loaded at once.
inline constexpr int kDeltaLanes = 8;
template <class T, int kWord>
__global__ void delta_kernel(const __grid_constant__ Arguments<T> a, acc_t<T>* delta, RowTerms* terms) {
  using A = acc_t<T>;
  const AttentionBackward& p = a.p;
  index_t all = p.heads * p.query_len, r = index_t(blockIdx.x) * (blockDim.x / kDeltaLanes) + threadIdx.x / kDeltaLanes;
  int lane = lane_id() % kDeltaLanes;
  bool there = r < p.batch * all;
  QueryRow<A> row = a.score.row(there ? r / all : 0, 0, there ? r % all : 0);
  bool live = there && row.live();
  A sum = 0;
  if (live) {
    const T* out = row_of(static_cast<const T*>(p.out), p.out_strides, p.cu_q, row.b, row.head, row.i);
    const T* dout = row_of(static_cast<const T*>(p.dout), p.out_strides, p.cu_q, row.b, row.head, row.i);
    for (index_t d = lane * kWord; d < p.value_dim; d += kDeltaLanes * kWord) {
      alignas(16) T o[kWord], g[kWord];
      copy_word<kWord * sizeof(T)>(o, out + d);
      copy_word<kWord * sizeof(T)>(g, dout + d);
      SEQKERN_UNROLL
      for (int i = 0; i < kWord; ++i) {
        A x = load(o + i);
        sum += x == 0 ? A(0) : x * load(g + i);  // a row that sees nothing takes no NaN from dout
      }
    }
  }
  for (int with = 1; with < kDeltaLanes; with *= 2) sum += shuffle_xor(sum, with);
  if (!there || lane != 0) return;
  if (live) delta[r] = sum;
  if (!terms) return;
  if (!live) {
    terms[r] = {infinity<float>(), 0, 0, 0};
    return;
  }
  auto stats = static_cast<const A*>(p.stats) + p.row(row.b, row.head, row.i);
  terms[r] = {float(stats[0] - log(stats[p.rows()]) * kLogBase<A>), float(sum), int(row.low), int(row.high)};
}

// Whether one of a block's 32 rows from `first` on, of all rows of `heads` heads from `head` on, is to be done here:
// tensor cores leave a byte for sixteen of a head's.
SEQKERN_INLINE bool is_wanted(const unsigned char* wanted, index_t head, index_t heads, index_t length, index_t first) {
  if (!wanted) return true;
  index_t r = first + lane_id(), at = (head + r / length) * round_up(length, kOwnRows) + r % length;
  return ballot(r < heads * length && wanted[at / 16] != 0);
}

template <class T, int kColumns>
__global__ void __launch_bounds__(32 * kBlockWarps, 2)
    dkv_kernel(const __grid_constant__ Arguments<T> a, const unsigned char* wanted) {
  using A = acc_t<T>;
  SEQKERN_ATTENTION_BLOCK(A);
  const AttentionBackward& p = a.p;
  index_t tiles = ceil_div(p.key_len, kSide), pair = blockIdx.x / tiles, key = blockIdx.x % tiles * kSide;
  index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads, all = p.group() * p.query_len;
  index_t column = index_t(blockIdx.y) * kColumns * kSide;
  if (!is_wanted(wanted, pair, 1, p.key_len, key)) return;
  A dk[kMine][kColumns] = {}, dv[kMine][kColumns] = {};
  for (index_t first = 0; first < all; first += kSide) {
    sync_block();
    describe_rows(a.score, b, kv_head * p.group(), first, kSide, all, int(threadIdx.x), rows);
    sync_block();
    Interval seen = keys_seen(rows, kSide);
    if (seen.low >= key + kSide || seen.high <= key) continue;
    A s[kMine], dp[kMine];
    unsigned live[kMine];
    team.product(a.k(b, kv_head, key), a.q(rows), p.head_dim, s);
    team.product(a.v(b, kv_head, key), a.dout(rows), p.value_dim, dp);
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      auto g = gradient(a, rows[lane_id()], key + team.first() + m, s[m], dp[m]);
      live[m] = ballot(g.live);
      s[m] = g.probability, dp[m] = through_cap(a, g);
    }
    team.put_weights(s);
    team.accumulate(a.dout(rows), column, p.value_dim, live, dv);
    team.put_weights(dp);
    team.accumulate(a.q(rows), column, p.head_dim, live, dk);
  }
  for (int m = 0; m < kMine; ++m) {
    index_t j = key + team.first() + m;
    if (j >= (p.cu_k ? p.keys(b) : p.key_len)) continue;
    store_columns(row_of(static_cast<T*>(p.dk), p.dk_strides, p.cu_k, b, kv_head, j), column, p.head_dim, dk[m]);
    store_columns(row_of(static_cast<T*>(p.dv), p.dv_strides, p.cu_k, b, kv_head, j), column, p.value_dim, dv[m]);
  }
}

template <class T, int kColumns>
__global__ void __launch_bounds__(32 * kBlockWarps, 2)
    dq_kernel(const __grid_constant__ Arguments<T> a, const unsigned char* wanted) {
  using A = acc_t<T>;
  SEQKERN_ATTENTION_BLOCK(A);
  const AttentionBackward& p = a.p;
  index_t all = p.group() * p.query_len, tiles = ceil_div(all, kBlockRows), pair = blockIdx.x / tiles;
  index_t first = (tiles - 1 - blockIdx.x % tiles) * kBlockRows, column = index_t(blockIdx.y) * kColumns * kSide;
  index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  if (!is_wanted(wanted, pair * p.group(), p.group(), p.query_len, first)) return;
  describe_rows(a.score, b, kv_head * p.group(), first, kBlockRows, all, int(threadIdx.x), rows);
  sync_block();
  Interval seen = keys_seen(rows, kBlockRows);
  A dq[kMine][kColumns] = {};
  for (index_t key = seen.low / kSide * kSide; key < seen.high; key += kSide) {
    A s[kMine], dp[kMine];
    unsigned live[kMine];
    team.product(a.q(rows), a.k(b, kv_head, key), p.head_dim, s);
    team.product(a.dout(rows), a.v(b, kv_head, key), p.value_dim, dp);
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      auto g = gradient(a, rows[team.first() + m], key + lane_id(), s[m], dp[m]);
      live[m] = ballot(g.live);
      dp[m] = through_cap(a, g);
    }
    team.put_weights(dp);
    team.accumulate(a.k(b, kv_head, key), column, p.head_dim, live, dq);
  }
  for (int m = 0; m < kMine; ++m) {
    const QueryRow<A>& row = rows[team.first() + m];
    if (row.i < 0) continue;
    store_columns(row_of(static_cast<T*>(p.dq), p.dq_strides, p.cu_q, b, row.head, row.i), column, p.head_dim, dq[m]);
  }
}

// Block (b, head, row tile, key tile) of dmask, a dimension that was broadcast counting 1. Not for packed sequences.
template <class T>
__global__ void __launch_bounds__(32 * kBlockWarps, 2) dmask_kernel(const __grid_constant__ Arguments<T> a) {
  using A = acc_t<T>;
  SEQKERN_ATTENTION_BLOCK(A);
  const AttentionBackward& p = a.p;
  const index_t* step = p.dmask_strides;
  index_t counts[4] = {p.batch, p.heads, ceil_div(p.query_len, kBlockRows), ceil_div(p.key_len, kSide)};
  index_t from[4], to[4], left_over = blockIdx.x;
  for (int i = 3; i >= 0; --i) {  // this block's own tile of a dimension, or all of them
    index_t own = step[i] ? left_over % counts[i] : 0;
    from[i] = own, to[i] = step[i] ? own + 1 : counts[i];
    if (step[i]) left_over /= counts[i];
  }
  A sums[kMine] = {};
  for (index_t b = from[0]; b < to[0]; ++b)
    for (index_t head = from[1]; head < to[1]; ++head)
      for (index_t i = from[2]; i < to[2]; ++i) {
        sync_block();
        describe_rows(a.score, b, head, i * kBlockRows, kBlockRows, p.query_len, int(threadIdx.x), rows);
        sync_block();
        Interval seen = keys_seen(rows, kBlockRows);
        for (index_t j = from[3]; j < to[3]; ++j) {
          index_t key = j * kSide, kv_head = head / p.group();
          if (seen.low >= key + kSide || seen.high <= key) continue;
          A s[kMine], dp[kMine];
          team.product(a.q(rows), a.k(b, kv_head, key), p.head_dim, s);
          team.product(a.dout(rows), a.v(b, kv_head, key), p.value_dim, dp);
          SEQKERN_UNROLL
          for (int m = 0; m < kMine; ++m)
            sums[m] += gradient(a, rows[team.first() + m], key + lane_id(), s[m], dp[m]).score;
        }
      }
  if (!step[2]) {  // over the rows: this warp's, then the four warps'
    for (int m = 1; m < kMine; ++m) sums[0] += sums[m];
    sync_block();
    right[warp_id() * kSide + lane_id()] = sums[0];
    sync_block();
    for (int w = 1; w < kBlockWarps; ++w)
      sums[0] = (w == 1 ? right[lane_id()] : sums[0]) + right[w * kSide + lane_id()];
  }
  auto out = static_cast<A*>(p.dmask) + from[0] * step[0] + from[1] * step[1];
  for (int m = 0; m < (step[2] ? kMine : 1); ++m) {
    if (!step[3]) sums[m] = reduce_warp(Sum{}, sums[m]);
    index_t i = step[2] ? from[2] * kBlockRows + team.first() + m : 0, j = step[3] ? from[3] * kSide + lane_id() : 0;
    bool mine = (step[2] ? i < p.query_len : warp_id() == 0) && (step[3] ? j < p.key_len : lane_id() == 0);
    if (mine) out[i * step[2] + j * step[3]] = sums[m];
  }
}

// A block a head.
template <class T>
__global__ void dsinks_kernel(const __grid_constant__ Arguments<T> a) {
  using A = acc_t<T>;
  const AttentionBackward& p = a.p;
  index_t head = blockIdx.x;
  A sink = static_cast<const A*>(p.sinks)[head] * kLogBase<A>, sum = 0;
  for (index_t r = threadIdx.x; r < p.batch * p.query_len; r += blockDim.x) {
    QueryRow<A> row = a.score.row(r / p.query_len, head, r % p.query_len);
    if (!row.live()) continue;
    auto stats = static_cast<const A*>(p.stats) + p.row(row.b, head, row.i);
    sum -= power(sink - stats[0]) * stats[p.rows()] * a.delta[a.at(row)];
  }
  sum = reduce_row(Sum{}, sum);
  if (threadIdx.x == 0) static_cast<A*>(p.dsinks)[head] = sum;
}

// The workspace: [B, Hq, query_len] of delta, for tensor cores of terms too, and their bytes of what is spoiled.
struct Workspace {
  index_t rows, delta_bytes, terms_bytes = 0, keys = 0, own = 0;

  explicit Workspace(const AttentionBackward& p)
      : rows(p.batch * p.heads * p.query_len), delta_bytes(round_up(rows * (p.dtype == DType::f64 ? 8 : 4), 16)) {
    if (!fits_mma(p)) return;
    terms_bytes = rows * index_t(sizeof(RowTerms));
    if (!masks(p)) return;
    index_t pairs = p.batch * p.kv_heads;
    keys = order_of_keys(p, pairs).blocks() * kGradientWarps, own = order_of_rows(p, pairs).blocks() * kGradientWarps;
  }
  index_t bytes() const { return delta_bytes + terms_bytes + keys + own; }
};

template <class T>
void backward(const AttentionBackward& p, void* workspace, cudaStream_t stream) {
  using A = acc_t<T>;
  auto delta = static_cast<A*>(workspace);
  Arguments<T> a{p, Score<T>(p), delta};
  Workspace w(p);
  auto bytes = static_cast<unsigned char*>(workspace);
  auto terms = w.terms_bytes ? reinterpret_cast<RowTerms*>(bytes + w.delta_bytes) : nullptr;
  auto on = [&](index_t blocks, unsigned y, int threads) {
    Launch l{dim3(unsigned(blocks), y), dim3(unsigned(threads))};
    l.stream = stream;
    return l;
  };
  constexpr int kThreads = 32 * kBlockWarps;
  constexpr int kWord = 16 / sizeof(T);
  bool whole = starts_words(p.out, p.out_strides.batch | p.out_strides.head | p.out_strides.row | p.value_dim, kWord) &&
               starts_words(p.dout, 0, kWord);
  if (w.rows)
    launch(on(ceil_div(w.rows, kThreads / kDeltaLanes), 1, kThreads),
           whole ? delta_kernel<T, kWord> : delta_kernel<T, 1>, a, delta, terms);
  const unsigned char *keys_wanted = nullptr, *rows_wanted = nullptr;
  Given given;
  if constexpr (sizeof(T) == 2)
    if (terms) {
      index_t pairs = p.batch * p.kv_heads;
      Gradients<T> m{p, a.score, terms, float(p.scale) * kLogBase<float>, nullptr, nullptr, order_of_keys(p, pairs),
                     order_of_rows(p, pairs)};
      if (w.own) m.keys_spoiled = bytes + w.delta_bytes + w.terms_bytes, m.rows_spoiled = m.keys_spoiled + w.keys;
      given = launch_gradient(m, stream);
      if (given.inputs) keys_wanted = m.keys_spoiled, rows_wanted = m.rows_spoiled;
    }
  index_t pairs = p.batch * p.kv_heads;
  if (index_t tiles = pairs * ceil_div(p.key_len, kSide); tiles && (!given.inputs || keys_wanted))
    for_columns_of(p.head_dim > p.value_dim ? p.head_dim : p.value_dim, [&]<int kColumns>(unsigned y) {
      launch(on(tiles, y, kThreads), dkv_kernel<T, kColumns>, a, keys_wanted);
    });
  if (index_t tiles = pairs * ceil_div(p.group() * p.query_len, kBlockRows); tiles && (!given.inputs || rows_wanted))
    for_columns_of(p.head_dim, [&]<int kColumns>(unsigned y) {
      launch(on(tiles, y, kThreads), dq_kernel<T, kColumns>, a, rows_wanted);
    });
  if (p.dmask && p.dmask_count && !given.mask) {
    const index_t* step = p.dmask_strides;
    index_t tiles = (step[0] ? p.batch : 1) * (step[1] ? p.heads : 1) *
                    (step[2] ? ceil_div(p.query_len, kBlockRows) : 1) * (step[3] ? ceil_div(p.key_len, kSide) : 1);
    launch(on(tiles, 1, kThreads), dmask_kernel<T>, a);
  }
  if (p.dsinks && p.heads) launch(on(p.heads, 1, 256), dsinks_kernel<T>, a);
}

}  // namespace

std::size_t attention_backward_workspace(const AttentionBackward& p) {
  return std::size_t(Workspace(p).bytes());
}

void attention_backward(const AttentionBackward& p, void* workspace, void* stream) {
  for_type(p.dtype, [&]<class T>() { backward<T>(p, workspace, static_cast<cudaStream_t>(stream)); });
}

}  // namespace seqkern::cuda
