// Quantised weights as panels of bfloat16 for the products of quant_bfloats.h: tiles of AMX, each
// row of which is 32 weights of an output.
//
// A weight is computed in float32 and rounded once more. Where 16 or 32 levels share a scale they
// are what is computed and rounded, and the weights are picked from that table, 32 at a time.
#pragma once

#include "amx.h"
#include "quant_dot.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kBfloatStep = 32;               // ks of a tile
constexpr i64 kBfloatTile = kAmxBytes / 2;    // its numbers
constexpr i64 kBfloatOutputs = 2 * kAmxRows;  // rows of weights in a panel
constexpr i64 kStepStride = 2 * kBfloatTile;  // from one step of a row to its next

TENARAI_INLINE __m512i bfloats(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}
TENARAI_INLINE void put_step(uint16_t* to, i64 step, __m512i v) {
  _mm512_store_si512(to + step * kStepStride, v);
}

// What is picked from a table of 32 is said by the low five bits of a word, from one of 16 twice by
// the low four.
TENARAI_INLINE __m512i pick(__m512i which, __m512i table) {
  return _mm512_permutexvar_epi16(which, table);
}
// Levels [first, first + 16), each times `scale` less `min`.
TENARAI_INLINE __m512 sixteen(int first, float scale, float min) {
  const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 levels = _mm512_cvtepi32_ps(_mm512_add_epi32(count, _mm512_set1_epi32(first)));
  return _mm512_fmsub_ps(levels, _mm512_set1_ps(scale), _mm512_set1_ps(min));
}
TENARAI_INLINE __m512i twice(__m512 v) { return bfloats(v, v); }
TENARAI_INLINE __m512i sixteen_of_table(float scale) {
  const __m128i levels = _mm_loadu_si128((const __m128i*)kLevels);
  return twice(
      _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)), _mm512_set1_ps(scale)));
}
// 32 words whose low four bits are the nibbles of 16 bytes, the low ones first.
TENARAI_INLINE __m512i nibbles(const uint8_t* packed) {
  const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)packed));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_srli_epi16(low, 4), 1);
}
TENARAI_INLINE __m512i words_of(const uint8_t* bytes) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)bytes));
}

// The weights of a block, 32 for each step from `to` on.
TENARAI_INLINE void put_block(const Q4_0& b, uint16_t* to) {
  put_step(to, 0, pick(nibbles(b.q), twice(sixteen(-8, from_half(b.d), 0))));
}
TENARAI_INLINE void put_block(const Q4_1& b, uint16_t* to) {
  put_step(to, 0, pick(nibbles(b.q), twice(sixteen(0, from_half(b.d), -from_half(b.m)))));
}
TENARAI_INLINE void put_block(const IQ4_NL& b, uint16_t* to) {
  put_step(to, 0, pick(nibbles(b.q), sixteen_of_table(from_half(b.d))));
}
TENARAI_INLINE void put_block(const IQ4_XS& b, uint16_t* to) {
  float scale[8];
  unpack_floats(b, scale, nullptr);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j)
    put_step(to, j, pick(nibbles(b.q + 16 * j), sixteen_of_table(scale[j])));
}

// Nibbles below fifth bits that a mask holds.
TENARAI_INLINE __m512i fives(const uint8_t* packed, const uint8_t* high) {
  uint32_t mask;
  std::memcpy(&mask, high, 4);
  const __m512i low = _mm512_and_si512(nibbles(packed), _mm512_set1_epi16(15));
  return _mm512_mask_add_epi16(low, mask, low, _mm512_set1_epi16(16));
}
TENARAI_INLINE void put_block(const Q5_0& b, uint16_t* to) {
  const float d = from_half(b.d);
  put_step(to, 0, pick(fives(b.q, b.high), bfloats(sixteen(-16, d, 0), sixteen(0, d, 0))));
}
TENARAI_INLINE void put_block(const Q5_1& b, uint16_t* to) {
  const float d = from_half(b.d), min = -from_half(b.m);
  put_step(to, 0, pick(fives(b.q, b.high), bfloats(sixteen(0, d, min), sixteen(16, d, min))));
}

// Scales and minima of Q4_K and Q5_K.
template <class FourOrFive>
TENARAI_INLINE void six_bit_floats(const FourOrFive& b, float* scale, float* min) {
  uint64_t s, z;
  six_bits(b.scale, &s, &z);
  const auto put = [](float* to, uint64_t bytes, float d) __attribute__((always_inline)) {
    const __m256i whole = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<i64>(bytes)));
    _mm256_store_ps(to, _mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(d)));
  };
  put(scale, s, from_half(b.d));
  put(min, z, from_half(b.dmin));
}
TENARAI_INLINE void put_block(const Q4_K& b, uint16_t* to) {
  alignas(32) float scale[8], min[8];
  six_bit_floats(b, scale, min);
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) {
    const __m512i both = words_of(b.q + 16 * j);
    put_step(to, j, pick(both, twice(sixteen(0, scale[j], min[j]))));
    put_step(to, j + 1,
             pick(_mm512_srli_epi16(both, 4), twice(sixteen(0, scale[j + 1], min[j + 1]))));
  }
}
TENARAI_INLINE void put_block(const Q5_K& b, uint16_t* to) {
  alignas(32) float scale[8], min[8];
  six_bit_floats(b, scale, min);
  const __m512i fifths =
      _mm512_slli_epi16(words_of(b.high), 4);  // that of sub-block 0 in its place
  const auto put = [&](int j, __m512i low) __attribute__((always_inline)) {
    constexpr int kBits = 0xca;  // the third ? the first : the second
    const __m512i which = _mm512_ternarylogic_epi32(
        _mm512_set1_epi16(15), low, _mm512_srli_epi16(fifths, static_cast<unsigned>(j)), kBits);
    put_step(to, j,
             pick(which, bfloats(sixteen(0, scale[j], min[j]), sixteen(16, scale[j], min[j]))));
  };
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) {
    const __m512i both = words_of(b.q + 16 * j);
    put(j, both);
    put(j + 1, _mm512_srli_epi16(both, 4));
  }
}

// All other formats.
template <class Block>
TENARAI_INLINE void put_block(const Block& b, uint16_t* to) {
  using S = ShapeOf<Block>;
  int8_t q[S::weights];
  float scale[S::groups], min[S::groups];
  unpack_levels(b, q);
  unpack_floats(b, scale, min);
  const auto part = [&](int i) __attribute__((always_inline)) {
    const __m512 level =
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(q + i))));
    const __m512 by = _mm512_set1_ps(scale[i / S::group]);
    if constexpr (S::has_min) return _mm512_fmsub_ps(level, by, _mm512_set1_ps(min[i / S::group]));
    return _mm512_mul_ps(level, by);
  };
#pragma GCC unroll 8
  for (int i = 0; i < S::weights; i += 32) put_step(to, i / 32, bfloats(part(i), part(i + 16)));
}

// The blocks [from, from + n bytes).
using PutBlocks = void (*)(uint16_t* to, const uint8_t* from, i64 n);
template <class Block>
static void put_blocks(uint16_t* to, const uint8_t* from, i64 n) {
  constexpr i64 kSize = sizeof(Block), kSteps = ShapeOf<Block>::weights / kBfloatStep;
  for (i64 at = 0; at < n; at += kSize, to += kSteps * kStepStride)
    put_block(*reinterpret_cast<const Block*>(from + at), to);
}

// A quantised matrix (O, I) as panels of bfloat16.
struct BfloatSource {
  PutBlocks put;
  BlockSize block;
  const uint8_t* data;
  i64 O, I, row_bytes;

  // Rows o .. o + kBfloatOutputs of ks [k, k + n). Rows past the last are left as they are.
  void pack(uint16_t* panel, i64 o, i64 k, i64 n) const {
    for (i64 r = 0; r < at_most(kBfloatOutputs, O - o); ++r)
      put(panel + r * kBfloatStep, at(o + r, k), bytes(n));
  }
  // Asks for part `part` of `parts` of what pack will read.
  void prefetch(i64 o, i64 k, i64 n, i64 part, i64 parts) const {
    for (i64 r = part; r < at_most(kBfloatOutputs, O - o); r += parts)
      for (i64 i = 0; i < bytes(n) + 63; i += 64) __builtin_prefetch(at(o + r, k) + i, 0, 2);
  }

 private:
  i64 bytes(i64 n) const { return n / block.weights * block.bytes; }
  const uint8_t* at(i64 o, i64 k) const { return data + o * row_bytes + bytes(k); }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
