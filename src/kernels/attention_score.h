// From the product q . k to a score: cap, bias, masks; and the exponential that softmax takes of it.
//
// A row of queries sees one interval of keys (its length, the causal limit and the window all are intervals), and
// within it what the mask leaves. float32 works with scores in powers of two, s log2(e), so that 2^x is all that is
// needed; float64 keeps powers of e.
#pragma once
#include <algorithm>
#include <cmath>

#include "philox.h"
#include "seqkern/attention.h"
#include "simd/math.h"

namespace seqkern::SEQKERN_ISA {

template <class A>
inline constexpr A kLogBase = 1;
template <>
inline constexpr float kLogBase<float> = 1.44269504f;

// base^x for x <= 0; exactly 0 below the smallest normal number. 2^r on [-1/2, 1/2]: relative error 2e-9.
SEQKERN_INLINE Vec<float> power(Vec<float> x) {
  Vec<float> n = nearest(x), r = x - n;
  Vec<float> q = 1.53458110e-4f * r + 1.33999309e-3f;
  q = q * r + 9.61848907e-3f;
  q = q * r + 5.55032864e-2f;
  q = q * r + 0.240226462f;
  q = q * r + 0.693147182f;
  q = q * r + 1.0f;
  return scale_or_zero(q, n);
}
SEQKERN_INLINE Vec<double> power(Vec<double> x) { return exp(x); }

// The same to 4e-6, for probabilities that are rounded to bf16.
SEQKERN_INLINE Vec<float> power_roughly(Vec<float> x) {
  Vec<float> n = nearest(x), r = x - n;
  Vec<float> q = 9.66636837e-3f * r + 5.59219755e-2f;
  q = q * r + 0.240223497f;
  q = q * r + 0.693121016f;
  q = q * r + 1.0f;
  return scale_or_zero(q, n);
}

// Integer lanes beside those of A, and what a comparison of them gives.
template <class A>
using LaneIndex = Vec<std::conditional_t<sizeof(A) == 8, std::int64_t, std::int32_t>>;

// What the backward pass is told of a row: its largest score and 1 / sum, not their lse, which for large scores has
// lost too many digits. A row that saw nothing has 0 and 0.
template <class A>
void keep_stats(const AttentionForward& p, index_t row, A max, A sum) {
  if (p.lse) static_cast<A*>(p.lse)[row] = max / kLogBase<A> + std::log(sum);
  if (!p.stats) return;
  auto stats = static_cast<A*>(p.stats);
  stats[row] = sum == 0 ? A(0) : max;
  stats[p.rows() + row] = sum == 0 ? A(0) : 1 / sum;
}

// One row of queries: head h and row i of sequence b; the keys [low, high) it sees.
template <class A>
struct QueryRow {
  index_t head, i, low, high;
  A slope = 0;
  index_t diagonal = 0;  // i + offset
  const void* mask = nullptr;
  std::uint64_t element = 0;  // of the first key, for dropout
};

template <class T>
class Score {
  using A = acc_t<T>;
  using V = Vec<A>;
  using I = LaneIndex<A>;
  static constexpr int L = kLanes<A>;

 public:
  explicit Score(const AttentionInputs& params)
      : p(params),
        plain(!p.mask && !p.slopes && p.softcap == 0),
        masked(!plain || p.causal || p.left >= 0 || p.right >= 0) {}

  // What q is multiplied by before the product.
  A query_scale() const { return A(p.scale) * (plain ? kLogBase<A> : A(1)); }

  // Row r of the rows [group, queries(b)] that share the keys of kv_head in sequence b.
  QueryRow<A> row(index_t b, index_t kv_head, index_t r) const {
    index_t queries = p.queries(b), keys = p.keys(b);
    index_t h = kv_head * p.group() + r / queries, i = r % queries;
    index_t diagonal = i + (p.bottom_right ? keys - queries : 0);
    index_t low = 0, high = keys;
    if (p.causal) high = std::min(high, diagonal + 1);
    if (p.left >= 0) low = std::max(low, diagonal - p.left);
    if (p.right >= 0) high = std::min(high, diagonal + p.right + 1);
    high = std::max<index_t>(high, 0);
    QueryRow<A> row{h, i, std::min(low, high), high};
    row.diagonal = diagonal;
    if (p.slopes) row.slope = static_cast<const A*>(p.slopes)[b * p.slope_stride + h];
    index_t at = b * p.mask_strides[0] + h * p.mask_strides[1] + i * p.mask_strides[2];
    if (p.mask) row.mask = static_cast<const char*>(p.mask) + at * index_t(p.mask_is_bool ? 1 : sizeof(T));
    row.element = std::uint64_t(((b * p.heads + h) * p.query_len + i) * p.key_len);
    return row;
  }

  // Whether keys [j, j + L) need operator() at all, or are scores as they come from the product.
  bool ready(const QueryRow<A>& row, index_t j) const { return plain && j >= row.low && j + L <= row.high; }

  // The scores of keys [j, j + L), -inf where masked; `capped` becomes tanh(raw / softcap) where there is a cap.
  SEQKERN_INLINE V operator()(V raw, const QueryRow<A>& row, index_t j, V* capped = nullptr) const {
    constexpr A lowest = -__builtin_huge_val();
    I lane = iota<typename std::remove_reference_t<decltype(I{}[0])>>();
    I dead = (lane < lane_count(row.low - j)) | (lane >= lane_count(row.high - j));
    V s = raw;
    if (!plain) {
      if (p.softcap != 0) {
        V t = tanh(raw * A(1 / p.softcap));
        if (capped) *capped = t;
        s = t * A(p.softcap);
      }
      if (p.slopes) s = s - row.slope * abs(A(row.diagonal - j) - iota<A>());
      int n = int(std::min<index_t>(L, p.key_len - j));
      if (p.mask && p.mask_is_bool && n > 0) dead = dead | (allowed(row, j, n) == 0);
      if (p.mask && !p.mask_is_bool && n > 0) {
        V m = bias(row, j, n);
        dead = dead | (m == lowest);
        s = s + m;
      }
      s = s * kLogBase<A>;
    }
    return dead ? splat(lowest) : s;
  }

  // Factors of dropout for keys [j, j + count) of a row.
  void drop(const QueryRow<A>& row, index_t j, index_t count, A* out) const {
    dropout_factors(row.element + std::uint64_t(j), count, p.dropout, p.seed, out);
  }

  const AttentionInputs& p;
  const bool plain, masked;

 private:
  static int lane_count(index_t n) { return int(n < 0 ? 0 : n > L ? L : n); }

  SEQKERN_INLINE I allowed(const QueryRow<A>& row, index_t j, int n) const {
    using Bytes = typename VecOf<std::uint8_t, L>::type;
    auto bytes = static_cast<const std::uint8_t*>(row.mask);
    index_t step = p.mask_strides[3];
    Bytes v{};
    if (step == 1) std::memcpy(&v, bytes + j, std::size_t(n));
    else
      for (int k = 0; k < n; ++k) v[k] = bytes[(j + k) * step];
    return __builtin_convertvector(v, I);
  }
  SEQKERN_INLINE V bias(const QueryRow<A>& row, index_t j, int n) const {
    auto values = static_cast<const T*>(row.mask);
    index_t step = p.mask_strides[3];
    if (step == 1) return load_n(values + j, n);
    V v{};
    for (int k = 0; k < n; ++k) v[k] = from_storage(values[(j + k) * step]);
    return v;
  }
};

}  // namespace seqkern::SEQKERN_ISA
