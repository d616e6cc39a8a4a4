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

// Between q . k and P: nothing but the row's interval of keys; that and an additive mask, whose tiles travel with the
// others; or whatever score.cuh knows.
enum class Between { interval, bias, anything };

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
  const RowTerms* terms;                       // [B, Hq, query_len]
  float factor;                                // of a product q . k, for powers of 2
  unsigned char *keys_spoiled, *rows_spoiled;  // one for every sixteen, or null
  bool stores_dmask;                           // with dq

  SEQKERN_INLINE const RowTerms* terms_of(int b, int head) const {
    return terms + (index_t(b) * p.heads + head) * p.query_len;
  }
  SEQKERN_INLINE Stretch<T> rows(const void* data, const AttentionStrides& s, const index_t* cu, int b, int head,
                                 int first, int end) const {
    return {row_of(static_cast<const T*>(data), s, cu, b, head, first), s.row, end - first};
  }
  SEQKERN_INLINE Stretch<T> keys(const void* data, const AttentionStrides& s, int b, int head, int first) const {
    return rows(data, s, p.cu_k, b, head / int(p.group()), first, int(p.keys(b)));
  }
  SEQKERN_INLINE Stretch<T> queries(const void* data, const AttentionStrides& s, int b, int head, int first) const {
    return rows(data, s, p.cu_q, b, head, first, int(p.queries(b)));
  }
  SEQKERN_INLINE Stretch<T> mask(int b, int head, int first, int key) const {
    const index_t* s = p.mask_strides;
    return {static_cast<const T*>(p.mask) + b * s[0] + head * s[1] + first * s[2] + key, s[2],
            int(p.queries(b)) - first};
  }

  template <Between kBetween>
  SEQKERN_INLINE void describe(int b, int head, int i, RowTerms& row, QueryRow<float>& full) const {
    row = i < p.query_len ? terms_of(b, head)[i] : RowTerms{0, 0, 0, 0};
    if (kBetween == Between::anything) full = score.row(b, head, min_of(i, p.query_len - 1));
  }

  // f(n, half, i, bias) for this lane's elements of a tile; at(n): what a lane gives load_matrices for the bias of
  // columns 8n to 8n + 15.
  template <Between kBetween, bool kTransposed, class At, class F>
  SEQKERN_INLINE static void for_elements(At at, F f) {
    std::uint32_t pairs[4];
    SEQKERN_UNROLL
    for (int n = 0; n < kWalkRows / 8; ++n) {
      if constexpr (kBetween == Between::bias)
        if (n % 2 == 0) load_matrices<kTransposed>(pairs, at(n));
      SEQKERN_UNROLL
      for (int half = 0; half < 2; ++half) SEQKERN_UNROLL
      for (int i = 0; i < 2; ++i) {
        T bias{std::uint16_t(kBetween == Between::bias ? pairs[n % 2 * 2 + half] >> 16 * i : 0)};
        f(n, half, i, load(&bias));
      }
    }
  }

  // dropout(P) and dS, before the scale, in place of q . k and dP. Returns dS before the cap.
  template <Between kBetween, bool kWhole>
  SEQKERN_INLINE float weigh(float& s, float& dp, const RowTerms& row, const QueryRow<float>& full, int key,
                             float bias) const {
    float e, kept = 1, slope = 1;
    bool live;
    if constexpr (kBetween == Between::anything) {
      float capped = 0, scored = score(s, full, key, capped);
      live = scored != -infinity<float>();
      e = power(scored - row.lse);
      if (live) kept = score.kept(full, key);
      if (p.softcap != 0) slope = 1 - capped * capped;
    } else {
      e = exp2_flushed(s * factor + (bias * kLogBase<float> - row.lse));
      live = (kWhole || row.sees(key)) && bias != -infinity<float>();
    }
    float ds = live ? e * (dp * kept - row.delta) : 0;
    s = live ? e * kept : 0;
    dp = live ? ds * slope : 0;
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

// A block's shared memory: two tiles of what it owns, and twice two of what it walks over, a tile of the mask and the
// terms of 64 rows.
template <class T, int kWidth, Between kBetween>
struct GradientMemory {
  static constexpr int kMask = kBetween == Between::bias ? kOwnRows * kWalkRows : 0;
  static constexpr int kOwnSize = Own<T, kWidth>::kSize, kWalkedSize = Walked<T, kWidth>::kSize;
  static constexpr std::size_t kBytes =
      (2 * kOwnSize + 4 * kWalkedSize + 2 * kMask) * sizeof(T) + 2 * kWalkRows * sizeof(RowTerms);
  T* data;

  SEQKERN_INLINE Own<T, kWidth> own(int which) const { return {data + which * kOwnSize}; }
  SEQKERN_INLINE Walked<T, kWidth> walked(int which, int stage) const {
    return {data + 2 * kOwnSize + (2 * stage + which) * kWalkedSize};
  }
  template <int kColumns>
  SEQKERN_INLINE Panels<T, kColumns, kOwnRows * kWalkRows / kColumns> mask(int stage) const {
    return {walked(0, 2).data + stage * kMask};
  }
  SEQKERN_INLINE RowTerms* terms(int stage) const {
    return reinterpret_cast<RowTerms*>(walked(0, 2).data + 2 * kMask) + stage * kWalkRows;
  }
};

// Rows [low, high) of a head of sequence b see keys of [key, key + count).
SEQKERN_INLINE Interval rows_that_see(const AttentionInputs& p, index_t b, index_t key, index_t count) {
  index_t queries = p.queries(b), keys = p.keys(b), offset = p.bottom_right ? keys - queries : 0;
  index_t low = 0, high = key < keys ? queries : 0, ahead = p.causal ? 0 : p.right;
  if (ahead >= 0 && key - ahead - offset > low) low = key - ahead - offset;
  if (p.left >= 0) high = min_of(high, key + count + p.left - offset);
  return {low, high};
}
// Rows [first, first + count) of a head see keys of [low, high).
SEQKERN_INLINE Interval keys_they_see(const AttentionInputs& p, index_t b, index_t first, index_t count) {
  index_t queries = p.queries(b), keys = p.keys(b), offset = p.bottom_right ? keys - queries : 0;
  index_t end = min_of(first + count, queries) + offset, low = 0, high = first < queries ? keys : 0;
  if (p.causal) high = min_of(high, end);
  if (p.right >= 0) high = min_of(high, end + p.right);
  if (p.left >= 0 && first + offset > p.left) low = first + offset - p.left;
  return {low, high};
}

template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps) dkv_mma_kernel(const __grid_constant__ MmaGradient<T> a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  constexpr bool kFull = kBetween == Between::anything;
  SEQKERN_SHARED(QueryRow<float>, full, kFull ? kWalkRows : 1);
  const AttentionBackward& p = a.p;
  GradientMemory<T, kWidth, kBetween> memory{reinterpret_cast<T*>(shared)};
  int pairs = int(p.batch * p.kv_heads), tiles = int(gridDim.x) / pairs, pair = int(blockIdx.x) % pairs;
  int tile = int(blockIdx.x) / pairs, key = tile * kOwnRows;  // causal: the longest first
  int b = pair / int(p.kv_heads), kv_head = pair % int(p.kv_heads), head = kv_head * int(p.group());
  Interval seeing = rows_that_see(p, b, key, kOwnRows);
  int first = int(seeing.low) / kWalkRows * kWalkRows, high = int(seeing.high), i = first;
  int end = first < high ? head + int(p.group()) : head;

  auto fetch = [&](int stage) {
    memory.walked(0, stage).fetch(a.queries(p.q, p.q_strides, b, head, i), int(p.head_dim));
    memory.walked(1, stage).fetch(a.queries(p.dout, p.out_strides, b, head, i), int(p.value_dim));
    if constexpr (kBetween == Between::bias)
      memory.template mask<kOwnRows>(stage).fetch(a.mask(b, head, i, key), int(p.key_len) - key);
    int r = int(threadIdx.x);
    bool there = i + r < p.query_len;
    if (r < kWalkRows) copy_async<16>(memory.terms(stage) + r, a.terms_of(b, head) + (there ? i + r : 0), there);
    copy_commit();
  };
  memory.own(0).fetch(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim));
  memory.own(1).fetch(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim));
  if (head < end) fetch(0);

  int lane = lane_id(), mine = key + warp_id() * 16;
  float dk[kWidth / 8][4] = {}, dv[kWidth / 8][4] = {};
  for (int stage = 0; head < end; stage ^= 1) {
    copy_wait<0>();
    sync_block();
    if (kFull) {
      describe_rows(a.score, b, head, i, kWalkRows, p.query_len, int(threadIdx.x), &full[0]);
      sync_block();
    }
    i += kWalkRows;
    if (i >= high) i = first, ++head;
    if (head < end) fetch(stage ^ 1);

    const RowTerms* row = memory.terms(stage);
    const RowTerms &one = row[lane], &other = row[lane + 32];
    if (!ballot(one.sees_any(mine, 16) || other.sees_any(mine, 16))) continue;
    bool whole = ballot(one.sees_all(mine, 16) && other.sees_all(mine, 16)) == kAllLanes;
    Walked<T, kWidth> q = memory.walked(0, stage), dout = memory.walked(1, stage);
    Tile s = {}, dp = {};
    products(memory.own(0), q, s);
    products(memory.own(1), dout, dp);
    auto weigh = [&]<bool kWhole>() {
      auto at = [&](int n) {
        return memory.template mask<kOwnRows>(stage).piece((n + lane / 16) * 8 + lane % 8, warp_id() * 2 + lane / 8 % 2);
      };
      a.template for_elements<kBetween, true>(at, [&](int n, int half, int e, float bias) {
        int r = n * 8 + lane % 4 * 2 + e;
        a.template weigh<kBetween, kWhole>(s[n][half * 2 + e], dp[n][half * 2 + e], row[r], full[kFull ? r : 0],
                                           mine + half * 8 + lane / 4, bias);
      });
    };
    if (whole) weigh.template operator()<true>();
    else weigh.template operator()<false>();
    Weights weights;
    pack_weights<T>(s, weights);
    accumulate(weights, dout, dv);
    pack_weights<T>(dp, weights);
    accumulate(weights, q, dk);
  }
  copy_wait<0>();
  index_t rows = p.cu_k ? p.keys(b) : p.key_len;
  auto to = [&](void* data, const AttentionStrides& s) {
    return [&, data](int r) {
      return key + r < rows ? row_of(static_cast<T*>(data), s, p.cu_k, b, kv_head, key + r) : nullptr;
    };
  };
  bool wrong = store_rows<T, kWidth>(dk, float(p.scale), p.head_dim, to(p.dk, p.dk_strides));
  wrong = store_rows<T, kWidth>(dv, 1, p.value_dim, to(p.dv, p.dv_strides)) || wrong;
  unsigned spoiled = ballot(wrong);
  int at = (pair * tiles + tile) * kGradientWarps + warp_id();
  if (a.keys_spoiled && lane == 0) a.keys_spoiled[at] = spoiled != 0;
}

template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps) dq_mma_kernel(const __grid_constant__ MmaGradient<T> a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  const AttentionBackward& p = a.p;
  GradientMemory<T, kWidth, kBetween> memory{reinterpret_cast<T*>(shared)};
  int heads = int(p.batch * p.heads), tiles = int(gridDim.x) / heads;
  int b = int(blockIdx.x) % heads / int(p.heads), head = int(blockIdx.x) % int(p.heads);
  int tile = tiles - 1 - int(blockIdx.x) / heads, first = tile * kOwnRows;  // causal: the longest first
  Interval seen = keys_they_see(p, b, first, kOwnRows);
  int key = int(seen.low) / kWalkRows * kWalkRows, high = int(seen.high);
  auto fetch = [&](int stage) {
    memory.walked(0, stage).fetch(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim));
    memory.walked(1, stage).fetch(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim));
    if constexpr (kBetween == Between::bias)
      memory.template mask<kWalkRows>(stage).fetch(a.mask(b, head, first, key), int(p.key_len) - key);
    copy_commit();
  };
  if (key < high) {
    memory.own(0).fetch(a.queries(p.q, p.q_strides, b, head, first), int(p.head_dim));
    memory.own(1).fetch(a.queries(p.dout, p.out_strides, b, head, first), int(p.value_dim));
    fetch(0);
  }
  int lane = lane_id(), mine = first + warp_id() * 16 + lane / 4;
  RowTerms row[2];
  QueryRow<float> full[2];
  float* dmask[2] = {};
  for (int half = 0; half < 2; ++half) {
    int i = mine + half * 8;
    a.template describe<kBetween>(b, head, i, row[half], full[half]);
    if (a.stores_dmask && i < p.query_len)
      dmask[half] = static_cast<float*>(p.dmask) + ((index_t(b) * p.heads + head) * p.query_len + i) * p.key_len;
  }
  float dq[kWidth / 8][4] = {};
  for (int stage = 0; key < high; stage ^= 1) {
    copy_wait<0>();
    sync_block();
    int from = key + lane % 4 * 2;
    bool any = ballot(row[0].sees_any(key, kWalkRows) || row[1].sees_any(key, kWalkRows));
    bool whole = ballot(row[0].sees_all(key, kWalkRows) && row[1].sees_all(key, kWalkRows)) == kAllLanes;
    key += kWalkRows;
    if (key < high) fetch(stage ^ 1);
    if (!any) continue;
    Walked<T, kWidth> k = memory.walked(0, stage), v = memory.walked(1, stage);
    Tile s = {}, dp = {};
    products(memory.own(0), k, s);
    products(memory.own(1), v, dp);
    auto weigh = [&]<bool kWhole>() {
      auto at = [&](int n) {
        return memory.template mask<kWalkRows>(stage).piece(warp_id() * 16 + lane % 16, n + lane / 16);
      };
      a.template for_elements<kBetween, false>(at, [&](int n, int half, int e, float bias) {
        int j = from + n * 8 + e;
        float ds = a.template weigh<kBetween, kWhole>(s[n][half * 2 + e], dp[n][half * 2 + e], row[half], full[half], j, bias);
        if (kBetween != Between::interval && dmask[half] && j < p.key_len) dmask[half][j] = ds;
      });
    };
    if (whole) weigh.template operator()<true>();
    else weigh.template operator()<false>();
    Weights weights;
    pack_weights<T>(dp, weights);
    accumulate(weights, k, dq);
  }
  copy_wait<0>();
  index_t rows = p.cu_q ? p.queries(b) : p.query_len;
  auto to = [&](int r) {
    return first + r < rows ? row_of(static_cast<T*>(p.dq), p.dq_strides, p.cu_q, b, head, first + r) : nullptr;
  };
  unsigned spoiled = ballot(store_rows<T, kWidth>(dq, float(p.scale), p.head_dim, to));
  int at = ((b * int(p.heads) + head) * tiles + tile) * kGradientWarps + warp_id();
  if (a.rows_spoiled && lane == 0) a.rows_spoiled[at] = spoiled != 0;
}

// Tile (b, head, 128 rows, 64 keys) of dmask, summed over the sequences and heads it was broadcast to.
template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps, 2) dmask_mma_kernel(const __grid_constant__ MmaGradient<T> a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  const AttentionBackward& p = a.p;
  const index_t* step = p.dmask_strides;
  T* memory = reinterpret_cast<T*>(shared);
  Own<T, kWidth> q{memory}, dout{q.data + q.kSize};
  Walked<T, kWidth> k{dout.data + q.kSize}, v{k.data + k.kSize};
  Panels<T, kWalkRows, kOwnRows> mask{v.data + v.kSize};
  int tiles = int(ceil_div(p.key_len, kWalkRows)), key = int(blockIdx.x) % tiles * kWalkRows, rest = int(blockIdx.x) / tiles;
  tiles = int(ceil_div(p.query_len, kOwnRows));
  int first = rest % tiles * kOwnRows;
  rest /= tiles;
  int heads = step[1] ? 1 : int(p.heads), head0 = step[1] ? rest % int(p.heads) : 0;
  int batch = step[0] ? 1 : int(p.batch), b0 = step[0] ? rest / (step[1] ? int(p.heads) : 1) : 0;

  int lane = lane_id(), mine = first + warp_id() * 16 + lane / 4, from = key + lane % 4 * 2;
  Tile sums = {};
  for (int at = 0; at < batch * heads; ++at) {
    int b = b0 + at / heads, head = head0 + at % heads;
    Interval seeing = rows_that_see(p, b, key, kWalkRows);
    if (seeing.high <= first || seeing.low >= first + kOwnRows) continue;
    sync_block();
    q.fetch(a.queries(p.q, p.q_strides, b, head, first), int(p.head_dim));
    k.fetch(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim));
    if constexpr (kBetween == Between::bias) mask.fetch(a.mask(b, head, first, key), int(p.key_len) - key);
    copy_commit();
    dout.fetch(a.queries(p.dout, p.out_strides, b, head, first), int(p.value_dim));
    v.fetch(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim));
    copy_commit();
    RowTerms row[2];
    QueryRow<float> full[2];
    for (int half = 0; half < 2; ++half)
      a.template describe<kBetween>(b, head, mine + half * 8, row[half], full[half]);
    bool whole = ballot(row[0].sees_all(key, kWalkRows) && row[1].sees_all(key, kWalkRows)) == kAllLanes;
    Tile s = {}, dp = {};
    copy_wait<1>();
    sync_block();
    products(q, k, s);
    copy_wait<0>();
    sync_block();
    products(dout, v, dp);
    auto weigh = [&]<bool kWhole>() {
      auto piece = [&](int n) { return mask.piece(warp_id() * 16 + lane % 16, n + lane / 16); };
      a.template for_elements<kBetween, false>(piece, [&](int n, int half, int e, float bias) {
        int c = half * 2 + e;
        sums[n][c] += a.template weigh<kBetween, kWhole>(s[n][c], dp[n][c], row[half], full[half], from + n * 8 + e, bias);
      });
    };
    if (whole) weigh.template operator()<true>();
    else weigh.template operator()<false>();
  }
  auto out = static_cast<float*>(p.dmask) + b0 * step[0] + head0 * step[1];
  SEQKERN_UNROLL
  for (int n = 0; n < kWalkRows / 8; ++n) SEQKERN_UNROLL
  for (int c = 0; c < 4; ++c) {
    int i = mine + c / 2 * 8, j = from + n * 8 + c % 2;
    if (i < p.query_len && j < p.key_len) out[i * p.key_len + j] = sums[n][c];
  }
}

// Whether the kernels can do this call: its types, widths, and rows that start at multiples of 16 bytes.
inline bool starts_rows_whole(const void* data, index_t steps) { return std::uintptr_t(data) % 16 == 0 && steps % 8 == 0; }
inline bool fits_mma(const AttentionBackward& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return false;
  auto whole = [](const void* data, const AttentionStrides& s) { return starts_rows_whole(data, s.batch | s.head | s.row); };
  auto fits = [](index_t width) { return width % 8 == 0 && width > 0 && width <= 128; };
  return fits(p.head_dim) && fits(p.value_dim) && whole(p.q, p.q_strides) && whole(p.k, p.k_strides) &&
         whole(p.v, p.v_strides) && whole(p.dout, p.out_strides);
}
inline Between between(const AttentionBackward& p) {
  if (p.slopes || p.softcap != 0 || p.dropout > 0) return Between::anything;
  if (!p.mask) return Between::interval;
  const index_t* s = p.mask_strides;
  bool whole = !p.mask_is_bool && s[3] == 1 && starts_rows_whole(p.mask, s[0] | s[1] | s[2] | p.key_len);
  return whole ? Between::bias : Between::anything;
}
inline index_t key_blocks(const AttentionInputs& p) { return p.batch * p.kv_heads * ceil_div(p.key_len, kOwnRows); }
inline index_t row_blocks(const AttentionInputs& p) { return p.batch * p.heads * ceil_div(p.query_len, kOwnRows); }

// Which gradients tensor cores gave.
struct Given {
  bool inputs = false, mask = false;
};
template <class T, int kWidth, Between kBetween>
Given launch_gradient(MmaGradient<T>& a, cudaStream_t stream) {
  const AttentionBackward& p = a.p;
  bool fits = true;
  auto run = [&](auto kernel, index_t blocks, std::size_t bytes) {
    Launch l{dim3(unsigned(blocks)), dim3(32 * kGradientWarps), bytes};
    l.stream = stream;
    fits = fits && bytes <= std::size_t(limits(reinterpret_cast<const void*>(kernel)).max_shared);
    if (fits && blocks) launch(l, kernel, a);
  };
  const index_t sizes[4] = {p.batch, p.heads, p.query_len, p.key_len}, *step = p.dmask_strides;
  auto real = [&](int i) { return step[i] || sizes[i] == 1; };
  bool wanted = p.dmask && p.dmask_count, tiled = wanted && real(2) && real(3);
  a.stores_dmask = tiled && real(0) && real(1);
  constexpr std::size_t kBytes = GradientMemory<T, kWidth, kBetween>::kBytes;
  run(dkv_mma_kernel<T, kWidth, kBetween>, key_blocks(p), kBytes);
  run(dq_mma_kernel<T, kWidth, kBetween>, row_blocks(p), kBytes);
  if constexpr (kBetween != Between::interval)
    if (tiled && !a.stores_dmask) {
      index_t blocks = ceil_div(p.query_len, kOwnRows) * ceil_div(p.key_len, kWalkRows);
      run(dmask_mma_kernel<T, kWidth, kBetween>, blocks * (step[0] ? p.batch : 1) * (step[1] ? p.heads : 1),
          (2 * Own<T, kWidth>::kSize + 2 * Walked<T, kWidth>::kSize + kOwnRows * kWalkRows) * sizeof(T));
    }
  return {fits, fits && tiled};
}
// Nothing where the device has too little shared memory.
template <class T>
Given launch_gradient(MmaGradient<T>& a, cudaStream_t stream) {
  auto of_width = [&]<int kWidth>() {
    switch (between(a.p)) {
      case Between::interval: return launch_gradient<T, kWidth, Between::interval>(a, stream);
      case Between::bias: return launch_gradient<T, kWidth, Between::bias>(a, stream);
      default: return launch_gradient<T, kWidth, Between::anything>(a, stream);
    }
  };
  bool narrow = a.p.head_dim <= 64 && a.p.value_dim <= 64;
  return narrow ? of_width.template operator()<64>() : of_width.template operator()<128>();
}

}  // namespace seqkern::cuda
