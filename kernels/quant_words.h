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

// --- the levels of IQ4_NL and IQ4_XS, and the plain formats: 32 weights, low nibbles first ---

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

// Which weights of a group share a scale, and where they stand.
enum class Layout {
  super,   // all
  plain,   // 32 in their order
  paired,  // 32: half a vector and half of the next
};

template <class Block>
constexpr Layout layout_of() {
  return ShapeOf<Block>::weights == kSuperBlock ? Layout::super
         : kPaired                              ? Layout::paired
                                                : Layout::plain;
}
template <>
constexpr Layout layout_of<Q8_0>() {
  return Layout::plain;
}

template <class Block>
struct GroupOf {
  using Shape = ShapeOf<Block>;
  static constexpr Layout layout = layout_of<Block>();
  static constexpr bool plain = Shape::weights == kBlock;
  static constexpr i64 bytes = static_cast<i64>(sizeof(Block)) * (plain ? 8 : 1);

  static TENARAI_ALWAYS void unpack(const uint8_t* data, Group* g) {
    const Block* b = reinterpret_cast<const Block*>(data);
    if constexpr (plain) {
#pragma GCC unroll 4
      for (int j = 0; j < 8; j += 2) unpack_two(b + j, g->words + j * kHalves);
      plain_factors(b, g);
    } else {
      unpack_words(*b, g->words, g->min);
      g->scale[0] = from_half(b->d);
    }
  }
  // The first blocks of a group of plain ones; words of the others are left alone.
  static TENARAI_ALWAYS void unpack_some(const uint8_t* data, i64 blocks, Group* g) {
    const Block* b = reinterpret_cast<const Block*>(data);
    for (int j = 0; j < 8; ++j) {
      g->scale[j] = j < blocks ? from_half(b[j].d) : 0.0f;
      if constexpr (Shape::has_min)
        g->min[2 * j] = g->min[2 * j + 1] = j < blocks ? -from_half(b[j].m) : 0.0f;
    }
    for (i64 j = 0; j < blocks; j += 2) {
      Block last[2] = {};
      if (j + 1 == blocks) last[0] = b[j];
      unpack_two(j + 1 == blocks ? last : b + j, g->words + j * kHalves);
    }
  }
};
// For activations, with a float32 scale; nobody keeps weights in it.
template <>
struct GroupOf<Q8_K> {
  using Shape = ShapeOf<Q8_K>;
  static constexpr Layout layout = Layout::super;
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
