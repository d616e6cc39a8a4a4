// Attention forward: a block of query rows at a time against blocks of keys, softmax online.
//
// Per key-value head the keys and values are packed once; a thread then takes blocks of query rows (those of all
// query heads of the group lie side by side), multiplies them with 128 keys at a time into a buffer that stays in the
// cache, turns the products into exponentials in place, and multiplies those with the values. Panels of keys that no
// row of a register tile sees are skipped. With heads enough for all threads a thread keeps a head to itself and its
// packed keys stay in its cache; otherwise the threads pack and share a few heads at a time. Rows are computed
// alike either way: results do not depend on the number of threads. Keys and values in pages are brought together a
// panel at a time, then packed as others are. Few rows per head: attention_decode.h.
//
// What is masked has probability 0, and 0 times a NaN is NaN: a row that comes out so where something is masked is
// done again with the masked products left out.
#include <algorithm>

#include "attention_decode.h"
#include "attention_tile.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T>
class ForwardAttention {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int L = kLanes<A>, P = kPanel<A>;

 public:
  explicit ForwardAttention(const AttentionForward& params)
      : p(params), score(params), G(p.group()), D(p.head_dim), Dv(round_up(p.value_dim, P)) {}

  void run() {
    index_t pairs = p.batch * p.kv_heads;
    if (pairs == 0 || p.query_len == 0) return;
    Job job;
    double work = double(p.batch * p.heads * p.query_len) * double(p.key_len) * double(D + p.value_dim);
    int threads = threads_for(work, kAttentionGrain);
    padded = round_up(p.key_len, P);
    tiles = ceil_div(G * p.query_len, kQueryBlock);
    threads = int(std::min<index_t>(threads, pairs * tiles));
    bool alone = threads == 1 || pairs % threads == 0 || pairs >= 4 * threads;
    index_t size = padded * (D + Dv), cache = (index_t(1) << 17) / std::max<index_t>(size, 1);
    wave = alone ? threads : std::min(pairs, std::max<index_t>(threads, threads * cache));
    packed = job.take<A>(wave * size);
    scratch_size = kQueryBlock * (D + kKeyBlock + Dv);
    if (p.block_table) scratch_size = std::max(scratch_size, P * std::max(D, p.value_dim));
    scratch = job.take<A>(threads * scratch_size);
    next = 0;
    auto own_heads = [&](int rank, int, Barrier&) {
      for (index_t pair; (pair = take()) < pairs;) {
        pack(pair, rank, 0, 1, rank);
        for (index_t t = 0; t < tiles; ++t) tile(pair, rank, t, scratch + rank * scratch_size);
      }
    };
    auto shared_heads = [&](int rank, int n, Barrier& barrier) {
      for (index_t first = 0; first < pairs; first += wave) {
        index_t count = std::min(wave, pairs - first);
        for (index_t i = 0; i < count; ++i) pack(first + i, i, rank, n, rank);
        barrier.wait();
        for (index_t item; (item = take()) < (first + count) * tiles;) {
          index_t local = item - first * tiles, slot = local % count;  // late rows first: causal ones are longest
          tile(first + slot, slot, tiles - 1 - local / count, scratch + rank * scratch_size);
        }
        barrier.wait();
        if (rank == 0) __atomic_store_n(&next, (first + count) * tiles, __ATOMIC_RELAXED);
        barrier.wait();
      }
    };
    if (alone) job.run(threads, own_heads);
    else job.run(threads, shared_heads);
  }

 private:
  index_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }

  const T* rows_of(const void* base, const AttentionStrides& s, const index_t* cu, index_t b, index_t head) const {
    return static_cast<const T*>(base) + b * s.batch + head * s.head + (cu ? cu[b] * s.row : 0);
  }
  A* keys_of(index_t slot) const { return packed + slot * padded * (D + Dv); }
  A* values_of(index_t slot) const { return keys_of(slot) + padded * D; }

  void pack(index_t pair, index_t slot, int part, int parts, int rank) const {
    index_t b = pair / p.kv_heads, head = pair % p.kv_heads, keys = p.keys(b);
    Range own = share(ceil_div(keys, P), part, parts);
    if (p.block_table) return pack_pages(b, head, keys, own, slot, reinterpret_cast<T*>(scratch + rank * scratch_size));
    pack_keys(rows_of(p.k, p.k_strides, p.cu_k, b, head), p.k_strides.row, D, keys, own, keys_of(slot));
    pack_columns(rows_of(p.v, p.v_strides, p.cu_k, b, head), p.v_strides.row, p.value_dim, keys, padded,
                 {own.begin * P, own.end * P}, values_of(slot));
  }

  void pack_pages(index_t b, index_t head, index_t keys, Range panels, index_t slot, T* rows) const {
    auto gather = [&](const void* base, const AttentionStrides& strides, index_t width, index_t first, index_t count) {
      for (index_t i = 0; i < count; ++i)
        std::memcpy(rows + i * width, row_at<T>(p, base, strides, b, head, first + i), std::size_t(width) * sizeof(T));
    };
    for (index_t j = panels.begin; j < panels.end; ++j) {
      index_t count = std::min<index_t>(P, keys - j * P);
      gather(p.k, p.k_strides, D, j * P, count);
      pack_keys(rows, D, D, count, {0, 1}, keys_of(slot) + j * P * D);
      gather(p.v, p.v_strides, p.value_dim, j * P, count);
      pack_columns(rows, p.value_dim, p.value_dim, count, padded, {0, P}, values_of(slot) + j * P * P);
    }
  }

  struct Tile {
    index_t b, first;
    int rows;
    QueryRow<A> row[kQueryBlock];
    A max[kQueryBlock], sum[kQueryBlock];
    index_t low[kQueryBlock], high[kQueryBlock];  // keys of every row block, in whole panels
  };

  void tile(index_t pair, index_t slot, index_t t, A* space) const {
    index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads, queries = p.queries(b);
    Tile x;
    x.b = b;
    x.first = t * kQueryBlock;
    x.rows = int(std::min<index_t>(kQueryBlock, G * queries - x.first));
    if (!p.cu_q && queries < p.query_len) clear_rows(b, kv_head, queries, t);
    if (x.rows <= 0) return;
    A *query = space, *s = query + kQueryBlock * D, *out = s + kQueryBlock * kKeyBlock;
    RowBlocks blocks(x.rows);
    for (int r = 0; r < x.rows; ++r) x.row[r] = score.row(b, kv_head, x.first + r);
    for (index_t i = 0; i < blocks.count; ++i) {
      index_t low = p.key_len, high = 0;
      for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r)
        low = std::min(low, x.row[r].low), high = std::max(high, x.row[r].high);
      x.low[i] = low / P * P;
      x.high[i] = std::max(round_up(high, P), x.low[i]);
      pack_queries(x, blocks, i, query);
    }
    walk(x, blocks, query, keys_of(slot), values_of(slot), s, out, false);
    if (score.masked && poisoned(x, out)) walk(x, blocks, query, keys_of(slot), values_of(slot), s, out, true);
    finish(x, out);
    if (p.probs) write_probs(x, blocks, query, keys_of(slot), s);
  }

  void pack_queries(const Tile& x, const RowBlocks& blocks, index_t i, A* query) const {
    int mr = blocks.height(i);
    A *to = query + blocks.begin(i) * D, scale = score.query_scale();
    // Rows of one head are a constant stride apart; a block may span two heads.
    for (int m = 0; m < mr;) {
      const QueryRow<A>& row = x.row[blocks.begin(i) + m];
      int count = int(std::min<index_t>(mr - m, p.queries(x.b) - row.i));
      const T* from = rows_of(p.q, p.q_strides, p.cu_q, x.b, row.head) + row.i * p.q_strides.row;
      if (count == mr) pack_rows(from, p.q_strides.row, mr, D, to);
      else
        for (int n = 0; n < count; ++n)
          for (index_t d = 0; d < D; ++d) to[d * mr + m + n] = from_storage(from[n * p.q_strides.row + d]);
      m += count;
    }
    for (index_t e = 0; e < mr * D; e += L) {
      int n = int(std::min<index_t>(L, mr * D - e));
      store_n(to + e, load_n(to + e, n) * scale, n);
    }
  }

  // f(row block, first key, end) for what every row block sees of keys [key, key + kKeyBlock).
  template <class F>
  static SEQKERN_INLINE void seen(const Tile& x, const RowBlocks& blocks, index_t key, F f) {
    for (index_t i = 0; i < blocks.count; ++i) {
      index_t begin = std::max(x.low[i], key), end = std::min(x.high[i], key + kKeyBlock);
      if (begin < end) f(i, begin, end);
    }
  }

  void products(const Tile& x, const RowBlocks& blocks, index_t key, const A* query, const A* keys, A* s) const {
    for (index_t j = key; j < std::min(key + kKeyBlock, padded); j += P)
      for (index_t i = 0; i < blocks.count; ++i)
        if (j >= x.low[i] && j < x.high[i])
          panel_product<A>(blocks.height(i), query + blocks.begin(i) * D, keys + j * D, D,
                           s + blocks.begin(i) * kKeyBlock + j - key, kKeyBlock, false);
  }

  void walk(Tile& x, const RowBlocks& blocks, const A* query, const A* keys, const A* values, A* s, A* out,
            bool gated) const {
    index_t low = p.key_len, high = 0;
    for (index_t i = 0; i < blocks.count; ++i) low = std::min(low, x.low[i]), high = std::max(high, x.high[i]);
    std::fill_n(out, x.rows * Dv, A{});
    for (int r = 0; r < x.rows; ++r) {
      x.max[r] = p.sinks ? static_cast<const A*>(p.sinks)[x.row[r].head] * kLogBase<A> : -A(__builtin_huge_val());
      x.sum[r] = p.sinks ? 1 : 0;
    }
    for (index_t key = low / kKeyBlock * kKeyBlock; key < high; key += kKeyBlock) {
      products(x, blocks, key, query, keys, s);
      seen(x, blocks, key, [&](index_t i, index_t begin, index_t end) {
        for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r)
          softmax(x, int(r), key, begin, end, s + r * kKeyBlock, out + r * Dv, gated);
      });
      for (index_t v = 0; v < Dv; v += P)
        seen(x, blocks, key, [&](index_t i, index_t begin, index_t end) {
          const A* probs = s + blocks.begin(i) * kKeyBlock + begin - key;
          A* to = out + blocks.begin(i) * Dv + v;
          if (gated) gated_product(blocks.height(i), probs, values + v * padded + begin * P, end - begin, to);
          else rows_product(blocks.height(i), probs, values + v * padded + begin * P, end - begin, to, Dv);
        });
    }
  }

  // Scores of keys [begin, end) into exponentials, with the running maximum and sum; out follows a new maximum.
  void softmax(Tile& x, int r, index_t key, index_t begin, index_t end, A* s, A* out, bool gated) const {
    constexpr A lowest = -__builtin_huge_val();
    const QueryRow<A>& row = x.row[r];
    bool ready = score.ready(row, begin) && score.ready(row, end - L);
    V top = splat(lowest);
    for (index_t j = begin; j < end; j += L) {
      V v = load(s + j - key);
      if (!ready) store(s + j - key, v = score(v, row, j));
      top = max(v, top);
    }
    A highest = max_lanes(top), before = x.max[r];
    if (highest > before) {
      V factor = power(splat(before - highest));
      for (index_t d = 0; d < Dv; d += L) store(out + d, load(out + d) * factor);
      x.sum[r] *= factor[0];
      x.max[r] = highest;
    }
    V base = splat(x.max[r] == lowest ? A(0) : x.max[r]), sum{};
    for (index_t j = begin; j < end; j += L) {
      V v = load(s + j - key), e = power(v - base);
      sum = sum + e;
      store(s + j - key, gated && !ready ? (v == lowest ? splat(A(-0.0)) : e) : e);
    }
    x.sum[r] += sum_lanes(sum);
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

  // The product with masked probabilities (-0) left out.
  void gated_product(int rows, const A* probs, const A* values, index_t keys, A* out) const {
    for (int m = 0; m < rows; ++m)
      for (index_t k = 0; k < keys; ++k) {
        A e = probs[m * kKeyBlock + k];
        if (__builtin_signbit(e)) continue;
        for (int v = 0; v < P; v += L) store(out + m * Dv + v, load(out + m * Dv + v) + load(values + k * P + v) * e);
      }
  }

  bool poisoned(const Tile& x, const A* out) const {
    V wrong{};
    for (index_t d = 0; d < x.rows * Dv; d += L) wrong = wrong + (load(out + d) - load(out + d));
    return !(sum_lanes(wrong) == 0);
  }

  T* out_row(index_t b, index_t head, index_t i) const {
    return const_cast<T*>(rows_of(p.out, p.out_strides, p.cu_q, b, head)) + i * p.out_strides.row;
  }

  void finish(const Tile& x, const A* out) const {
    for (int r = 0; r < x.rows; ++r) {
      bool nothing = x.sum[r] == 0;
      A inverse = nothing ? A(0) : 1 / x.sum[r];
      T* to = out_row(x.b, x.row[r].head, x.row[r].i);
      for (index_t d = 0; d < p.value_dim; d += L) {
        int n = int(std::min<index_t>(L, p.value_dim - d));
        store_n(to + d, nothing ? V{} : load(out + r * Dv + d) * inverse, n);
      }
      keep_stats(p, p.row(x.b, x.row[r].head, x.row[r].i), x.max[r], x.sum[r]);
    }
  }

  void write_probs(const Tile& x, const RowBlocks& blocks, const A* query, const A* keys, A* s) const {
    auto row_at = [&](index_t r) {
      const QueryRow<A>& row = x.row[r];
      return static_cast<T*>(p.probs) + ((x.b * p.heads + row.head) * p.query_len + row.i) * p.key_len;
    };
    for (int r = 0; r < x.rows; ++r) std::fill_n(row_at(r), p.key_len, T{});
    for (index_t key = 0; key < padded; key += kKeyBlock) {
      products(x, blocks, key, query, keys, s);
      seen(x, blocks, key, [&](index_t i, index_t begin, index_t end) {
        for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r) {
          V base = splat(x.max[r]);
          A inverse = 1 / x.sum[r];
          if (x.sum[r] == 0) continue;
          for (index_t j = begin; j < std::min(end, p.key_len); j += L) {
            V v = score(load(s + r * kKeyBlock + j - key), x.row[r], j);
            store_n(row_at(r) + j, power(v - base) * inverse, int(std::min<index_t>(L, p.key_len - j)));
          }
        }
      });
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
  index_t G, D, Dv, padded = 0, tiles = 0, wave = 0, next = 0, scratch_size = 0;
  A *packed = nullptr, *scratch = nullptr;
};

}  // namespace

void attention_forward(const AttentionForward& p) {
  for_type(p.dtype, [&]<class T>() {
    if (decodes(p)) DecodeAttention<T>(p).run();
    else ForwardAttention<T>(p).run();
  });
}

}  // namespace seqkern::SEQKERN_ISA
