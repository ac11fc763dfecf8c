// One row of activations times two blocks of Q4_K or Q5_K at a time, with AVX-512: their sixteen
// bytes of scales are unpacked together, in half the instructions. The sums are made in the order
// of quant_dot.h, and have the same bits.
#pragma once

#include <type_traits>

#include "quant_activations.h"
#include "quant_words_k.h"

namespace tenarai {
namespace TENARAI_ISA {

// Where it is done.
template <class Block>
constexpr bool in_pairs() {
#if defined(__AVX512BW__)
  return std::is_same_v<Block, Q4_K> || std::is_same_v<Block, Q5_K>;
#else
  return false;
#endif
}

// total + what groups g and g + 1 add, of an even g.
template <class Block>
TENARAI_INLINE vf add_two(vf total, const uint8_t* from, const WordRows& x, i64 g);

#if defined(__AVX512BW__)
// What two blocks begin with: d, dmin, and eight s and z of six bits (quant_unpack.h).
template <class Block>
struct TwoHeads {
  Steps<Block> steps[2];
  vf min;                      // dmin z, eight of either
  alignas(16) float scale[4];  // d · x_scale of the first and, in [2], of the second

  TENARAI_ALWAYS TwoHeads(const Block* b, const float* x_scale) {
    const __m128i first = _mm_loadu_si128((const __m128i*)b);
    const __m128i second = _mm_loadu_si128((const __m128i*)(b + 1));
    const __m128 d = _mm_cvtph_ps(_mm_unpacklo_epi32(first, second));  // d, dmin, d, dmin
    const __m128i two = _mm_loadl_epi64((const __m128i*)x_scale);
    _mm_store_ps(scale, _mm_mul_ps(d, _mm_castsi128_ps(_mm_cvtepu32_epi64(two))));

    // By lanes of 16 bytes: s0 to s3, s4 to s7, z0 to z3, z4 to z7. The last four of either have
    // four bits in the third number of the packed ones, and two above the first four.
    const __m256i packed = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
    const __m256i low =
        _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi32(packed, _MM_SHUFFLE(3, 2, 3, 1)),
                                           _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4)),
                         _mm256_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f,
                                           0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m256i high =
        _mm256_srli_epi32(_mm256_shuffle_epi32(packed, _MM_SHUFFLE(2, 2, 1, 1)), 2);
    const __m256i sixes = _mm256_or_si256(
        low, _mm256_and_si256(high, _mm256_setr_epi32(0, 0x30303030, 0, 0x30303030, 0, 0x30303030,
                                                      0, 0x30303030)));
    // Every s as a pair of words.
    const __m512i each = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2),
                                                  _mm512_castsi256_si512(sixes));
    const auto twice = [](int j) { return static_cast<int>(0x80008000u + 0x10001u * j); };
    const __m512i pairs = _mm512_shuffle_epi8(
        each, _mm512_setr_epi32(twice(0), twice(1), twice(2), twice(3), twice(4), twice(5),
                                twice(6), twice(7), twice(0), twice(1), twice(2), twice(3),
                                twice(4), twice(5), twice(6), twice(7)));
    static_assert(sizeof steps == 64, "two times eight pairs");
    _mm512_storeu_si512(&steps, pairs);
    keep_in_memory(&steps);
    const __m128i z =
        _mm256_castsi256_si128(_mm256_permute4x64_epi64(sixes, _MM_SHUFFLE(3, 3, 3, 1)));
    const __m512 dmin =
        _mm512_permutexvar_ps(_mm512_setr_epi32(1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3),
                              _mm512_castps128_ps512(d));
    min = (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(z)) * (vf)dmin;
  }
};

// Σ word q over a block, in four chains of sums: each product would wait for the one before it.
template <class Block>
TENARAI_INLINE vi dot_block(const Steps<Block>& steps, const Block& b, const int16_t* q) {
  constexpr int kStep = Steps<Block>::kStep;
  vi sums[4];
#pragma GCC unroll 4
  for (int i = 0; i < kChunks / kStep; ++i) {
    vs words[kStep];
    steps.words(b, i, words);
#pragma GCC unroll 2
    for (int c = 0; c < kStep; ++c) {
      const int at = i * kStep + c;
      const vs x = load_words(q + at * kWords);
      sums[at % 4] = at < 4 ? products(words[c], x) : add_products(sums[at % 4], words[c], x);
    }
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class Block>
TENARAI_INLINE vf add_two(vf total, const uint8_t* from, const WordRows& x, i64 g) {
  const Block* b = reinterpret_cast<const Block*>(from);
  const TwoHeads<Block> heads(b, x.scale + g);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    total += to_floats(dot_block(heads.steps[i], b[i], x.q + (g + i) * kGroup)) *
             broadcast(heads.scale[2 * i]);
  return total - heads.min * load(x.sums + g / 2 * kSums);
}
#endif

}  // namespace TENARAI_ISA
}  // namespace tenarai
