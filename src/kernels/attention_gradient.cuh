// Pieces of attention backward on tensor cores (attention_backward_mma.cuh): tiles in shared memory, and what turns
// products into P and dS.
#pragma once
#include "attention_tile.cuh"

namespace seqkern::cuda {

inline constexpr int kOwnRows = 128, kWalkRows = 64, kGradientWarps = kOwnRows / 16;

// Rows `base`, base + stride, ... as far as there are any.
template <class T>
struct Stretch {
  const T* base;
  int stride, count;
};

// [kRows, kWidth] of T in shared memory: sheets of 64 columns, a row of a sheet being eight pieces of 16 bytes, piece c
// of row r at c ^ (r % 8), as products of a warpgroup want them.
template <class T, int kWidth, int kRows>
struct Sheets {
  static constexpr int kSize = kRows * kWidth;
  T* data;

  SEQKERN_INLINE T* piece(int row, int c) const {
    return data + (c / 8 * kRows + row) * 64 + ((c % 8) ^ (row % 8)) * 8;
  }
  // Operands of a warpgroup: columns [16 k, 16 k + 16) of rows from `row` on; rows [16 k, 16 k + 16) transposed.
  SEQKERN_INLINE std::uint64_t columns(int k, int row = 0) const {
    return operand(data, (k / 4 * kRows + row) * 128 + k % 4 * 32);
  }
  SEQKERN_INLINE std::uint64_t rows(int k) const { return operand(data, k * 16 * 128, kRows * 128); }

  // Rows as they are in global memory; zeros past `width` and where there is no row.
  SEQKERN_INLINE void fetch(const Stretch<T>& rows, int width) const {
    constexpr int kPieces = kWidth / 8, kStep = 32 * kGradientWarps / kPieces;
    int c = int(threadIdx.x) % kPieces, first = int(threadIdx.x) / kPieces;
    int left = c * 8 < width ? rows.count - first : 0;
    const T* from = rows.base + first * rows.stride + c * 8;
    T* to = piece(first, c);
    SEQKERN_UNROLL
    for (int r = 0; r < kRows; r += kStep) copy_async<16>(to + r * 64, from + r * rows.stride, r < left);
  }
};
template <class T, int kWidth>
using Own = Sheets<T, kWidth, kOwnRows>;
template <class T, int kWidth>
using Walked = Sheets<T, kWidth, kWalkRows>;

// A warp's sixteen rows against 8 kTiles of those walked.
template <int kTiles>
using Tile = float[kTiles][4];
// f(n, i) for this lane's elements of it.
template <int kTiles, class F>
SEQKERN_INLINE void for_tile(F f) {
  SEQKERN_UNROLL
  for (int n = 0; n < kTiles; ++n) SEQKERN_UNROLL
  for (int i = 0; i < 4; ++i) f(n, i);
}
// Two tiles as the left factor of a product.
template <class T>
SEQKERN_INLINE void pack_pair(std::uint32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = pack<T>(low[0], low[1]), a[1] = pack<T>(low[2], low[3]);
  a[2] = pack<T>(high[0], high[1]), a[3] = pack<T>(high[2], high[3]);
}

// What every element asks of its row of queries: the logarithm (base 2) that its power is taken relative to,
// dout . out, the keys it sees. A row that sees nothing, and one past the end, sees [0, 0).
struct alignas(16) RowTerms {
  float lse, delta;
  int low, high;

  SEQKERN_INLINE bool sees(int key) const { return low <= key && key < high; }
  SEQKERN_INLINE bool sees_all(int key, int count) const { return low <= key && key + count <= high; }
  SEQKERN_INLINE bool sees_any(int key, int count) const { return low < key + count && key < high; }
};

// Which tile of which pair of sequence and head is a block's. Where tiles differ in length those of a few pairs, whose
// other sides fit the L2 cache together, come in the order of their tiles.
struct BlockOrder {
  int pairs, tiles, section = 1;

  // `walked`: elements that a pair's blocks walk over, 0 where tiles are alike.
  BlockOrder(index_t count, index_t rows, index_t walked) : pairs(int(count)), tiles(int(ceil_div(rows, kOwnRows))) {
    constexpr index_t kCached = 8 << 20;
    if (walked) section = int(min_of(kCached / walked + 1, count));
  }
  index_t blocks() const { return index_t(pairs) * tiles; }
  SEQKERN_INLINE void find(int block, int& pair, int& tile) const {
    int start = block / (section * tiles) * section, within = block - start * tiles;
    int many = int(min_of(section, pairs - start));
    pair = start + within % many, tile = within / many;
  }
};

template <class T>
struct Gradients {
  AttentionBackward p;
  Score<T> score;
  const RowTerms* terms;                       // [B, Hq, query_len]
  float factor;                                // of a product q . k, for powers of 2
  unsigned char *keys_spoiled, *rows_spoiled;  // one for every sixteen, or null
  BlockOrder keys_order, rows_order;
  bool stores_dmask = false;  // with dq

  SEQKERN_INLINE const RowTerms* terms_of(int b, int head) const {
    return terms + (index_t(b) * p.heads + head) * p.query_len;
  }
  SEQKERN_INLINE Stretch<T> rows(const void* data, const AttentionStrides& s, const index_t* cu, int b, int head,
                                 int first, int end) const {
    return {row_of(static_cast<const T*>(data), s, cu, b, head, first), int(s.row), end - first};
  }
  SEQKERN_INLINE Stretch<T> keys(const void* data, const AttentionStrides& s, int b, int head, int first) const {
    return rows(data, s, p.cu_k, b, head / int(p.group()), first, int(p.keys(b)));
  }
  SEQKERN_INLINE Stretch<T> queries(const void* data, const AttentionStrides& s, int b, int head, int first) const {
    return rows(data, s, p.cu_q, b, head, first, int(p.queries(b)));
  }
  SEQKERN_INLINE Stretch<T> mask(int b, int head, int first, int key) const {
    const index_t* s = p.mask_strides;
    return {static_cast<const T*>(p.mask) + b * s[0] + head * s[1] + first * s[2] + key, int(s[2]),
            int(p.queries(b)) - first};
  }

  template <Between kBetween>
  SEQKERN_INLINE void describe(int b, int head, int i, RowTerms& row, QueryRow<float>& full) const {
    row = i < p.query_len ? terms_of(b, head)[i] : RowTerms{0, 0, 0, 0};
    if (kBetween == Between::anything) full = score.row(b, head, min_of(i, p.query_len - 1));
  }

  // f(n, half, i, bias) for this lane's elements of tiles of eight columns; at(n): what a lane gives load_matrices for
  // the bias of tiles n and n + 1.
  template <Between kBetween, bool kTransposed, int kTiles, class At, class F>
  SEQKERN_INLINE static void for_elements(At at, F f) {
    std::uint32_t pairs[4];
    SEQKERN_UNROLL
    for (int n = 0; n < kTiles; ++n) {
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

  // P of a product q . k where an interval and a bias lie between.
  template <Between kBetween, bool kWhole>
  SEQKERN_INLINE float power_of(float product, const RowTerms& row, int key, float bias) const {
    constexpr bool kBias = kBetween == Between::bias;
    float shift = kBias ? bias * kLogBase<float> - row.lse : -row.lse, e = exp2_flushed(product * factor + shift);
    return (kWhole || row.sees(key)) && !(kBias && bias == -infinity<float>()) ? e : 0;
  }
  // dS, before the scale. Where P is 0 dP may be NaN, but not where nothing is masked.
  template <bool kWhole>
  SEQKERN_INLINE static float slope_of(float power, float dp, const RowTerms& row) {
    float ds = power * (dp - row.delta);
    return kWhole || power != 0 ? ds : 0;
  }
  // dropout(P) and dS in place of q . k and dP, whatever lies between. Returns dS before the cap.
  SEQKERN_INLINE float weigh(float& s, float& dp, const RowTerms& row, const QueryRow<float>& full, int key) const {
    float capped = 0, scored = score(s, full, key, capped);
    bool live = scored != -infinity<float>();
    float e = power(scored - row.lse), kept = live ? score.kept(full, key) : 0;
    float ds = live ? e * (dp * kept - row.delta) : 0;
    s = live ? e * kept : 0;
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

// A block's rows of dq.
template <class T, int kWidth>
SEQKERN_INLINE void store_dq(const Gradients<T>& a, int b, int head, int tile, const float (&sums)[kWidth / 8][4]) {
  const AttentionBackward& p = a.p;
  index_t first = tile * kOwnRows, rows = p.cu_q ? p.queries(b) : p.query_len;
  auto to = [&](int r) {
    return first + r < rows ? row_of(static_cast<T*>(p.dq), p.dq_strides, p.cu_q, b, head, first + r) : nullptr;
  };
  unsigned spoiled = ballot(store_rows<T, kWidth>(sums, float(p.scale), p.head_dim, to));
  int at = ((b * int(p.heads) + head) * a.rows_order.tiles + tile) * kGradientWarps + warp_id();
  if (a.rows_spoiled && lane_id() == 0) a.rows_spoiled[at] = spoiled != 0;
}

// A block's shared memory: two tiles of what it owns, and in every stage two of what it walks over, a tile of the mask
// and the terms of 64 rows; in full where that is asked for.
template <class T, int kWidth, Between kBetween>
struct GradientMemory {
  static constexpr int kStages = 2;
  static constexpr int kMask = kBetween == Between::bias ? kOwnRows * kWalkRows : 0;
  static constexpr int kOwnSize = Own<T, kWidth>::kSize, kWalkedSize = Walked<T, kWidth>::kSize;
  static constexpr std::size_t kBytes =
      (2 * kOwnSize + kStages * (2 * kWalkedSize + kMask)) * sizeof(T) + kStages * kWalkRows * sizeof(RowTerms) +
      (kBetween == Between::anything ? kWalkRows * sizeof(QueryRow<float>) : 0);
  T* data;

  SEQKERN_INLINE Own<T, kWidth> own(int which) const { return {data + which * kOwnSize}; }
  SEQKERN_INLINE Walked<T, kWidth> walked(int which, int stage) const {
    return {data + 2 * kOwnSize + (2 * stage + which) * kWalkedSize};
  }
  template <int kColumns>
  SEQKERN_INLINE Sheets<T, kColumns, kOwnRows * kWalkRows / kColumns> mask(int stage) const {
    return {walked(0, kStages).data + stage * kMask};
  }
  SEQKERN_INLINE RowTerms* terms(int stage) const {
    return reinterpret_cast<RowTerms*>(walked(0, kStages).data + kStages * kMask) + stage * kWalkRows;
  }
  SEQKERN_INLINE QueryRow<float>* full() const { return reinterpret_cast<QueryRow<float>*>(terms(kStages)); }
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

}  // namespace seqkern::cuda
