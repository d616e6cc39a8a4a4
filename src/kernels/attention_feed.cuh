// What the forward kernel for warpgroups (attention_wgmma.cuh) works on: tiles of queries and keys, their places in
// shared memory, and the warpgroup that copies them there.
#pragma once
#include "attention_mma.cuh"

namespace seqkern::cuda {

inline constexpr int kGroups = 2, kGroupRows = 64 * kGroups, kStages = 2, kGroupThreads = 128;
template <int kWidth_, int kKeys_>
struct ForwardPlan {
  static constexpr int kWidth = kWidth_, kKeys = kKeys_;  // keys at a time
};
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
    return operand(data, k / 4 * kPanelBytes + row * 128 + k % 4 * 32);
  }
  // Rows [16 k, 16 k + 16), transposed.
  SEQKERN_INLINE std::uint64_t rows(int k) const { return operand(data, k * 16 * 128, kPanelBytes); }
};

// Which tile of which pair of sequence and head is the n-th. Where tiles differ in length those of a section of pairs
// come with the longest first; it is small enough for blocks to read the same K and V at about the same time.
inline constexpr int kSection = 40;
struct Schedule {
  int pairs, tiles, section;

  SEQKERN_INLINE int count() const { return pairs * tiles; }
  // What this block takes in its n-th turn: every other time the blocks' order is reversed, which evens lengths out.
  SEQKERN_INLINE int turn(int round) const {
    int blocks = int(gridDim.x), block = int(blockIdx.x);
    return round * blocks + (round % 2 && section > 1 ? blocks - 1 - block : block);
  }
  SEQKERN_INLINE void find(int n, int& pair, int& tile) const {
    int start = n / (section * tiles) * section, within = n - start * tiles, many = min_of(section, pairs - start);
    tile = tiles - 1 - within / many;
    pair = start + within % many;
  }
};

// One tile of queries. Numbers have 32 bits and are found anew for every tile.
template <class Plan>
struct GroupTile {
  const AttentionForward& p;
  int pair, tile, length, all, b, kv_head, queries, keys, offset, left, right;  // left, right: kOpen where open
  static constexpr int kOpen = 1 << 30;

  SEQKERN_INLINE GroupTile(const AttentionForward& p_, const Schedule& schedule, int n)
      : p(p_), length(int(p.query_len)), all(int(p.heads) / int(p.kv_heads) * length) {
    schedule.find(n, pair, tile);
    b = pair / int(p.kv_heads), kv_head = pair - b * int(p.kv_heads);
    queries = int(p.queries(b)), keys = int(p.keys(b)), offset = p.bottom_right ? keys - queries : 0;
    left = p.left < 0 || p.left > kOpen ? kOpen : int(p.left);
    right = p.causal ? 0 : p.right < 0 || p.right > kOpen ? kOpen : int(p.right);
  }
  SEQKERN_INLINE int first() const { return tile * kGroupRows; }

  // The keys that row i sees, if low < high.
  SEQKERN_INLINE int low(int i) const { return i + offset - left > 0 ? i + offset - left : 0; }
  SEQKERN_INLINE int high(int i) const { return i + offset + 1 < keys - right ? i + offset + 1 + right : keys; }

  // As Score::row, without what a mask or a bias needs.
  SEQKERN_INLINE QueryRow<float> row(int r) const {
    int head = r / length, i = r - head * length, from = low(i), to = high(i);
    bool there = r < all && i < queries, live = there && from < to;
    return {b,
            kv_head * (int(p.heads) / int(p.kv_heads)) + head,
            there || (r < all && !p.cu_q) ? i : -1,
            live ? from : 0,
            live ? to : 0,
            0,
            0,
            nullptr,
            0};
  }
  // The tiles of keys that rows of this one may see.
  SEQKERN_INLINE void keys_seen(int& begin, int& end) const {
    int from = first() % length, last = all - first() < kGroupRows ? all - 1 : first() + kGroupRows - 1;
    bool one_head = last - first() < length - from;
    int lowest = one_head ? from : 0, highest = one_head ? from + last - first() : length - 1;
    if (highest >= queries) highest = queries - 1;
    bool none = highest < lowest || high(highest) <= low(lowest);
    begin = none ? 0 : low(lowest) / Plan::kKeys, end = none ? 0 : (high(highest) + Plan::kKeys - 1) / Plan::kKeys;
  }
};

// What Panels::fetch walks over: rows of k or v, every `step`-th from `first` on ...
template <class T>
struct KeyCursor {
  const T* at;
  index_t stride;
  int left;

  template <class Tile>
  SEQKERN_INLINE KeyCursor(const void* data, const AttentionStrides& s, const Tile& tile, index_t key)
      : at(row_of(static_cast<const T*>(data), s, tile.p.cu_k, tile.b, tile.kv_head, key)),
        stride(s.row),
        left(tile.keys - int(key)) {}
  SEQKERN_INLINE void start(int first, int step) { at += first * stride, left -= first, stride *= step, by = step; }
  SEQKERN_INLINE void next() { at += stride, left -= by; }
  SEQKERN_INLINE bool there() const { return left > 0; }
  int by = 0;
};
// ... or of q.
template <class T, class Plan>
struct QueryCursor {
  const GroupTile<Plan>& tile;
  const T* at = nullptr;
  int row = 0, by = 0;

  SEQKERN_INLINE void start(int first, int step) { row = tile.first() + first, by = step, find(); }
  SEQKERN_INLINE void next() { row += by, find(); }
  SEQKERN_INLINE void find() {
    const AttentionForward& p = tile.p;
    QueryRow<float> r = tile.row(row);
    at = row_of(static_cast<const T*>(p.q), p.q_strides, p.cu_q, tile.b, r.head, r.i);
    is_there = r.live();
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
template <class T, class Plan>
struct GroupMemory {
  using Keys = Panels<T, Plan::kWidth, Plan::kKeys>;
  using Queries = Panels<T, Plan::kWidth, kGroupRows>;
  static constexpr int kBytes = Queries::kBytes + 2 * kStages * Keys::kBytes;
  unsigned char* data;

  SEQKERN_INLINE Queries q() const { return {data}; }
  SEQKERN_INLINE Keys k(int n) const { return {data + Queries::kBytes + n % kStages * Keys::kBytes}; }
  SEQKERN_INLINE Keys v(int n) const { return {data + Queries::kBytes + (kStages + n % kStages) * Keys::kBytes}; }
};

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

template <class T, class Plan>
SEQKERN_INLINE void feed(const AttentionForward& p, const Schedule& schedule, GroupBarriers& bars,
                         const GroupMemory<T, Plan>& memory) {
  Feed feed;
  int queries = 0, keys = 0, values = 0;  // tiles so far
  for (int round = 0, n; (n = schedule.turn(round)) < schedule.count(); ++round) {
    GroupTile<Plan> tile(p, schedule, n);
    int begin, end;
    tile.keys_seen(begin, end);
    if (begin == end) continue;
    feed.acquire(bars.q, ~queries++ & 1);
    memory.q().fetch(QueryCursor<T, Plan>{tile}, p.head_dim);
    feed.commit(bars.q);
    for (int i = begin; i <= end; ++i) {  // V one tile behind K
      if (i < end) {
        Turnstile& t = bars.k[keys % kStages];
        feed.acquire(t, ~(keys / kStages) & 1);
        memory.k(keys++).fetch(KeyCursor<T>(p.k, p.k_strides, tile, index_t(i) * Plan::kKeys), p.head_dim);
        feed.commit(t);
      }
      if (i == begin) continue;
      Turnstile& t = bars.v[values % kStages];
      feed.acquire(t, ~(values / kStages) & 1);
      memory.v(values++).fetch(KeyCursor<T>(p.v, p.v_strides, tile, index_t(i - 1) * Plan::kKeys), p.value_dim);
      feed.commit(t);
    }
  }
  feed.flush();
}

}  // namespace seqkern::cuda
