// Attention forward on the tensor cores of compute capability 9.0a: bfloat16 and float16, widths up to 128, masked by
// intervals at most (causal, window, lengths).
//
// A block takes 128 query rows at a time, 64 a warpgroup, against 128 keys. A third warpgroup keeps two tiles of K and
// two of V on their way into shared memory. Q K' of the next tile runs while softmax of the one before it does, and the
// two warpgroups take turns to start products, so that those of one run during the softmax of the other. The
// probabilities stay in registers, where P V wants its left factor, rounded to the storage type.
//
// What spoils a result, and what happens then: attention_mma.cuh.
#pragma once
#include "attention_mma.cuh"

namespace seqkern::cuda {

inline constexpr int kGroups = 2, kGroupRows = 64 * kGroups, kGroupKeys = 128, kStages = 2, kGroupThreads = 128;
inline constexpr bool kTakeTurns = true;

// [kRows, kWidth] of T in panels 64 wide, pieces of 16 bytes as products of a warpgroup want them.
template <class T, int kWidth, int kRows>
struct Panels {
  static constexpr int kPieces = kWidth / 8, kPass = kGroupThreads / kPieces, kPanelBytes = kRows * 128;
  static constexpr int kBytes = kPanelBytes * kWidth / 64;
  unsigned char* data;

  // By one warpgroup: rows as they are in global memory, zeros past `width` and where there is no row.
  template <class Rows>
  SEQKERN_INLINE void fetch(Rows rows, index_t width) const {
    int thread = int(threadIdx.x) % kGroupThreads, c = thread % kPieces, first = thread / kPieces;
    unsigned char* to = data + c / 8 * kPanelBytes + first * 128 + (c % 8 ^ first % 8) * 16;
    rows.start(first, kPass);
    SEQKERN_UNROLL_BY(4)
    for (int r = 0; r < kRows; r += kPass, rows.next()) {
      copy_async<16>(to, rows.at + c * 8, rows.there() && c * 8 < width);
      to += kPass * 128;
    }
  }
  // Columns [16 k, 16 k + 16) of rows from `row` on.
  SEQKERN_INLINE std::uint64_t columns(int k, int row = 0) const {
    return operand(data + k / 4 * kPanelBytes + row * 128 + k % 4 * 32);
  }
  // Rows [16 k, 16 k + 16), transposed.
  SEQKERN_INLINE std::uint64_t rows(int k) const { return operand(data + k * 16 * 128, kPanelBytes); }
};

// Which tile of which pair of sequence and head is the n-th. Where tiles differ in length those of a few pairs, whose
// K and V fit the L2 cache together, come with the longest first.
struct Schedule {
  int pairs, tiles, section;

  SEQKERN_INLINE int count() const { return pairs * tiles; }
  SEQKERN_INLINE void find(int n, int& pair, int& tile) const {
    int start = n / (section * tiles) * section, within = n - start * tiles, many = min_of(section, pairs - start);
    tile = tiles - 1 - within / many;
    pair = start + within % many;
  }
};

// One tile of queries.
struct GroupTile {
  const AttentionForward& p;
  int pair, tile, all;
  index_t b, kv_head;

  SEQKERN_INLINE GroupTile(const AttentionForward& p_, const Schedule& schedule, int n)
      : p(p_), all(int(p.group() * p.query_len)) {
    schedule.find(n, pair, tile);
    b = pair / int(p.kv_heads), kv_head = pair % int(p.kv_heads);
  }
  SEQKERN_INLINE int first() const { return tile * kGroupRows; }

  // The tiles of keys that rows of this one may see.
  SEQKERN_INLINE void keys_seen(int& begin, int& end) const {
    int length = int(p.query_len), last = min_of(first() + kGroupRows, all) - 1;
    bool one_head = first() / length == last / length;
    index_t queries = p.queries(b), keys = p.keys(b), offset = p.bottom_right ? keys - queries : 0;
    index_t lowest = one_head ? first() % length : 0, highest = min_of(one_head ? last % length : length - 1, queries - 1);
    index_t low = p.left >= 0 ? lowest + offset - p.left : 0, high = keys;
    if (p.causal) high = min_of(high, highest + offset + 1);
    if (p.right >= 0) high = min_of(high, highest + offset + p.right + 1);
    if (low < 0) low = 0;
    if (highest < lowest || high <= low) low = high = 0;
    begin = int(low / kGroupKeys), end = int(ceil_div(high, kGroupKeys));
  }
};

// What Panels::fetch walks over: rows of k or v, every `step`-th from `first` on ...
template <class T>
struct KeyCursor {
  const T* at;
  index_t stride;
  int left;

  SEQKERN_INLINE KeyCursor(const void* data, const AttentionStrides& s, const GroupTile& tile, index_t key)
      : at(row_of(static_cast<const T*>(data), s, tile.p.cu_k, tile.b, tile.kv_head, key)),
        stride(s.row),
        left(int(tile.p.keys(tile.b) - key)) {}
  SEQKERN_INLINE void start(int first, int step) { at += first * stride, left -= first, stride *= step, by = step; }
  SEQKERN_INLINE void next() { at += stride, left -= by; }
  SEQKERN_INLINE bool there() const { return left > 0; }
  int by = 0;
};
// ... or of q.
template <class T>
struct QueryCursor {
  const GroupTile& tile;
  const T* at = nullptr;
  int row = 0, by = 0;

  SEQKERN_INLINE void start(int first, int step) { row = tile.first() + first, by = step, find(); }
  SEQKERN_INLINE void next() { row += by, find(); }
  SEQKERN_INLINE void find() {
    const AttentionForward& p = tile.p;
    int length = int(p.query_len), head = row / length, i = row - head * length;
    at = row_of(static_cast<const T*>(p.q), p.q_strides, p.cu_q, tile.b, tile.kv_head * p.group() + head, i);
    is_there = row < tile.all && i < p.queries(tile.b);
  }
  SEQKERN_INLINE bool there() const { return is_there; }
  bool is_there = false;
};

// Shared memory of a block, and who may use it: `full` ends a phase when a tile has come, `free` when it has been used.
struct Turnstile {
  std::uint64_t full, free;

  SEQKERN_INLINE void init() {
    mbarrier_init(&full, kGroupThreads);
    mbarrier_init(&free, kGroups * 4);
  }
};
struct GroupBarriers {
  Turnstile q, k[kStages], v[kStages];

  SEQKERN_INLINE void init() {
    q.init();
    for (int i = 0; i < kStages; ++i) k[i].init(), v[i].init();
  }
};
template <class T, int kWidth>
struct GroupMemory {
  using Keys = Panels<T, kWidth, kGroupKeys>;
  using Queries = Panels<T, kWidth, kGroupRows>;
  static constexpr int kBytes = Queries::kBytes + 2 * kStages * Keys::kBytes;
  unsigned char* data;

  SEQKERN_INLINE Queries q() const { return {data}; }
  SEQKERN_INLINE Keys k(int n) const { return {data + Queries::kBytes + n % kStages * Keys::kBytes}; }
  SEQKERN_INLINE Keys v(int n) const { return {data + Queries::kBytes + (kStages + n % kStages) * Keys::kBytes}; }
};

// ---- the warpgroup that copies ----

// Copies under way. It never waits for memory to become free before it has told of all that has come: whoever would
// free it may be waiting for that.
struct Feed {
  std::uint64_t* told[2] = {};  // of the last two copies

  SEQKERN_INLINE void tell(std::uint64_t*& full) {
    if (full) mbarrier_arrive(full);
    full = nullptr;
  }
  SEQKERN_INLINE void flush() {
    copy_wait<0>();
    fence_products();
    tell(told[0]), tell(told[1]);
  }
  SEQKERN_INLINE void acquire(Turnstile& t, int parity) {
    if (mbarrier_test(&t.free, parity)) return;
    flush();
    mbarrier_wait(&t.free, parity);
  }
  SEQKERN_INLINE void commit(Turnstile& t) {
    copy_commit();
    copy_wait<2>();
    fence_products();
    tell(told[0]);
    told[0] = told[1], told[1] = &t.full;
  }
};

template <class T, int kWidth>
SEQKERN_INLINE void feed(const AttentionForward& p, const Schedule& schedule, GroupBarriers& bars,
                         const GroupMemory<T, kWidth>& memory) {
  Feed feed;
  int queries = 0, keys = 0, values = 0;  // tiles so far
  for (int n = int(blockIdx.x); n < schedule.count(); n += int(gridDim.x)) {
    GroupTile tile(p, schedule, n);
    int begin, end;
    tile.keys_seen(begin, end);
    if (begin == end) continue;
    feed.acquire(bars.q, ~queries++ & 1);
    memory.q().fetch(QueryCursor<T>{tile}, p.head_dim);
    feed.commit(bars.q);
    for (int i = begin; i <= end; ++i) {  // V one tile behind K
      if (i < end) {
        Turnstile& t = bars.k[keys % kStages];
        feed.acquire(t, ~(keys / kStages) & 1);
        memory.k(keys++).fetch(KeyCursor<T>(p.k, p.k_strides, tile, index_t(i) * kGroupKeys), p.head_dim);
        feed.commit(t);
      }
      if (i == begin) continue;
      Turnstile& t = bars.v[values % kStages];
      feed.acquire(t, ~(values / kStages) & 1);
      memory.v(values++).fetch(KeyCursor<T>(p.v, p.v_strides, tile, index_t(i - 1) * kGroupKeys), p.value_dim);
      feed.commit(t);
    }
  }
  feed.flush();
}

// ---- the warpgroups that compute ----

template <class T, int kWidth>
struct GroupWalk {
  const AttentionForward& p;
  const Score<T>& score;
  GroupBarriers& bars;
  GroupMemory<T, kWidth> memory;
  int group = warp_id() / 4 - 1, warp = warp_id() % 4, t = lane_id() % 4;
  int queries = 0, keys = 0, values = 0;  // tiles so far
  int low[2] = {}, high[2] = {}, plain_low = 0, plain_high = 0;
  Softmax<float> state[2] = {};
  float s[kGroupKeys / 2] = {}, out[kWidth / 2] = {};
  std::uint32_t weights[kGroupKeys / 4] = {};

  SEQKERN_INLINE int row_index(const GroupTile& tile, int half) const {
    return tile.first() + group * 64 + warp * 16 + lane_id() / 4 + half * 8;
  }
  SEQKERN_INLINE QueryRow<float> row(const GroupTile& tile, int half) const {
    int r = row_index(tile, half);
    if (r < tile.all) return score.row(tile.b, tile.kv_head * p.group(), r);
    return {tile.b, 0, -1, 0, 0, 0, 0, nullptr, 0.0f};
  }

  SEQKERN_INLINE void start(const GroupTile& tile) {
    constexpr int kMost = 0x7fffffff;
    plain_low = 0, plain_high = kMost;
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      QueryRow<float> r = row(tile, half);
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
      multiply_group<T, kGroupKeys>(s, memory.q().columns(k, group * 64), memory.k(keys).columns(k), k > 0);
    group_commit();
  }
  SEQKERN_INLINE void end_scores() { release(bars.k[keys++ % kStages]); }
  // out += P V, in the background
  SEQKERN_INLINE void begin_values() {
    mbarrier_wait(&bars.v[values % kStages].full, values / kStages & 1);
    group_fence();
    SEQKERN_UNROLL
    for (int k = 0; k < kGroupKeys / 16; ++k) {
      const std::uint32_t(&w)[kGroupKeys / 4] = weights;
      multiply_group<T, kWidth>(out, {w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3]}, memory.v(values).rows(k));
    }
    group_commit();
  }
  SEQKERN_INLINE void end_values() {
    group_wait<0>(out);
    release(bars.v[values++ % kStages]);
  }

  // Products into powers relative to the largest so far; the factors for what was summed before.
  SEQKERN_INLINE void softmax(int key, float (&factor)[2]) {
    float scale = float(p.scale) * kLogBase<float>;
    bool plain = plain_low <= key && key + kGroupKeys <= plain_high;
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (!plain) {
        int from = low[half] - key - 2 * t, to = high[half] - key - 2 * t;
        for_row(half, [&](float& x, int j) { x = j >= from && j < to ? x : -infinity<float>(); });
      }
      float top = -infinity<float>(), sum = 0;
      for_row(half, [&](float x, int) { top = larger(x, top); });
      for (int with = 1; with < 4; with *= 2) top = larger(top, shuffle_xor(top, with));
      factor[half] = state[half].raise(top * scale);
      float base = state[half].base();
      for_row(half, [&](float& x, int) {
        x = exp2_flushed(x * scale - base);
        sum += x;
      });
      state[half].sum += sum;
    }
  }
  // f(score, 8 n + i) for this lane's scores of a row, those of keys 8 n + 2 t + i.
  template <class F>
  SEQKERN_INLINE void for_row(int half, F f) {
    SEQKERN_UNROLL
    for (int n = 0; n < kGroupKeys / 8; ++n) SEQKERN_UNROLL
    for (int i = 0; i < 2; ++i) f(s[4 * n + 2 * half + i], 8 * n + i);
  }
  SEQKERN_INLINE void round_weights() {
    SEQKERN_UNROLL
    for (int i = 0; i < kGroupKeys / 4; ++i) weights[i] = pack<T>(s[2 * i], s[2 * i + 1]);
  }
  SEQKERN_INLINE void rescale(const float (&factor)[2]) {
    if (!ballot(factor[0] != 1 || factor[1] != 1)) return;
    SEQKERN_UNROLL
    for (int i = 0; i < kWidth / 2; ++i) out[i] *= factor[i / 2 % 2];
  }

  // The warpgroups start their products in turn.
  SEQKERN_INLINE void my_turn() const {
    if (kTakeTurns) sync_at(1 + group, kGroups * kGroupThreads);
  }
  SEQKERN_INLINE void your_turn() const {
    if (kTakeTurns) arrive_at(2 - group, kGroups * kGroupThreads);
  }

  SEQKERN_INLINE void run(const GroupTile& tile) {
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
    softmax(begin * kGroupKeys, factor);
    round_weights();
    if (group == 1 && begin + 1 < end) your_turn();
    for (int i = begin + 1; i < end; ++i) {
      my_turn();
      begin_scores();
      begin_values();
      if (group == 0 || i + 1 < end) your_turn();
      group_wait<1>(s);
      end_scores();
      softmax(i * kGroupKeys, factor);
      end_values();
      rescale(factor);
      round_weights();
    }
    release(bars.q);
    begin_values();
    end_values();
  }

  // Returns whether a number came out that is none.
  SEQKERN_INLINE bool finish(const GroupTile& tile) {
    bool wrong = false;
    SEQKERN_UNROLL
    for (int half = 0; half < 2; ++half) {
      auto& st = state[half];
      for (int with = 1; with < 4; with *= 2) st.sum += shuffle_xor(st.sum, with);
      QueryRow<float> r = row(tile, half);
      if (r.i < 0) continue;
      float inverse = st.inverse();
      T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, r.b, r.head, r.i) + 2 * t;
      SEQKERN_UNROLL
      for (int n = 0; n < kWidth / 8; ++n) {
        float x = out[4 * n + 2 * half] * inverse, y = out[4 * n + 2 * half + 1] * inverse;
        wrong = wrong || x - x != 0 || y - y != 0;
        if (st.sum == 0) x = y = 0;
        std::uint32_t both = pack<T>(x, y);
        if (8 * n < p.value_dim) copy_word<4>(to + 8 * n, &both);
      }
      if (t == 0) st.keep(p, r);
    }
    return wrong;
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__((1 + kGroups) * kGroupThreads, 1)
    attention_wgmma_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                           Schedule schedule, unsigned char* spoiled) {
#if SEQKERN_HOPPER
  SEQKERN_DYNAMIC_SHARED(shared);
  SEQKERN_SHARED(GroupBarriers, bars, 1);
  if (threadIdx.x == 0) bars[0].init();
  sync_block();
  if (warp_id() < 4) {
    give_registers<40>();
    feed<T, kWidth>(p, schedule, bars[0], {shared});
  } else {
    take_registers<232>();
    GroupWalk<T, kWidth> walk{p, score, bars[0], {shared}};
    for (int n = int(blockIdx.x); n < schedule.count(); n += int(gridDim.x)) {
      GroupTile tile(p, schedule, n);
      walk.run(tile);
      unsigned wrong = ballot(walk.finish(tile));
      int warps = int(ceil_div(tile.all, kMmaRows)) * kMmaWarps, mine = (tile.first() + walk.group * 64) / 16 + walk.warp;
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
template <class T, int kWidth>
bool launch_wgmma(const AttentionForward& p, const Score<T>& score, unsigned char* spoiled, cudaStream_t stream) {
  auto kernel = attention_wgmma_kernel<T, kWidth>;
  Launch l{{}, dim3((1 + kGroups) * kGroupThreads), std::size_t(GroupMemory<T, kWidth>::kBytes)};
  Limits most = limits(reinterpret_cast<const void*>(kernel));
  if (!most.has_body || l.shared_bytes + sizeof(GroupBarriers) > std::size_t(most.max_shared)) return false;
  index_t bytes = p.key_len * (p.head_dim + p.value_dim) * 2, fit = (index_t(16) << 20) / (bytes + 1) + 1;
  Schedule schedule{int(p.batch * p.kv_heads), int(ceil_div(p.group() * p.query_len, kGroupRows)), 1};
  if (p.causal) schedule.section = int(min_of(fit, schedule.pairs));
  l.blocks = dim3(unsigned(min_of(schedule.pairs * schedule.tiles, multiprocessors())));
  l.stream = stream;
  launch(l, kernel, p, score, schedule, spoiled);
  return true;
}

}  // namespace seqkern::cuda
