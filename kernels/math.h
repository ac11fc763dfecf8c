// exp, tanh, erf and GELU on vectors. NaN in gives NaN out; relative error at most 2e-7 (erf and
// exp about one unit in the last place; tests/test_kernels.cc measures them).
//
// Coefficients are minimax fits (Lawson's iteration, weights for the relative error) of the
// expression that stands above each.
#pragma once

#include "simd.h"

namespace tenarai {
namespace TENARAI_ISA {

TENARAI_INLINE vi bits(vf x) {
  vi i;
  std::memcpy(&i, &x, sizeof i);
  return i;
}
TENARAI_INLINE vf from_bits(vi i) {
  vf x;
  std::memcpy(&x, &i, sizeof x);
  return x;
}
TENARAI_INLINE vf abs(vf x) { return from_bits(bits(x) & 0x7fffffff); }
TENARAI_INLINE vf copy_sign(vf magnitude, vf sign) {
  return from_bits(bits(magnitude) | (bits(sign) & static_cast<int32_t>(0x80000000)));
}
// min and max of simd.h with the arguments so ordered that a NaN in x stays.
TENARAI_INLINE vf clamp(vf x, float low, float high) {
  return min(broadcast(high), max(broadcast(low), x));
}

// x = n ln 2 + r with |r| <= ln 2 / 2: returns r, and the integer n.
TENARAI_INLINE vf exp_reduce(vf x, vi* n) {
  const float round = 12582912.0f;  // 1.5 · 2^23: adding it leaves the integer in the low bits
  const vf t = x * 1.44269504f + round;
  *n = bits(t) - 0x4b400000;
  const vf whole = t - round;
  return (x - whole * 0.693359375f) -
         whole * -2.12194440e-4f;  // ln 2 in two parts, the first exact
}
// e^r - 1 for |r| <= ln 2 / 2: r + r² (e^r - 1 - r)/r².
TENARAI_INLINE vf exp_minus_1(vf r) {
  vf p = r * 1.3951669643e-3f + 8.3696029864e-3f;
  p = p * r + 4.166618795e-2f;
  p = p * r + 0.16666512838f;
  p = p * r + 0.50000001008f;
  return r + r * r * p;
}
TENARAI_INLINE vf power_of_2(vi n) { return from_bits((n + 127) << 23); }  // -127 < n < 128

TENARAI_INLINE vf exp(vf x) {
  vi n;
  const vf r = exp_reduce(clamp(x, -104.0f, 89.0f), &n);  // beyond: 0 and infinity
  const vi half = n >> 1;  // 2^n itself may not be a float where the result still is
  return (exp_minus_1(r) + 1.0f) * power_of_2(half) * power_of_2(n - half);
}

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// 2^x − 2^-125 for x up to 126, which is 0 where x < -125: beside a greatest weight of 1 that is
// nothing, and products with it would be denormal numbers, which are slow.
// 2^x = 2^n 2^f with |f| <= 1/2, 2^f = 1 + f P(f) to 9e-8 (minimax).
TENARAI_INLINE vf exp2_weight(vf x) {
  const float round = 12582912.0f;  // 1.5 · 2^23: adding it leaves the integer in the low bits
  x = max(broadcast(-125.0f), x);   // in this order a NaN stays
  const vf t = x + round, f = x - (t - round);
  vf p = f * 1.326472725e-3f + 9.671512688e-3f;
  p = p * f + 5.550733744e-2f;
  p = p * f + 0.2402224208f;
  p = p * f + 0.6931469776f;
  p = p * f + 1.0f;
  return p * from_bits((bits(t) << 23) + 0x3f800000) - 0x1p-125f;
}

// (e^2x - 1) / (e^2x + 1), the numerator without cancellation.
TENARAI_INLINE vf tanh(vf x) {
  vi n;
  const vf r = exp_reduce(clamp(abs(x), 0.0f, 10.0f) * 2.0f, &n);  // 1 - tanh(10) < 2^-25
  const vf scale = power_of_2(n);
  const vf numerator = exp_minus_1(r) * scale + (scale - 1.0f);
  return copy_sign(numerator / (numerator + 2.0f), x);
}

// Below 1: x + x P(x²). Above: 1 - e^(-Q(x)), Q = -ln(1 - erf x).
TENARAI_INLINE vf erf(vf x) {
  const vf a = clamp(abs(x), 0.0f, 4.0f);  // 1 - erf(4) < 2^-25
  const vf z = a * a;
  vf p = z * 7.8537766556e-5f - 8.0101679661e-4f;
  p = p * z + 5.1883247641e-3f;
  p = p * z - 2.6853810397e-2f;
  p = p * z + 0.11283585112f;
  p = p * z - 0.37612625821f;
  p = p * z + 0.12837916573f;
  const vf small = a + a * p;

  vf q = a * -1.9244787276e-4f + 3.0087397382e-3f;
  q = q * a - 2.208840688e-2f;
  q = q * a + 0.1036418325f;
  q = q * a + 0.63751537417f;
  q = q * a + 1.1274759122f;
  q = q * a + 2.4449903738e-4f;
  vi n;
  const vf r = exp_reduce(-q, &n);  // q < 18
  const vf scale = power_of_2(n);
  const vf large = (1.0f - scale) - exp_minus_1(r) * scale;
  return copy_sign(a < 1.0f ? small : large, x);
}

// GELU and its derivative. kTanh: x/2 (1 + tanh u) = x / (1 + e^-2u), u = √(2/π)(x + 0.044715 x³).
// Else x Φ(x), Φ(x) = (1 + erf(x/√2))/2.
template <bool kTanh>
TENARAI_INLINE vf gelu(vf x) {
  if constexpr (kTanh) return x / (exp(x * (x * x * -0.0713548162f - 1.59576912f)) + 1.0f);
  return x * (erf(x * 0.707106781f) * 0.5f + 0.5f);
}
// d/dx of the two: s + x s (1 - s) 2u' with s = 1 / (1 + e^-2u), and Φ(x) + x φ(x).
template <bool kTanh>
TENARAI_INLINE vf gelu_derivative(vf x) {
  if constexpr (kTanh) {
    const vf c = clamp(x, -10.0f, 10.0f);  // beyond: 0 and 1, but infinity times 0 on the way
    const vf e = exp(c * (c * c * -0.0713548162f - 1.59576912f));
    const vf s = 1.0f / (e + 1.0f);
    return s + c * s * (e * s) * (c * c * 0.214064449f + 1.59576912f);
  }
  const vf c = clamp(x, -15.0f, 15.0f);
  const vf density = exp(c * c * -0.5f) * 0.398942280f;
  return erf(c * 0.707106781f) * 0.5f + 0.5f + c * density;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
