// Products with few rows: the weights are read once, where they lie, and nothing is packed.
//
//   out[m][u] = sum_k a[m][k] weight[u][k]        a [M, K], weight [U, K], both k-contiguous
//
// This is what a recurrent step at batch 1 is: bound by reading the weights. Lanes run along k; as many (row, unit)
// sums as a register has lanes are reduced together by one tree, so the order of summation is the same for every M and
// every split of the units over threads.
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

// Units that MR rows meet at a time. Three rows meet four: seven loads for twelve products, and 16 registers hold it.
template <class A, int MR>
inline constexpr int kDotUnits = MR == 3 ? 4 : kLanes<A> / MR;
template <class A, int MR>
inline constexpr int kDotTrees = (MR * kDotUnits<A, MR> + kLanes<A> - 1) / kLanes<A>;

// The sums of MR rows and their units, row by row.
template <class A, int MR>
struct DotSums {
  Vec<A> partial[kDotTrees<A, MR> * kLanes<A>] = {};
  SEQKERN_INLINE Vec<A>& at(int m, int u) { return partial[m * kDotUnits<A, MR> + u]; }
  SEQKERN_INLINE void reduce(A* out) {
    constexpr int L = kLanes<A>;
#pragma GCC unroll 4
    for (int i = 0; i < kDotTrees<A, MR>; ++i) {
      Vec<A> tree[L];
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) tree[j] = partial[i * L + j];
      store(out + i * L, sum_each<A>(tree));
    }
  }
};

// MR rows times their units. With fewer units than that the missing ones repeat the last, unstored.
// kTogether units are read side by side.
template <int MR, bool Whole, int kTogether, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE DotSums<A, MR> dot_square(const S* a, index_t lda, const W* weight, index_t ldw, int units,
                                         index_t depth) {
  constexpr bool kPairs = kDotPairs<S, W>;
  constexpr int L = kLanes<A>, NU = kDotUnits<A, MR>, kStep = kPairs ? 2 * L : L;
  DotSums<A, MR> sums;
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
      if constexpr (MR > 1) w = held(w);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
        if constexpr (kPairs) sums.at(m, u) = dot_pairs(sums.at(m, u), av[m], w);
        else sums.at(m, u) = av[m] * w + sums.at(m, u);
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
  return sums;
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
SEQKERN_INLINE DotSums<float, MR> dot_square_split(const float* a, index_t lda, const bf16* weight, index_t ldw,
                                                   int units, index_t depth) {
  constexpr int L = kLanes<float>, NU = kDotUnits<float, MR>;
  DotSums<float, MR> sums;
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
      for (int m = 0; m < MR; ++m) sums.at(m, u) = odd[m] * second + (even[m] * first + sums.at(m, u));
    }
  };
  index_t k = 0;
  for (; k + 2 * L <= depth; k += 2 * L) step(k, [](const bf16* p) { return load_pairs(p); });
  if (int tail = int(depth - k)) step(k, [tail](const bf16* p) { return load_pairs_n(p, tail); });
  return sums;
}

template <class W>
inline constexpr index_t kStreamStep = kVecBytes / index_t(sizeof(W));  // values of a unit side by side
template <class W>
inline constexpr int kStreamUnits = kLanes<acc_t<W>>;  // of a block

// A block of units as a stream.
template <class W>
index_t stream_size(index_t depth) {
  return round_up(depth, kStreamStep<W>) * kStreamUnits<W>;
}
template <class W>
void lay_out_stream(const W* weight, index_t ldw, index_t units, index_t depth, W* out) {
  for (index_t k = 0; k < depth; k += kStreamStep<W>)
    for (index_t u = 0; u < kStreamUnits<W>; ++u, out += kStreamStep<W>) {
      index_t count = u < units ? std::min(kStreamStep<W>, depth - k) : 0;
      if (count == kStreamStep<W>) {
        std::memcpy(out, weight + u * ldw + k, kVecBytes);
        continue;
      }
      std::copy_n(weight + u * ldw + k, count, out);
      std::fill(out + count, out + kStreamStep<W>, W{});
    }
}

// dot_square or dot_square_split (Split) of a stream, of the units from `weight` on.
template <int MR, bool Split, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE DotSums<A, MR> dot_stream(const S* a, index_t lda, const W* weight, index_t depth) {
  constexpr bool kPairs = kDotPairs<S, W>;
  constexpr int NU = kDotUnits<A, MR>;
  DotSums<A, MR> sums;
  auto step = [&](auto left, auto right) __attribute__((always_inline)) {
    std::conditional_t<kPairs, VecU, Vec<A>> av[MR], odd[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      av[m] = left(a + m * lda);
      if constexpr (Split) odd[m] = left(a + m * lda + kLanes<A>);
    }
#pragma GCC unroll 16
    for (int u = 0; u < NU; ++u) {
      auto w = right(weight + u * kStreamStep<W>);
      if constexpr (MR > 1) w = held(w);
      [[maybe_unused]] Vec<A> first, second;
      if constexpr (Split) split_pairs(w, first, second);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        Vec<A>& sum = sums.at(m, u);
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
  return sums;
}

// MR rows times up to lanes units: out[m * ldo + u].
template <int MR, bool Split, bool kStream, class S, class W, class A = acc_t<W>>
SEQKERN_INLINE void dot_rows(const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                             index_t ldo) {
  constexpr int L = kLanes<A>, NU = kDotUnits<A, MR>, kApart = NU < 8 ? NU : 8, kMeeting = NU < 8 ? NU : 4;
  bool meet = ldw * index_t(sizeof(W)) % 4096 == 0;  // in one set of L1, which may not hold eight lines beside others
  for (int u = 0; u < units; u += NU) {
    int here = units - u < NU ? units - u : NU;
    const W* from = weight + u * ldw;
    DotSums<A, MR> sums;
    if constexpr (kStream) sums = dot_stream<MR, Split>(a, lda, weight + u * kStreamStep<W>, depth);
    else if constexpr (Split)
      sums = here == NU ? dot_square_split<MR, true>(a, lda, from, ldw, here, depth)
                        : dot_square_split<MR, false>(a, lda, from, ldw, here, depth);
    else
      sums = here < NU ? dot_square<MR, false, kApart>(a, lda, from, ldw, here, depth)
             : meet    ? dot_square<MR, true, kMeeting>(a, lda, from, ldw, here, depth)
                       : dot_square<MR, true, kApart>(a, lda, from, ldw, here, depth);
    if constexpr (MR == 1) {
      store_over(out, sum_each<A>(sums.partial), here, here == L);
    } else {
      A flat[kDotTrees<A, MR> * L];
      sums.reduce(flat);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m)
        if (here == NU) std::memcpy(out + m * ldo + u, flat + m * NU, NU * sizeof(A));
        else
          for (int j = 0; j < here; ++j) out[m * ldo + u + j] = flat[m * NU + j];
    }
  }
}

// Any number of rows, in blocks of as many as the registers hold.
template <bool Split, bool kStream, class S, class W, class A = acc_t<W>>
void dot_blocks(index_t rows, const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                index_t ldo) {
  constexpr int kMost = kLanes<A> < 4 ? 2 : kVecRegisters == 32 ? 4 : Split ? 2 : 3;
  index_t m = 0;
  auto blocks_of = [&]<int MR>() __attribute__((always_inline)) {
    if constexpr (MR <= kMost)
      for (; m + MR <= rows; m += MR)
        dot_rows<MR, Split, kStream>(a + m * lda, lda, weight, ldw, units, depth, out + m * ldo, ldo);
  };
  blocks_of.template operator()<4>();
  blocks_of.template operator()<3>();
  blocks_of.template operator()<2>();
  blocks_of.template operator()<1>();
}

// The left factor in order, of any storage type.
template <class S, class W, class A = acc_t<W>>
void dot_product(index_t rows, const S* a, index_t lda, const W* weight, index_t ldw, int units, index_t depth, A* out,
                 index_t ldo) {
  dot_blocks<false, false>(rows, a, lda, weight, ldw, units, depth, out, ldo);
}

}  // namespace seqkern::SEQKERN_ISA
