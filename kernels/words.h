// float32 rounded to words: 16-bit whole numbers, of which AVX-512 VNNI and AVX2 multiply twice as
// many at a time as floats. (AVX-512 without VNNI adds on the pipes that multiply: no gain.)
//
//     x ≈ scale · p,  |p| <= 4095,  scale = the greatest |x| of those that share it / 4095
//
// The sum of 128 products of such words fits 32 bits. Words lie in pairs, neighbours in a sum
// beside each other, 32 bits that are carried about as a float's.
#pragma once

#include "math.h"

#if defined(__AVX512VNNI__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define TENARAI_WORDS

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kWordBlock = 128;  // most words in a sum
constexpr float kMostWord = 4095.0f;
static_assert(static_cast<i64>(kMostWord) * static_cast<i64>(kMostWord) * kWordBlock <= 0x7fffffff,
              "sums of a block fit");

// sum + two products of words a lane, b in a register or in memory. Of intrinsics GCC 12 copies
// sums to other registers and to memory.
#if defined(__AVX512VNNI__)
TENARAI_INLINE vi add_pair_products(vi sum, vi a, vi b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
#else
TENARAI_INLINE vi add_pair_products(vi sum, vi a, vi b) {
  vi two;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(two) : "x"(a), "x"(b));
  return sum;
}
TENARAI_INLINE vi add_pair_products(vi sum, vi a, const float* b) {
  typedef int32_t in_memory __attribute__((vector_size(kVectorBytes), may_alias, aligned(4)));
  vi two;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
      : "+x"(sum), "=&x"(two)
      : "x"(a), "m"(*reinterpret_cast<const in_memory*>(b)));
  return sum;
}
#endif

// Magnitudes are compared as integers: a NaN is larger than all, and makes the scale NaN.
TENARAI_INLINE vi magnitude(vf v) { return bits(v) & 0x7fffffff; }
TENARAI_INLINE vi larger(vi a, vi b) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#else
  return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#endif
}

// Of numbers whose greatest magnitude is this, lane for lane.
struct Rounding {
  vf scale, inverse;  // of words; of numbers
  explicit TENARAI_ALWAYS Rounding(vi largest)
      : scale((vf)largest * (1.0f / kMostWord)),
        inverse((vf)largest > 1e-30f ? kMostWord / (vf)largest : vf{}) {}
};

// Each lane a word, in its lower half.
TENARAI_INLINE vi to_words(vf x) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#else
  return (vi)_mm256_cvtps_epi32((__m256)x);
#endif
}
// A pair a lane.
TENARAI_INLINE vf pair_words(vi even, vi odd) {
#if defined(__AVX512VNNI__)
  return (vf)_mm512_mask_mov_epi16((__m512i)(odd << 16), 0x55555555u, (__m512i)even);
#else
  return (vf)_mm256_blend_epi16((__m256i)(odd << 16), (__m256i)even, 0x55);
#endif
}
// The words of a and of b in the halves of each quarter (of 512 bits) or half (of 256).
TENARAI_INLINE vf pack_words(vi a, vi b) {
#if defined(__AVX512VNNI__)
  return (vf)_mm512_packs_epi32((__m512i)a, (__m512i)b);
#else
  return (vf)_mm256_packs_epi32((__m256i)a, (__m256i)b);
#endif
}
TENARAI_INLINE vi load_pairs(const float* p) { return (vi)load(p); }
TENARAI_INLINE vi broadcast_pair(const float* pair) {
  int32_t two;
  std::memcpy(&two, pair, 4);
  return vi{} + two;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
