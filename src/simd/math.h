// exp, tanh, the logistic function, erf and the normal distribution's tail, once over Vec: at most 4 ulp in fp32
// (tests/test_math.py).
//
// exp, sigmoid and tanh share the core of exp_parts.h; sigmoid and tanh work on -|x| and |x|, so that nothing
// overflows and nothing cancels. float64 serves gradient checks and uses libm.
#pragma once
#include <cmath>

#include "vec.h"

#include "exp_parts.h"  // uses vec.h
#if defined(__AVX512F__)
#include "normal_table.h"
#endif

namespace seqkern::SEQKERN_ISA {

SEQKERN_INLINE Vec<float> exp(Vec<float> x) {
  x = max(splat(-104.0f), min(splat(89.0f), x));  // overflows to infinity; NaN passes both by
  auto e = exp_parts<VecI>(x);
  return scale_by_power(1.0f + e.expm1_r, e.n);
}

SEQKERN_INLINE Vec<float> abs(Vec<float> x) { return bit_cast<Vec<float>>(bit_cast<VecI>(x) & 0x7fffffff); }

SEQKERN_INLINE Vec<float> sigmoid(Vec<float> x) {
  Vec<float> e = exp(-abs(x));
  return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

// e^x = power (1 + expm1_r) for -87 <= x <= 89, in fewer operations: ln 2 in one part is off by 2e-9 n.
struct ScaledExp {
  Vec<float> expm1_r, power;
};

SEQKERN_INLINE ScaledExp scaled_exp(Vec<float> x) {
  constexpr float kRound = 12582912.0f + 127;  // leaves the exponent field of 2^n in the low bits
  Vec<float> biased = x * 1.44269504f + kRound, whole = biased - kRound;
  return {expm1_reduced(x - whole * 0.69314718f), bit_cast<Vec<float>>(bit_cast<VecI>(biased) << 23)};
}

SEQKERN_INLINE Vec<float> tanh(Vec<float> x) {
  VecI sign = bit_cast<VecI>(x) & std::int32_t(0x80000000);
  Vec<float> a = min(splat(10.0f), abs(x));
  ScaledExp e = scaled_exp(a + a);
  Vec<float> expm1 = e.power * e.expm1_r + (e.power - 1.0f);
  return bit_cast<Vec<float>>(bit_cast<VecI>(expm1 / (expm1 + 2.0f)) | sign);
}

// The logistic function of a gate: sigmoid, but 0 below -88.4, where that goes on into the subnormal numbers.
SEQKERN_INLINE Vec<float> gate(Vec<float> x) {
  ScaledExp e = scaled_exp(max(splat(-87.0f), min(splat(89.0f), -x)));  // its power becomes infinite
  return 1.0f / (e.power * (1.0f + e.expm1_r) + 1.0f);
}

SEQKERN_INLINE Normal<Vec<float>> normal(Vec<float> a) { return normal_parts<VecI>(a); }

#if defined(__AVX512F__)
// Q(a) alone, a >= 0: near 0 from a table, a polynomial for each piece. Lane by lane: what stands beside a value, which
// may be anything, must not show in its bits.
SEQKERN_INLINE Vec<float> normal_tail(Vec<float> a) {
  constexpr float kRound = 12582912.0f, kEnd = (kTailPieces - 0.5f) / kTailPerUnit;
  Vec<float> biased = a * kTailPerUnit + kRound, d = a * kTailPerUnit - (biased - kRound);
  auto coefficient = [&](int k) {
    return Vec<float>(_mm512_maskz_permutexvar_ps(__mmask16(-1), (__m512i)biased, load(kTail[k])));
  };
  Vec<float> q = coefficient(kTailDegree);
#pragma GCC unroll 8
  for (int k = kTailDegree - 1; k >= 0; --k) q = q * d + coefficient(k);
  if (_mm512_cmp_ps_mask(a, splat(kEnd), _CMP_NLT_UQ)) [[unlikely]]
    q = a < kEnd ? q : normal(a).tail;
  return q;
}
#endif

SEQKERN_INLINE Vec<float> erf(Vec<float> x) {
  Vec<float> a = abs(x), z = x * x;
  Vec<float> far = 1.0f - 2.0f * normal(a * 1.41421356f).tail;
  Vec<float> q = -5.63141890e-4f * z + 4.91755037e-3f;
  q = q * z - 2.67113112e-2f;
  q = q * z + 0.112801798f;
  q = q * z - 0.376123250f;
  q = q * z + 0.128379121f;
  VecI sign = bit_cast<VecI>(x) & std::int32_t(0x80000000);
  return a < 1.0f ? x + x * q : bit_cast<Vec<float>>(bit_cast<VecI>(far) | sign);
}

// float64: lane by lane through libm.
template <class F>
SEQKERN_INLINE Vec<double> each_lane(Vec<double> x, F f) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = f(x[i]);
  return x;
}
SEQKERN_INLINE Vec<double> exp(Vec<double> x) {
  return each_lane(x, [](double v) { return __builtin_exp(v); });
}
SEQKERN_INLINE Vec<double> tanh(Vec<double> x) {
  return each_lane(x, [](double v) { return __builtin_tanh(v); });
}
SEQKERN_INLINE Vec<double> abs(Vec<double> x) {
  return each_lane(x, [](double v) { return __builtin_fabs(v); });
}
SEQKERN_INLINE Normal<Vec<double>> normal(Vec<double> a) {
  return {each_lane(a, [](double v) { return 0.5 * __builtin_erfc(v * 0.70710678118654752440); }),
          exp(a * a * -0.5) * 0.39894228040143267794};
}
SEQKERN_INLINE Vec<double> sigmoid(Vec<double> x) {
  return each_lane(x, [](double v) {
    double e = __builtin_exp(v < 0 ? v : -v);
    return (v < 0 ? e : 1.0) / (1.0 + e);
  });
}
SEQKERN_INLINE Vec<double> gate(Vec<double> x) { return sigmoid(x); }

template <class V>
SEQKERN_INLINE V normal_tail(V a) {
  return normal(a).tail;
}

}  // namespace seqkern::SEQKERN_ISA
