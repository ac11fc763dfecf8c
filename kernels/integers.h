// Vectors of 16-bit words and the products that simd.h's operators lack.
#pragma once

#include "simd.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace tenarai {
namespace TENARAI_ISA {

constexpr int kWords = kVectorBytes / 2;

typedef int16_t vs __attribute__((vector_size(kVectorBytes)));
typedef uint8_t vhalf __attribute__((vector_size(kVectorBytes / 2)));
typedef int8_t vhalf_signed __attribute__((vector_size(kVectorBytes / 2)));

TENARAI_INLINE vs load_words(const int16_t* p) {
  vs v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TENARAI_INLINE void store_words(int16_t* p, vs v) { std::memcpy(p, &v, sizeof v); }

// kWords bytes, each of them made a word.
TENARAI_INLINE vs widen(const uint8_t* p) {
#if defined(__AVX512BW__)
  return (vs)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vs)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
  vhalf v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vs);
#endif
}
TENARAI_INLINE vs widen(const int8_t* p) {
#if defined(__AVX512BW__)
  return (vs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
  vhalf_signed v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vs);
#endif
}

// sum + a · b, each lane of the sum with two of the products; which two is the machine's affair.
TENARAI_INLINE vi add_products(vi sum, vs a, vs b) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return sum + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON) && !defined(__ARM_FEATURE_SVE)
  const int32x4_t low =
      vmlal_s16((int32x4_t)sum, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  return (vi)vmlal_high_s16(low, (int16x8_t)a, (int16x8_t)b);
#else
  const vi p = (vi)a, q = (vi)b;
  return sum + (p << 16 >> 16) * (q << 16 >> 16) + (p >> 16) * (q >> 16);
#endif
}

#if defined(__AVX512BW__)
// The same where there is no sum yet.
TENARAI_INLINE vi products(vs a, vs b) { return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#endif

// sum + a · b where lane i of the sum gets products 2i and 2i + 1.
TENARAI_INLINE vi add_pairs(vi sum, vs a, vs b) {
#if defined(__SSE2__)
  return add_products(sum, a, b);
#else
  const vi p = (vi)a, q = (vi)b;
  return sum + (p << 16 >> 16) * (q << 16 >> 16) + (p >> 16) * (q >> 16);
#endif
}

// Loads v once, where the compiler would load it again for every use.
TENARAI_INLINE vs keep_in_register(vs v) {
#if defined(__SSE2__)
  asm("" : "+v"(v));
#endif
  return v;
}

TENARAI_INLINE vf to_floats(vi v) { return __builtin_convertvector(v, vf); }

}  // namespace TENARAI_ISA
}  // namespace tenarai
