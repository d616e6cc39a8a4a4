// Attention of few query rows against many keys: a step of decoding. Bound by reading keys and values, so both are
// read once, where they lie, in pages too, and nothing is packed. A piece of the work is 512 keys of a head, whatever
// the number of threads: the pieces' sums and maxima are joined in order at the end.
#pragma once
#include <algorithm>
#include <cmath>

#include "attention_rows.h"
#include "products.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr index_t kFewRows = 8;

inline bool decodes(const AttentionForward& p) {
  return p.group() * p.query_len <= kFewRows && !p.probs && p.dropout == 0;
}

// out[m][v] (+)= sum_k a[k][m] w[k][v] for NV registers of columns, down all rows of w; the sum over k in order.
template <int MR, int NV, class W, class A = acc_t<W>>
SEQKERN_INLINE void sum_rows(const A* a, const W* w, index_t ldw, index_t depth, A* out, index_t ldo, int last,
                             bool add) {
  constexpr int L = kLanes<A>;
  auto lanes = [last](int v) { return v + 1 < NV ? L : last; };
  Vec<A> acc[MR][NV] = {};
  if (add)
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) acc[m][v] = load_n(out + m * ldo + v * L, lanes(v));
  auto sum = [&](auto read_last) {
    for (index_t k = 0; k < depth; ++k, a += MR, w += ldw) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        Vec<A> wv = v + 1 < NV ? load(w + v * L) : read_last(w + v * L);
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) acc[m][v] = splat(a[m]) * wv + acc[m][v];
      }
    }
  };
  if (last == L) sum([](const W* p) { return load(p); });
  else sum([last](const W* p) { return load_n(p, last); });
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) store_n(out + m * ldo + v * L, acc[m][v], lanes(v));
}

template <class T>
class DecodeAttention {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int L = kLanes<A>;
  static constexpr index_t kPiece = 512;
  static constexpr A kLowest = -A(__builtin_huge_val());

 public:
  explicit DecodeAttention(const AttentionForward& params)
      : p(params), score(params), D(p.head_dim), Dv(p.value_dim), R(p.group() * p.query_len) {}

  void run() {
    index_t pairs = p.batch * p.kv_heads;
    if (pairs == 0 || R == 0) return;
    Job job;
    pieces = std::max<index_t>(ceil_div(p.key_len, kPiece), 1);
    width = Dv + 2;
    parts = job.take<A>(pairs * pieces * R * width);
    int threads = threads_for(double(pairs * R * p.key_len) * double(D + Dv), kAttentionGrain);
    threads = int(std::min<index_t>(threads, pairs * pieces));
    index_t size = R * (D + 2 * kPiece);
    A* scratch = job.take<A>(threads * size);
    auto body = [&](int rank, int n, Barrier& barrier) {
      Range own = share(pairs * pieces, rank, n);
      for (index_t item = own.begin; item < own.end; ++item) piece(item, scratch + rank * size);
      barrier.wait();
      Range rows = share(pairs, rank, n);
      for (index_t pair = rows.begin; pair < rows.end; ++pair) join(pair);
    };
    job.run(threads, body);
  }

 private:
  const T* rows_of(const void* base, const AttentionStrides& s, const index_t* cu, index_t b, index_t head) const {
    return static_cast<const T*>(base) + b * s.batch + head * s.head + (cu ? cu[b] * s.row : 0);
  }
  A* part(index_t item, index_t r) const { return parts + (item * R + r) * width; }

  void piece(index_t item, A* space) const {
    index_t pair = item / pieces, b = pair / p.kv_heads, head = pair % p.kv_heads;
    index_t first = item % pieces * kPiece, rows = p.group() * p.queries(b);
    A *query = space, *s = query + R * D, *probs = s + R * kPiece;
    QueryRow<A> row[kFewRows];
    index_t low = first + kPiece, high = first;
    for (index_t r = 0; r < rows; ++r) {
      row[r] = score.row(b, head, r);
      low = std::min(low, std::max(row[r].low, first));
      high = std::max(high, std::min(row[r].high, first + kPiece));
      const T* from = rows_of(p.q, p.q_strides, p.cu_q, b, row[r].head) + row[r].i * p.q_strides.row;
      for (index_t d = 0; d < D; d += L) {
        int n = int(std::min<index_t>(L, D - d));
        store_n(query + r * D + d, load_n(from + d, n) * score.query_scale(), n);
      }
    }
    for (index_t r = 0; r < rows; ++r) part(item, r)[Dv] = kLowest, part(item, r)[Dv + 1] = 0;
    for (index_t r = 0; r < rows; ++r) std::fill_n(part(item, r), Dv, A{});
    if (low >= high) return;
    index_t count = high - low;
    stretches(p, low, high, [&](index_t j, index_t end) {
      const T* keys = row_at<T>(p, p.k, p.k_strides, b, head, j);
      for (; j < end; j += L, keys += L * p.k_strides.row) {
        prefetch(keys + L * p.k_strides.row, std::min<index_t>(L, end - j - L));
        dot_product(rows, query, D, keys, p.k_strides.row, int(std::min<index_t>(L, end - j)), D, s + j - low, kPiece);
      }
    });
    for (index_t r = 0; r < rows; r += 4) {
      int together = int(std::min<index_t>(4, rows - r));
      for (int m = 0; m < together; ++m) softmax(row[r + m], low, count, s + (r + m) * kPiece, part(item, r + m));
      for (index_t j = 0; j < count; ++j)
        for (int m = 0; m < together; ++m) probs[j * together + m] = s[(r + m) * kPiece + j];
      auto sums = [&]<int MR>() {
        stretches(p, low, high, [&](index_t j, index_t end) {
          const T* values = row_at<T>(p, p.v, p.v_strides, b, head, j);
          weighted_sum<MR>(probs + (j - low) * MR, values, end - j, part(item, r), j > low);
        });
      };
      if (together == 1) sums.template operator()<1>();
      if (together == 2) sums.template operator()<2>();
      if (together == 3) sums.template operator()<3>();
      if (together == 4) sums.template operator()<4>();
    }
    if (score.masked) mend(item, rows, low, count, s);
  }

  // The keys that come next, line by line: products walk down several at once, each a stream too short for the hardware
  // to see.
  SEQKERN_INLINE void prefetch(const T* keys, index_t count) const {
    constexpr index_t kLine = 64 / sizeof(T);
    for (index_t j = 0; j < count; ++j)
      for (index_t d = 0; d < D; d += kLine) __builtin_prefetch(keys + j * p.k_strides.row + d);
  }

  // Scores into exponentials, -0 where masked; their maximum and sum go behind the row's part.
  void softmax(const QueryRow<A>& row, index_t low, index_t count, A* s, A* part) const {
    V top = splat(kLowest), sum{};
    for (index_t j = 0; j < count; j += L) {
      int n = int(std::min<index_t>(L, count - j));
      V v = load_n(s + j, n);
      if (n < L || !score.ready(row, low + j)) store_n(s + j, v = keep(score(v, row, low + j), n), n);
      top = max(v, top);
    }
    A highest = max_lanes(top);
    V base = splat(highest == kLowest ? A(0) : highest);
    for (index_t j = 0; j < count; j += L) {
      int n = int(std::min<index_t>(L, count - j));
      V v = keep(load_n(s + j, n), n), e = power(v - base);
      sum = sum + e;
      store_n(s + j, v == kLowest ? splat(A(-0.0)) : e, n);
    }
    part[Dv] = highest;
    part[Dv + 1] = sum_lanes(sum);
  }
  // Lanes past n as masked ones.
  static SEQKERN_INLINE V keep(V v, int n) {
    using I = LaneIndex<A>;
    if (n == L) return v;
    return iota<typename std::remove_reference_t<decltype(I{}[0])>>() < n ? v : splat(kLowest);
  }

  // MR rows of probabilities times the values: as many columns at once as there are registers.
  template <int MR>
  void weighted_sum(const A* probs, const T* values, index_t count, A* out, bool add) const {
    constexpr int kWide = (kVecRegisters == 32 ? 16 : 8) / (MR == 3 ? 4 : MR);
    index_t d = 0;
    auto go = [&]<int NV>() {
      for (; Dv - d > (NV - 1) * L; d += NV * L)
        sum_rows<MR, NV>(probs, values + d, p.v_strides.row, count, out + d, width,
                         int(std::min<index_t>(L, Dv - d - (NV - 1) * L)), add);
    };
    go.template operator()<kWide>();
    if constexpr (kWide > 4) go.template operator()<4>();
    if constexpr (kWide > 2) go.template operator()<2>();
    go.template operator()<1>();
  }

  // A masked value that is not finite must not show: such rows are summed again without what is masked.
  void mend(index_t item, index_t rows, index_t low, index_t count, const A* s) const {
    index_t pair = item / pieces, b = pair / p.kv_heads, head = pair % p.kv_heads;
    for (index_t r = 0; r < rows; ++r) {
      A* out = part(item, r);
      A wrong = 0;
      for (index_t d = 0; d < Dv; ++d) wrong += out[d] - out[d];
      if (wrong == 0) continue;
      std::fill_n(out, Dv, A{});
      for (index_t j = 0; j < count; ++j) {
        A e = s[r * kPiece + j];
        if (__builtin_signbit(e)) continue;
        const T* value = row_at<T>(p, p.v, p.v_strides, b, head, low + j);
        for (index_t d = 0; d < Dv; ++d) out[d] += e * from_storage(value[d]);
      }
    }
  }

  void join(index_t pair) const {
    index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads, queries = p.queries(b);
    for (index_t g = 0; g < p.group(); ++g)
      for (index_t i = 0; i < (p.cu_q ? queries : p.query_len); ++i) {
        index_t head = kv_head * p.group() + g;
        T* out = const_cast<T*>(rows_of(p.out, p.out_strides, p.cu_q, b, head)) + i * p.out_strides.row;
        A top = kLowest, sum = 0;
        if (i < queries) join_row(pair, g * queries + i, head, out, top, sum);
        else std::fill_n(out, Dv, T{});
        keep_stats(p, p.row(b, head, i), top, sum);
      }
  }

  void join_row(index_t pair, index_t r, index_t head, T* out, A& top, A& sum) const {
    if (p.sinks) top = static_cast<const A*>(p.sinks)[head] * kLogBase<A>;
    for (index_t c = 0; c < pieces; ++c) top = std::max(top, part(pair * pieces + c, r)[Dv]);
    A base = top == kLowest ? A(0) : top;
    if (p.sinks) sum = power(splat(static_cast<const A*>(p.sinks)[head] * kLogBase<A> - base))[0];
    A* joined = part(pair * pieces, r);
    for (index_t c = 0; c < pieces; ++c) {
      const A* from = part(pair * pieces + c, r);
      A factor = power(splat(from[Dv] - base))[0];
      sum += from[Dv + 1] * factor;
      for (index_t d = 0; d < Dv; ++d) joined[d] = from[d] * factor + (c ? joined[d] : A(0));
    }
    A inverse = sum == 0 ? A(0) : 1 / sum;
    for (index_t d = 0; d < Dv; ++d) out[d] = to_storage<T>(sum == 0 ? A(0) : joined[d] * inverse);
  }

  const AttentionForward& p;
  Score<T> score;
  index_t D, Dv, R, pieces = 1, width = 0;
  A* parts = nullptr;
};

}  // namespace seqkern::SEQKERN_ISA
