// Attention forward for few rows, as in decoding: a warp takes a piece of the keys for all rows of a group, so that K
// and V are read once, and a second kernel joins the pieces in order.
//
// Values of 16 bits go from global memory to registers, sixteen bytes at a time, and from there to tensor cores: the
// order in which a product runs over its terms is free, so that every lane multiplies what it has read. With
// g = lane / 4 and t = lane % 4 a lane reads
//   K: key g of eight, values 8t .. 8t + 7 of every 32, four pairs of Q K';
//   V: keys 2t, 2t + 1 (and these + 8) of sixteen, values 8g .. 8g + 7 of every 64, rows 2i and 2i + 1 of which are
//      rows g and g + 8 of tile i of V' P'.
// Q K' leaves row g of the scores where V' P' takes column g of its right factor. There P is split into two values of
// 16 bits, so that rounding it costs nothing.
#pragma once
#include "attention_mma.cuh"
#include "attention_walk.cuh"

namespace seqkern::cuda {

template <class A>
inline constexpr int kDecodeWarps = sizeof(A) == 8 ? 2 : 4;
inline constexpr int kJoinWarps = 16;
inline constexpr index_t kMinPieceKeys = 64;

inline bool decodes(const AttentionForward& p) { return p.group() * p.query_len <= kMine && !p.probs; }

// Keys a warp takes: four rounds of twelve warps for every multiprocessor, if that leaves each something to do.
inline index_t piece_keys(const AttentionForward& p) {
  index_t all = p.batch * p.kv_heads * p.key_len, warps = index_t(multiprocessors()) * 12 * 4;
  index_t keys = ceil_div(ceil_div(all, warps), kSide) * kSide;
  return keys < kMinPieceKeys ? kMinPieceKeys : keys;
}
inline index_t pieces_of(const AttentionForward& p) { return p.key_len ? ceil_div(p.key_len, piece_keys(p)) : 1; }

// What a piece of the keys gives for a row: [pairs, pieces, kMine] of these, the values after them.
template <class A>
struct Partial {
  Softmax<A>* state;
  A* out;  // [..., value_dim]

  explicit Partial(void* workspace, index_t count)
      : state(static_cast<Softmax<A>*>(workspace)), out(reinterpret_cast<A*>(state + count)) {}
};

// Keys [first, end) of a pair of sequence and head, and where their results go.
struct Piece {
  index_t b, kv_head, first, end, at;
};

// In plain arithmetic.
template <int kColumns, class T, class A>
SEQKERN_INLINE void walk_piece(const AttentionForward& p, const Score<T>& score, const Team<A, 1>& team,
                               const QueryRow<A>* rows, const Piece& piece, index_t column, const Partial<A>& partial) {
  Walk<T, kColumns> walk{p, score, rows, piece.b, piece.kv_head, column};
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

// On tensor cores.
template <class T, int kWidth>
struct StreamWalk {
  static constexpr int kKeys = 16 * kMaxMmaWidth / kWidth, kChunks = kWidth / 32, kPanels = kWidth / 64;
  using Words = std::uint32_t[4];
  const AttentionForward& p;
  const Score<T>& score;
  const QueryRow<float>& row;  // g
  index_t key;
  int left;  // keys from there on
  int g = lane_id() / 4, t = lane_id() % 4, k_width = int(p.head_dim) - 8 * t, v_width = int(p.value_dim) - 8 * g;
  const T *k_at, *v_at;  // what this lane reads next
  Words k[kKeys / 8][kChunks], v[kKeys / 16][4][kPanels];
  Four<std::uint32_t>* q;  // [kChunks, 32], a lane's own words of them
  Softmax<float> state = {};
  float out[4 * kPanels][4] = {};

  SEQKERN_INLINE StreamWalk(const AttentionForward& p_, const Score<T>& score_, const QueryRow<float>* rows,
                            const Piece& piece, const Interval& seen, Four<std::uint32_t>* q_)
      : p(p_),
        score(score_),
        row(rows[lane_id() / 4]),
        key(piece.first < seen.low ? seen.low : piece.first),
        left(int(min_of(piece.end, seen.high) - key)),
        k_at(KeyRows<T>(p.k, p.k_strides, p, piece.b, piece.kv_head, key + g).base + 8 * t),
        v_at(KeyRows<T>(p.v, p.v_strides, p, piece.b, piece.kv_head, key + 2 * t).base + 8 * g),
        q(q_ + lane_id()) {
    const T* mine = QueryRows<T>{rows, static_cast<const T*>(p.q), p.q_strides, p.cu_q}(g);
    for (int j = 0; j < kChunks; ++j) {
      bool there = mine && 32 * j < k_width;
      copy_async<16>(q + 32 * j, there ? mine + 32 * j + 8 * t : p.q, there);
    }
    copy_commit();
    if (piece.first == 0) state.start(p, row);
    if (t) state.sum = 0;  // four lanes share a row, one of them its sink
  }
  SEQKERN_INLINE static void fetch(Words& to, const T* from, bool there) {
    if (there) load_once(to, from);
    else to[0] = to[1] = to[2] = to[3] = 0;
  }

  // `count` rows, zeros past them.
  SEQKERN_INLINE void fetch_keys(int count) {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys / 8; ++n, k_at += 8 * p.k_strides.row) SEQKERN_UNROLL
    for (int j = 0; j < kChunks; ++j) fetch(k[n][j], k_at + 32 * j, 8 * n < count - g && 32 * j < k_width);
  }
  SEQKERN_INLINE void fetch_values(int count) {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys / 8; ++n, v_at += 8 * p.v_strides.row) SEQKERN_UNROLL
    for (int m = 0; m < 2; ++m) SEQKERN_UNROLL
    for (int i = 0; i < kPanels; ++i)
      fetch(v[n / 2][n % 2 * 2 + m][i], v_at + m * p.v_strides.row + 64 * i,
            8 * n + m < count - 2 * t && 64 * i < v_width);
  }

  SEQKERN_INLINE void scores(float (&s)[kKeys / 8][4]) const {
    SEQKERN_UNROLL
    for (int j = 0; j < kChunks; ++j) {
      Four<std::uint32_t> row = q[32 * j];
      SEQKERN_UNROLL
      for (int i = 0; i < 4; i += 2) SEQKERN_UNROLL
      for (int n = 0; n < kKeys / 8; ++n)
        multiply<T>(s[n], {row.v[i], 0, row.v[i + 1], 0}, {k[n][j][i], k[n][j][i + 1]});
    }
  }

  // Products into powers relative to the largest so far, those of keys key + 8n + 2t + i of row g.
  SEQKERN_INLINE void softmax(float (&s)[kKeys / 8][4]) {
    bool plain = !p.mask && !p.slopes && p.softcap == 0 && left >= kKeys && row.low <= key && key + kKeys <= row.high;
    float top = -infinity<float>();
    auto for_mine = [&](auto f) {
      SEQKERN_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) SEQKERN_UNROLL
      for (int i = 0; i < 2; ++i) f(s[n][i], 8 * n + 2 * t + i);
    };
    for_mine([&](float& x, int j) {
      float capped;
      if (plain) x *= float(p.scale) * kLogBase<float>;
      else x = j < left ? score(x, row, key + j, capped) : -infinity<float>();
      top = Max{}(x, top);
    });
    for (int with = 1; with < 4; with *= 2) top = Max{}(top, shuffle_xor(top, with));
    float factor = state.raise(top), base = state.base();
    for_mine([&](float& x, int j) {
      x = power(x - base);
      state.sum += x;
      if (p.dropout > 0) x *= score.kept(row, key + j);
    });
    if (!ballot(factor != 1)) return;
    float factors[2] = {shuffle(factor, 8 * t), shuffle(factor, 8 * t + 4)};  // of rows 2t and 2t + 1
    for (auto& tile : out)
      for (int i = 0; i < 4; ++i) tile[i] *= factors[i % 2];
  }

  SEQKERN_INLINE void add_values(const float (&s)[kKeys / 8][4]) {
    auto rest = [](float x) { return x - rounded<T>(x); };
    auto low = [](std::uint32_t x, std::uint32_t y) { return (x & 0xffffu) | y << 16; };
    auto high = [](std::uint32_t x, std::uint32_t y) { return x >> 16 | (y & 0xffff0000u); };
    SEQKERN_UNROLL
    for (int h = 0; h < kKeys / 16; ++h) {
      const float *a = s[2 * h], *b = s[2 * h + 1];
      std::uint32_t upper[2] = {pack<T>(a[0], a[1]), pack<T>(b[0], b[1])};
      std::uint32_t lower[2] = {pack<T>(rest(a[0]), rest(a[1])), pack<T>(rest(b[0]), rest(b[1]))};
      SEQKERN_UNROLL
      for (int i = 0; i < kPanels; ++i) SEQKERN_UNROLL
      for (int w = 0; w < 4; ++w) {
        std::uint32_t x[4] = {v[h][0][i][w], v[h][1][i][w], v[h][2][i][w], v[h][3][i][w]};
        std::uint32_t left[4] = {low(x[0], x[1]), high(x[0], x[1]), low(x[2], x[3]), high(x[2], x[3])};
        multiply<T>(out[4 * i + w], left, upper);
        multiply<T>(out[4 * i + w], left, lower);
      }
    }
  }

  SEQKERN_INLINE void run() {
    fetch_keys(left);
    fetch_values(left);
    copy_wait<0>();  // a lane reads what it copied itself
    for (; left > 0; key += kKeys, left -= kKeys) {
      float s[kKeys / 8][4] = {};
      scores(s);
      fetch_keys(left - kKeys);
      softmax(s);
      add_values(s);
      fetch_values(left - kKeys);
    }
  }

  // False where a number came out that is none: nothing is kept then.
  SEQKERN_INLINE bool finish(const Piece& piece, int all, const Partial<float>& partial) {
    bool wrong = false;
    for (auto& tile : out)
      for (float x : tile) wrong = wrong || x - x != 0;
    for (int with = 1; with < 4; with *= 2) state.sum += shuffle_xor(state.sum, with);
    if (ballot(wrong)) return false;
    if (t == 0 && g < all) partial.state[piece.at + g] = state;
    SEQKERN_UNROLL
    for (int m = 0; m < 2; ++m) SEQKERN_UNROLL
    for (int i = 0; i < kPanels; ++i) {
      index_t d = 64 * i + 8 * g;
      if (2 * t + m >= all || d >= p.value_dim) continue;
      float* to = partial.out + (piece.at + 2 * t + m) * p.value_dim + d;
      SEQKERN_UNROLL
      for (int w = 0; w < 4; w += 2) {
        Four<float> four{out[4 * i + w][m], out[4 * i + w][m + 2], out[4 * i + w + 1][m], out[4 * i + w + 1][m + 2]};
        copy_word<16>(to + 2 * w, &four);
      }
    }
    return true;
  }
};

// kWidth 0: in plain arithmetic alone.
template <class T, int kColumns, int kWidth>
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
    SEQKERN_SHARED(Four<std::uint32_t>, q, kWarps * kWidth);
    StreamWalk<T, kWidth> walk(p, score, &rows[0], piece, keys_seen(&rows[0], kMine),
                               &q[warp_id() * kWidth]);
    walk.run();
    if (walk.finish(piece, int(all), partial)) return;
  }
  Team<A, 1> team(&left[0], &weights[0], &right[0]);
  walk_piece<kColumns>(p, score, team, &rows[0], piece, index_t(blockIdx.y) * kColumns * kSide, partial);
}

// A block for 32 columns of a row: the pieces in order, as if they had been one walk.
template <class T>
__global__ void __launch_bounds__(32 * kJoinWarps)
    attention_join_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                          index_t pieces, Partial<acc_t<T>> partial) {
  using A = acc_t<T>;
  constexpr int kThreads = 32 * kJoinWarps;
  SEQKERN_SHARED(A, factors, kThreads);
  SEQKERN_SHARED(A, sums, kThreads);
  index_t all = p.group() * p.query_len, pair = blockIdx.x / all, r = blockIdx.x % all, b = pair / p.kv_heads;
  QueryRow<A> row = score.row(b, pair % p.kv_heads * p.group(), r);
  if (row.i < 0) return;
  wait_for_previous();
  const Softmax<A>* states = partial.state + pair * pieces * kMine + r;
  Softmax<A> state;
  for (index_t i = threadIdx.x; i < pieces; i += kThreads) state.max = Max{}(states[i * kMine].max, state.max);
  state.max = reduce_row(Max{}, state.max);
  index_t d = blockIdx.y * kSide + lane_id();
  const A* out = partial.out + (pair * pieces * kMine + r) * p.value_dim + (d < p.value_dim ? d : 0);
  A sum = 0;
  for (index_t first = 0; first < pieces; first += kThreads) {
    index_t i = first + threadIdx.x, many = min_of(pieces - first, kThreads);
    sync_block();  // the factors of the last round
    if (i < pieces) {
      factors[threadIdx.x] = power(states[i * kMine].max - state.base());
      state.sum += states[i * kMine].sum * factors[threadIdx.x];
    }
    sync_block();
    SEQKERN_UNROLL_BY(8)
    for (index_t j = warp_id(); j < many; j += kJoinWarps)
      sum += out[(first + j) * kMine * p.value_dim] * factors[j];
  }
  state.sum = reduce_row(Sum{}, state.sum);
  sums[threadIdx.x] = sum;
  sync_block();
  if (warp_id() == 0 && d < p.value_dim) {
    for (int w = 1; w < kJoinWarps; ++w) sum += sums[w * 32 + lane_id()];
    T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, b, row.head, row.i);
    store(to + d, state.sum == 0 ? A(0) : sum * state.inverse());
  }
  if (threadIdx.x == 0 && blockIdx.y == 0) state.keep(p, row);
}

inline index_t decode_partials(const AttentionForward& p) { return p.batch * p.kv_heads * pieces_of(p) * kMine; }

template <class T>
void decode(const AttentionForward& p, void* workspace, cudaStream_t stream) {
  index_t pairs = p.batch * p.kv_heads, pieces = pieces_of(p);
  Score<T> score(p);
  Partial<acc_t<T>> partial(workspace, decode_partials(p));
  auto run = [&](auto kernel, unsigned columns) {
    constexpr int kWarps = kDecodeWarps<acc_t<T>>;
    Launch l{dim3(unsigned(pairs * ceil_div(pieces, kWarps)), columns), dim3(32 * kWarps)};
    l.stream = stream;
    launch(l, kernel, p, score, pieces, piece_keys(p), partial);
  };
  bool done = false;
  if constexpr (sizeof(T) == 2)
    if ((done = fits_mma(p))) {
      if (p.head_dim <= 64 && p.value_dim <= 64) run(attention_decode_kernel<T, 2, 64>, 1);
      else run(attention_decode_kernel<T, 4, 128>, 1);
    }
  if (!done)
    for_columns_of(p.value_dim, [&]<int kColumns>(unsigned blocks) {
      run(attention_decode_kernel<T, kColumns, 0>, blocks);
    });
  auto columns = unsigned(p.value_dim ? ceil_div(p.value_dim, kSide) : 1);
  Launch l{dim3(unsigned(pairs * p.group() * p.query_len), columns), dim3(32 * kJoinWarps)};
  l.stream = stream;
  l.early = limits(reinterpret_cast<const void*>(attention_join_kernel<T>)).max_cluster > 1;
  launch(l, attention_join_kernel<T>, p, score, pieces, partial);
}

}  // namespace seqkern::cuda
