// Products with few rows: the weights are read once, where they lie, and nothing is packed.
//
//   out[m][u] = sum_k a[m][k] weight[u][k]        a [M, K], weight [U, K], both k-contiguous
//
// This is what a recurrent step at batch 1 is: bound by reading the weights. Lanes run along k; one register
// holds as many (row, unit) sums as it has lanes and they are reduced together by one tree, so the order of
// summation is the same for every M and every split of the units over threads.
//
// bf16 weights can be read a register of pairs at a time. Where the left factor is bf16 as well and the machine
// multiplies pairs, that is all; otherwise the even ones are shifted up and the odd ones masked, one operation each
// where widening in order takes two, and their left factor is split to match (split_place).
//
// Weights that are read many times over are laid out first as they will be read (kStream): a register of each of a
// block's units, then the next one of each. One stream comes faster than several rows side by side, with the same sums.
#pragma once
#include <algorithm>

#include "simd/tiles.h"

namespace seqkern::SEQKERN_ISA {

// Whether rows of S meet weights of W in pairs.
template <class S, class W>
inline constexpr bool kDotPairs = kTiles && std::is_same_v<S, bf16> && std::is_same_v<W, bf16>;

// MR rows times lanes / MR units. With fewer units than that the missing ones repeat the last, unstored.
// kTogether units are read side by side.
template <int MR, bool Whole, int kTogether, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE Vec<A> dot_square(const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth) {
  constexpr bool kPairs = kDotPairs<S, W>;
  constexpr int L = kLanes<A>, NU = L / MR, kStep = kPairs ? 2 * L : L;
  Vec<A> acc[L] = {};
  // A pointer for every fourth unit: sixteen would not fit the registers.
  constexpr int kSpan = Whole && NU % 4 == 0 ? 4 : 1;
  const W* rows[NU / kSpan];
#pragma GCC unroll 16
  for (int u = 0; u < NU; u += kSpan) rows[u / kSpan] = weight + (Whole || u < units ? u : units - 1) * ldw;
  auto step = [&](int first, index_t k, auto read) __attribute__((always_inline)) {
    std::conditional_t<kPairs, VecU, Vec<A>> av[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) av[m] = read(a + m * lda + k);
#pragma GCC unroll 16
    for (int u = first; u < (first + kTogether < NU ? first + kTogether : NU); ++u) {
      auto w = read(rows[u / kSpan] + u % kSpan * ldw + k);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
        if constexpr (kPairs) acc[m * NU + u] = dot_pairs(acc[m * NU + u], av[m], w);
        else acc[m * NU + u] = av[m] * w + acc[m * NU + u];
    }
  };
  auto whole = [](const auto* p) {
    if constexpr (kPairs) return load_pairs(p);
    else return load(p);
  };
#pragma GCC unroll 16
  for (int u = 0; u < NU; u += kTogether) {
    index_t k = 0;
    for (; k + 2 * kStep <= depth; k += 2 * kStep) {  // cache lines of every unit
      step(u, k, whole);
      step(u, k + kStep, whole);
    }
    if (k + kStep <= depth) {
      step(u, k, whole);
      k += kStep;
    }
    if (int tail = int(depth - k))
      step(u, k, [tail](const auto* p) {
        if constexpr (kPairs) return load_pairs_n(p, tail);
        else return load_n(p, tail);
      });
  }
  return sum_each<A>(acc);
}

// Registers of left factor that one register of weights meets, and the elements of k in it.
template <class W>
inline constexpr int kDotParts = int(sizeof(acc_t<W>) / sizeof(W));
template <class W>
inline constexpr int kDotStep = kDotParts<W> * kLanes<acc_t<W>>;

// Where value k of a split left factor goes: per step the even ones and then the odd.
template <class W>
SEQKERN_INLINE index_t split_place(index_t k) {
  constexpr index_t S = kDotStep<W>;
  return kDotParts<W> == 1 ? k : k / S * S + k % 2 * (S / 2) + k % S / 2;
}

// Rows of a left factor in its split form; the gaps are left alone.
template <class W, class S, class A = acc_t<W>>
void split_rows(index_t rows, const S* from, index_t depth, A* to, index_t stride) {
  for (index_t m = 0; m < rows; ++m, from += depth, to += stride)
    for (index_t k = 0; k < depth; ++k) to[split_place<W>(k)] = from_storage(from[k]);
}

// dot_square with bf16 weights and a left factor split and padded with zeros to whole steps.
template <int MR, bool Whole>
SEQKERN_INLINE Vec<float> dot_square_split(const float* a, index_t lda, const bf16* weight, index_t ldw, int units,
                                           index_t depth) {
  constexpr int L = kLanes<float>, NU = L / MR;
  Vec<float> acc[L] = {};
  auto step = [&](index_t k, auto read) __attribute__((always_inline)) {
    Vec<float> even[MR], odd[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      even[m] = load(a + m * lda + k);
      odd[m] = load(a + m * lda + k + L);
    }
#pragma GCC unroll 16
    for (int u = 0; u < NU; ++u) {
      Vec<float> first, second;
      split_pairs(read(weight + (Whole || u < units ? u : units - 1) * ldw + k), first, second);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) acc[m * NU + u] = odd[m] * second + (even[m] * first + acc[m * NU + u]);
    }
  };
  index_t k = 0;
  for (; k + 2 * L <= depth; k += 2 * L) step(k, [](const bf16* p) { return load_pairs(p); });
  if (int tail = int(depth - k)) step(k, [tail](const bf16* p) { return load_pairs_n(p, tail); });
  return sum_each<float>(acc);
}

template <class W>
inline constexpr index_t kStreamStep = kVecBytes / index_t(sizeof(W));  // values of a unit side by side
template <class W>
inline constexpr int kStreamUnits = kLanes<acc_t<W>>;  // of a block

// A block of units as a stream. Three rows take five units at a time, so that a product reads four registers past it.
template <class W>
index_t stream_size(index_t depth) {
  return round_up(depth, kStreamStep<W>) * kStreamUnits<W>;
}
template <class W>
void lay_out_stream(const W* weight, index_t ldw, index_t units, index_t depth, W* out) {
  for (index_t k = 0; k < depth; k += kStreamStep<W>)
    for (index_t u = 0; u < kStreamUnits<W>; ++u, out += kStreamStep<W>) {
      index_t count = u < units ? std::min(kStreamStep<W>, depth - k) : 0;
      std::copy_n(weight + u * ldw + k, count, out);
      std::fill(out + count, out + kStreamStep<W>, W{});
    }
}

// dot_square or dot_square_split (Split) of a stream, of the lanes / MR units from `weight` on.
template <int MR, bool Split, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE Vec<A> dot_stream(const S* a, index_t lda, const W* weight, index_t depth) {
  constexpr bool kPairs = kDotPairs<S, W>;
  constexpr int L = kLanes<A>, NU = L / MR;
  Vec<A> acc[L] = {};
  auto step = [&](auto left, auto right) __attribute__((always_inline)) {
    std::conditional_t<kPairs, VecU, Vec<A>> av[MR], odd[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      av[m] = left(a + m * lda);
      if constexpr (Split) odd[m] = left(a + m * lda + L);
    }
#pragma GCC unroll 16
    for (int u = 0; u < NU; ++u) {
      auto w = right(weight + u * kStreamStep<W>);
      [[maybe_unused]] Vec<A> first, second;
      if constexpr (Split) split_pairs(w, first, second);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        Vec<A>& sum = acc[m * NU + u];
        if constexpr (Split) sum = odd[m] * second + (av[m] * first + sum);
        else if constexpr (kPairs) sum = dot_pairs(sum, av[m], w);
        else sum = av[m] * w + sum;
      }
    }
    a += kStreamStep<W>, weight += kStreamUnits<W> * kStreamStep<W>;
  };
  auto pairs = [](const auto* p) { return load_pairs(p); };
  auto whole = [](const auto* p) { return load(p); };
  index_t k = 0;
  for (; k + kStreamStep<W> <= depth; k += kStreamStep<W>)
    if constexpr (Split) step(whole, pairs);
    else if constexpr (kPairs) step(pairs, pairs);
    else step(whole, whole);
  if (int tail = int(depth - k)) {  // the weights, and a split left factor, are padded
    if constexpr (Split) step(whole, pairs);
    else if constexpr (kPairs) step([tail](const S* p) { return load_pairs_n(p, tail); }, pairs);
    else step([tail](const S* p) { return load_n(p, tail); }, whole);
  }
  return sum_each<A>(acc);
}

// MR rows times up to lanes units: out[m * ldo + u].
template <int MR, bool Split, bool kStream, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE void dot_rows(const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                             index_t ldo) {
  constexpr int L = kLanes<A>, NU = L / MR, kApart = NU < 8 ? NU : 8, kMeeting = NU < 8 ? NU : 4;
  bool meet = ldw * index_t(sizeof(W)) % 4096 == 0;  // in one set of L1, which may not hold eight lines beside others
  for (int u = 0; u < units; u += NU) {
    int here = units - u < NU ? units - u : NU;
    const W* from = weight + u * ldw;
    Vec<A> sums;
    if constexpr (kStream) sums = dot_stream<MR, Split>(a, lda, weight + u * kStreamStep<W>, depth);
    else if constexpr (Split)
      sums = here == NU ? dot_square_split<MR, true>(a, lda, from, ldw, here, depth)
                        : dot_square_split<MR, false>(a, lda, from, ldw, here, depth);
    else
      sums = here < NU ? dot_square<MR, false, kApart>(a, lda, from, ldw, here, depth)
             : meet    ? dot_square<MR, true, kMeeting>(a, lda, from, ldw, here, depth)
                       : dot_square<MR, true, kApart>(a, lda, from, ldw, here, depth);
    if constexpr (MR == 1) {
      store_over(out, sums, here, here == L);
    } else {
      A flat[L];
      store(flat, sums);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m)
        if (here == NU) std::memcpy(out + m * ldo + u, flat + m * NU, NU * sizeof(A));
        else
          for (int j = 0; j < here; ++j) out[m * ldo + u + j] = flat[m * NU + j];
    }
  }
}

// Any number of rows, in blocks of at most four.
template <bool Split, bool kStream, class S, class W, class A = acc_t<W>>
void dot_blocks(index_t rows, const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                index_t ldo) {
  index_t m = 0;
  if constexpr (kLanes<A> >= 4)
    for (; m + 4 <= rows; m += 4)
      dot_rows<4, Split, kStream>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  if constexpr (kLanes<A> >= 4)
    if (rows - m == 3)
      return dot_rows<3, Split, kStream>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  for (; m + 2 <= rows; m += 2)
    dot_rows<2, Split, kStream>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  if (m < rows) dot_rows<1, Split, kStream>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
}

// The left factor in order, of any storage type.
template <class S, class W, class A = acc_t<W>>
void dot_product(index_t rows, const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                 index_t ldo) {
  dot_blocks<false, false>(rows, a, lda, weight, ldw, units, depth, out, ldo);
}

}  // namespace seqkern::SEQKERN_ISA
