// exp, tanh, the logistic function, erf and the normal distribution's tail, once over Vec: at most 4 ulp in fp32
// (tests/test_math.py).
//
// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln(2) / 2, and e^r - 1 = r + r^2 q(r): q is a polynomial
// of degree 4 fitted at Chebyshev points. All three functions share that core; sigmoid and tanh work on
// -|x| and |x|, so that nothing overflows and nothing cancels. float64 serves gradient checks and uses libm.
#pragma once
#include <cmath>

#include "vec.h"

namespace seqkern::SEQKERN_ISA {

struct ExpParts {
  Vec<float> expm1_r;  // e^r - 1
  VecI n;
};

// x + low, where low is small: what rounding cut off x.
template <class... Low>
SEQKERN_INLINE ExpParts exp_parts(Vec<float> x, Low... low) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  Vec<float> biased = x * 1.44269504f + kRound;
  VecI n = bit_cast<VecI>(biased) - bit_cast<std::int32_t>(kRound);
  Vec<float> whole = biased - kRound;
  Vec<float> r = x - whole * 0.693359375f;
  r = (r + ... + low) + whole * 2.12194440e-4f;
  Vec<float> q = 1.393368817e-3f * r + 8.363205008e-3f;
  q = q * r + 4.166646302e-2f;
  q = q * r + 1.666657627e-1f;
  q = q * r + 0.5f;
  return {r + r * r * q, n};
}

SEQKERN_INLINE Vec<float> exp(Vec<float> x) {
  x = x > 89.0f ? splat(89.0f) : x;  // overflows to infinity; NaN passes both comparisons by
  x = x < -104.0f ? splat(-104.0f) : x;
  ExpParts e = exp_parts(x);
  return scale_by_power(1.0f + e.expm1_r, e.n);
}

SEQKERN_INLINE Vec<float> abs(Vec<float> x) { return bit_cast<Vec<float>>(bit_cast<VecI>(x) & 0x7fffffff); }

SEQKERN_INLINE Vec<float> sigmoid(Vec<float> x) {
  Vec<float> e = exp(-abs(x));
  return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

SEQKERN_INLINE Vec<float> tanh(Vec<float> x) {
  VecI sign = bit_cast<VecI>(x) & std::int32_t(0x80000000);
  Vec<float> a = abs(x);
  a = a > 10.0f ? splat(10.0f) : a;
  ExpParts e = exp_parts(a + a);
  Vec<float> power = bit_cast<Vec<float>>((e.n + 127) << 23);
  Vec<float> expm1 = power * e.expm1_r + (power - 1.0f);
  return bit_cast<Vec<float>>(bit_cast<VecI>(expm1 / (expm1 + 2.0f)) | sign);
}

// Q(a) = 1 - Phi(a), the tail of the normal distribution, and its density phi(a), for a >= 0.
//   e^(-a^2 / 2): a = h + l with h of 12 bits, so that h^2 is exact and -l (a + h) / 2 joins the reduced argument.
//   (a + 3) Q(a) e^(a^2 / 2) is a polynomial in (a - 3) / (a + 3), fitted for a relative error of 5e-8.
// From a = 13.2 on, where a Q(a) is below the smallest normal number, both are 0.
template <class V>
struct Normal {
  V tail, density;
};

SEQKERN_INLINE Normal<Vec<float>> normal(Vec<float> a) {
  constexpr float kEnd = 13.2f;
  auto within = a < kEnd;
  a = a > kEnd ? splat(kEnd) : a;
  Vec<float> h = bit_cast<Vec<float>>(bit_cast<VecI>(a) & std::int32_t(0xfffff000));
  ExpParts e = exp_parts(h * h * -0.5f, (a - h) * (a + h) * -0.5f);
  Vec<float> power = bit_cast<Vec<float>>(within ? (e.n + 127) << 23 : VecI{});
  power = power + power * e.expm1_r;
  Vec<float> inverse = 1.0f / (a + 3.0f), t = (a - 3.0f) * inverse, t2 = t * t;
  // In pairs of terms: the chain of a Horner scheme would be longer than what the CPU can overlap.
  Vec<float> q0 = -0.509332359f * t + 0.729083657f, q2 = -4.72551212e-2f * t + 0.230019405f;
  Vec<float> q4 = 6.91923406e-3f * t - 1.04801124e-2f, q6 = -8.96690122e-4f * t + 1.07445009e-3f;
  Vec<float> t4 = t2 * t2, low = q2 * t2 + q0, high = (q6 - 2.62247981e-4f * t2) * t2 + q4;
  return {(high * t4 + low) * inverse * power, power * 0.398942280f};
}

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

}  // namespace seqkern::SEQKERN_ISA
