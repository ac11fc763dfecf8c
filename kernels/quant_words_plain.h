// The plain formats, and IQ4_XS, as words (quant_words.h): 32 weights, low nibbles first, some of
// them levels of a table.
#pragma once

#include "quant_words_k.h"

namespace tenarai {
namespace TENARAI_ISA {

// With 32 words in a vector, the 16 low nibbles of a block and those of the next one make a vector,
// their high nibbles another: kPaired. Activations are put in the same order (quant_activations.h).
#if defined(__AVX512BW__)
constexpr bool kPaired = true;

// 16 bytes at a and 16 at b.
TENARAI_INLINE __m256i bytes_of(const uint8_t* a, const uint8_t* b) {
  return _mm256_loadu2_m128i((const __m128i*)b, (const __m128i*)a);
}
TENARAI_INLINE void nibbles(const uint8_t* a, const uint8_t* b, vs* words) {
  const vs v = (vs)_mm512_cvtepu8_epi16(bytes_of(a, b));
  words[0] = v & 15;
  words[1] = v >> 4;
}
TENARAI_INLINE void table_levels(const uint8_t* a, const uint8_t* b, vs* words) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kLevels));
  const __m256i bytes = bytes_of(a, b), mask = _mm256_set1_epi8(15);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
  words[0] = (vs)_mm512_cvtepi8_epi16(_mm256_shuffle_epi8(table, _mm256_and_si256(bytes, mask)));
  words[1] = (vs)_mm512_cvtepi8_epi16(_mm256_shuffle_epi8(table, high));
}
// Words whose bit is set become 16 higher.
TENARAI_INLINE void add_fifths(const uint8_t* a, const uint8_t* b, vs* words) {
  const uint32_t of_a = load_u32(a), of_b = load_u32(b);
  const __mmask32 low = (of_a & 0xffff) | of_b << 16, high = of_a >> 16 | (of_b & 0xffff0000);
  const __m512i more = _mm512_set1_epi16(16);
  words[0] = (vs)_mm512_mask_add_epi16((__m512i)words[0], low, (__m512i)words[0], more);
  words[1] = (vs)_mm512_mask_add_epi16((__m512i)words[1], high, (__m512i)words[1], more);
}
#else
constexpr bool kPaired = false;

// The 16 bytes of one block.
TENARAI_INLINE void half_nibbles(const uint8_t* p, vs* words) {
  if constexpr (kWords <= 16) {
#pragma GCC unroll 2
    for (int h = 0; h < 16 / kWords; ++h) {
      const vs v = widen(p + h * kWords);
      words[h] = v & 15;
      words[h + 16 / kWords] = v >> 4;
    }
  } else {
    int8_t q[32];
    unpack_nibbles<16, 0>(p, q);
    words[0] = widen(q);
  }
}
TENARAI_INLINE void half_levels(const uint8_t* p, vs* words) {
#if defined(__AVX2__)
  const __m128i table = _mm_loadu_si128((const __m128i*)kLevels);
  const __m128i bytes = _mm_loadu_si128((const __m128i*)p), mask = _mm_set1_epi8(15);
  const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  words[0] = (vs)_mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, _mm_and_si128(bytes, mask)));
  words[1] = (vs)_mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, high));
#else
  int8_t q[32];
  unpack_table(p, q);
  for (int c = 0; c < kHalves; ++c) words[c] = widen(q + c * kWords);
#endif
}
TENARAI_INLINE void half_fifths(const uint8_t* high, vs* words) {
  const uint32_t bits = load_u32(high);
  int16_t fifth[32];
  for (int i = 0; i < 32; ++i) fifth[i] = static_cast<int16_t>((bits >> i & 1) << 4);
  for (int h = 0; h < kHalves; ++h) words[h] += load_words(fifth + h * kWords);
}
TENARAI_INLINE void nibbles(const uint8_t* a, const uint8_t* b, vs* words) {
  half_nibbles(a, words);
  half_nibbles(b, words + kHalves);
}
TENARAI_INLINE void table_levels(const uint8_t* a, const uint8_t* b, vs* words) {
  half_levels(a, words);
  half_levels(b, words + kHalves);
}
TENARAI_INLINE void add_fifths(const uint8_t* a, const uint8_t* b, vs* words) {
  half_fifths(a, words);
  half_fifths(b, words + kHalves);
}
#endif

TENARAI_INLINE void unpack_words(const IQ4_XS& b, vs* words, float*) {
  // Eight nibbles, and above them eight pairs of bits, spread to bytes.
  uint64_t low = load_u32(b.scale_low), high = b.scale_high;
  low = (low | low << 16) & 0x0000ffff0000ffff;
  low = (low | low << 8) & 0x00ff00ff00ff00ff;
  low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f;
  high = (high | high << 24) & 0x000000ff000000ff;
  high = (high | high << 12) & 0x000f000f000f000f;
  high = (high | high << 6) & 0x0303030303030303;
  Scales32 s;
  set_pairs<32>(&s, low | high << 4);
  int8_t q[kSuperBlock];
#if defined(__AVX2__)
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kLevels));
  const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 8
  for (int sub = 0; sub < 8; ++sub) {  // low nibbles, then high ones
    const __m128i bytes = _mm_loadu_si128((const __m128i*)(b.q + 16 * sub));
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
    _mm256_storeu_si256((__m256i*)(q + 32 * sub),
                        _mm256_shuffle_epi8(table, _mm256_and_si256(both, mask)));
  }
#else
  unpack_levels(b, q);
#endif
#pragma GCC unroll 8
  for (int sub = 0; sub < 8; ++sub) {
    const int8_t* from = q + 32 * sub;
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h)
      words[sub * kHalves + h] = widen(from + h * kWords) * s.of(sub);
  }
}

// Two plain blocks.
TENARAI_INLINE void unpack_two(const Q4_0* b, vs* words) {
  nibbles(b[0].q, b[1].q, words);
#pragma GCC unroll 8
  for (int c = 0; c < 2 * kHalves; ++c) words[c] -= 8;
}
TENARAI_INLINE void unpack_two(const Q4_1* b, vs* words) { nibbles(b[0].q, b[1].q, words); }
TENARAI_INLINE void unpack_two(const Q5_0* b, vs* words) {
  nibbles(b[0].q, b[1].q, words);
  add_fifths(b[0].high, b[1].high, words);
#pragma GCC unroll 8
  for (int c = 0; c < 2 * kHalves; ++c) words[c] -= 16;
}
TENARAI_INLINE void unpack_two(const Q5_1* b, vs* words) {
  nibbles(b[0].q, b[1].q, words);
  add_fifths(b[0].high, b[1].high, words);
}
TENARAI_INLINE void unpack_two(const IQ4_NL* b, vs* words) { table_levels(b[0].q, b[1].q, words); }
TENARAI_INLINE void unpack_two(const Q8_0* b, vs* words) {
#pragma GCC unroll 4
  for (int h = 0; h < kHalves; ++h) {
    words[h] = widen(b[0].q + h * kWords);
    words[kHalves + h] = widen(b[1].q + h * kWords);
  }
}

// Scales and minima of eight plain blocks, which all begin with d, some with d and m.
template <class Plain>
TENARAI_INLINE void plain_factors(const Plain* b, Group* g) {
#if defined(__AVX512F__)
  // One by one: GCC would write them to memory, four bytes each, and wait to read them all.
  const auto four = [](const Plain* p) __attribute__((always_inline)) {
    const auto head = [p](int j) { return static_cast<int>(load_u32((const uint8_t*)(p + j))); };
    __m128i v = _mm_cvtsi32_si128(head(0));
    v = _mm_insert_epi32(v, head(1), 1);
    v = _mm_insert_epi32(v, head(2), 2);
    return _mm_insert_epi32(v, head(3), 3);
  };
  const __m512 both = _mm512_cvtph_ps(_mm256_set_m128i(four(b + 4), four(b)));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
  _mm256_store_ps(g->scale, _mm512_castps512_ps256(_mm512_permutexvar_ps(even, both)));
  if constexpr (ShapeOf<Plain>::has_min) store(g->min, -(vf)_mm512_movehdup_ps(both));
#else
  for (int j = 0; j < 8; ++j) g->scale[j] = from_half(b[j].d);
  if constexpr (ShapeOf<Plain>::has_min)
    for (int j = 0; j < 8; ++j) g->min[2 * j] = g->min[2 * j + 1] = -from_half(b[j].m);
#endif
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
