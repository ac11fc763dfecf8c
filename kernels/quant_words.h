// A group of 256 quantised weights as the products with rounded activations take them: whole
// numbers in words of 16 bits, each already times its sub-block's whole-number scale, and what
// turns sums of products into floats:
//
//     w[i] = scale[i / 32] · word[i] − min[i / 16]
//
// A K block is one group, and has one scale for all of it. Of the plain formats eight blocks make a
// group. |word| <= 2^12: Q6_K and IQ4_XS reach it. The plain loops that say what a block holds
// stand in quant_unpack.h; these do the same with vectors of words, and a test compares them.
#pragma once

#include "integers.h"
#include "quant_unpack.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr int kChunks = kSuperBlock / kWords;               // vectors in a group
constexpr int kHalves = 32 / kWords > 1 ? 32 / kWords : 1;  // vectors in a sub-block of 32

struct Group {
  vs words[kChunks];
  alignas(64) float scale[8];  // of a K format only the first
  alignas(64) float min[16];   // only where the format has minima
};

TENARAI_INLINE uint32_t load_u32(const uint8_t* p) {
  uint32_t u;
  std::memcpy(&u, p, 4);
  return u;
}

// --- K formats ---

// Scales of sub-blocks of 32, twice each in a pair, so that a vector of one is a plain load.
struct Scales32 {
  int32_t pair[8];
  TENARAI_ALWAYS vs of(int sub) const { return (vs)(vi{} + pair[sub]); }
};
// Scales of sub-blocks of 16.
struct Scales16 {
  int16_t s[16];
  TENARAI_ALWAYS void set(const int8_t* from) {
#if defined(__AVX2__)
    const __m128i v = _mm_loadu_si128((const __m128i*)from);
    _mm256_storeu_si256((__m256i*)s, _mm256_cvtepi8_epi16(v));
#else
    for (int j = 0; j < 16; ++j) s[j] = from[j];
#endif
  }
#if defined(__AVX512BW__)
  // Chunk c holds sub-blocks 2c and 2c + 1.
  TENARAI_ALWAYS vs of(int c) const {
    const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)s));
    const __m512i halves = _mm512_maskz_set1_epi16(0xffff0000u, 1);
    const __m512i index = _mm512_add_epi16(halves, _mm512_set1_epi16(static_cast<short>(2 * c)));
    return (vs)_mm512_permutexvar_epi16(index, table);
  }
#else
  TENARAI_ALWAYS vs of(int c) const { return vs{} + s[c * kWords / 16]; }
#endif
};

typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));

// What is kept in memory, lest the compiler move single elements from one register to another.
template <class T>
TENARAI_INLINE void keep_in_memory(T* p) {
  asm("" : "+m"(*p));
}

TENARAI_INLINE void set_pairs(Scales32* to, uint64_t s) {
#if defined(__AVX2__)
  const __m256i v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(s)));
  _mm256_storeu_si256((__m256i*)to->pair, _mm256_or_si256(v, _mm256_slli_epi32(v, 16)));
#else
  for (int j = 0; j < 8; ++j) to->pair[j] = static_cast<int32_t>((s >> 8 * j & 255) * 0x10001);
#endif
  keep_in_memory(to);
}
// min[j] = dmin z[j]
TENARAI_INLINE void set_minima(float* min, float dmin, sixteen_bytes z) {
#if defined(__AVX512F__)
  const __m512i v = _mm512_cvtepu8_epi32((__m128i)z);
  store(min, (vf)_mm512_cvtepi32_ps(v) * dmin);
#elif defined(__AVX2__)
  const __m128i v = (__m128i)z;
  store(min, (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)) * dmin);
  store(min + 8, (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))) * dmin);
#else
  for (int j = 0; j < 16; ++j) min[j] = static_cast<float>(z[j]) * dmin;
#endif
}
// The six-bit s and z of Q4_K and Q5_K (quant_unpack.h), eight at a time in a 64-bit number.
template <class FourOrFive>
TENARAI_INLINE void six_bit_scales(const FourOrFive& b, Scales32* s, float* min) {
  const uint32_t low = load_u32(b.scale), middle = load_u32(b.scale + 4),
                 high = load_u32(b.scale + 8);
  const uint64_t s8 = (low & 0x3f3f3f3f) |
                      static_cast<uint64_t>((high & 0x0f0f0f0f) | (low >> 2 & 0x30303030)) << 32;
  const uint64_t z8 = (middle & 0x3f3f3f3f) |
                      static_cast<uint64_t>((high >> 4 & 0x0f0f0f0f) | (middle >> 2 & 0x30303030))
                          << 32;
  set_pairs(s, s8);
  typedef uint64_t two_longs __attribute__((vector_size(16)));
  const sixteen_bytes z = (sixteen_bytes)two_longs{z8, 0};
  set_minima(min, from_half(b.dmin),
             __builtin_shufflevector(z, z, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7));
}

TENARAI_INLINE void unpack_words(const Q4_K& b, vs* words, float* min) {
  Scales32 s;
  six_bit_scales(b, &s, min);
#pragma GCC unroll 4
  for (int pair = 0; pair < 4; ++pair)
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) {
      const vs v = widen(b.q + 32 * pair + h * kWords);
      words[2 * pair * kHalves + h] = (v & 15) * s.of(2 * pair);
      words[(2 * pair + 1) * kHalves + h] = (v >> 4) * s.of(2 * pair + 1);
    }
}
TENARAI_INLINE void unpack_words(const Q5_K& b, vs* words, float* min) {
  Scales32 s;
  six_bit_scales(b, &s, min);
#pragma GCC unroll 4
  for (int h = 0; h < kHalves; ++h) {
    const vs fifths = widen(b.high + h * kWords) << 4;  // bit 4 + j: of sub-block j
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      const vs v = widen(b.q + 32 * pair + h * kWords);
      words[2 * pair * kHalves + h] = ((v & 15) | (fifths >> 2 * pair & 16)) * s.of(2 * pair);
      words[(2 * pair + 1) * kHalves + h] =
          (v >> 4 | (fifths >> (2 * pair + 1) & 16)) * s.of(2 * pair + 1);
    }
  }
}
TENARAI_INLINE void unpack_words(const Q6_K& b, vs* words, float*) {
  Scales16 s;
  s.set(b.scale);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) {
      const vs first = widen(b.low + 64 * half + h * kWords);
      const vs second = widen(b.low + 64 * half + 32 + h * kWords);
      const vs twos = widen(b.high + 32 * half + h * kWords);
      const int c = 4 * half * kHalves + h;
      words[c] = (((first & 15) | (twos << 4 & 48)) - 32) * s.of(c);
      words[c + kHalves] = (((second & 15) | (twos << 2 & 48)) - 32) * s.of(c + kHalves);
      words[c + 2 * kHalves] = ((first >> 4 | (twos & 48)) - 32) * s.of(c + 2 * kHalves);
      words[c + 3 * kHalves] = ((second >> 4 | (twos >> 2 & 48)) - 32) * s.of(c + 3 * kHalves);
    }
}
TENARAI_INLINE void unpack_words(const Q2_K& b, vs* words, float* min) {
  Scales16 s;
  sixteen_bytes both, low;
  int8_t packed[16];
  std::memcpy(&both, b.scale, 16);
  low = both & 15;
  std::memcpy(packed, &low, 16);
  s.set(packed);
  set_minima(min, from_half(b.dmin), both >> 4);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) {
      const vs v = widen(b.q + 32 * half + h * kWords);
#pragma GCC unroll 4
      for (int two = 0; two < 4; ++two) {
        const int c = (4 * half + two) * kHalves + h;
        words[c] = (v >> 2 * two & 3) * s.of(c);
      }
    }
}
TENARAI_INLINE void unpack_words(const Q3_K& b, vs* words, float*) {
  int8_t packed[16];
  Scales16 s;
  unpack_scales(b, packed);
  s.set(packed);
#pragma GCC unroll 4
  for (int h = 0; h < kHalves; ++h) {
    const vs thirds = widen(b.high + h * kWords) << 2;  // bit 2 + j: of sub-block j
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const vs v = widen(b.q + 32 * half + h * kWords);
#pragma GCC unroll 4
      for (int two = 0; two < 4; ++two) {
        const int sub = 4 * half + two, c = sub * kHalves + h;
        words[c] = (((v >> 2 * two & 3) | (thirds >> sub & 4)) - 4) * s.of(c);
      }
    }
  }
}

// --- the levels of IQ4_NL and IQ4_XS, and the plain formats: 32 weights, low nibbles first ---

// 16 bytes of nibbles as 32 words.
TENARAI_INLINE void nibbles(const uint8_t* p, vs* words) {
#if defined(__AVX512BW__)
  const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  words[0] = (vs)_mm512_inserti64x4(_mm512_broadcast_i64x4(v), _mm256_srli_epi16(v, 4), 1) & 15;
#else
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
#endif
}
TENARAI_INLINE void table_levels(const uint8_t* p, vs* words) {
#if defined(__AVX2__)
  const __m128i table = _mm_loadu_si128((const __m128i*)kLevels);
  const __m128i bytes = _mm_loadu_si128((const __m128i*)p), mask = _mm_set1_epi8(15);
  const __m128i low = _mm_shuffle_epi8(table, _mm_and_si128(bytes, mask));
  const __m128i high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
#if defined(__AVX512BW__)
  words[0] = (vs)_mm512_cvtepi8_epi16(_mm256_set_m128i(high, low));
#else
  words[0] = (vs)_mm256_cvtepi8_epi16(low);
  words[1] = (vs)_mm256_cvtepi8_epi16(high);
#endif
#else
  int8_t q[32];
  unpack_table(p, q);
  for (int c = 0; c < kHalves; ++c) words[c] = widen(q + c * kWords);
#endif
}
// Bit i of 32 makes word i 16 higher.
TENARAI_INLINE void add_fifths(const uint8_t* high, vs* words) {
  const uint32_t bits = load_u32(high);
#if defined(__AVX512BW__)
  words[0] =
      (vs)_mm512_mask_add_epi16((__m512i)words[0], bits, (__m512i)words[0], _mm512_set1_epi16(16));
#else
  int16_t fifth[32];
  for (int i = 0; i < 32; ++i) fifth[i] = static_cast<int16_t>((bits >> i & 1) << 4);
  for (int h = 0; h < kHalves; ++h) words[h] += load_words(fifth + h * kWords);
#endif
}
TENARAI_INLINE void unpack_words(const IQ4_XS& b, vs* words, float*) {
  int8_t packed[8];
  Scales32 s;
  unpack_scales(b, packed);
  for (int j = 0; j < 8; ++j) s.pair[j] = (packed[j] & 0xffff) | packed[j] * 0x10000;
  keep_in_memory(&s);
#pragma GCC unroll 8
  for (int sub = 0; sub < 8; ++sub) {
    table_levels(b.q + 16 * sub, words + sub * kHalves);
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) words[sub * kHalves + h] *= s.of(sub);
  }
}

TENARAI_INLINE void unpack_plain(const Q4_0& b, vs* words) {
  nibbles(b.q, words);
  for (int h = 0; h < kHalves; ++h) words[h] -= 8;
}
TENARAI_INLINE void unpack_plain(const Q4_1& b, vs* words) { nibbles(b.q, words); }
TENARAI_INLINE void unpack_plain(const Q5_0& b, vs* words) {
  nibbles(b.q, words);
  add_fifths(b.high, words);
  for (int h = 0; h < kHalves; ++h) words[h] -= 16;
}
TENARAI_INLINE void unpack_plain(const Q5_1& b, vs* words) {
  nibbles(b.q, words);
  add_fifths(b.high, words);
}
TENARAI_INLINE void unpack_plain(const Q8_0& b, vs* words) {
#pragma GCC unroll 4
  for (int h = 0; h < kHalves; ++h) words[h] = widen(b.q + h * kWords);
}
TENARAI_INLINE void unpack_plain(const IQ4_NL& b, vs* words) { table_levels(b.q, words); }

// Eight float16 at once.
TENARAI_INLINE void halves_to_floats(const uint16_t* h, float* to) {
#if defined(__F16C__)
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)h)));
#else
  for (int j = 0; j < 8; ++j) to[j] = from_half(h[j]);
#endif
}

// --- a group of any format ---

template <class Block>
constexpr int32_t most_word() {
  return 128;  // bytes
}
template <>
constexpr int32_t most_word<Q2_K>() {
  return 3 * 15;
}
template <>
constexpr int32_t most_word<Q4_K>() {
  return 15 * 63;
}
template <>
constexpr int32_t most_word<Q5_K>() {
  return 31 * 63;
}
template <>
constexpr int32_t most_word<Q6_K>() {
  return 32 * 128;
}
template <>
constexpr int32_t most_word<Q3_K>() {
  return 4 * 32;
}
template <>
constexpr int32_t most_word<IQ4_XS>() {
  return 127 * 32;
}

template <class Block>
struct GroupOf {
  using Shape = ShapeOf<Block>;
  static constexpr bool plain = Shape::weights == kBlock;
  static constexpr i64 bytes = static_cast<i64>(sizeof(Block)) * (plain ? 8 : 1);

  static TENARAI_ALWAYS void unpack(const uint8_t* data, Group* g) {
    const Block* b = reinterpret_cast<const Block*>(data);
    if constexpr (plain) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) unpack_plain(b[j], g->words + j * kHalves);
      const uint16_t d[8] = {b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d};
      halves_to_floats(d, g->scale);
      if constexpr (Shape::has_min) {
        const uint16_t m[8] = {b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m, b[6].m, b[7].m};
        float f[8];
        halves_to_floats(m, f);
        for (int j = 0; j < 16; ++j) g->min[j] = -f[j / 2];
      }
    } else {
      unpack_words(*b, g->words, g->min);
      g->scale[0] = from_half(b->d);
    }
  }
};
// For activations, with a float32 scale; nobody keeps weights in it.
template <>
struct GroupOf<Q8_K> {
  using Shape = ShapeOf<Q8_K>;
  static constexpr bool plain = false;
  static constexpr i64 bytes = sizeof(Q8_K);

  static TENARAI_ALWAYS void unpack(const uint8_t* data, Group* g) {
    const Q8_K* b = reinterpret_cast<const Q8_K*>(data);
    for (int c = 0; c < kChunks; ++c) g->words[c] = widen(b->q + c * kWords);
    g->scale[0] = b->d;
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
