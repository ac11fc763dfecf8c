// The K formats but IQ4_XS as words: quant_words.h tells what words are.
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

typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));
typedef uint64_t two_longs __attribute__((vector_size(16)));

// Scales of sub-blocks of 32, twice each in a pair, so that a vector of one is a plain load.
struct Scales32 {
  int32_t pair[8];
  TENARAI_ALWAYS vs of(int sub) const { return (vs)(vi{} + pair[sub]); }
};
// Scales of sub-blocks of 16.
struct Scales16 {
  int16_t s[16];
  TENARAI_ALWAYS void set(sixteen_bytes from) {  // signed
#if defined(__AVX2__)
    _mm256_storeu_si256((__m256i*)s, _mm256_cvtepi8_epi16((__m128i)from));
#else
    for (int j = 0; j < 16; ++j) s[j] = static_cast<int8_t>(from[j]);
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
  TENARAI_ALWAYS vs of(int c) const {
    if constexpr (kWords <= 16) return vs{} + s[c * kWords / 16];
    int16_t each[kWords];
    for (int i = 0; i < kWords; ++i) each[i] = s[(c * kWords + i) / 16];
    return load_words(each);
  }
#endif
};

// What is kept in memory, lest the compiler move single elements from one register to another.
template <class T>
TENARAI_INLINE void keep_in_memory(T* p) {
  asm("" : "+m"(*p));
}

// Eight bytes of s less kOffset.
template <int kOffset>
TENARAI_INLINE void set_pairs(Scales32* to, uint64_t s) {
#if defined(__AVX2__)
  __m256i v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(s)));
  v = _mm256_or_si256(v, _mm256_slli_epi32(v, 16));
  if (kOffset) v = _mm256_sub_epi16(v, _mm256_set1_epi16(kOffset));
  _mm256_storeu_si256((__m256i*)to->pair, v);
#else
  for (int j = 0; j < 8; ++j) {
    const int word = static_cast<int>(s >> 8 * j & 255) - kOffset;
    to->pair[j] = (word & 0xffff) | word * 0x10000;
  }
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
TENARAI_INLINE void six_bits(const uint8_t* packed, uint64_t* s, uint64_t* z) {
  const uint32_t low = load_u32(packed), middle = load_u32(packed + 4), high = load_u32(packed + 8);
  *s = (low & 0x3f3f3f3f) | static_cast<uint64_t>((high & 0x0f0f0f0f) | (low >> 2 & 0x30303030))
                                << 32;
  *z = (middle & 0x3f3f3f3f) |
       static_cast<uint64_t>((high >> 4 & 0x0f0f0f0f) | (middle >> 2 & 0x30303030)) << 32;
}
template <class FourOrFive>
TENARAI_INLINE void six_bit_scales(const FourOrFive& b, Scales32* s, float* min) {
  uint64_t s8, z8;
  six_bits(b.scale, &s8, &z8);
  set_pairs<0>(s, s8);
  const sixteen_bytes z = (sixteen_bytes)two_longs{z8, 0};
  set_minima(min, from_half(b.dmin),
             __builtin_shufflevector(z, z, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7));
}

// A K block in steps of kStep vectors, so that words meet activations while they are in registers.
template <class Block>
struct Steps {
  static constexpr int kStep = 0;  // not in steps
};
template <>
struct Steps<Q4_K> {
  static constexpr int kStep = 2 * kHalves;
  Scales32 s;

  TENARAI_ALWAYS void begin(const Q4_K& b, float* min) { six_bit_scales(b, &s, min); }
  TENARAI_ALWAYS void words(const Q4_K& b, int pair, vs* words) const {
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) {
      const vs v = widen(b.q + 32 * pair + h * kWords);
      words[h] = (v & 15) * s.of(2 * pair);
      words[kHalves + h] = (v >> 4) * s.of(2 * pair + 1);
    }
  }
};
template <>
struct Steps<Q5_K> {
  static constexpr int kStep = 2 * kHalves;
  Scales32 s;

  TENARAI_ALWAYS void begin(const Q5_K& b, float* min) { six_bit_scales(b, &s, min); }
  TENARAI_ALWAYS void words(const Q5_K& b, int pair, vs* words) const {
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) {
      const vs fifths = widen(b.high + h * kWords) << 4;  // bit 4 + j: of sub-block j
      const vs v = widen(b.q + 32 * pair + h * kWords);
      words[h] = ((v & 15) | (fifths >> 2 * pair & 16)) * s.of(2 * pair);
      words[kHalves + h] = (v >> 4 | (fifths >> (2 * pair + 1) & 16)) * s.of(2 * pair + 1);
    }
  }
};
template <>
struct Steps<Q6_K> {
  static constexpr int kStep = 4 * kHalves;
  Scales16 s;

  TENARAI_ALWAYS void begin(const Q6_K& b, float*) {
    sixteen_bytes bytes;
    std::memcpy(&bytes, b.scale, 16);
    s.set(bytes);
  }
  TENARAI_ALWAYS void words(const Q6_K& b, int half, vs* words) const {
#pragma GCC unroll 4
    for (int h = 0; h < kHalves; ++h) {
      const vs first = widen(b.low + 64 * half + h * kWords);
      const vs second = widen(b.low + 64 * half + 32 + h * kWords);
      const vs twos = widen(b.high + 32 * half + h * kWords);
      const int c = 4 * half * kHalves + h;
      words[h] = (((first & 15) | (twos << 4 & 48)) - 32) * s.of(c);
      words[h + kHalves] = (((second & 15) | (twos << 2 & 48)) - 32) * s.of(c + kHalves);
      words[h + 2 * kHalves] = ((first >> 4 | (twos & 48)) - 32) * s.of(c + 2 * kHalves);
      words[h + 3 * kHalves] = ((second >> 4 | (twos >> 2 & 48)) - 32) * s.of(c + 3 * kHalves);
    }
  }
};
template <class Block>
TENARAI_INLINE void unpack_words(const Block& b, vs* words, float* min) {
  Steps<Block> steps;
  steps.begin(b, min);
#pragma GCC unroll 4
  for (int i = 0; i < kChunks / Steps<Block>::kStep; ++i)
    steps.words(b, i, words + i * Steps<Block>::kStep);
}
TENARAI_INLINE void unpack_words(const Q2_K& b, vs* words, float* min) {
  Scales16 s;
  sixteen_bytes both;
  std::memcpy(&both, b.scale, 16);
  s.set(both & 15);
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
  // Four scales at a time: nibbles of eight bytes, and above them pairs of bits of four.
  const uint32_t first = load_u32(b.scale), second = load_u32(b.scale + 4),
                 top = load_u32(b.scale + 8);
  const uint64_t s0 = (first & 0x0f0f0f0f) | (top << 4 & 0x30303030),
                 s1 = (second & 0x0f0f0f0f) | (top << 2 & 0x30303030),
                 s2 = (first >> 4 & 0x0f0f0f0f) | (top & 0x30303030),
                 s3 = (second >> 4 & 0x0f0f0f0f) | (top >> 2 & 0x30303030);
  sixteen_bytes bytes = (sixteen_bytes)two_longs{s0 | s1 << 32, s2 | s3 << 32};
  bytes -= 32;
  Scales16 s;
  s.set(bytes);
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

}  // namespace TENARAI_ISA
}  // namespace tenarai
