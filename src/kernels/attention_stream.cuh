// What a warp does with a piece of the keys of few rows (attention_decode.cuh) so that memory is all it waits for: rows
// of K and V come sixteen bytes at a time, the next ones while the last are worked on.
//
// Values of 16 bits go from global memory to registers, sixteen bytes at a time, and from there to tensor cores: the
// order in which a product runs over its terms is free, so that every lane multiplies what it has read. With
// g = lane / 4 and t = lane % 4 a lane reads
//   K: key g of eight, values 8t .. 8t + 7 of every 32, four pairs of Q K';
//   V: keys 2t, 2t + 1 (and these + 8) of sixteen, values 8g .. 8g + 7 of every 64, rows 2i and 2i + 1 of which are
//      rows g and g + 8 of tile i of V' P'.
// Q K' leaves row g of the scores where V' P' takes column g of its right factor. There P is split into two values of
// 16 bits, so that rounding it costs nothing.
//
// Values of 32 bits: a lane keeps four columns of all rows and of the result.
#pragma once
#include "attention_mma.cuh"

namespace seqkern::cuda {

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

SEQKERN_INLINE void fetch_words(std::uint32_t (&to)[4], const void* from, bool there) {
  if (there) load_once(to, from);
  else to[0] = to[1] = to[2] = to[3] = 0;
}

// On tensor cores.
template <class T, int kWidth, class Keys>
struct StreamWalk {
  static constexpr int kKeys = 16 * kMaxMmaWidth / kWidth, kChunks = kWidth / 32, kPanels = kWidth / 64;
  using Words = std::uint32_t[4];
  const AttentionForward& p;
  const Score<T>& score;
  const QueryRow<float>& row;  // g
  index_t key;
  int left;  // keys from there on
  int g = lane_id() / 4, t = lane_id() % 4, k_width = int(p.head_dim) - 8 * t, v_width = int(p.value_dim) - 8 * g;
  Keys k_rows, v_rows;  // what this lane reads next
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
        k_rows(p.k, p.k_strides, p, piece.b, piece.kv_head, key + g),
        v_rows(p.v, p.v_strides, p, piece.b, piece.kv_head, key + 2 * t),
        q(q_ + lane_id()) {
    k_rows.base += 8 * t, v_rows.base += 8 * g;
    const T* mine = QueryRows<T>{rows, static_cast<const T*>(p.q), p.q_strides, p.cu_q}(g);
    for (int j = 0; j < kChunks; ++j) {
      bool there = mine && 32 * j < k_width;
      copy_async<16>(q + 32 * j, there ? mine + 32 * j + 8 * t : p.q, there);
    }
    copy_commit();
    if (piece.first == 0) state.start(p, row);
    if (t) state.sum = 0;  // four lanes share a row, one of them its sink
  }

  // `count` rows, zeros past them.
  SEQKERN_INLINE void fetch_keys(int count) {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys / 8; ++n, k_rows.skip(8, p.k_strides)) {
      const T* row = k_rows.at(0, 8 * n < count - g, p.k_strides);
      SEQKERN_UNROLL
      for (int j = 0; j < kChunks; ++j) fetch_words(k[n][j], row + 32 * j, 8 * n < count - g && 32 * j < k_width);
    }
  }
  SEQKERN_INLINE void fetch_values(int count) {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys / 8; ++n, v_rows.skip(8, p.v_strides)) SEQKERN_UNROLL
    for (int m = 0; m < 2; ++m) {
      const T* row = v_rows.at(m, 8 * n + m < count - 2 * t, p.v_strides);
      SEQKERN_UNROLL
      for (int i = 0; i < kPanels; ++i)
        fetch_words(v[n / 2][n % 2 * 2 + m][i], row + 64 * i, 8 * n + m < count - 2 * t && 64 * i < v_width);
    }
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

// In plain arithmetic of 32 bits, widths up to 128.
template <class Keys>
struct FloatWalk {
  static constexpr int kKeys = 4;  // at once
  using Words = std::uint32_t[4];
  const AttentionForward& p;
  const Score<float>& score;
  const QueryRow<float>* rows;
  index_t key;
  int left;  // keys from there on
  int column = 4 * lane_id(), mine = lane_id() % kMine;
  Keys k_rows, v_rows;
  Words q[kMine], k[kKeys], v[kKeys];
  Softmax<float> state = {};  // of row `mine`, the sum that of this lane's keys
  float out[kMine][4] = {};

  SEQKERN_INLINE FloatWalk(const AttentionForward& p_, const Score<float>& score_, const QueryRow<float>* rows_,
                           const Piece& piece, const Interval& seen)
      : p(p_),
        score(score_),
        rows(rows_),
        key(piece.first < seen.low ? seen.low : piece.first),
        left(int(min_of(piece.end, seen.high) - key)),
        k_rows(p.k, p.k_strides, p, piece.b, piece.kv_head, key),
        v_rows(p.v, p.v_strides, p, piece.b, piece.kv_head, key) {
    k_rows.base += column, v_rows.base += column;
    QueryRows<float> queries{rows, static_cast<const float*>(p.q), p.q_strides, p.cu_q};
    SEQKERN_UNROLL
    for (int r = 0; r < kMine; ++r) {
      const float* row = queries(r);
      fetch_words(q[r], row ? row + column : nullptr, row && column < p.head_dim);
    }
    if (piece.first == 0) state.start(p, rows[mine]);
    if (lane_id() >= kMine) state.sum = 0;
  }

  SEQKERN_INLINE static float number(std::uint32_t word) { return bit_cast<float>(word); }
  // `count` rows, zeros past them.
  SEQKERN_INLINE void fetch(Words (&to)[kKeys], Keys& from, const AttentionStrides& s, index_t width, int count) const {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys; ++n, from.skip(1, s))
      fetch_words(to[n], from.at(0, n < count, s), n < count && column < width);
  }
  SEQKERN_INLINE void fetch_keys(int count) { fetch(k, k_rows, p.k_strides, p.head_dim, count); }
  SEQKERN_INLINE void fetch_values(int count) { fetch(v, v_rows, p.v_strides, p.value_dim, count); }

  // The product of row `mine` and key lane / 8 of those at hand.
  SEQKERN_INLINE float scores() const {
    float sums[32];
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys; ++n) SEQKERN_UNROLL
    for (int r = 0; r < kMine; ++r) {
      float& sum = sums[n * kMine + r] = 0;
      SEQKERN_UNROLL
      for (int i = 0; i < 4; ++i) sum += number(q[r][i]) * number(k[n][i]);
    }
    return reduce_many(sums);
  }

  SEQKERN_INLINE void add(float s) {
    const QueryRow<float>& row = rows[mine];
    int j = lane_id() / kMine;
    float capped;
    s = j < left ? score(s, row, key + j, capped) : -infinity<float>();
    // What is masked may be NaN. Rows that are none do not matter, and keys that are none are 0.
    unsigned live = ballot(s != -infinity<float>() || row.i < 0 || j >= left);
    float top = s;
    for (int with = kMine; with < 32; with *= 2) top = Max{}(top, shuffle_xor(top, with));
    float factor = state.raise(top);
    s = power(s - state.base());
    state.sum += s;
    if (p.dropout > 0) s *= score.kept(row, key + j);
    if (ballot(factor != 1)) SEQKERN_UNROLL
      for (int r = 0; r < kMine; ++r) {
        float f = shuffle(factor, r);
        for (float& x : out[r]) x *= f;
      }
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys; ++n) SEQKERN_UNROLL
    for (int r = 0; r < kMine; ++r) {
      float weight = shuffle(s, n * kMine + r);
      SEQKERN_UNROLL
      for (int i = 0; i < 4; ++i)
        if (live == kAllLanes || live >> (n * kMine + r) & 1) out[r][i] += weight * number(v[n][i]);
    }
  }

  SEQKERN_INLINE void run() {
    fetch_keys(left);
    fetch_values(left);
    for (; left > 0; key += kKeys, left -= kKeys) {
      float s = scores();
      fetch_keys(left - kKeys);
      add(s);
      fetch_values(left - kKeys);
    }
  }

  SEQKERN_INLINE void finish(const Piece& piece, int all, const Partial<float>& partial) {
    for (int with = kMine; with < 32; with *= 2) state.sum += shuffle_xor(state.sum, with);
    if (lane_id() < all) partial.state[piece.at + lane_id()] = state;
    if (column < p.value_dim) SEQKERN_UNROLL
      for (int r = 0; r < kMine; ++r) {
        Four<float> four{out[r][0], out[r][1], out[r][2], out[r][3]};
        if (r < all) copy_word<16>(partial.out + (piece.at + r) * p.value_dim + column, &four);
      }
  }
};

}  // namespace seqkern::cuda
