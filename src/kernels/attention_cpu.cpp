// Attention forward: a block of query rows at a time against blocks of keys, softmax online.
//
// Per key-value head the keys and values are packed once; a thread then takes blocks of query rows (those of all
// query heads of the group lie side by side), multiplies them with 128 keys at a time into a buffer that stays in the
// cache, turns the products into exponentials in place, and multiplies those with the values. Panels of keys that no
// row of a register tile sees are skipped. Keys and values in pages are brought together a panel at a time, then packed
// as others are. How heads are dealt out: attention_rows.h; on a matrix unit: attention_tiles.h; few rows per head:
// attention_decode.h.
//
// What is masked has probability 0, and 0 times a NaN is NaN: a row that comes out so where something is masked is
// done again with the masked products left out.
#include "attention_decode.h"
#include "attention_rows.h"
#include "attention_tiles.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T>
class ForwardAttention : AttentionRows<T, kQueryBlock> {
  using Base = AttentionRows<T, kQueryBlock>;
  using Base::p, Base::score, Base::G, Base::D, Base::Dv, Base::tiles, Base::L;
  using typename Base::A, typename Base::V, typename Base::Block;
  static constexpr int P = kPanel<A>;

 public:
  explicit ForwardAttention(const AttentionForward& params) : Base(params, round_up(params.value_dim, kPanel<A>)) {}

  // which: the heads to do, `count` of them; null: all.
  void run(Job& job, const index_t* which, index_t count) {
    padded = round_up(p.key_len, P);
    HeadPlan plan = plan_heads(p, count, tiles, padded * (D + Dv));
    packed = job.take<A>(plan.wave * padded * (D + Dv));
    scratch_size = query_size(D) + kQueryBlock * (kKeyBlock + Dv);
    if (p.block_table) scratch_size = std::max(scratch_size, P * std::max(D, p.value_dim));
    scratch = job.take<A>(plan.threads * scratch_size);
    over_heads(
        job, plan, count, tiles,
        [&](index_t i, index_t slot, int part, int parts, int rank) {
          pack(which ? which[i] : i, slot, part, parts, rank);
        },
        [&](index_t i, index_t slot, index_t t, int rank) {
          tile(which ? which[i] : i, slot, t, scratch + rank * scratch_size);
        });
  }

 private:
  A* keys_of(index_t slot) const { return packed + slot * padded * (D + Dv); }
  A* values_of(index_t slot) const { return keys_of(slot) + padded * D; }

  void pack(index_t pair, index_t slot, int part, int parts, int rank) const {
    index_t b = pair / p.kv_heads, head = pair % p.kv_heads, keys = p.keys(b);
    Range own = share(ceil_div(keys, P), part, parts);
    if (p.block_table) return pack_pages(b, head, keys, own, slot, reinterpret_cast<T*>(scratch + rank * scratch_size));
    pack_keys(row_at<T>(p, p.k, p.k_strides, b, head, 0), p.k_strides.row, D, keys, own, keys_of(slot));
    pack_columns(row_at<T>(p, p.v, p.v_strides, b, head, 0), p.v_strides.row, p.value_dim, keys, padded,
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

  struct Tile : Block {
    index_t low[kQueryBlock], high[kQueryBlock];  // keys of every row block, from the start of a panel
  };

  void tile(index_t pair, index_t slot, index_t t, A* space) const {
    Tile x;
    this->open(pair, t, x);
    if (x.rows <= 0) return;
    A *query = space, *s = query + query_size(D), *out = s + kQueryBlock * kKeyBlock;
    RowBlocks blocks(x.rows);
    for (index_t i = 0; i < blocks.count; ++i) {
      index_t low = p.key_len, high = 0;
      for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r)
        low = std::min(low, x.row[r].low), high = std::max(high, x.row[r].high);
      x.low[i] = low / P * P;
      x.high[i] = std::max(high, x.low[i]);
    }
    for (int r = 0; r < x.rows; ++r)
      copy_query(this->query_row(x.b, x.row[r].head, x.row[r].i), D, query + r * kQueryStride);
    walk(x, blocks, query, keys_of(slot), values_of(slot), s, out, false);
    if (score.masked && poisoned(x, out)) walk(x, blocks, query, keys_of(slot), values_of(slot), s, out, true);
    this->finish(x, out);
    if (p.probs) write_probs(x, blocks, query, keys_of(slot), s);
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
          query_product(blocks.height(i), query + blocks.begin(i) * kQueryStride, keys + j * D, D, x.high[i] - j,
                        s + blocks.begin(i) * kKeyBlock + j - key, kKeyBlock);
  }

  void walk(Tile& x, const RowBlocks& blocks, const A* query, const A* keys, const A* values, A* s, A* out,
            bool gated) const {
    index_t low = p.key_len, high = 0;
    for (index_t i = 0; i < blocks.count; ++i) low = std::min(low, x.low[i]), high = std::max(high, x.high[i]);
    this->start(x, out);
    for (index_t key = low / kKeyBlock * kKeyBlock; key < high; key += kKeyBlock) {
      products(x, blocks, key, query, keys, s);
      seen(x, blocks, key, [&](index_t i, index_t begin, index_t end) {
        for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r)
          this->softmax(x, int(r), key, begin, round_up(end, L), s + r * kKeyBlock, out + r * Dv, gated,
                        score.query_scale());
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
          A sum = x.sum(int(r)), inverse = 1 / sum;
          if (sum == 0) continue;
          for (index_t j = begin; j < std::min(end, p.key_len); j += L) {
            V v = score(load(s + r * kKeyBlock + j - key) * score.query_scale(), x.row[r], j);
            store_n(row_at(r) + j, power(v - base) * inverse, int(std::min<index_t>(L, p.key_len - j)));
          }
        }
      });
    }
  }

  index_t padded = 0, scratch_size = 0;
  A *packed = nullptr, *scratch = nullptr;
};

}  // namespace

void attention_forward(const AttentionForward& p) {
  index_t pairs = p.batch * p.kv_heads;
  if (pairs == 0 || p.query_len == 0) return;
  for_type(p.dtype, [&]<class T>() {
    if (decodes(p)) return DecodeAttention<T>(p).run();
    Job job;
    if constexpr (kTiles && !std::is_same_v<T, double>)
      if (Parts parts = score_parts<T>(p)) {
        TileAttention<T> tiles(p, parts);
        const index_t* spoiled = tiles.run(job);
        if (tiles.spoiled()) ForwardAttention<T>(p).run(job, spoiled, tiles.spoiled());
        return;
      }
    ForwardAttention<T>(p).run(job, nullptr, pairs);
  });
}

}  // namespace seqkern::SEQKERN_ISA
