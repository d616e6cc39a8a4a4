// What the passes over blocks of query rows share: the running softmax of a block, its results, and how heads are
// dealt out to the threads.
//
// With heads enough for all threads a thread keeps a head to itself and its packed keys stay in its cache; otherwise
// the threads pack and share a few heads at a time. Rows are computed alike either way: results do not depend on the
// number of threads.
#pragma once
#include <algorithm>

#include "attention_pages.h"
#include "attention_score.h"
#include "attention_tile.h"
#include "cpu/thread_pool.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr double kAttentionGrain = 1.0e5;

struct HeadPlan {
  int threads;
  bool alone;    // a thread has its heads to itself
  index_t wave;  // heads that are packed at a time
};

// size: of a packed head, in float32 values.
inline HeadPlan plan_heads(const AttentionForward& p, index_t pairs, index_t tiles, index_t size) {
  double work = double(p.batch * p.heads * p.query_len) * double(p.key_len) * double(p.head_dim + p.value_dim);
  int threads = int(std::min<index_t>(threads_for(work, kAttentionGrain), pairs * tiles));
  bool alone = threads == 1 || pairs % threads == 0 || pairs >= 4 * threads;
  index_t cache = (index_t(1) << 17) / std::max<index_t>(size, 1);
  return {threads, alone, alone ? threads : std::min(pairs, std::max<index_t>(threads, threads * cache))};
}

// pack(head, slot, part, parts, rank): a part of a head's packing; tile(head, slot, block of rows, rank).
template <class Pack, class Tile>
void over_heads(Job& job, const HeadPlan& plan, index_t pairs, index_t tiles, Pack pack, Tile tile) {
  index_t next = 0;
  auto take = [&next] { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); };
  auto own_heads = [&](int rank, int, Barrier&) {
    for (index_t pair; (pair = take()) < pairs;) {
      pack(pair, rank, 0, 1, rank);
      for (index_t t = 0; t < tiles; ++t) tile(pair, rank, t, rank);
    }
  };
  auto shared_heads = [&](int rank, int n, Barrier& barrier) {
    for (index_t first = 0; first < pairs; first += plan.wave) {
      index_t count = std::min(plan.wave, pairs - first);
      for (index_t i = 0; i < count; ++i) pack(first + i, i, rank, n, rank);
      barrier.wait();
      for (index_t item; (item = take()) < (first + count) * tiles;) {
        index_t local = item - first * tiles, slot = local % count;  // late rows first: causal ones are longest
        tile(first + slot, slot, tiles - 1 - local / count, rank);
      }
      barrier.wait();
      if (rank == 0) __atomic_store_n(&next, (first + count) * tiles, __ATOMIC_RELAXED);
      barrier.wait();
    }
  };
  if (plan.alone) job.run(plan.threads, own_heads);
  else job.run(plan.threads, shared_heads);
}

// Blocks of kRows query rows, those of all heads of a group side by side.
template <class T, int kRows>
class AttentionRows {
 protected:
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int L = kLanes<A>;

  // width: columns of the sums of values, value_dim rounded up.
  AttentionRows(const AttentionForward& params, index_t width)
      : p(params),
        score(params),
        G(p.group()),
        D(p.head_dim),
        Dv(width),
        tiles(ceil_div(p.group() * p.query_len, index_t(kRows))) {}

  struct Block {
    index_t b, first;
    int rows;
    QueryRow<A> row[kRows];
    A max[kRows];
    V sums[kRows];  // to be added up

    A sum(int r) const { return sum_lanes(sums[r]); }
  };

  // Block t of a head's rows, none past a sequence's length: those are cleared.
  void open(index_t pair, index_t t, Block& x) const {
    index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads, queries = p.queries(b);
    x.b = b;
    x.first = t * kRows;
    x.rows = int(std::min<index_t>(kRows, G * queries - x.first));
    if (!p.cu_q && queries < p.query_len) clear_rows(b, kv_head, queries, t);
    for (int r = 0; r < x.rows; ++r) x.row[r] = score.row(b, kv_head, x.first + r);
  }

  void start(Block& x, A* out) const {
    std::fill_n(out, x.rows * Dv, A{});
    for (int r = 0; r < x.rows; ++r) {
      x.max[r] = p.sinks ? static_cast<const A*>(p.sinks)[x.row[r].head] * kLogBase<A> : -A(__builtin_huge_val());
      x.sums[r] = V{};
      x.sums[r][0] = p.sinks ? 1 : 0;
    }
  }

  // Scores of keys [begin, end), still to be multiplied by `scale`, into exponentials, with the running maximum and
  // sum; out follows a new maximum. `gated`: what is masked becomes -0. `halves`: where to, rounded to bf16, for whole
  // registers of pairs, ungated and without dropout; null: over the scores.
  void softmax(Block& x, int r, index_t key, index_t begin, index_t end, A* s, A* out, bool gated, A scale = 1,
               [[maybe_unused]] std::uint16_t* halves = nullptr) const {
    constexpr A lowest = -__builtin_huge_val();
    const QueryRow<A>& row = x.row[r];
    bool ready = score.ready(row, begin) && score.ready(row, end - L) && scale > 0;
    V top = splat(lowest);
    for (index_t j = begin; j < end; j += L) {
      V v = load(s + j - key);
      if (!ready) store(s + j - key, v = score(v * scale, row, j));
      top = max(v, top);
    }
    if (!ready) scale = 1;
    A highest = max_lanes(top) * scale, before = x.max[r];
    if (highest > before) {
      V factor = power(splat(before - highest));
      for (index_t d = 0; d < Dv; d += L) store(out + d, load(out + d) * factor);
      x.sums[r] = x.sums[r] * factor;
      x.max[r] = highest;
    }
    V base = splat(x.max[r] == lowest ? A(0) : x.max[r]), sum = x.sums[r];
    if constexpr (kTiles && std::is_same_v<T, bf16>)
      if (halves) {
        auto exponential = [&](index_t j) {
          V e = power_roughly(load(s + j - key) * scale - base);
          sum = sum + e;
          return e;
        };
        for (index_t j = begin; j < end; j += 2 * L) {
          V first = exponential(j), second = exponential(j + L);
          VecU pair = narrow_beside(first, second);
          std::memcpy(halves + j - key, &pair, sizeof pair);
        }
        x.sums[r] = sum;
        return;
      }
    for (index_t j = begin; j < end; j += L) {
      V v = load(s + j - key), e = power(v * scale - base);
      sum = sum + e;
      store(s + j - key, gated && !ready ? (v == lowest ? splat(A(-0.0)) : e) : e);
    }
    x.sums[r] = sum;
    if (p.dropout > 0) {
      A keep[kKeyBlock];
      index_t count = std::min(end, p.key_len) - begin;
      std::fill_n(keep, kKeyBlock, A{});
      if (count > 0) score.drop(row, begin, count, keep);
      for (index_t j = 0; j < end - begin; j += L) {
        A* at = s + begin - key + j;
        store(at, load(at) * load(keep + j));
      }
    }
  }

  T* out_row(index_t b, index_t head, index_t i) const {
    const AttentionStrides& s = p.out_strides;
    return static_cast<T*>(p.out) + b * s.batch + head * s.head + ((p.cu_q ? p.cu_q[b] : 0) + i) * s.row;
  }
  const T* query_row(index_t b, index_t head, index_t i) const {
    const AttentionStrides& s = p.q_strides;
    return static_cast<const T*>(p.q) + b * s.batch + head * s.head + ((p.cu_q ? p.cu_q[b] : 0) + i) * s.row;
  }

  void finish(const Block& x, const A* out) const {
    for (int r = 0; r < x.rows; ++r) {
      A sum = x.sum(r), inverse = sum == 0 ? A(0) : 1 / sum;
      T* to = out_row(x.b, x.row[r].head, x.row[r].i);
      for (index_t d = 0; d < p.value_dim; d += L) {
        int n = int(std::min<index_t>(L, p.value_dim - d));
        store_n(to + d, sum == 0 ? V{} : load(out + r * Dv + d) * inverse, n);
      }
      keep_stats(p, p.row(x.b, x.row[r].head, x.row[r].i), x.max[r], sum);
    }
  }

  // Rows past a sequence's length, shared out over its tiles: 0, and lse -inf.
  void clear_rows(index_t b, index_t kv_head, index_t queries, index_t t) const {
    for (index_t g = 0; g < G; ++g)
      for (index_t i = queries + t; i < p.query_len; i += tiles) {
        QueryRow<A> row{kv_head * G + g, i, 0, 0};
        std::fill_n(out_row(b, row.head, i), p.value_dim, T{});
        keep_stats(p, p.row(b, row.head, i), -A(__builtin_huge_val()), A(0));
        if (p.probs)
          std::fill_n(static_cast<T*>(p.probs) + ((b * p.heads + row.head) * p.query_len + i) * p.key_len, p.key_len,
                      T{});
      }
  }

  const AttentionForward& p;
  Score<T> score;
  index_t G, D, Dv, tiles;
};

}  // namespace seqkern::SEQKERN_ISA
