// The core of exp, and the normal distribution over it, once over V and the integers I beside it: Vec<float> and
// VecI on the CPU, float and int32 on the GPU.
//
// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln(2) / 2, and e^r - 1 = r + r^2 q(r): q is a polynomial
// of degree 4 fitted at Chebyshev points.
#pragma once
#include <cstdint>

namespace seqkern::SEQKERN_ISA {

// e^r - 1 for |r| <= ln(2) / 2; in pairs of terms, for a Horner scheme is a chain longer than the CPU can overlap.
template <class V>
SEQKERN_INLINE V expm1_reduced(V r) {
  V r2 = r * r, low = 1.666657627e-1f * r + 0.5f, high = 8.363205008e-3f * r + 4.166646302e-2f;
  return r2 * (r2 * (1.393368817e-3f * r2 + high) + low) + r;
}

template <class V, class I>
struct ExpParts {
  V expm1_r;  // e^r - 1
  I n;
};

// x + low, where low is small: what rounding cut off x.
template <class I, class V, class... Low>
SEQKERN_INLINE ExpParts<V, I> exp_parts(V x, Low... low) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  V biased = x * 1.44269504f + kRound;
  I n = bit_cast<I>(biased) - bit_cast<std::int32_t>(kRound);
  V whole = biased - kRound;
  V r = x - whole * 0.693359375f;
  r = (r + ... + low) + whole * 2.12194440e-4f;
  return {expm1_reduced(r), n};
}

// Q(a) = 1 - Phi(a), the tail of the normal distribution, and its density phi(a), for a >= 0.
//   e^(-a^2 / 2): a = h + l with h of 12 bits, so that h^2 is exact and -l (a + h) / 2 joins the reduced argument.
//   (a + 3) Q(a) e^(a^2 / 2) is a polynomial in (a - 3) / (a + 3), fitted for a relative error of 5e-8.
// From a = 13.2 on, where a Q(a) is below the smallest normal number, both are 0.
template <class V>
struct Normal {
  V tail, density;
};

// ... from inverse = 1 / (a + 3) and power = e^(-a^2 / 2), a <= 13.2.
template <class V>
SEQKERN_INLINE Normal<V> normal_of(V a, V inverse, V power) {
  V t = (a - 3.0f) * inverse, t2 = t * t;
  // In pairs of terms: the chain of a Horner scheme would be longer than what the CPU can overlap.
  V q0 = -0.509332359f * t + 0.729083657f, q2 = -4.72551212e-2f * t + 0.230019405f;
  V q4 = 6.91923406e-3f * t - 1.04801124e-2f, q6 = -8.96690122e-4f * t + 1.07445009e-3f;
  V t4 = t2 * t2, low = q2 * t2 + q0, high = (q6 - 2.62247981e-4f * t2) * t2 + q4;
  return {(high * t4 + low) * inverse * power, power * 0.398942280f};
}

template <class I, class V>
SEQKERN_INLINE Normal<V> normal_parts(V a) {
  constexpr float kEnd = 13.2f;
  auto within = a < kEnd;
  a = a > kEnd ? V{} + kEnd : a;
  V h = bit_cast<V>(bit_cast<I>(a) & std::int32_t(0xfffff000));
  auto e = exp_parts<I>(h * h * -0.5f, (a - h) * (a + h) * -0.5f);
  V power = bit_cast<V>(within ? (e.n + 127) << 23 : I{});
  return normal_of(a, 1.0f / (a + 3.0f), power + power * e.expm1_r);
}

}  // namespace seqkern::SEQKERN_ISA
