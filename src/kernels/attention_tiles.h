// Attention forward on the matrix unit: bf16 products for q k' and P v with fp32 sums, softmax in fp32 between them.
//
// Per key-value head the keys are packed as the right factor of q k', in panels of 32 keys, and the values as that of
// P v, in panels of 32 columns and blocks of 128 keys. A block of 64 query rows is two panels of left factor; its
// scores of 128 keys stay in the cache, become exponentials there and are packed in parts as they are multiplied.
//
// Parts by mode, as tile_product.h has them: what is bf16 is one part, and so are the probabilities beside bf16 values,
// as on any tensor core: they are rounded to 2^-9 where the output is to 2^-8. Heads whose query, keys or values hold a
// value the unit gets wrong, 2^40 and above, infinite or NaN, are done again by FMA as a whole.
#pragma once
#include "attention_rows.h"
#include "tile_product.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr index_t kRowsEach = 8;  // a head's keys are packed for its rows alone

// Parts of the two factors of q k'; none where this is not for the matrix unit.
template <class T>
Parts score_parts(const AttentionForward& p) {
  if (p.probs || p.block_table || p.value_dim < kTileRows || p.key_len < 2 * kTilePanel) return {};
  return parts_for<T, T>(p.precision, p.group() * p.query_len, p.head_dim, kRowsEach);
}

// Those of P v. Sums run over 128 keys at a time: what counts is how many there are in all.
template <class T>
Parts value_parts(const AttentionForward& p) {
  if constexpr (kOnePart<T>) return {1, 1};
  Parts parts = parts_for<T, T>(p.precision, index_t(1) << 20, p.key_len, kRowsEach);
  return parts;
}

template <class T>
class TileAttention : AttentionRows<T, 2 * kTilePanel> {
  using Base = AttentionRows<T, 2 * kTilePanel>;
  using Base::p, Base::score, Base::G, Base::D, Base::Dv, Base::tiles, Base::L;
  using typename Base::A, typename Base::V, typename Base::Block;
  static constexpr index_t kPanels = kKeyBlock / kTilePanel;  // of keys in a block

 public:
  TileAttention(const AttentionForward& params, Parts parts)
      : Base(params, round_up(params.value_dim, kTilePanel)), of_score(parts), of_value(value_parts<T>(params)) {}

  // The heads that are left to do by FMA, spoiled() of them.
  const index_t* run(Job& job) {
    index_t pairs = p.batch * p.kv_heads, blocks = ceil_div(p.key_len, index_t(kKeyBlock));
    key_size = panel_values(D, of_score.b);
    value_size = panel_values(kKeyBlock, of_value.b);
    head_size = blocks * (kPanels * key_size + Dv / kTilePanel * value_size);
    values_at = blocks * kPanels * key_size;
    HeadPlan plan = plan_heads(p, pairs, tiles, head_size / 2);
    packed = job.take<Half>(plan.wave * head_size);
    query_size = 2 * panel_values(D, of_score.a);
    halves = job.take<Half>(plan.threads * (query_size + panel_values(kKeyBlock, of_value.a)));
    scratch_size = 2 * kTilePanel * (kKeyBlock + Dv) + kTilePanel * D;
    scratch = job.take<float>(plan.threads * scratch_size);
    bad = job.take<std::uint8_t>(pairs);
    auto list = job.take<index_t>(pairs);
    std::fill_n(bad, pairs, std::uint8_t(0));
    over_heads(
        job, plan, pairs, tiles,
        [&](index_t pair, index_t slot, int part, int parts, int) { pack(pair, slot, part, parts); },
        [&](index_t pair, index_t slot, index_t t, int rank) { tile(pair, slot, t, rank); });
    for (index_t pair = 0; pair < pairs; ++pair)
      if (bad[pair]) list[count_++] = pair;
    return list;
  }
  index_t spoiled() const { return count_; }

 private:
  void spoil(index_t pair) const { __atomic_store_n(bad + pair, std::uint8_t(1), __ATOMIC_RELAXED); }
  Half* key_panel(index_t slot, index_t i) const { return packed + slot * head_size + i * key_size; }
  Half* value_panel(index_t slot, index_t block, index_t i) const {
    return packed + slot * head_size + values_at + (block * (Dv / kTilePanel) + i) * value_size;
  }

  void pack(index_t pair, index_t slot, int part, int parts) const {
    index_t b = pair / p.kv_heads, head = pair % p.kv_heads, keys = p.keys(b);
    Range own = share(ceil_div(keys, index_t(kKeyBlock)), part, parts);
    bool wide = false;
    for (index_t block = own.begin; block < own.end; ++block) {
      index_t first = block * kKeyBlock, count = std::min<index_t>(kKeyBlock, keys - first);
      for (index_t j = 0; j < count; j += kTilePanel) {
        Half* to = key_panel(slot, (first + j) / kTilePanel);
        pack_tiles<false, true>(row_at<T>(p, p.k, p.k_strides, b, head, first + j), p.k_strides.row, 1,
                                std::min(kTilePanel, count - j), D, of_score.b, to);
        wide = wide || wide_columns(to, D, of_score.b);
      }
      const T* values = row_at<T>(p, p.v, p.v_strides, b, head, first);
      for (index_t v = 0; v < Dv; v += kTilePanel) {
        Half* to = value_panel(slot, block, v / kTilePanel);
        pack_tiles<false, false>(values + v, 1, p.v_strides.row, std::min(kTilePanel, p.value_dim - v), count,
                                 of_value.b, to);
        wide = wide || wide_columns(to, count, of_value.b);
      }
    }
    if (wide) spoil(pair);
  }

  // A panel of up to 32 rows of the block, their scale folded in where it does not cost a bf16 value its exactness.
  void pack_queries(const Block& x, int first, int rows, float* scaled, Half* to) const {
    for (int r = 0; r < rows; ++r) {
      const QueryRow<A>& row = x.row[first + r];
      const T* from = this->query_row(x.b, row.head, row.i);
      for (index_t d = 0; d < D; d += L) {
        int n = int(std::min<index_t>(L, D - d));
        V q = load_n(from + d, n);
        store_n(scaled + r * D + d, kOnePart<T> ? q : q * score.query_scale(), n);
      }
    }
    pack_tiles<true, true>(scaled, D, 1, rows, D, of_score.a, to);
  }

  void tile(index_t pair, index_t slot, index_t t, int rank) const {
    Block x;
    this->open(pair, t, x);
    if (x.rows <= 0 || __atomic_load_n(bad + pair, __ATOMIC_RELAXED)) return;
    float *s = scratch + rank * scratch_size, *out = s + 2 * kTilePanel * kKeyBlock, *space = out + 2 * kTilePanel * Dv;
    Half *query = halves + rank * (query_size + panel_values(kKeyBlock, of_value.a)), *probs = query + query_size;
    for (int i = 0; i < x.rows; i += kTilePanel) {
      Half* panel = query + (i ? query_size / 2 : 0);
      int rows = std::min<int>(kTilePanel, x.rows - i);
      pack_queries(x, i, rows, space, panel);
      if (wide_rows(panel, D, of_score.a)) return spoil(pair);
    }
    TileScope scope(true);
    this->start(x, out);
    for (int i = 0; i < x.rows; i += kTilePanel)
      rows_of_panel(x, slot, i, std::min<int>(kTilePanel, x.rows - i), query + (i ? query_size / 2 : 0), probs,
                    s + i * kKeyBlock, out + i * Dv);
    this->finish(x, out);
  }

  void rows_of_panel(Block& x, index_t slot, int first, int rows, const Half* query, Half* probs, float* s,
                     float* out) const {
    float scale = kOnePart<T> ? float(score.query_scale()) : 1.0f;
    bool as_they_lie = !kTileRegisters && kOnePart<T> && p.dropout == 0;  // probabilities that need no packing
    index_t low = p.key_len, high = 0;
    for (int r = first; r < first + rows; ++r) low = std::min(low, x.row[r].low), high = std::max(high, x.row[r].high);
    low = low / kTilePanel * kTilePanel, high = round_up(high, kTilePanel);
    for (index_t key = low / kKeyBlock * kKeyBlock; key < high; key += kKeyBlock) {
      index_t begin = std::max(low, key), end = std::min<index_t>(high, key + kKeyBlock);
      if (begin >= end) continue;
      for (index_t j = begin; j < end; j += kTilePanel)
        tile_product(of_score, query, key_panel(slot, j / kTilePanel), D, rows, s + j - key, kKeyBlock);
      for (int r = 0; r < rows; ++r)
        this->softmax(x, first + r, key, begin, end, s + r * kKeyBlock, out + r * Dv, false, scale,
                      as_they_lie ? probs + r * kKeyBlock : nullptr);
      if (!as_they_lie) pack_tiles<true, true>(s + begin - key, kKeyBlock, 1, rows, end - begin, of_value.a, probs);
      index_t skipped = panel_values(begin - key, of_value.b);
      for (index_t v = 0; v < Dv; v += kTilePanel) {
        const Half* values = value_panel(slot, key / kKeyBlock, v / kTilePanel) + skipped;
        if (as_they_lie)
          pair_product<int(kTilePanel)>(RowsLeft{probs + begin - key, kKeyBlock}, values, tile_chunks(end - begin),
                                        rows, out + v, Dv, true);
        else tile_product(of_value, probs, values, end - begin, rows, out + v, Dv, true);
      }
    }
  }

  Parts of_score, of_value;
  index_t key_size = 0, value_size = 0, values_at = 0, head_size = 0, query_size = 0, scratch_size = 0, count_ = 0;
  Half *packed = nullptr, *halves = nullptr;
  float* scratch = nullptr;
  std::uint8_t* bad = nullptr;
};

}  // namespace seqkern::SEQKERN_ISA
