// float16 and bfloat16 (IEEE 754 binary16; the upper half of a binary32) to float32 and back.
// Going back rounds to the nearest, ties to even. A NaN stays a NaN, not with all of its bits.
#pragma once

#include "simd.h"

namespace tenarai {
namespace TENARAI_ISA {

TENARAI_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
TENARAI_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// Exponent and fraction moved to their place in a float, times 2^(127 - 15) for the other bias:
// exact for subnormal numbers too.
TENARAI_INLINE float from_half(uint16_t h) {
#if defined(__F16C__)
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
#else
  const uint32_t rest = h & 0x7fffu;
  const uint32_t u = rest >= 0x7c00u ? 0x7f800000u | (rest & 0x3ffu) << 13
                                     : bits_of(float_of(rest << 13) * 0x1p112f);
  return float_of(u | (h & 0x8000u) << 16);
#endif
}

// Below 2^-14 a float16 counts in steps of 2^-24: adding 0.5 leaves that count, rounded, in the low
// bits. Else the fraction is rounded by adding half of what is cut off, less one where even.
TENARAI_INLINE uint16_t to_half(float x) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, rest = u & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (rest < 0x38800000u)
    return static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000u));
  return static_cast<uint16_t>(sign | ((rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13));
}

TENARAI_INLINE float from_bfloat(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }
TENARAI_INLINE uint16_t to_bfloat(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
