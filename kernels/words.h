// float32 rounded to words: 16-bit whole numbers, of which AVX-512 VNNI multiplies and adds twice
// as many at a time as floats.
//
//     x ≈ scale · p,  |p| <= 4095,  scale = the greatest |x| of those that share it / 4095
//
// The sum of 128 products of such words fits 32 bits. Words lie in pairs, neighbours in a sum
// beside each other, 32 bits that are carried about as a float's.
#pragma once

#include "math.h"

#if defined(__AVX512VNNI__)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kWordBlock = 128;  // most words in a sum
constexpr float kMostWord = 4095.0f;
static_assert(INT64_C(4095) * 4095 * kWordBlock <= 0x7fffffff, "sums of a block fit");

// sum + two products of words a lane. Of the intrinsic GCC 12 copies sums to other registers and to
// memory.
TENARAI_INLINE __m512i add_pair_products(__m512i sum, __m512i a, __m512i b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

// Magnitudes are compared as integers: a NaN is larger than all, and makes the scale NaN.
TENARAI_INLINE vi magnitude(vf v) { return bits(v) & 0x7fffffff; }
TENARAI_INLINE vi larger(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }

// Of numbers whose greatest magnitude is this, lane for lane.
struct Rounding {
  vf scale, inverse;  // of words; of numbers
  explicit TENARAI_ALWAYS Rounding(vi largest)
      : scale((vf)largest * (1.0f / kMostWord)),
        inverse((vf)largest > 1e-30f ? kMostWord / (vf)largest : vf{}) {}
};

// Each lane a word, in its lower half.
TENARAI_INLINE __m512i to_words(vf x) { return _mm512_cvtps_epi32((__m512)x); }
TENARAI_INLINE vf pair_words(__m512i even, __m512i odd) {
  return (vf)_mm512_mask_mov_epi16(_mm512_slli_epi32(odd, 16), 0x55555555u, even);
}
TENARAI_INLINE __m512i two_words(const float* pair) {
  int32_t two;
  std::memcpy(&two, pair, 4);
  return _mm512_set1_epi32(two);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
