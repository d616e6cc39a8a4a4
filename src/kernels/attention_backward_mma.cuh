// Attention backward on tensor cores (compute capability 8.0 on): bfloat16 and float16, widths up to 128.
//
// A block owns 128 rows of one side, sixteen a warp, and walks over the other side's, 64 at a time, which travel
// through shared memory in the background: keys over all rows of queries that see them (dk, dv), rows of queries over
// their keys (dq). What a block owns stands on the left of every product,
//
//   S = own walked',  dP = own walked',   sums += dropout(P) walked,  sums += dS walked
//
// so that P and dS, rounded to the storage type, are the next left factors without leaving their registers.
//
// A masked position has weight 0, and 0 times a NaN is NaN: a warp whose sums came out so says it in `spoiled`, and the
// kernels in plain arithmetic, which leave masked products out, do its rows again.
#pragma once
#include "attention_tile.cuh"

namespace seqkern::cuda {

inline constexpr int kOwnRows = 128, kWalkRows = 64, kGradientWarps = kOwnRows / 16;

// [kRows, kWidth] of T in shared memory: panels of 64 columns, a row of a panel being eight pieces of 16 bytes, piece c
// of row r at c ^ (r % 8).
template <class T, int kWidth, int kRows>
struct Panels {
  static constexpr int kSize = kRows * kWidth;
  T* data;

  SEQKERN_INLINE T* piece(int row, int c) const {
    return data + (c / 8 * kRows + row) * 64 + ((c % 8) ^ (row % 8)) * 8;
  }
  // Rows as they are in global memory; zeros past `width` and where there is no row.
  template <class Rows>
  SEQKERN_INLINE void fetch(const Rows& rows, int width) const {
    constexpr int kPieces = kWidth / 8, kStep = 32 * kGradientWarps / kPieces;
    int c = int(threadIdx.x) % kPieces, first = int(threadIdx.x) / kPieces;
    SEQKERN_UNROLL
    for (int r = 0; r < kRows; r += kStep) {
      const T* row = rows(first + r);
      bool there = row && c * 8 < width;
      copy_async<16>(piece(first + r, c), there ? row + c * 8 : rows.base, there);
    }
  }
};
template <class T, int kWidth>
using Own = Panels<T, kWidth, kOwnRows>;
template <class T, int kWidth>
using Walked = Panels<T, kWidth, kWalkRows>;

// A warp's sixteen rows against the 64 walked, and how these weigh as left factors.
using Tile = float[kWalkRows / 8][4];
using Weights = std::uint32_t[kWalkRows / 16][4];

template <class T, int kWidth>
SEQKERN_INLINE void products(const Own<T, kWidth>& own, const Walked<T, kWidth>& walked, Tile& sums) {
  int lane = lane_id();
  SEQKERN_UNROLL
  for (int d = 0; d < kWidth / 16; ++d) {
    std::uint32_t a[4], b[4];
    load_matrices(a, own.piece(warp_id() * 16 + lane % 16, 2 * d + lane / 16));
    SEQKERN_UNROLL
    for (int n = 0; n < kWalkRows / 8; n += 2) {
      load_matrices(b, walked.piece(n * 8 + lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2));
      multiply<T>(sums[n], a, {b[0], b[1]});
      multiply<T>(sums[n + 1], a, {b[2], b[3]});
    }
  }
}
template <class T>
SEQKERN_INLINE void pack_weights(const Tile& tile, Weights& weights) {
  SEQKERN_UNROLL
  for (int j = 0; j < kWalkRows / 16; ++j) SEQKERN_UNROLL
  for (int i = 0; i < 4; ++i) weights[j][i] = pack<T>(tile[2 * j + i / 2][i % 2 * 2], tile[2 * j + i / 2][i % 2 * 2 + 1]);
}
template <class T, int kWidth>
SEQKERN_INLINE void accumulate(const Weights& weights, const Walked<T, kWidth>& walked, float (&sums)[kWidth / 8][4]) {
  int lane = lane_id();
  SEQKERN_UNROLL
  for (int j = 0; j < kWalkRows / 16; ++j) SEQKERN_UNROLL
  for (int n = 0; n < kWidth / 8; n += 2) {
    std::uint32_t b[4];
    load_matrices<true>(b, walked.piece(j * 16 + lane % 16, n + lane / 16));
    multiply<T>(sums[n], weights[j], {b[0], b[1]});
    multiply<T>(sums[n + 1], weights[j], {b[2], b[3]});
  }
}

// What every element asks of its row of queries: the logarithm (base 2) that its power is taken relative to, dout . out,
// the keys it sees. A row that sees nothing, and one past the end, sees [0, 0).
struct alignas(16) RowTerms {
  float lse, delta;
  int low, high;

  SEQKERN_INLINE bool sees(int key) const { return low <= key && key < high; }
  SEQKERN_INLINE bool sees_all(int key, int count) const { return low <= key && key + count <= high; }
  SEQKERN_INLINE bool sees_any(int key, int count) const { return low < key + count && key < high; }
};

// Between q . k and P: nothing but the row's interval of keys, or whatever score.cuh knows.
enum class Between { interval, anything };

// Rows `base`, base + stride, ... as far as there are any.
template <class T>
struct Stretch {
  const T* base;
  index_t stride;
  int count;
  SEQKERN_INLINE const T* operator()(int r) const { return r < count ? base + r * stride : nullptr; }
};

template <class T>
struct MmaGradient {
  AttentionBackward p;
  Score<T> score;
  const RowTerms* terms;  // [B, Hq, query_len]
  float factor;           // of a product q . k, for powers of 2
  unsigned char *keys_spoiled, *rows_spoiled;  // one for every sixteen, or null

  SEQKERN_INLINE const RowTerms* terms_of(index_t b, index_t head) const {
    return terms + (b * p.heads + head) * p.query_len;
  }
  SEQKERN_INLINE Stretch<T> rows(const void* data, const AttentionStrides& s, const index_t* cu, index_t b,
                                 index_t head, int first, index_t end) const {
    return {row_of(static_cast<const T*>(data), s, cu, b, head, first), s.row, int(end) - first};
  }

  // dropout(P) and dS, before the scale, in place of q . k and dP.
  template <bool kWhole>
  SEQKERN_INLINE void weigh(float& s, float& dp, const RowTerms& row, int key) const {
    float e = exp2_flushed(s * factor - row.lse);
    bool live = kWhole || row.sees(key);
    s = live ? e : 0;
    dp = live ? e * (dp - row.delta) : 0;
  }
  // ... with all that may lie between. Returns dS before the cap.
  SEQKERN_INLINE float weigh(float& s, float& dp, const RowTerms& row, const QueryRow<float>& full, int key) const {
    float capped = 0, scored = score(s, full, key, capped);
    bool live = scored != -infinity<float>();
    float e = power(scored - row.lse), kept = live ? score.kept(full, key) : 0, ds = e * (dp * kept - row.delta);
    s = live ? e * kept : 0;
    ds = live ? ds : 0;
    dp = p.softcap != 0 && live ? ds * (1 - capped * capped) : ds;
    return ds;
  }
};

// Stores this lane's share of a warp's sixteen rows; returns whether a number came out that is none.
template <class T, int kWidth, class To>
SEQKERN_INLINE bool store_rows(const float (&sums)[kWidth / 8][4], float factor, index_t width, To to) {
  bool wrong = false;
  SEQKERN_UNROLL
  for (int half = 0; half < 2; ++half) {
    T* row = to(warp_id() * 16 + half * 8 + lane_id() / 4);
    SEQKERN_UNROLL
    for (int n = 0; n < kWidth / 8; ++n) {
      float x = sums[n][half * 2], y = sums[n][half * 2 + 1];
      wrong = wrong || x - x != 0 || y - y != 0;
      index_t d = n * 8 + lane_id() % 4 * 2;
      std::uint32_t both = pack<T>(x * factor, y * factor);
      if (row && d < width) copy_word<4>(row + d, &both);
    }
  }
  return wrong;
}

template <class T, int kWidth>
inline constexpr std::size_t kGradientShared =
    (2 * Own<T, kWidth>::kSize + 4 * Walked<T, kWidth>::kSize) * sizeof(T) + 2 * kWalkRows * sizeof(RowTerms);

// Rows [low, high) of a head of sequence b see keys of [key, key + count).
SEQKERN_INLINE Interval rows_that_see(const AttentionInputs& p, index_t b, index_t key, index_t count) {
  index_t queries = p.queries(b), keys = p.keys(b), offset = p.bottom_right ? keys - queries : 0;
  index_t low = 0, high = key < keys ? queries : 0, ahead = p.causal ? 0 : p.right;
  if (ahead >= 0 && key - ahead - offset > low) low = key - ahead - offset;
  if (p.left >= 0) high = min_of(high, key + count + p.left - offset);
  return {low, high};
}

template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps) dkv_mma_kernel(const __grid_constant__ MmaGradient<T> a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  constexpr bool kFull = kBetween == Between::anything;
  SEQKERN_SHARED(QueryRow<float>, full, kFull ? kWalkRows : 1);
  const AttentionBackward& p = a.p;
  T* memory = reinterpret_cast<T*>(shared);
  Own<T, kWidth> k{memory}, v{memory + k.kSize};
  auto q = [&](int stage) { return Walked<T, kWidth>{memory + 2 * k.kSize + stage * 2 * Walked<T, kWidth>::kSize}; };
  auto dout = [&](int stage) { return Walked<T, kWidth>{q(stage).data + Walked<T, kWidth>::kSize}; };
  auto terms = reinterpret_cast<RowTerms*>(q(2).data);

  int tiles = int(ceil_div(p.key_len, kOwnRows)), pairs = int(p.batch * p.kv_heads);
  int tile = int(blockIdx.x) / pairs, pair = int(blockIdx.x) % pairs;  // causal: the longest first
  int b = pair / int(p.kv_heads), kv_head = pair % int(p.kv_heads), key = tile * kOwnRows, keys = int(p.keys(b));
  Interval seeing = rows_that_see(p, b, key, kOwnRows);
  int low = int(seeing.low) / kWalkRows * kWalkRows, high = int(seeing.high), queries = int(p.queries(b));
  int head = kv_head * int(p.group()), end = low < high ? head + int(p.group()) : head, i = low;

  auto fetch = [&](int h, int first, int stage) {
    q(stage).fetch(a.rows(p.q, p.q_strides, p.cu_q, b, h, first, queries), int(p.head_dim));
    dout(stage).fetch(a.rows(p.dout, p.out_strides, p.cu_q, b, h, first, queries), int(p.value_dim));
    int r = int(threadIdx.x);
    bool there = first + r < p.query_len;
    if (r < kWalkRows) copy_async<16>(terms + stage * kWalkRows + r, a.terms_of(b, h) + (there ? first + r : 0), there);
    copy_commit();
  };
  k.fetch(a.rows(p.k, p.k_strides, p.cu_k, b, kv_head, key, keys), int(p.head_dim));
  v.fetch(a.rows(p.v, p.v_strides, p.cu_k, b, kv_head, key, keys), int(p.value_dim));
  if (head < end) fetch(head, i, 0);

  int mine = key + warp_id() * 16, g = lane_id() / 4, t = lane_id() % 4;
  float dk[kWidth / 8][4] = {}, dv[kWidth / 8][4] = {};
  for (int stage = 0; head < end; stage ^= 1) {
    copy_wait<0>();
    sync_block();
    if (kFull) {
      describe_rows(a.score, b, head, i, kWalkRows, p.query_len, int(threadIdx.x), &full[0]);
      sync_block();
    }
    i += kWalkRows;
    if (i >= high) i = low, ++head;
    if (head < end) fetch(head, i, stage ^ 1);

    const RowTerms* row = terms + stage * kWalkRows;
    const RowTerms &one = row[lane_id()], &other = row[lane_id() + 32];
    if (!ballot(one.sees_any(mine, 16) || other.sees_any(mine, 16))) continue;
    bool whole = ballot(one.sees_all(mine, 16) && other.sees_all(mine, 16)) == kAllLanes;
    Tile s = {}, dp = {};
    products(k, q(stage), s);
    products(v, dout(stage), dp);
    auto weigh = [&](auto one_of_them) {
      SEQKERN_UNROLL
      for (int n = 0; n < kWalkRows / 8; ++n) SEQKERN_UNROLL
      for (int e = 0; e < 2; ++e) {
        int r = n * 8 + 2 * t + e;
        RowTerms of = row[r];
        SEQKERN_UNROLL
        for (int half = 0; half < 2; ++half) one_of_them(s[n][half * 2 + e], dp[n][half * 2 + e], of, r, mine + g + half * 8);
      }
    };
    if constexpr (kFull)
      weigh([&](float& x, float& y, const RowTerms& of, int r, int j) { a.weigh(x, y, of, full[r], j); });
    else if (whole)
      weigh([&](float& x, float& y, const RowTerms& of, int, int j) { a.template weigh<true>(x, y, of, j); });
    else
      weigh([&](float& x, float& y, const RowTerms& of, int, int j) { a.template weigh<false>(x, y, of, j); });
    Weights weights;
    pack_weights<T>(s, weights);
    accumulate(weights, dout(stage), dv);
    pack_weights<T>(dp, weights);
    accumulate(weights, q(stage), dk);
  }
  copy_wait<0>();
  index_t rows = p.cu_k ? keys : p.key_len;
  auto to = [&](void* data, const AttentionStrides& s) {
    return [&, data](int r) { return key + r < rows ? row_of(static_cast<T*>(data), s, p.cu_k, b, kv_head, key + r) : nullptr; };
  };
  bool wrong = store_rows<T, kWidth>(dk, float(p.scale), p.head_dim, to(p.dk, p.dk_strides));
  wrong = store_rows<T, kWidth>(dv, 1, p.value_dim, to(p.dv, p.dv_strides)) || wrong;
  unsigned spoiled = ballot(wrong);
  if (a.keys_spoiled && lane_id() == 0) a.keys_spoiled[(pair * tiles + tile) * kGradientWarps + warp_id()] = spoiled != 0;
}

template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps) dq_mma_kernel(const __grid_constant__ MmaGradient<T> a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  constexpr bool kFull = kBetween == Between::anything;
  const AttentionBackward& p = a.p;
  T* memory = reinterpret_cast<T*>(shared);
  Own<T, kWidth> q{memory}, dout{memory + q.kSize};
  auto k = [&](int stage) { return Walked<T, kWidth>{memory + 2 * q.kSize + stage * 2 * Walked<T, kWidth>::kSize}; };
  auto v = [&](int stage) { return Walked<T, kWidth>{k(stage).data + Walked<T, kWidth>::kSize}; };

  // The rows of a group's heads lie side by side.
  int length = int(p.query_len), all = int(p.group()) * length, tiles = ceil_div(all, kOwnRows);
  int pairs = int(p.batch * p.kv_heads), pair = int(blockIdx.x) % pairs;
  int tile = tiles - 1 - int(blockIdx.x) / pairs, first = tile * kOwnRows;  // causal: the longest first
  int b = pair / int(p.kv_heads), kv_head = pair % int(p.kv_heads), top = kv_head * int(p.group());
  int keys = int(p.keys(b)), queries = int(p.queries(b));
  const RowTerms* terms = a.terms_of(b, top) + first;
  auto of = [&](int r) { return first + r < all ? terms[r] : RowTerms{0, 0, 0, 0}; };
  int low = keys, high = 0;
  SEQKERN_UNROLL
  for (int r = lane_id(); r < kOwnRows; r += 32) {
    RowTerms row = of(r);
    if (row.low < row.high) low = min_of(low, row.low), high = high < row.high ? row.high : high;
  }
  for (int with = 1; with < 32; with *= 2) {
    int l = shuffle_xor(low, with), h = shuffle_xor(high, with);
    low = min_of(low, l), high = high < h ? h : high;
  }

  auto stacked = [&](auto* data, const AttentionStrides& s, int r) {
    int head = (first + r) / length, i = (first + r) % length;
    bool there = first + r < all && (i < queries || !p.cu_q);
    return there ? row_of(data, s, p.cu_q, b, top + head, i) : nullptr;
  };
  struct Rows {
    decltype(stacked) at;
    const T* base;
    AttentionStrides strides;
    int length, first, queries;
    SEQKERN_INLINE const T* operator()(int r) const {
      return (first + r) % length < queries ? at(base, strides, r) : nullptr;
    }
  };
  auto fetch = [&](int key, int stage) {
    k(stage).fetch(a.rows(p.k, p.k_strides, p.cu_k, b, kv_head, key, keys), int(p.head_dim));
    v(stage).fetch(a.rows(p.v, p.v_strides, p.cu_k, b, kv_head, key, keys), int(p.value_dim));
    copy_commit();
  };
  int key = low / kWalkRows * kWalkRows;
  if (key < high) {
    q.fetch(Rows{stacked, static_cast<const T*>(p.q), p.q_strides, length, first, queries}, int(p.head_dim));
    dout.fetch(Rows{stacked, static_cast<const T*>(p.dout), p.out_strides, length, first, queries}, int(p.value_dim));
    fetch(key, 0);
  }

  int mine = warp_id() * 16 + lane_id() / 4, t = lane_id() % 4;
  RowTerms row[2] = {of(mine), of(mine + 8)};
  QueryRow<float> full[2];
  if constexpr (kFull)
    for (int half = 0; half < 2; ++half) full[half] = a.score.row(b, top, min_of(first + mine + half * 8, all - 1));
  float dq[kWidth / 8][4] = {};
  for (int stage = 0; key < high; stage ^= 1) {
    copy_wait<0>();
    sync_block();
    int at = key;
    key += kWalkRows;
    if (key < high) fetch(key, stage ^ 1);
    if (!ballot(row[0].sees_any(at, kWalkRows) || row[1].sees_any(at, kWalkRows))) continue;
    bool whole = ballot(row[0].sees_all(at, kWalkRows) && row[1].sees_all(at, kWalkRows)) == kAllLanes;
    Tile s = {}, dp = {};
    products(q, k(stage), s);
    products(dout, v(stage), dp);
    auto weigh = [&](auto one_of_them) {
      SEQKERN_UNROLL
      for (int n = 0; n < kWalkRows / 8; ++n) SEQKERN_UNROLL
      for (int e = 0; e < 4; ++e) one_of_them(s[n][e], dp[n][e], e / 2, at + n * 8 + 2 * t + e % 2);
    };
    if constexpr (kFull)
      weigh([&](float& x, float& y, int half, int j) { a.weigh(x, y, row[half], full[half], j); });
    else if (whole)
      weigh([&](float& x, float& y, int half, int j) { a.template weigh<true>(x, y, row[half], j); });
    else
      weigh([&](float& x, float& y, int half, int j) { a.template weigh<false>(x, y, row[half], j); });
    Weights weights;
    pack_weights<T>(dp, weights);
    accumulate(weights, k(stage), dq);
  }
  copy_wait<0>();
  auto to = [&](int r) { return stacked(static_cast<T*>(p.dq), p.dq_strides, r); };
  unsigned spoiled = ballot(store_rows<T, kWidth>(dq, float(p.scale), p.head_dim, to));
  if (a.rows_spoiled && lane_id() == 0) a.rows_spoiled[(pair * tiles + tile) * kGradientWarps + warp_id()] = spoiled != 0;
}

// Whether the kernels can do this call: its types, widths, and rows that start at multiples of 16 bytes.
inline bool fits_mma(const AttentionBackward& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return false;
  auto whole = [](const void* data, const AttentionStrides& s) {
    return std::uintptr_t(data) % 16 == 0 && (s.batch | s.head | s.row) % 8 == 0;
  };
  return p.head_dim % 8 == 0 && p.value_dim % 8 == 0 && p.head_dim > 0 && p.value_dim > 0 && p.head_dim <= 128 &&
         p.value_dim <= 128 && whole(p.q, p.q_strides) && whole(p.k, p.k_strides) && whole(p.v, p.v_strides) &&
         whole(p.dout, p.out_strides);
}
inline index_t key_blocks(const AttentionInputs& p) { return p.batch * p.kv_heads * ceil_div(p.key_len, kOwnRows); }
inline index_t row_blocks(const AttentionInputs& p) {
  return p.batch * p.kv_heads * ceil_div(p.group() * p.query_len, kOwnRows);
}

// False where the device has too little shared memory.
template <class T, int kWidth, Between kBetween>
bool launch_gradient_of(const MmaGradient<T>& a, cudaStream_t stream) {
  auto run = [&](auto kernel, index_t blocks) {
    Launch l{dim3(unsigned(blocks)), dim3(32 * kGradientWarps), kGradientShared<T, kWidth>};
    l.stream = stream;
    if (l.shared_bytes > std::size_t(limits(reinterpret_cast<const void*>(kernel)).max_shared)) return false;
    if (blocks) launch(l, kernel, a);
    return true;
  };
  return run(dkv_mma_kernel<T, kWidth, kBetween>, key_blocks(a.p)) &&
         run(dq_mma_kernel<T, kWidth, kBetween>, row_blocks(a.p));
}
template <class T>
bool launch_gradient(const MmaGradient<T>& a, cudaStream_t stream) {
  const AttentionBackward& p = a.p;
  bool narrow = p.head_dim <= 64 && p.value_dim <= 64;
  if (p.mask || p.slopes || p.softcap != 0 || p.dropout > 0)
    return narrow ? launch_gradient_of<T, 64, Between::anything>(a, stream)
                  : launch_gradient_of<T, 128, Between::anything>(a, stream);
  return narrow ? launch_gradient_of<T, 64, Between::interval>(a, stream)
                : launch_gradient_of<T, 128, Between::interval>(a, stream);
}

}  // namespace seqkern::cuda
