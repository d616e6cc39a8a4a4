// From the product q . k to a score on the GPU: cap, bias, masks; and the exponential that softmax takes of it.
//
// As on the CPU a row of queries sees one interval of keys, and within it what the mask leaves; float32 works with
// scores in powers of two, s log2(e), and double with powers of e.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/philox.cuh"
#include "cuda/reduce.cuh"
#include "seqkern/attention.h"

namespace seqkern::cuda {

template <class A>
inline constexpr A kLogBase = 1;
template <>
inline constexpr float kLogBase<float> = 1.44269504f;

SEQKERN_INLINE float power(float x) { return exp2(x); }
SEQKERN_INLINE double power(double x) { return exp(x); }

// One row of queries: row i of head h in sequence b, and the keys [low, high) it sees.
template <class A>
struct QueryRow {
  index_t b, head, i;  // i is -1 where there is no such row
  index_t low, high, diagonal;
  std::uint64_t element;  // of the first key, for dropout
  const void* mask;
  A slope;

  SEQKERN_INLINE bool live() const { return low < high; }
};

// What is masked may be NaN: whatever is looked at tile by tile can have such a position beside a live one.
inline bool masks(const AttentionInputs& p) { return p.mask || p.causal || p.left >= 0 || p.right >= 0; }

// What lies between q . k and P: the row's interval of keys alone; that and an additive mask, whose tiles travel to
// shared memory with the others; or whatever Score knows.
enum class Between { interval, bias, anything };

// Whether rows start at multiples of 16 bytes, `count` values; `steps`: all strides, or-ed together.
inline bool starts_words(const void* data, index_t steps, int count) {
  return std::uintptr_t(data) % 16 == 0 && steps % count == 0;
}
// ... and are so near, `far` from row to row, that 128 of them are within 32 bits.
inline bool starts_rows_whole(const void* data, index_t steps, index_t far) {
  return starts_words(data, steps, 8) && -(1 << 23) < far && far < 1 << 23;
}
inline Between between(const AttentionInputs& p) {
  if (p.slopes || p.softcap != 0 || p.dropout > 0) return Between::anything;
  if (!p.mask) return Between::interval;
  const index_t* s = p.mask_strides;
  bool whole = !p.mask_is_bool && s[3] == 1 && starts_rows_whole(p.mask, s[0] | s[1] | s[2] | p.key_len, s[2]);
  return whole ? Between::bias : Between::anything;
}

// Where row i of a head starts.
template <class S>
SEQKERN_INLINE S* row_of(S* base, const AttentionStrides& s, const index_t* cu, index_t b, index_t head, index_t i) {
  return base + b * s.batch + head * s.head + ((cu ? cu[b] : 0) + i) * s.row;
}

template <class T>
struct Score {
  using A = acc_t<T>;
  AttentionInputs p;
  Drop<A> drop;

  explicit Score(const AttentionInputs& inputs) : p(inputs), drop(inputs.dropout, inputs.seed, 0) {}

  // Row r of the rows [heads, query_len] of sequence b from head `first` on. Those past the sequence's length see
  // nothing; a packed sequence has none.
  SEQKERN_INLINE QueryRow<A> row(index_t b, index_t first, index_t r) const {
    index_t queries = p.queries(b), keys = p.keys(b);
    index_t h = first + r / p.query_len, i = r % p.query_len;
    index_t diagonal = i + (p.bottom_right ? keys - queries : 0), low = 0, high = keys;
    if (p.causal) high = min_of(high, diagonal + 1);
    if (p.left >= 0 && diagonal > p.left) low = diagonal - p.left;
    if (p.right >= 0) high = min_of(high, diagonal + p.right + 1);
    if (i >= queries) high = 0;
    if (high <= low) low = high = 0;
    index_t mask = b * p.mask_strides[0] + h * p.mask_strides[1] + i * p.mask_strides[2];
    return {b,
            h,
            i < queries || !p.cu_q ? i : -1,
            low,
            high,
            diagonal,
            std::uint64_t(((b * p.heads + h) * p.query_len + i) * p.key_len),
            p.mask ? static_cast<const char*>(p.mask) + mask * index_t(p.mask_is_bool ? 1 : sizeof(T)) : nullptr,
            p.slopes ? static_cast<const A*>(p.slopes)[b * p.slope_stride + h] : A(0)};
  }

  // The score of key j, -inf where it is masked; `capped` becomes tanh(scaled / softcap) where there is a cap.
  SEQKERN_INLINE A operator()(A product, const QueryRow<A>& row, index_t j, A& capped) const {
    if (j < row.low || j >= row.high) return -infinity<A>();
    A s = product * A(p.scale);
    if (p.softcap != 0) {
      capped = tanh(s * A(1 / p.softcap));
      s = capped * A(p.softcap);
    }
    if (p.slopes) s -= row.slope * A(row.diagonal < j ? j - row.diagonal : row.diagonal - j);
    if (p.mask && p.mask_is_bool) {
      if (!static_cast<const char*>(row.mask)[j * p.mask_strides[3]]) return -infinity<A>();
    } else if (p.mask) {
      A m = load(static_cast<const T*>(row.mask) + j * p.mask_strides[3]);
      if (m == -infinity<A>()) return m;
      s += m;
    }
    return s * kLogBase<A>;
  }

  // What dropout multiplies the probability of key j by.
  SEQKERN_INLINE A kept(const QueryRow<A>& row, index_t j) const {
    if (!(p.dropout > 0)) return A(1);
    return drop.keeps(row.element + std::uint64_t(j)) ? drop.scale : A(0);
  }
};

// The largest score of a row so far and the sum of powers below it; a sink is a score without a value.
template <class A>
struct Softmax {
  A max = -infinity<A>(), sum = 0;

  SEQKERN_INLINE void start(const AttentionInputs& p, const QueryRow<A>& row) {
    if (!p.sinks || row.i < 0 || row.i >= p.queries(row.b)) return;
    max = static_cast<const A*>(p.sinks)[row.head] * kLogBase<A>;
    sum = 1;
  }
  // What scores are taken relative to: never -inf, so that no NaN is made.
  SEQKERN_INLINE A base() const { return max == -infinity<A>() ? A(0) : max; }
  // Makes room for a score of `top`; what was summed so far must be multiplied by the factor returned.
  SEQKERN_INLINE A raise(A top) {
    A higher = Max{}(top, max), before = max;
    if (higher == before) return 1;
    max = higher;
    A factor = power(before - base());
    sum *= factor;
    return factor;
  }
  SEQKERN_INLINE A inverse() const { return sum == 0 ? A(0) : 1 / sum; }

  // lse, and for the backward pass max and 1 / sum; see keep_stats of the CPU.
  SEQKERN_INLINE void keep(const AttentionForward& p, const QueryRow<A>& row) const {
    index_t at = p.row(row.b, row.head, row.i);
    if (p.lse) static_cast<A*>(p.lse)[at] = max / kLogBase<A> + log(sum);
    if (!p.stats) return;
    auto stats = static_cast<A*>(p.stats);
    stats[at] = sum == 0 ? A(0) : max;
    stats[p.rows() + at] = inverse();
  }
};

}  // namespace seqkern::cuda
