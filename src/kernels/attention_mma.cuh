// Attention forward on tensor cores (compute capability 8.0 on): bfloat16 and float16, widths up to 128.
//
// A block takes 64 query rows, sixteen a warp, against 64 keys at a time. K and V travel through shared memory in the
// background: the next K while softmax and P V run, V while Q K' runs. The probabilities stay in registers, since the
// sums of one product lie where the next wants its left factor; they are rounded to the storage type for it. Rows in
// shared memory are cut in pieces of 16 bytes, piece c of row r standing at c ^ (r % 8): no bank conflicts.
//
// A masked position has probability 0, and 0 times a NaN is NaN: a warp whose rows came out so says it in `spoiled`,
// and the kernel in plain arithmetic, which leaves masked products out, does them again.
#pragma once
#include "attention_tile.cuh"

namespace seqkern::cuda {

inline constexpr int kMmaKeys = 64, kMmaWarps = 4, kMmaRows = 16 * kMmaWarps, kMaxMmaWidth = 128;

// [64, kWidth] of T in shared memory.
template <class T, int kWidth>
struct Piecewise {
  static constexpr int kPieces = kWidth / 8;
  T* data;

  SEQKERN_INLINE T* piece(int row, int c) const { return data + row * kWidth + ((c ^ (row & 7)) * 8); }

  // Rows as they are in global memory; zeros past `width` and where there is no row.
  template <class Rows>
  SEQKERN_INLINE void fetch(const Rows& rows, index_t width) const {
    for (int e = int(threadIdx.x); e < 64 * kPieces; e += 32 * kMmaWarps) {
      int r = e / kPieces, c = e % kPieces;
      const T* row = rows(r);
      bool there = row && c * 8 < width;
      copy_async<16>(piece(r, c), there ? row + c * 8 : rows.base, there);
    }
  }
};

template <class T, int kWidth, Between kBetween>
struct MmaWalk {
  static constexpr int kColumnTiles = kWidth / 8, kKeyTiles = kMmaKeys / 8;
  const AttentionForward& p;
  const Score<T>& score;
  const QueryRow<float>* rows;  // this lane's: g and g + 8 of the warp's sixteen
  Piecewise<T, kWidth> q, k, v;
  Softmax<float> state[2] = {};
  float out[kColumnTiles][4] = {};

  SEQKERN_INLINE const QueryRow<float>& row(int half) const { return rows[half * 8]; }

  SEQKERN_INLINE void scores(float (&s)[kKeyTiles][4]) const {
    int lane = lane_id();
    SEQKERN_UNROLL
    for (int d = 0; d < kWidth / 16; ++d) {
      std::uint32_t a[4], b[4];
      load_matrices(a, q.piece(warp_id() * 16 + lane % 16, 2 * d + lane / 16));
      SEQKERN_UNROLL
      for (int n = 0; n < kKeyTiles; n += 2) {
        load_matrices(b, k.piece(n * 8 + lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2));
        multiply<T>(s[n], a, {b[0], b[1]});
        multiply<T>(s[n + 1], a, {b[2], b[3]});
      }
    }
  }

  // Products into scores. `bias`: the mask's tile.
  SEQKERN_INLINE void score_all(int key, const Piecewise<T, kMmaKeys>& bias, float (&s)[kKeyTiles][4]) const {
    if constexpr (kBetween == Between::anything) {
      for_lane_keys(key, [&](int j, int n, int c) {
        float capped;
        s[n][c] = score(s[n][c], row(c / 2), j, capped);
      });
      return;
    }
    float factor = float(p.scale) * kLogBase<float>;
    std::uint32_t pairs[4];
    for_lane_keys(key, [&](int, int n, int c) {
      if (kBetween == Between::bias && n % 2 == 0 && c == 0)
        load_matrices(pairs, bias.piece(warp_id() * 16 + lane_id() % 16, n + lane_id() / 16));
      T both{std::uint16_t(kBetween == Between::bias ? pairs[n % 2 * 2 + c / 2] >> c % 2 * 16 : 0)};
      s[n][c] = kBetween == Between::bias ? s[n][c] * factor + load(&both) * kLogBase<float> : s[n][c] * factor;
    });
    int low[2], high[2];
    for (int half = 0; half < 2; ++half) low[half] = int(row(half).low), high[half] = int(row(half).high);
    bool whole = low[0] <= key && low[1] <= key && key + kMmaKeys <= high[0] && key + kMmaKeys <= high[1];
    if (ballot(whole) == kAllLanes) return;
    for_lane_keys(key, [&](int j, int n, int c) {
      s[n][c] = low[c / 2] <= j && j < high[c / 2] ? s[n][c] : -infinity<float>();
    });
  }
  // Scores into powers relative to the largest so far.
  SEQKERN_INLINE void softmax(int key, float (&s)[kKeyTiles][4]) {
    float top[2] = {-infinity<float>(), -infinity<float>()}, factor[2], base[2], sum[2] = {};
    for_lane_keys(key, [&](int, int n, int c) { top[c / 2] = larger(s[n][c], top[c / 2]); });
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      for (int with = 1; with < 4; with *= 2) top[half] = larger(top[half], shuffle_xor(top[half], with));
      factor[half] = state[half].raise(top[half]), base[half] = state[half].base();
    }
    for_lane_keys(key, [&](int j, int n, int c) {
      float& v = s[n][c];
      v = exp2_flushed(v - base[c / 2]);
      sum[c / 2] += v;
      if (kBetween == Between::anything && p.dropout > 0) v *= score.kept(row(c / 2), j);
    });
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) state[half].sum += sum[half];
    SEQKERN_UNROLL
    for (int n = 0; n < kColumnTiles; ++n) SEQKERN_UNROLL
    for (int c = 0; c < 4; ++c) out[n][c] *= factor[c / 2];
  }
  // f(key, key tile, which of its four) for the scores of this lane.
  template <class F>
  SEQKERN_INLINE void for_lane_keys(int key, F f) const {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) SEQKERN_UNROLL
    for (int c = 0; c < 4; ++c) f(key + n * 8 + lane_id() % 4 * 2 + c % 2, n, c);
  }

  SEQKERN_INLINE void add_values(const float (&s)[kKeyTiles][4]) {
    int lane = lane_id();
    SEQKERN_UNROLL
    for (int j = 0; j < kMmaKeys / 16; ++j) {
      const float *low = s[2 * j], *high = s[2 * j + 1];
      std::uint32_t a[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
                            pack<T>(high[2], high[3])};
      SEQKERN_UNROLL
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        load_matrices<true>(b, v.piece(j * 16 + lane % 16, n + lane / 16));
        multiply<T>(out[n], a, {b[0], b[1]});
        multiply<T>(out[n + 1], a, {b[2], b[3]});
      }
    }
  }

  // Returns whether a number came out that is none.
  SEQKERN_INLINE bool finish() {
    bool wrong = false;
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      const QueryRow<float>& r = row(half);
      auto& st = state[half];
      for (int with = 1; with < 4; with *= 2) st.sum += shuffle_xor(st.sum, with);
      if (r.i < 0) continue;
      float inverse = st.inverse();
      T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, r.b, r.head, r.i);
      SEQKERN_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        float x = out[n][half * 2] * inverse, y = out[n][half * 2 + 1] * inverse;
        wrong = wrong || x - x != 0 || y - y != 0;
        index_t d = n * 8 + lane_id() % 4 * 2;
        if (st.sum == 0) x = y = 0;
        std::uint32_t both = pack<T>(x, y);
        if (d < p.value_dim) copy_word<4>(to + d, &both);
      }
      if (lane_id() % 4 == 0) st.keep(p, r);
    }
    return wrong;
  }
};

// Columns of the mask from `key` on, row by row.
template <class T>
struct MaskRows {
  const QueryRow<float>* rows;
  const T* base;
  index_t key;

  SEQKERN_INLINE const T* operator()(int r) const {
    return rows[r].live() ? static_cast<const T*>(rows[r].mask) + key : nullptr;
  }
};

template <class T, int kWidth, Between kBetween>
inline constexpr std::size_t kMmaShared =
    (3 * 64 * kWidth + (kBetween == Between::bias ? 2 * kMmaRows * kMmaKeys : 0)) * sizeof(T);

template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kMmaWarps, 2)
    attention_mma_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                         unsigned char* spoiled) {
  SEQKERN_DYNAMIC_SHARED(shared);
  SEQKERN_SHARED(QueryRow<float>, rows, kMmaRows);
  index_t all = p.group() * p.query_len, tiles = ceil_div(all, kMmaRows), pair = blockIdx.x / tiles;
  index_t tile = tiles - 1 - blockIdx.x % tiles;  // causal: the longest first
  index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  describe_rows(score, b, kv_head * p.group(), tile * kMmaRows, kMmaRows, all, int(threadIdx.x), &rows[0]);
  sync_block();
  Interval seen = keys_seen(&rows[0], kMmaRows);
  T* memory = reinterpret_cast<T*>(shared);
  constexpr int kTileSize = 64 * kWidth;
  MmaWalk<T, kWidth, kBetween> walk{
      p, score, &rows[warp_id() * 16 + lane_id() / 4], {memory}, {memory + kTileSize}, {memory + 2 * kTileSize}};
  for (int half = 0; half < 2; ++half) {
    walk.state[half].start(p, walk.row(half));
    if (lane_id() % 4) walk.state[half].sum = 0;  // four lanes share a row, one of them its sink
  }
  auto bias = [&](index_t key) {
    return Piecewise<T, kMmaKeys>{memory + 3 * kTileSize + key / kMmaKeys % 2 * kMmaRows * kMmaKeys};
  };
  auto fetch = [&](index_t key) {
    walk.k.fetch(KeyRows<T>(p.k, p.k_strides, p, b, kv_head, key), p.head_dim);
    if constexpr (kBetween == Between::bias)
      bias(key).fetch(MaskRows<T>{&rows[0], static_cast<const T*>(p.mask), key}, p.key_len - key);
  };
  index_t key = seen.low / kMmaKeys * kMmaKeys;
  if (key < seen.high) {
    walk.q.fetch(QueryRows<T>{&rows[0], static_cast<const T*>(p.q), p.q_strides, p.cu_q}, p.head_dim);
    fetch(key);
    copy_commit();
  }
  for (; key < seen.high; key += kMmaKeys) {
    walk.v.fetch(KeyRows<T>(p.v, p.v_strides, p, b, kv_head, key), p.value_dim);
    copy_commit();
    copy_wait<1>();  // Q and K
    sync_block();
    float s[kMmaKeys / 8][4] = {};
    walk.scores(s);
    sync_block();
    if (key + kMmaKeys < seen.high) fetch(key + kMmaKeys);
    copy_commit();
    walk.score_all(int(key), bias(key), s);
    walk.softmax(int(key), s);
    copy_wait<1>();  // V
    sync_block();
    walk.add_values(s);
    sync_block();
  }
  unsigned wrong = ballot(walk.finish());
  if (spoiled && lane_id() == 0) spoiled[(pair * tiles + tile) * kMmaWarps + warp_id()] = wrong != 0;
}

inline bool starts_words(const void* data, const AttentionStrides& s, int count) {
  return starts_words(data, s.batch | s.head | s.row, count);
}
// Whether the kernel can do this call: its types, widths, and rows that start at multiples of 16 bytes.
inline bool fits_mma(const AttentionForward& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return false;
  auto whole = [](const void* data, const AttentionStrides& s) { return starts_words(data, s, 8); };
  return !p.probs && p.head_dim % 8 == 0 && p.value_dim % 8 == 0 && p.value_dim > 0 && p.head_dim <= kMaxMmaWidth &&
         p.value_dim <= kMaxMmaWidth && whole(p.q, p.q_strides) && whole(p.k, p.k_strides) && whole(p.v, p.v_strides) &&
         whole(p.out, p.out_strides);
}
inline index_t mma_warps(const AttentionForward& p) {
  return p.batch * p.kv_heads * ceil_div(p.group() * p.query_len, kMmaRows) * kMmaWarps;
}

// False where the device has too little shared memory for it.
template <class T, int kWidth, Between kBetween>
bool launch_mma_of(const AttentionForward& p, const Score<T>& score, unsigned char* spoiled, cudaStream_t stream) {
  auto kernel = attention_mma_kernel<T, kWidth, kBetween>;
  Launch l{dim3(unsigned(mma_warps(p) / kMmaWarps)), dim3(32 * kMmaWarps), kMmaShared<T, kWidth, kBetween>};
  l.stream = stream;
  if (l.shared_bytes > std::size_t(limits(reinterpret_cast<const void*>(kernel)).max_shared)) return false;
  launch(l, kernel, p, score, spoiled);
  return true;
}

template <class T, int kWidth>
bool launch_mma(const AttentionForward& p, const Score<T>& score, unsigned char* spoiled, cudaStream_t stream) {
  switch (between(p)) {
    case Between::interval: return launch_mma_of<T, kWidth, Between::interval>(p, score, spoiled, stream);
    case Between::bias: return launch_mma_of<T, kWidth, Between::bias>(p, score, spoiled, stream);
    default: return launch_mma_of<T, kWidth, Between::anything>(p, score, spoiled, stream);
  }
}

}  // namespace seqkern::cuda
