// Vec<T>: one SIMD register of T, and the only file where the instruction set shows.
//
// Vec is the compiler's own vector type (GCC/Clang vector_size), so + - * / < ?: work as they read, and
// every ISA is the same source compiled with other flags: 16 bytes for the baseline and NEON, 32 for AVX2,
// 64 for AVX-512. Intrinsics appear below only where the language has no word for it: partial loads and
// stores, and scaling by a power of two. Fused multiply-add is a * b + c under -ffp-contract=fast.
#pragma once
#include <cstring>
#include <type_traits>

#include "seqkern/types.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define SEQKERN_INLINE inline __attribute__((always_inline))

namespace seqkern::SEQKERN_ISA {

#if defined(__AVX512F__)
inline constexpr int kVecBytes = 64;
inline constexpr int kVecRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kVecBytes = 32;
inline constexpr int kVecRegisters = 16;
#else
inline constexpr int kVecBytes = 16;
inline constexpr int kVecRegisters = sizeof(void*) == 8 ? 16 : 8;
#endif

template <class T>
inline constexpr int kLanes = kVecBytes / int(sizeof(T));

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
using Vec = typename VecOf<T, kLanes<T>>::type;
using VecI = Vec<std::int32_t>;
using VecU = Vec<std::uint32_t>;
using VecU16 = VecOf<std::uint16_t, kLanes<float>>::type;  // bf16 values of one fp32 register

template <class To, class From>
SEQKERN_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
SEQKERN_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

template <class T>
SEQKERN_INLINE Vec<T> iota() {
  Vec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = T(i);
  return v;
}

// A value that is used more than once: GCC would rather read it again from memory each time.
template <class V>
SEQKERN_INLINE V held(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX2__)
  asm("" : "+x"(v));
#endif
  return v;
}

// ---- whole-register loads and stores; bf16 widens on load and rounds to nearest even on store ----

SEQKERN_INLINE Vec<float> widen(VecU16 v) { return bit_cast<Vec<float>>(__builtin_convertvector(v, VecU) << 16); }
SEQKERN_INLINE VecU16 narrow(Vec<float> v) {
#if defined(__AVX512BF16__)
  constexpr int kSubnormal = 0x20;  // which the instruction takes for zero
  if (!_mm512_fpclass_ps_mask(v, kSubnormal)) [[likely]]
    return bit_cast<VecU16>(_mm512_cvtneps_pbh(v));
#endif
  VecU u = bit_cast<VecU>(v);
  VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  VecU nan = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : nan, VecU16);
}

SEQKERN_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SEQKERN_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SEQKERN_INLINE Vec<float> load(const bf16* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // GCC widens the two halves one by one
  return bit_cast<Vec<float>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  VecU16 v;
  std::memcpy(&v, p, sizeof v);
  return widen(v);
#endif
}
SEQKERN_INLINE Vec<float> load(const std::int8_t* p) {
#if defined(__AVX512F__)
  return __builtin_convertvector((VecI)_mm512_maskz_cvtepi8_epi32(__mmask16(-1), _mm_loadu_si128((const __m128i*)p)),
                                 Vec<float>);
#elif defined(__AVX2__)
  return __builtin_convertvector((VecI)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)), Vec<float>);
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = float(p[i]);
  return v;
#endif
}
SEQKERN_INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
SEQKERN_INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
SEQKERN_INLINE void store(bf16* p, Vec<float> v) {
  VecU16 n = narrow(v);
  std::memcpy(p, &n, sizeof n);
}

// ---- the first n lanes, 0 <= n <= lanes; nothing beyond them is touched; missing lanes read 0 ----

#if defined(__AVX512F__)
SEQKERN_INLINE __mmask16 first(int n) { return __mmask16((1u << n) - 1u); }
SEQKERN_INLINE Vec<float> load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
SEQKERN_INLINE Vec<double> load_n(const double* p, int n) { return _mm512_maskz_loadu_pd(__mmask8(first(n)), p); }
SEQKERN_INLINE Vec<float> load_n(const bf16* p, int n) {
  return widen(bit_cast<VecU16>(_mm256_maskz_loadu_epi16(first(n), p)));
}
SEQKERN_INLINE void store_n(float* p, Vec<float> v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
SEQKERN_INLINE void store_n(double* p, Vec<double> v, int n) { _mm512_mask_storeu_pd(p, __mmask8(first(n)), v); }
SEQKERN_INLINE void store_n(bf16* p, Vec<float> v, int n) {
  _mm256_mask_storeu_epi16(p, first(n), bit_cast<__m256i>(narrow(v)));
}
#else
// Through a buffer on the stack; where AVX2 has a masked form it is used, since tails sit in inner loops.
template <class V, class T>
SEQKERN_INLINE V load_part(const T* p, int n) {
  V v{};
  std::memcpy(&v, p, std::size_t(n) * sizeof(T));
  return v;
}
#if defined(__AVX2__)
SEQKERN_INLINE __m256i first32(int n) { return (__m256i)(iota<std::int32_t>() < n); }
SEQKERN_INLINE __m256i first64(int n) { return (__m256i)(iota<std::int64_t>() < std::int64_t(n)); }
// A masked store of a whole register is many times slower than a plain one (Zen): where the compiler sees that
// all lanes are meant, it is the plain one.
template <class T>
SEQKERN_INLINE bool whole(int n) {
  return __builtin_constant_p(n) && n == kLanes<T>;
}
SEQKERN_INLINE Vec<float> load_n(const float* p, int n) {
  return whole<float>(n) ? load(p) : Vec<float>(_mm256_maskload_ps(p, first32(n)));
}
SEQKERN_INLINE Vec<double> load_n(const double* p, int n) {
  return whole<double>(n) ? load(p) : Vec<double>(_mm256_maskload_pd(p, first64(n)));
}
SEQKERN_INLINE void store_n(float* p, Vec<float> v, int n) {
  if (whole<float>(n)) return store(p, v);
  _mm256_maskstore_ps(p, first32(n), v);
}
SEQKERN_INLINE void store_n(double* p, Vec<double> v, int n) {
  if (whole<double>(n)) return store(p, v);
  _mm256_maskstore_pd(p, first64(n), v);
}
#else
SEQKERN_INLINE Vec<float> load_n(const float* p, int n) { return load_part<Vec<float>>(p, n); }
SEQKERN_INLINE Vec<double> load_n(const double* p, int n) { return load_part<Vec<double>>(p, n); }
SEQKERN_INLINE void store_n(float* p, Vec<float> v, int n) { std::memcpy(p, &v, std::size_t(n) * 4); }
SEQKERN_INLINE void store_n(double* p, Vec<double> v, int n) { std::memcpy(p, &v, std::size_t(n) * 8); }
#endif
SEQKERN_INLINE Vec<float> load_n(const bf16* p, int n) { return widen(load_part<VecU16>(p, n)); }
SEQKERN_INLINE void store_n(bf16* p, Vec<float> v, int n) {
  VecU16 u = narrow(v);
  std::memcpy(p, &u, std::size_t(n) * 2);
}
#endif

// The first n lanes; where `whole`, all of them: n is a register's, or the rest is about to be overwritten. Told at run
// time, it still spares a masked store, which costs tens of cycles on AMD.
template <class A>
SEQKERN_INLINE void store_over(A* out, Vec<A> v, int n, bool whole) {
  if (whole) store(out, v);
  else store_n(out, v, n);
}

SEQKERN_INLINE Vec<float> load_n(const std::int8_t* p, int n) {
  std::int8_t part[kLanes<float>] = {};
  std::memcpy(part, p, std::size_t(n));
  return load(part);
}

// Twice as many bf16 values as a register has lanes, two to a lane; split_pairs widens the first of each pair and
// the second, with one operation each.
SEQKERN_INLINE VecU load_pairs(const bf16* p) {
  VecU v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
#if defined(__AVX512F__)
SEQKERN_INLINE VecU load_pairs_n(const bf16* p, int n) {
  return bit_cast<VecU>(_mm512_maskz_loadu_epi16(__mmask32((std::uint64_t(1) << n) - 1), p));
}
#else
SEQKERN_INLINE VecU load_pairs_n(const bf16* p, int n) { return load_part<VecU>(p, n); }
#endif
SEQKERN_INLINE void split_pairs(VecU v, Vec<float>& first, Vec<float>& second) {
  first = bit_cast<Vec<float>>(v << 16);
  second = bit_cast<Vec<float>>(v & 0xffff0000u);
}

// ---- lane arithmetic ----

// One instruction where there is one, with the meaning of the comparison: b where either is NaN.
template <class V>
SEQKERN_INLINE V max(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>) return _mm512_maskz_max_ps(__mmask16(-1), a, b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>) return _mm256_max_ps(a, b);
#endif
  return a > b ? a : b;
}
template <class V>
SEQKERN_INLINE V min(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>) return _mm512_maskz_min_ps(__mmask16(-1), a, b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>) return _mm256_min_ps(a, b);
#endif
  return a < b ? a : b;
}

// The nearest whole number, for |v| < 2^22, and infinities.
SEQKERN_INLINE Vec<float> nearest(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_maskz_roundscale_ps(__mmask16(-1), v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  return (v + kRound) - kRound;
#endif
}

// v * 2^n for whole n in [-126, 127]; 0 where n is smaller or -infinity.
SEQKERN_INLINE Vec<float> scale_or_zero(Vec<float> v, Vec<float> n) {
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, splat(-126.0f), _CMP_NLT_UQ), v, n);
#else
  VecI power = __builtin_convertvector(n, VecI) + 127;
  return n < -126.0f ? Vec<float>{} : v * bit_cast<Vec<float>>(power << 23);
#endif
}

// v * 2^n for whole n in [-252, 254]: right for subnormal results as well.
SEQKERN_INLINE Vec<float> scale_by_power(Vec<float> v, VecI n) {
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(__mmask16(-1), v, __builtin_convertvector(n, Vec<float>));
#else
  VecI half = n >> 1;
  return v * bit_cast<Vec<float>>((half + 127) << 23) * bit_cast<Vec<float>>((n - half + 127) << 23);
#endif
}

// Lanes of a and b, alternating in runs of `Run`: low halves of each pair of runs, then high halves.
// interleave<Run, High>(a, b): lane i takes run i / Run of (High ? odd : even) runs, from a then b.
template <int Run, bool High, class V>
SEQKERN_INLINE V interleave(V a, V b) {
  constexpr int n = int(sizeof(V) / sizeof(a[0]));
  using Index = typename VecOf<std::conditional_t<sizeof(a[0]) == 8, std::int64_t, std::int32_t>, n>::type;
  Index m{};
  for (int i = 0; i < n; ++i) {
    int run = i / Run, source = (run & ~1) + (High ? 1 : 0);
    m[i] = source * Run + i % Run + ((run & 1) ? n : 0);
  }
  return __builtin_shuffle(a, b, m);
}

// Runs of lanes change places in pairs; swap_runs<1>: lanes 1, 0, 3, 2, ...
template <int Run, class V>
SEQKERN_INLINE V swap_runs(V v) {
  constexpr int n = int(sizeof(V) / sizeof(v[0]));
  using Index = typename VecOf<std::conditional_t<sizeof(v[0]) == 8, std::int64_t, std::int32_t>, n>::type;
  Index m{};
  for (int i = 0; i < n; ++i) m[i] = i ^ Run;
  return __builtin_shuffle(v, m);
}

// In place: rows[i][j] <-> rows[j][i] of a square of registers.
template <class T>
SEQKERN_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  auto stage = [&]<int Run>() __attribute__((always_inline)) {  // or the rows would go through memory
    Vec<T> out[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      int low = i & ~Run, high = i | Run;
      out[i] = (i & Run) ? interleave<Run, true>(rows[low], rows[high]) : interleave<Run, false>(rows[low], rows[high]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = out[i];
  };
  if constexpr (n > 1) stage.template operator()<1>();
  if constexpr (n > 2) stage.template operator()<2>();
  if constexpr (n > 4) stage.template operator()<4>();
  if constexpr (n > 8) stage.template operator()<8>();
}

// Lane i of the result is the sum over the lanes of rows[i]: always the same tree, whatever the caller.
template <class T>
SEQKERN_INLINE Vec<T> sum_each(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  auto stage = [&]<int Run>() __attribute__((always_inline)) {  // or the rows would go through memory
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 2 * Run)
      rows[i] = interleave<Run, false>(rows[i], rows[i + Run]) + interleave<Run, true>(rows[i], rows[i + Run]);
  };
  if constexpr (n > 1) stage.template operator()<1>();
  if constexpr (n > 2) stage.template operator()<2>();
  if constexpr (n > 4) stage.template operator()<4>();
  if constexpr (n > 8) stage.template operator()<8>();
  return rows[0];
}

// By sum_each's tree: lane after lane takes longer than all else that layer norm does to a row.
template <class V>
SEQKERN_INLINE auto sum_lanes(V v) {
  constexpr int n = int(sizeof(V) / sizeof(v[0]));
  if constexpr (n > 1) v = v + swap_runs<1>(v);
  if constexpr (n > 2) v = v + swap_runs<2>(v);
  if constexpr (n > 4) v = v + swap_runs<4>(v);
  if constexpr (n > 8) v = v + swap_runs<8>(v);
  return v[0];
}
// Halves first: lane after lane takes as long as all that attention's softmax does to a block of keys.
template <class V>
SEQKERN_INLINE auto max_lanes(V v) {
  constexpr int n = int(sizeof(V) / sizeof(v[0]));
  if constexpr (n > 8) v = max(v, swap_runs<8>(v));
  if constexpr (n > 4) v = max(v, swap_runs<4>(v));
  if constexpr (n > 2) v = max(v, swap_runs<2>(v));
  if constexpr (n > 1) v = max(v, swap_runs<1>(v));
  return v[0];
}

template <class T>
SEQKERN_INLINE T to_storage(acc_t<T> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    std::uint32_t u = bit_cast<std::uint32_t>(v);
    return v == v ? bf16{std::uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)}
                  : bf16{std::uint16_t((u >> 16) | 0x40u)};
  } else {
    return v;
  }
}
template <class T>
SEQKERN_INLINE acc_t<T> from_storage(T v) {
  if constexpr (std::is_same_v<T, bf16>) {
    return bit_cast<float>(std::uint32_t(v.bits) << 16);
  } else {
    return v;
  }
}

}  // namespace seqkern::SEQKERN_ISA
