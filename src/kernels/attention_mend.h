// Gradients of attention where a number is not finite. A masked position has probability 0, and 0 times a NaN or an
// infinity elsewhere in its row or column is NaN: heads that come out so are computed again, position by position,
// from what is not masked. Slow, and exact about what may be seen.
#pragma once
#include <algorithm>

#include "attention_score.h"
#include "passes.h"

namespace seqkern::SEQKERN_ISA {

template <class T>
class MendGradients {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int L = kLanes<A>;

 public:
  MendGradients(const AttentionBackward& params, const Score<T>& s) : p(params), score(s) {}

  bool needed(index_t b, index_t kv_head) const {
    bool finite = true;
    for (index_t g = 0; g < p.group(); ++g)
      finite =
          finite && all_finite(rows_of(static_cast<const T*>(p.dq), p.dq_strides, p.cu_q, b, kv_head * p.group() + g),
                               p.dq_strides.row, p.queries(b), p.head_dim);
    return !finite ||
           !all_finite(rows_of(static_cast<const T*>(p.dk), p.dk_strides, p.cu_k, b, kv_head), p.dk_strides.row,
                       p.keys(b), p.head_dim) ||
           !all_finite(rows_of(static_cast<const T*>(p.dv), p.dv_strides, p.cu_k, b, kv_head), p.dv_strides.row,
                       p.keys(b), p.value_dim);
  }

  // space: keys * (D + Dv) + D
  void head(index_t b, index_t kv_head, A* space) const {
    index_t D = p.head_dim, Dv = p.value_dim, keys = p.keys(b), queries = p.queries(b);
    A *dk = space, *dv = dk + keys * D, *dq = dv + keys * Dv;
    std::fill_n(space, keys * (D + Dv), A{});
    for (index_t r = 0; r < p.group() * queries; ++r) {
      QueryRow<A> row = score.row(b, kv_head, r);
      std::fill_n(dq, D, A{});
      for (index_t j = row.low; j < row.high; j += L) keys_of_row(b, kv_head, row, j, dq, dk, dv);
      store(dq, rows_of(static_cast<T*>(p.dq), p.dq_strides, p.cu_q, b, row.head) + row.i * p.dq_strides.row, D);
    }
    for (index_t j = 0; j < keys; ++j) {
      store(dk + j * D, rows_of(static_cast<T*>(p.dk), p.dk_strides, p.cu_k, b, kv_head) + j * p.dk_strides.row, D);
      store(dv + j * Dv, rows_of(static_cast<T*>(p.dv), p.dv_strides, p.cu_k, b, kv_head) + j * p.dv_strides.row, Dv);
    }
  }

 private:
  template <class S>
  static S* rows_of(S* base, const AttentionStrides& s, const index_t* cu, index_t b, index_t head) {
    return base + b * s.batch + head * s.head + (cu ? cu[b] * s.row : 0);
  }
  static bool all_finite(const T* rows, index_t stride, index_t count, index_t width) {
    V wrong{};
    for (index_t r = 0; r < count; ++r)
      for_columns<A>(width, [&](index_t d, auto n) {
        V v = load_n(rows + r * stride + d, n);
        wrong = wrong + (v - v);
      });
    return sum_lanes(wrong) == 0;
  }
  static A dot(const T* a, const T* b, index_t width) {
    A sum = 0;
    for (index_t d = 0; d < width; ++d) sum += from_storage(a[d]) * from_storage(b[d]);
    return sum;
  }
  static void add(A* to, A factor, const T* from, index_t width) {
    for (index_t d = 0; d < width; ++d) to[d] += factor * from_storage(from[d]);
  }
  static void store(const A* from, T* to, index_t width) {
    for (index_t d = 0; d < width; ++d) to[d] = to_storage<T>(from[d]);
  }

  void keys_of_row(index_t b, index_t kv_head, const QueryRow<A>& row, index_t j, A* dq, A* dk, A* dv) const {
    constexpr A lowest = -__builtin_huge_val();
    index_t D = p.head_dim, Dv = p.value_dim;
    const T* q = rows_of(static_cast<const T*>(p.q), p.q_strides, p.cu_q, b, row.head) + row.i * p.q_strides.row;
    auto dout = rows_of(static_cast<const T*>(p.dout), p.out_strides, p.cu_q, b, row.head) + row.i * p.out_strides.row;
    auto out = rows_of(static_cast<const T*>(p.out), p.out_strides, p.cu_q, b, row.head) + row.i * p.out_strides.row;
    auto k = rows_of(static_cast<const T*>(p.k), p.k_strides, p.cu_k, b, kv_head) + j * p.k_strides.row;
    auto v = rows_of(static_cast<const T*>(p.v), p.v_strides, p.cu_k, b, kv_head) + j * p.v_strides.row;
    auto stats = static_cast<const A*>(p.stats) + p.row(b, row.head, row.i);
    A delta = dot(dout, out, Dv);
    int n = int(std::min<index_t>(L, row.high - j));
    V raw{}, capped{};
    for (int i = 0; i < n; ++i) raw[i] = dot(q, k + i * p.k_strides.row, D) * score.query_scale();
    V s = score(raw, row, j, &capped), e = power(s - stats[0]) * stats[p.rows()];
    A keep[L];
    std::fill_n(keep, L, A(1));
    if (p.dropout > 0) score.drop(row, j, n, keep);
    for (int i = 0; i < n; ++i) {
      if (s[i] == lowest) continue;
      A d = e[i] * (dot(dout, v + i * p.v_strides.row, Dv) * keep[i] - delta) * A(p.scale);
      if (p.softcap != 0) d *= 1 - capped[i] * capped[i];
      add(dq, d, k + i * p.k_strides.row, D);
      add(dk + (j + i) * D, d, q, D);
      add(dv + (j + i) * Dv, e[i] * keep[i], dout, Dv);
    }
  }

  const AttentionBackward& p;
  const Score<T>& score;
};

template <class T>
void mend_gradients(const AttentionBackward& p, const Score<T>& score, Job& job) {
  MendGradients<T> mend(p, score);
  acc_t<T>* space = nullptr;
  for (index_t b = 0; b < p.batch; ++b)
    for (index_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
      if (!mend.needed(b, kv_head)) continue;
      if (!space) space = job.take<acc_t<T>>(p.key_len * (p.head_dim + p.value_dim) + p.head_dim);
      mend.head(b, kv_head, space);
    }
}

}  // namespace seqkern::SEQKERN_ISA
