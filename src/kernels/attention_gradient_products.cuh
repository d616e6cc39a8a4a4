// The products of attention backward on tensor cores: a warp's, sixteen rows of what a block owns, or a warpgroup's.
#pragma once
#include "attention_gradient.cuh"

namespace seqkern::cuda {

// Products of a warp, of which each takes its sixteen rows on alone.
template <class T, int kWidth>
struct WarpProducts {
  static constexpr int kUnit = 16;                    // rows that go together
  static constexpr int kAtOnce = kWidth > 64 ? 4 : 8;  // tiles of the rows walked, for the registers' sake
  static constexpr bool kHopper = false;
  using Sums = float[kWidth / 8][4];

  SEQKERN_INLINE static void fence() {}

  // Columns are rows of `walked` from 8 `from` on.
  template <int kTiles>
  SEQKERN_INLINE static void multiply_rows(const Own<T, kWidth>& own, const Walked<T, kWidth>& walked, int from,
                                           Tile<kTiles>& sums) {
    int lane = lane_id();
    SEQKERN_UNROLL
    for (int d = 0; d < kWidth / 16; ++d) {
      std::uint32_t a[4], b[4];
      load_matrices(a, own.piece(warp_id() * 16 + lane % 16, 2 * d + lane / 16));
      SEQKERN_UNROLL
      for (int n = 0; n < kTiles; n += 2) {
        load_matrices(b, walked.piece((from + n) * 8 + lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2));
        multiply<T>(sums[n], a, {b[0], b[1]});
        multiply<T>(sums[n + 1], a, {b[2], b[3]});
      }
    }
  }
  template <int kTiles>
  SEQKERN_INLINE static void accumulate(const Tile<kTiles>& tile, const Walked<T, kWidth>& walked, int from,
                                        Sums& sums) {
    int lane = lane_id();
    SEQKERN_UNROLL
    for (int j = 0; j < kTiles; j += 2) {
      std::uint32_t a[4];
      pack_pair<T>(a, tile[j], tile[j + 1]);
      SEQKERN_UNROLL
      for (int n = 0; n < kWidth / 8; n += 2) {
        std::uint32_t b[4];
        load_matrices<true>(b, walked.piece((from + j) * 8 + lane % 16, n + lane / 16));
        multiply<T>(sums[n], a, {b[0], b[1]});
        multiply<T>(sums[n + 1], a, {b[2], b[3]});
      }
    }
  }

  // use(s, dp, from) for both products, kTiles of eight rows walked at a time.
  template <int kTiles = kAtOnce, class Use>
  SEQKERN_INLINE static void both(const Own<T, kWidth>& a, const Own<T, kWidth>& b, const Walked<T, kWidth>& c,
                                  const Walked<T, kWidth>& d, Use use) {
    SEQKERN_UNROLL
    for (int from = 0; from < kWalkRows / 8; from += kTiles) {
      Tile<kTiles> s = {}, dp = {};
      multiply_rows(a, c, from, s);
      multiply_rows(b, d, from, dp);
      use(s, dp, from);
    }
  }
  // What a tile adds: powers(s, from) makes P of s = own walked', slopes(s, dp, from) makes dS of dp; meanwhile() is
  // for the next tile's sake.
  template <class Meanwhile, class Powers, class Slopes>
  SEQKERN_INLINE static void dkv(const Own<T, kWidth>& k, const Own<T, kWidth>& v, const Walked<T, kWidth>& q,
                                 const Walked<T, kWidth>& dout, Meanwhile meanwhile, Powers powers, Slopes slopes,
                                 Sums& dk, Sums& dv) {
    meanwhile();
    both(k, v, q, dout, [&](Tile<kAtOnce>& s, Tile<kAtOnce>& dp, int from) {
      powers(s, from);
      slopes(s, dp, from);
      accumulate(s, dout, from, dv);
      accumulate(dp, q, from, dk);
    });
  }
  template <class Meanwhile, class Powers, class Slopes>
  SEQKERN_INLINE static void dq(const Own<T, kWidth>& q, const Own<T, kWidth>& dout, const Walked<T, kWidth>& k,
                                const Walked<T, kWidth>& v, Meanwhile meanwhile, Powers powers, Slopes slopes,
                                Sums& sums) {
    meanwhile();
    both(q, dout, k, v, [&](Tile<kAtOnce>& s, Tile<kAtOnce>& dp, int from) {
      powers(s, from);
      slopes(s, dp, from);
      accumulate(dp, k, from, sums);
    });
  }
};

// Products of a warpgroup (compute capability 9.0a), which run in the background.
template <class T, int kWidth>
struct GroupProducts {
  static constexpr int kAll = kWalkRows / 8;
  static constexpr bool kHopper = true;

  SEQKERN_INLINE static void fence() { fence_products(); }
  template <int kTiles>
  SEQKERN_INLINE static auto flat(Tile<kTiles>& tile) -> float (&)[kTiles * 4] {
    return reinterpret_cast<float(&)[kTiles * 4]>(tile);
  }

  SEQKERN_INLINE static void multiply_rows(const Own<T, kWidth>& own, const Walked<T, kWidth>& walked,
                                           Tile<kAll>& sums) {
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth / 16; ++k)
      multiply_group<T, kWalkRows>(flat(sums), own.columns(k, warp_id() / 4 * 64), walked.columns(k), k > 0);
    group_commit();
  }
  template <int, class Use>
  SEQKERN_INLINE static void both(const Own<T, kWidth>& a, const Own<T, kWidth>& b, const Walked<T, kWidth>& c,
                                  const Walked<T, kWidth>& d, Use use) {
    Tile<kAll> s = {}, dp = {};
    group_fence();
    multiply_rows(a, c, s);
    multiply_rows(b, d, dp);
    group_wait<0>(flat(s));
    group_wait<0>(flat(dp));
    use(s, dp, 0);
  }
};

}  // namespace seqkern::cuda
