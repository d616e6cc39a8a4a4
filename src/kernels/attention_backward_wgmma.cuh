// Attention backward by warpgroups (compute capability 9.0a): bfloat16 and float16, widths up to 128, masked by
// intervals and an additive mask at most.
//
// The walk is that of attention_backward_mma.cuh. Two warpgroups own 64 rows each; a third brings what they walk over
// and keeps a few tiles ahead of them. They do not wait for each other, so that one's products run beside the other's
// powers.
#pragma once
#include "attention_gradient.cuh"

namespace seqkern::cuda {

// Rows walked at a time; whether what a warpgroup owns stays in registers.
template <class T, int kWidth_, int kWalk_, bool kHeld_, int kStages_, Between kBetween_ = Between::interval>
struct GroupPlan {
  static constexpr int kWidth = kWidth_, kWalk = kWalk_, kStages = kStages_;
  static constexpr bool kHeld = kHeld_;
  static constexpr Between kBetween = kBetween_;
  using Tile = Sheets<T, kWidth, kWalk>;
  using Scores = float[kWalk / 2];
  using Sums = float[kWidth / 2];
  using Weights = std::uint32_t[kWalk / 16][4];
  static constexpr int kTerms = 4 * kWalk;  // of rows: lse, delta, low, high, each on its own
  static constexpr int kMask = kBetween == Between::bias ? kOwnRows * kWalk : 0;
  static constexpr std::size_t kRowsBytes =
      (2 * Own<T, kWidth>::kSize + kStages * (2 * Tile::kSize + kMask)) * sizeof(T);
  static constexpr std::size_t kKeysBytes = kRowsBytes + kStages * kTerms * sizeof(float);
};
inline constexpr int kFeederWarps = 4, kGroupWarps = kGradientWarps + kFeederWarps;

// What a block owns and walks over, in shared memory.
template <class T, class Plan>
struct GroupWalked {
  static constexpr int kWidth = Plan::kWidth, kStages = Plan::kStages, kOwnSize = Own<T, kWidth>::kSize;
  using Tile = typename Plan::Tile;
  T* data;
  std::uint64_t *full, *free;  // of every stage: a phase ends when its tile has come, and when it has been used

  SEQKERN_INLINE void init() {
    if (threadIdx.x == 0)
      for (int i = 0; i < kStages; ++i)
        mbarrier_init(&full[i], 32 * kFeederWarps), mbarrier_init(&free[i], 32 * kGradientWarps);
    sync_block();
  }
  SEQKERN_INLINE Own<T, kWidth> own(int which) const { return {data + which * kOwnSize}; }
  SEQKERN_INLINE Tile tile(int which, int stage) const {
    return {data + 2 * kOwnSize + (2 * stage + which) * Tile::kSize};
  }
  template <int kColumns>
  SEQKERN_INLINE Sheets<T, kColumns, Plan::kMask / kColumns> mask(int stage) const {
    return {tile(0, kStages).data + stage * Plan::kMask};
  }
  SEQKERN_INLINE float* terms(int stage) const {
    return reinterpret_cast<float*>(mask<kOwnRows>(kStages).data) + stage * Plan::kTerms;
  }
};

// The stage of a tile, and the parity of its phase.
template <int kStages>
struct GroupRing {
  int stage = 0, parity = 0;

  SEQKERN_INLINE void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The share of rows of a thread that feeds.
template <class T, int kColumns>
struct GroupCursor {
  static constexpr int kPieces = kColumns / 8, kThreads = 32 * kFeederWarps, kStep = kThreads / kPieces;
  const T* at;
  int left;

  SEQKERN_INLINE static int thread() { return int(threadIdx.x) - 32 * kGradientWarps; }
  SEQKERN_INLINE GroupCursor(const Stretch<T>& rows, int width)
      : at(rows.base + index_t(thread() / kPieces) * rows.stride + thread() % kPieces * 8),
        left(thread() % kPieces * 8 < width ? rows.count - thread() / kPieces : 0) {}
  template <int kRows>
  SEQKERN_INLINE void fetch(const Sheets<T, kColumns, kRows>& tile, index_t stride) {
    T* to = tile.piece(thread() / kPieces, thread() % kPieces);
    int step = kStep * int(stride);
    SEQKERN_UNROLL_BY(4)
    for (int r = 0; r < kRows; r += kStep, at += step) copy_async<16>(to + r * 64, at, r < left);
    left -= kRows;
  }
};
// The threads that feed, each of which tells of its own copies, one tile later.
template <class T, class Plan>
struct GroupFeeder {
  GroupWalked<T, Plan> walked;
  GroupRing<Plan::kStages> ring = {};
  int told = -1;  // the stage

  SEQKERN_INLINE void tell() {
    fence_products();
    if (told >= 0) mbarrier_arrive(&walked.full[told]);
  }
  // copy(stage) once the next stage is free.
  template <class Copy>
  SEQKERN_INLINE void put(Copy copy) {
    std::uint64_t* free = &walked.free[ring.stage];
    if (!mbarrier_test(free, ring.parity ^ 1)) {  // who would free it may be waiting for what has come
      copy_wait<0>();
      tell();
      told = -1;
      mbarrier_wait(free, ring.parity ^ 1);
    }
    copy(ring.stage);
    copy_commit();
    copy_wait<1>();
    tell();
    told = ring.stage;
    ring.next();
  }
  SEQKERN_INLINE void end() {
    copy_wait<0>();
    tell();
  }
};

// A warp that walks.
template <class T, class Plan>
struct GroupWalker {
  static constexpr int kWidth = Plan::kWidth, kWalk = Plan::kWalk;
  GroupWalked<T, Plan> walked;
  int group = shuffle(warp_id() / 4, 0);  // the same all over the warp, as the compiler can see
  std::uint32_t held[Plan::kHeld ? 2 : 1][Plan::kHeld ? kWidth / 16 : 1][4] = {};

  SEQKERN_INLINE void wait(const GroupRing<Plan::kStages>& at) const {
    mbarrier_wait(&walked.full[at.stage], at.parity);
  }
  SEQKERN_INLINE void release(int stage) const { mbarrier_arrive(&walked.free[stage]); }
  SEQKERN_INLINE void hold() {
    if constexpr (Plan::kHeld) {
      SEQKERN_UNROLL
      for (int which = 0; which < 2; ++which) SEQKERN_UNROLL
      for (int k = 0; k < kWidth / 16; ++k)
        load_matrices(held[which][k], walked.own(which).piece(warp_id() * 16 + lane_id() % 16, 2 * k + lane_id() / 16));
    }
  }
  // s = own walked', in the background
  SEQKERN_INLINE void begin_scores(int which, int stage, typename Plan::Scores& s) const {
    auto tile = walked.tile(which, stage);
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth / 16; ++k)
      if constexpr (Plan::kHeld) multiply_group<T, kWalk, false>(s, held[which][k], tile.columns(k), k > 0);
      else multiply_group<T, kWalk>(s, walked.own(which).columns(k, group * 64), tile.columns(k), k > 0);
    group_commit();
  }
  // sums += weights walked, in the background
  SEQKERN_INLINE void begin_sums(int which, int stage, const typename Plan::Weights& weights,
                                 typename Plan::Sums& sums) const {
    auto tile = walked.tile(which, stage);
    group_fence();
    SEQKERN_UNROLL
    for (int j = 0; j < kWalk / 16; ++j) multiply_group<T, kWidth>(sums, weights[j], tile.rows(j));
    group_commit();
  }
  SEQKERN_INLINE static void pack_all(typename Plan::Weights& weights, const typename Plan::Scores& s) {
    SEQKERN_UNROLL
    for (int i = 0; i < kWalk / 4; ++i) weights[i / 4][i % 4] = pack<T>(s[2 * i], s[2 * i + 1]);
  }

  // All tiles. prepare(tile, stage) while products run; powers(stage, s) makes P of s = own walked', and of P and dp
  // slopes(stage, s, dp) makes dS. kValues: `values` += P walked, too.
  template <bool kValues, class Prepare, class Powers, class Slopes>
  SEQKERN_INLINE void walk(int count, Prepare prepare, Powers powers, Slopes slopes, typename Plan::Sums& sums,
                           typename Plan::Sums& values) {
    using Scores = typename Plan::Scores;
    using Weights = typename Plan::Weights;
    GroupRing<Plan::kStages> at;
    int last = -1;  // the stage whose products may still run
    Scores s, dp;
    for (int t = 0; t < count; ++t, at.next()) {
      wait(at);
      if (Plan::kHeld && t == 0) hold();
      group_fence();
      begin_scores(0, at.stage, s);
      begin_scores(1, at.stage, dp);
      prepare(t, at.stage);
      group_wait<1>(s);
      if (last >= 0) release(last);
      last = at.stage;
      powers(at.stage, s);
      Weights p, ds;
      if constexpr (kValues) {
        pack_all(p, s);
        begin_sums(1, at.stage, p, values);
        group_wait<kWidth + kWalk == 128 ? 1 : 0>(dp);  // else P's registers are needed
      } else {
        settle(s);
        group_wait<0>(dp);
      }
      slopes(at.stage, s, dp);
      pack_all(ds, dp);
      begin_sums(0, at.stage, ds, sums);
    }
    group_wait<0>(sums);
    group_wait<0>(values);
  }
};

// Two adjacent rows' terms.
template <class V>
struct alignas(8) Twin {
  V v[2];
};

template <class T, class Plan>
SEQKERN_INLINE void group_gradients_of_keys(const Gradients<T>& a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  SEQKERN_SHARED(std::uint64_t, bars, 2 * Plan::kStages);
  constexpr int kWidth = Plan::kWidth, kWalk = Plan::kWalk;
  constexpr bool kBias = Plan::kBetween == Between::bias;
  using Cursor = GroupCursor<T, kWidth>;
  const AttentionBackward& p = a.p;
  GroupWalked<T, Plan> walked{reinterpret_cast<T*>(shared), &bars[0], &bars[Plan::kStages]};
  walked.init();
  int pair, tile;  // causal: the longest first
  a.keys_order.find(int(blockIdx.x), pair, tile);
  int key = tile * kOwnRows, b = pair / int(p.kv_heads), kv_head = pair % int(p.kv_heads);
  Interval seeing = rows_that_see(p, b, key, kOwnRows);
  int first = int(seeing.low) / kWalk * kWalk, high = int(seeing.high), group = int(p.group());
  int tiles = first < high ? (high - first + kWalk - 1) / kWalk : 0;

  if (warp_id() >= kGradientWarps) {
    give_registers<24>();
    GroupFeeder<T, Plan> feeder{walked};
    int head = kv_head * group, thread = Cursor::thread(), r = thread % kWalk, which = thread / kWalk;
    if (tiles) {
      Cursor(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim)).fetch(walked.own(0), p.k_strides.row);
      Cursor(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim)).fetch(walked.own(1), p.v_strides.row);
      for (int end = head + group; head < end; ++head) {
        Cursor q(a.queries(p.q, p.q_strides, b, head, first), int(p.head_dim));
        Cursor dout(a.queries(p.dout, p.out_strides, b, head, first), int(p.value_dim));
        GroupCursor<T, kOwnRows> mask(kBias ? a.mask(b, head, first, key) : Stretch<T>{}, int(p.key_len) - key);
        auto terms = reinterpret_cast<const float*>(a.terms_of(b, head) + first + r) + which;
        for (int t = 0, i = first + r; t < tiles; ++t, terms += 4 * kWalk, i += kWalk)
          feeder.put([&](int stage) {
            q.fetch(walked.tile(0, stage), p.q_strides.row);
            dout.fetch(walked.tile(1, stage), p.out_strides.row);
            if constexpr (kBias) mask.fetch(walked.template mask<kOwnRows>(stage), p.mask_strides[2]);
            SEQKERN_UNROLL
            for (int f = 0; f < 4; f += Cursor::kThreads / kWalk)
              copy_async<4>(walked.terms(stage) + (f + which) * kWalk + r, terms + f, i < p.query_len);
          });
      }
    }
    return feeder.end();
  }
  take_registers<240>();
  GroupWalker<T, Plan> walker{walked};
  int lane = lane_id(), mine = key + warp_id() * 16 + lane / 4, unit = key + walker.group * 64;
  bool whole;
  auto twin = [&]<class V>(const V* values, int n) {
    return reinterpret_cast<const Twin<V>*>(values)[n * 4 + lane % 4];
  };
  // Of the intervals of a tile's rows the first and the last say all: both ends rise, those that are empty are outside.
  auto prepare = [&](int, int stage) {
    auto low = reinterpret_cast<const int*>(walked.terms(stage) + 2 * kWalk), high = low + kWalk;
    whole = low[0] <= unit && low[kWalk - 1] <= unit && unit + 64 <= high[0] && unit + 64 <= high[kWalk - 1];
  };
  auto powers = [&](int stage, typename Plan::Scores& s) {
    const float* lse = walked.terms(stage);
    auto low = reinterpret_cast<const int*>(lse + 2 * kWalk), high = low + kWalk;
    auto bias_at = [&](int n) {
      int r = (n + lane / 16) * 8 + lane % 8;
      return walked.template mask<kOwnRows>(stage).piece(r, warp_id() * 2 + lane / 8 % 2);
    };
    auto run = [&]<bool kWhole>() {
      Twin<float> l{};
      Twin<int> from{}, to{};
      a.template for_elements<Plan::kBetween, true, kWalk / 8>(bias_at, [&](int n, int half, int e, float bias) {
        if (half == 0 && e == 0) {
          l = twin(lse, n);
          if constexpr (!kWhole) from = twin(low, n), to = twin(high, n);
        }
        float& x = s[n * 4 + half * 2 + e];
        x = a.template power_of<Plan::kBetween, kWhole>(x, {l.v[e], 0, from.v[e], to.v[e]}, mine + half * 8, bias);
      });
    };
    if (whole) run.template operator()<true>();
    else run.template operator()<false>();
  };
  auto slopes = [&](int stage, const typename Plan::Scores& s, typename Plan::Scores& dp) {
    const float* delta = walked.terms(stage) + kWalk;
    SEQKERN_UNROLL
    for (int n = 0; n < kWalk / 8; ++n) {
      Twin<float> d = twin(delta, n);
      SEQKERN_UNROLL
      for (int e = 0; e < 4; ++e) {
        float& x = dp[n * 4 + e];
        x = a.template slope_of<!kBias>(s[n * 4 + e], x, {0, d.v[e % 2], 0, 0});
      }
    }
  };
  typename Plan::Sums dk = {}, dv = {};
  walker.template walk<true>(tiles * group, prepare, powers, slopes, dk, dv);
  index_t rows = p.cu_k ? p.keys(b) : p.key_len;
  auto to = [&](void* data, const AttentionStrides& s) {
    return [&, data](int r) {
      return key + r < rows ? row_of(static_cast<T*>(data), s, p.cu_k, b, kv_head, key + r) : nullptr;
    };
  };
  auto tiled = [](typename Plan::Sums& sums) -> auto& { return reinterpret_cast<float (&)[kWidth / 8][4]>(sums); };
  bool wrong = store_rows<T, kWidth>(tiled(dk), float(p.scale), p.head_dim, to(p.dk, p.dk_strides));
  wrong = store_rows<T, kWidth>(tiled(dv), 1, p.value_dim, to(p.dv, p.dv_strides)) || wrong;
  unsigned spoiled = ballot(wrong);
  int at = (pair * a.keys_order.tiles + tile) * kGradientWarps + warp_id();
  if (a.keys_spoiled && lane == 0) a.keys_spoiled[at] = spoiled != 0;
}

template <class T, class Plan>
SEQKERN_INLINE void group_gradients_of_rows(const Gradients<T>& a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  SEQKERN_SHARED(std::uint64_t, bars, 2 * Plan::kStages);
  constexpr int kWidth = Plan::kWidth, kWalk = Plan::kWalk;
  constexpr bool kBias = Plan::kBetween == Between::bias;
  using Cursor = GroupCursor<T, kWidth>;
  const AttentionBackward& p = a.p;
  GroupWalked<T, Plan> walked{reinterpret_cast<T*>(shared), &bars[0], &bars[Plan::kStages]};
  walked.init();
  int which, tile, tiles = a.rows_order.tiles;
  a.rows_order.find(int(blockIdx.x), which, tile);
  tile = tiles - 1 - tile;  // causal: the longest first
  int b = which / int(p.heads), head = which % int(p.heads), first = tile * kOwnRows;
  Interval seen = keys_they_see(p, b, first, kOwnRows);
  int start = int(seen.low) / kWalk * kWalk, high = int(seen.high);
  int count = start < high ? (high - start + kWalk - 1) / kWalk : 0;

  if (warp_id() >= kGradientWarps) {
    give_registers<24>();
    GroupFeeder<T, Plan> feeder{walked};
    if (count) {
      Cursor(a.queries(p.q, p.q_strides, b, head, first), int(p.head_dim)).fetch(walked.own(0), p.q_strides.row);
      Cursor(a.queries(p.dout, p.out_strides, b, head, first), int(p.value_dim))
          .fetch(walked.own(1), p.out_strides.row);
      Cursor k(a.keys(p.k, p.k_strides, b, head, start), int(p.head_dim));
      Cursor v(a.keys(p.v, p.v_strides, b, head, start), int(p.value_dim));
      for (int t = 0, key = start; t < count; ++t, key += kWalk)
        feeder.put([&](int stage) {
          k.fetch(walked.tile(0, stage), p.k_strides.row);
          v.fetch(walked.tile(1, stage), p.v_strides.row);
          if constexpr (kBias)
            GroupCursor<T, kWalk>(a.mask(b, head, first, key), int(p.key_len) - key)
                .fetch(walked.template mask<kWalk>(stage), p.mask_strides[2]);
        });
    }
    return feeder.end();
  }
  take_registers<240>();
  GroupWalker<T, Plan> walker{walked};
  int lane = lane_id(), mine = first + warp_id() * 16 + lane / 4;
  RowTerms row[2];
  float* dmask[2] = {};
  for (int half = 0; half < 2; ++half) {
    int i = mine + half * 8;
    row[half] = i < p.query_len ? a.terms_of(b, head)[i] : RowTerms{0, 0, 0, 0};
    if (kBias && a.stores_dmask && i < p.query_len)
      dmask[half] = static_cast<float*>(p.dmask) + ((index_t(b) * p.heads + head) * p.query_len + i) * p.key_len;
  }
  bool whole;
  int at;
  auto prepare = [&](int t, int) {
    at = start + t * kWalk;
    whole = ballot(row[0].sees_all(at, kWalk) && row[1].sees_all(at, kWalk)) == kAllLanes;
  };
  auto powers = [&](int stage, typename Plan::Scores& s) {
    int from = at + lane % 4 * 2;
    auto bias_at = [&](int n) {
      return walked.template mask<kWalk>(stage).piece(warp_id() * 16 + lane % 16, n + lane / 16);
    };
    auto run = [&]<bool kWhole>() {
      a.template for_elements<Plan::kBetween, false, kWalk / 8>(bias_at, [&](int n, int half, int e, float bias) {
        float& x = s[n * 4 + half * 2 + e];
        x = a.template power_of<Plan::kBetween, kWhole>(x, row[half], from + n * 8 + e, bias);
      });
    };
    if (whole) run.template operator()<true>();
    else run.template operator()<false>();
  };
  auto slopes = [&](int, const typename Plan::Scores& s, typename Plan::Scores& dp) {
    SEQKERN_UNROLL
    for (int i = 0; i < kWalk / 2; ++i) {
      int half = i / 2 % 2, key = at + lane % 4 * 2 + i / 4 * 8 + i % 2;
      dp[i] = a.template slope_of<!kBias>(s[i], dp[i], row[half]);
      if (kBias && dmask[half] && key < p.key_len) dmask[half][key] = dp[i];
    }
  };
  typename Plan::Sums dq = {};
  walker.template walk<false>(count, prepare, powers, slopes, dq, dq);
  store_dq<T, kWidth>(a, b, head, tile, reinterpret_cast<float (&)[kWidth / 8][4]>(dq));
}

template <class T, class Plan>
__global__ void __launch_bounds__(32 * kGroupWarps, 1) dkv_wgmma_kernel(const __grid_constant__ Gradients<T> a) {
#if SEQKERN_HOPPER
  group_gradients_of_keys<T, Plan>(a);
#endif
}
template <class T, class Plan>
__global__ void __launch_bounds__(32 * kGroupWarps, 1) dq_wgmma_kernel(const __grid_constant__ Gradients<T> a) {
#if SEQKERN_HOPPER
  group_gradients_of_rows<T, Plan>(a);
#endif
}

}  // namespace seqkern::cuda
