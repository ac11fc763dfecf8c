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

// What the two kinds of CPUs have instructions for:
//   add_pair_products(sum, a, b)   sum + two products of words a lane
//   larger(a, b)                   of integers, lane for lane
//   to_words(x)                    each lane a word, in its lower half
//   pair_words(even, odd)          a pair a lane
//   pack_words(a, b)               words of a and b, four of each in turn
// The products are assembly, since of intrinsics GCC 12 copies sums to other registers and memory.
#if defined(__AVX512VNNI__)
TENARAI_INLINE vi add_pair_products(vi sum, vi a, vi b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
TENARAI_INLINE vi larger(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
TENARAI_INLINE vi to_words(vf x) { return (vi)_mm512_cvtps_epi32((__m512)x); }
TENARAI_INLINE vf pair_words(vi even, vi odd) {
  return (vf)_mm512_mask_mov_epi16((__m512i)(odd << 16), 0x55555555u, (__m512i)even);
}
TENARAI_INLINE vf pack_words(vi a, vi b) { return (vf)_mm512_packs_epi32((__m512i)a, (__m512i)b); }
#else
TENARAI_INLINE vi add_pair_products(vi sum, vi a, vi b) {
  vi two;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(two) : "x"(a), "x"(b));
  return sum;
}
TENARAI_INLINE vi add_pair_products(vi sum, vi a, const float* b) {  // b stays in memory
  typedef int32_t in_memory __attribute__((vector_size(kVectorBytes), may_alias, aligned(4)));
  vi two;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
      : "+x"(sum), "=&x"(two)
      : "x"(a), "m"(*reinterpret_cast<const in_memory*>(b)));
  return sum;
}
TENARAI_INLINE vi larger(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
TENARAI_INLINE vi to_words(vf x) { return (vi)_mm256_cvtps_epi32((__m256)x); }
TENARAI_INLINE vf pair_words(vi even, vi odd) {
  return (vf)_mm256_blend_epi16((__m256i)(odd << 16), (__m256i)even, 0x55);
}
TENARAI_INLINE vf pack_words(vi a, vi b) { return (vf)_mm256_packs_epi32((__m256i)a, (__m256i)b); }
#endif

// Magnitudes are compared as integers: a NaN is larger than all, and makes the scale NaN.
TENARAI_INLINE vi magnitude(vf v) { return bits(v) & 0x7fffffff; }
// The largest of kLanes rows, lane for lane; the rows are lost.
TENARAI_INLINE vi largest_of(vf* rows) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) rows[i] = (vf)larger((vi)rows[i], (vi)rows[i + half]);
  return (vi)rows[0];
}

// Of numbers whose greatest magnitude is this, lane for lane.
struct Rounding {
  vf scale, inverse;  // of words; of numbers
  explicit TENARAI_ALWAYS Rounding(vi largest)
      : scale((vf)largest * (1.0f / kMostWord)),
        inverse((vf)largest > 1e-30f ? kMostWord / (vf)largest : vf{}) {}
};

TENARAI_INLINE vi load_pairs(const float* p) { return (vi)load(p); }
TENARAI_INLINE vi broadcast_pair(const float* pair) {
  int32_t two;
  std::memcpy(&two, pair, 4);
  return vi{} + two;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
