// Attention forward on the tensor cores of compute capability 9.0a: bfloat16 and float16, widths up to 128, masked by
// intervals at most (causal, window, lengths).
//
// A block takes 128 query rows at a time, 64 a warpgroup, against 128 or 192 keys. A third warpgroup keeps two tiles of
// K and two of V on their way into shared memory. Q K' of the next tile runs while softmax of the one before it does;
// that the warpgroups take turns to start products, besides, was 1 to 5 % slower on an H200. The probabilities stay in
// registers, where P V wants its left factor, rounded to the storage type.
//
// What spoils a result, and what happens then: attention_mma.cuh.
#pragma once
#include "attention_feed.cuh"

namespace seqkern::cuda {

template <class T, class Plan>
struct GroupWalk {
  static constexpr int kWidth = Plan::kWidth, kKeys = Plan::kKeys;
  using Tile = GroupTile<Plan>;
  const AttentionForward& p;
  GroupBarriers& bars;
  GroupMemory<T, Plan> memory;
  int group = warp_id() / 4 - 1, warp = warp_id() % 4, t = lane_id() % 4;
  int queries = 0, keys = 0, values = 0;  // tiles so far
  int low[2] = {}, high[2] = {}, plain_low = 0, plain_high = 0;
  Softmax<float> state[2] = {};
  float s[kKeys / 2] = {}, out[kWidth / 2] = {};
  std::uint32_t weights[kKeys / 4] = {};

  SEQKERN_INLINE int row_index(const Tile& tile, int half) const {
    return tile.first() + group * 64 + warp * 16 + lane_id() / 4 + half * 8;
  }

  SEQKERN_INLINE void start(const Tile& tile) {
    constexpr int kMost = 0x7fffffff;
    plain_low = 0, plain_high = kMost;
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      QueryRow<float> r = tile.row(row_index(tile, half));
      state[half] = {};
      state[half].start(p, r);
      if (t) state[half].sum = 0;  // four lanes share a row, one of them its sink
      low[half] = int(r.low), high[half] = int(r.high);
      if (row_index(tile, half) >= tile.all) high[half] = kMost;  // whatever comes of a row that is none
      plain_low = low[half] > plain_low ? low[half] : plain_low;
      plain_high = min_of(plain_high, high[half]);
    }
    for (int with = 4; with < 32; with *= 2) {
      int l = shuffle_xor(plain_low, with), h = shuffle_xor(plain_high, with);
      plain_low = l > plain_low ? l : plain_low, plain_high = min_of(h, plain_high);
    }
    for (float& x : out) x = 0;
  }

  SEQKERN_INLINE void release(Turnstile& turnstile) {
    if (lane_id() == 0) mbarrier_arrive(&turnstile.free);
  }

  // s = Q K', in the background
  SEQKERN_INLINE void begin_scores() {
    mbarrier_wait(&bars.k[keys % kStages].full, keys / kStages & 1);
    group_fence();
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth / 16; ++k)
      multiply_group<T, kKeys>(s, memory.q().columns(k, group * 64), memory.k(keys).columns(k), k > 0);
    group_commit();
  }
  SEQKERN_INLINE void end_scores() { release(bars.k[keys++ % kStages]); }
  // out += P V, in the background
  SEQKERN_INLINE void begin_values() {
    mbarrier_wait(&bars.v[values % kStages].full, values / kStages & 1);
    group_fence();
    SEQKERN_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      const std::uint32_t(&w)[kKeys / 4] = weights;
      multiply_group<T, kWidth>(out, {w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3]}, memory.v(values).rows(k));
    }
    group_commit();
  }
  SEQKERN_INLINE void end_values() {
    group_wait<0>(out);
    release(bars.v[values++ % kStages]);
  }

  // Products into powers relative to the largest so far; the factors for what was summed before. Largest and sum are
  // found in four chains of a row: no instruction waits for the one before it.
  SEQKERN_INLINE void softmax(int key, float (&factor)[2]) {
    float scale = float(p.scale) * kLogBase<float>, top[2][4] = {}, sum[2][4] = {};
    if (!(plain_low <= key && key + kKeys <= plain_high)) mask(key);
    for_each([&](float x, int half, int, int chain, bool first) {
      top[half][chain] = first ? x : larger(x, top[half][chain]);
    });
    float base[2];
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      auto& t = top[half];
      float most = larger(larger(t[0], t[1]), larger(t[2], t[3])), before = state[half].max;
      for (int with = 1; with < 4; with *= 2) most = larger(most, shuffle_xor(most, with));
      state[half].max = larger(most * scale, before);
      base[half] = state[half].base();
      factor[half] = exp2_flushed(before - base[half]);
    }
    for_each([&](float& x, int half, int, int chain, bool) {
      x = exp2_flushed(x * scale - base[half]);
      sum[half][chain] += x;
    });
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      auto& chain = sum[half];
      state[half].sum = state[half].sum * factor[half] + ((chain[0] + chain[1]) + (chain[2] + chain[3]));
    }
  }
  SEQKERN_INLINE void mask(int key) {
    int from[2] = {low[0] - key - 2 * t, low[1] - key - 2 * t}, to[2] = {high[0] - key - 2 * t, high[1] - key - 2 * t};
    for_each([&](float& x, int half, int j, int, bool) {
      if (j < from[half] || j >= to[half]) x = -infinity<float>();
    });
  }
  // f(score, half, 8 n + i, which of four chains, the first of it) for keys 8 n + 2 t + i of both rows.
  template <class F>
  SEQKERN_INLINE void for_each(F f) {
    SEQKERN_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) SEQKERN_UNROLL
    for (int i = 0; i < 2; ++i) f(s[4 * n + 2 * half + i], half, 8 * n + i, n % 2 * 2 + i, n < 2);
  }
  SEQKERN_INLINE void round_weights() {
    SEQKERN_UNROLL
    for (int i = 0; i < kKeys / 4; ++i) weights[i] = pack<T>(s[2 * i], s[2 * i + 1]);
  }
  SEQKERN_INLINE void rescale(const float (&factor)[2]) {
    if (!ballot(factor[0] != 1 || factor[1] != 1)) return;
    SEQKERN_UNROLL
    for (int i = 0; i < kWidth / 2; ++i) out[i] *= factor[i / 2 % 2];
  }

  SEQKERN_INLINE void run(const Tile& tile) {
    start(tile);
    int begin, end;
    tile.keys_seen(begin, end);
    if (begin == end) return;
    float factor[2];
    mbarrier_wait(&bars.q.full, queries & 1);
    queries++;
    begin_scores();
    group_wait<0>(s);
    end_scores();
    softmax(begin * kKeys, factor);
    round_weights();
    for (int i = begin + 1; i < end; ++i) {
      begin_scores();
      begin_values();
      group_wait<1>(s);
      end_scores();
      softmax(i * kKeys, factor);
      require(state[0].sum + state[1].sum);  // beside P V, not after it
      end_values();
      rescale(factor);
      round_weights();
    }
    release(bars.q);
    begin_values();
    end_values();
  }

  // Returns whether a number came out that is none.
  SEQKERN_INLINE bool finish(const Tile& tile) {
    float nothing = 0;  // or NaN
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      auto& st = state[half];
      for (int with = 1; with < 4; with *= 2) st.sum += shuffle_xor(st.sum, with);
      QueryRow<float> r = tile.row(row_index(tile, half));
      if (r.i < 0) continue;
      float inverse = st.inverse();
      T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, r.b, r.head, r.i) + 2 * t;
      SEQKERN_UNROLL
      for (int n = 0; n < kWidth / 8; ++n) {
        float x = out[4 * n + 2 * half] * inverse, y = out[4 * n + 2 * half + 1] * inverse;
        nothing += 0 * x, nothing += 0 * y;
        if (st.sum == 0) x = y = 0;
        std::uint32_t both = pack<T>(x, y);
        if (8 * n < p.value_dim) copy_word<4>(to + 8 * n, &both);
      }
      if (t == 0) st.keep(p, r);
    }
    return nothing != 0;
  }
};

template <class T, class Plan>
__global__ void __launch_bounds__((1 + kGroups) * kGroupThreads, 1)
    attention_wgmma_kernel(const __grid_constant__ AttentionForward p, Schedule schedule, unsigned char* spoiled) {
#if SEQKERN_HOPPER
  SEQKERN_DYNAMIC_SHARED(shared);
  SEQKERN_SHARED(GroupBarriers, bars, 1);
  if (threadIdx.x == 0) bars[0].init();
  sync_block();
  if (warp_id() < 4) {
    give_registers<56>();
    feed<T, Plan>(p, schedule, bars[0], {shared});
  } else {
    take_registers<224>();
    GroupWalk<T, Plan> walk{p, bars[0], {shared}};
    for (int round = 0, n; (n = schedule.turn(round)) < schedule.count(); ++round) {
      GroupTile<Plan> tile(p, schedule, n);
      walk.run(tile);
      unsigned wrong = ballot(walk.finish(tile));
      int warps = int(ceil_div(tile.all, kMmaRows)) * kMmaWarps;
      int mine = (tile.first() + walk.group * 64) / 16 + walk.warp;
      if (spoiled && lane_id() == 0 && mine < warps) spoiled[index_t(tile.pair) * warps + mine] = wrong != 0;
    }
  }
#endif
}

// Whether the kernel can do what the mma kernel can.
inline bool fits_wgmma(const AttentionForward& p) {
  index_t most = index_t(1) << 30, rows = p.group() * p.query_len;
  return !p.mask && !p.slopes && p.softcap == 0 && p.dropout == 0 && p.scale > 0 && rows > 64 && p.key_len < most &&
         rows < most && p.batch * p.kv_heads * ceil_div(rows, kGroupRows) < most;
}

// False where the device or the build lacks what it takes.
template <class T, class Plan>
bool launch_plan(const AttentionForward& p, unsigned char* spoiled, cudaStream_t stream) {
  auto kernel = attention_wgmma_kernel<T, Plan>;
  Launch l{{}, dim3((1 + kGroups) * kGroupThreads), std::size_t(GroupMemory<T, Plan>::kBytes)};
  Limits most = limits(reinterpret_cast<const void*>(kernel));
  if (!most.has_body || l.shared_bytes + sizeof(GroupBarriers) > std::size_t(most.max_shared)) return false;
  Schedule schedule{int(p.batch * p.kv_heads), int(ceil_div(p.group() * p.query_len, kGroupRows)), 1};
  if (p.causal) schedule.section = int(ceil_div(schedule.pairs, ceil_div(schedule.pairs, kSection)));
  l.blocks = dim3(unsigned(min_of(schedule.pairs * schedule.tiles, multiprocessors())));
  l.stream = stream;
  launch(l, kernel, p, schedule, spoiled);
  return true;
}
// Widths up to 64 leave registers for more keys at a time, where the last tile of them is a small part of all.
template <class T, int kWidth>
bool launch_wgmma(const AttentionForward& p, unsigned char* spoiled, cudaStream_t stream) {
  if constexpr (kWidth == 64)
    if (p.key_len >= 2048) return launch_plan<T, ForwardPlan<64, 192>>(p, spoiled, stream);
  return launch_plan<T, ForwardPlan<kWidth, 128>>(p, spoiled, stream);
}

}  // namespace seqkern::cuda
