// Quantised weights as panels of bytes for the products of quant_bytes.h: 128 higher than what they
// stand for, rows of the weight interleaved by four.
//
// Plain formats hold bytes or less, so nothing is lost. K formats get one scale for half a block:
// the levels of Q4_K and Q5_K as tables of bytes, one for each sub-block; those of the others go
// through words of 16 bits.
#pragma once

#include "quant_dot.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kBlocks = kGroup / kBlock;  // of activations in a group

// kCols rows of one group of weights.
struct BytePanel {
  alignas(64) uint8_t bytes[kGroup * kCols];  // [pair of pairs][kCols][4]
  alignas(64) float scale[kBlocks * kCols];   // [2 or 8][kCols]
  alignas(64) float min[kBlocks * kCols];     // [8][kCols], of plain formats
};

// A block of Q4_K or Q5_K: levels d s q - dmin z of each sub-block of 32 in bytes, and the scales
// of the halves.
template <class FourOrFive>
static void bytes_by_table(const uint8_t* data, __m512i* bytes, float* scale) {
  constexpr bool kFive = sizeof(FourOrFive) == sizeof(Q5_K);
  const FourOrFive& b = *reinterpret_cast<const FourOrFive*>(data);
  uint64_t s8, z8;
  six_bits(b.scale, &s8, &z8);
  const auto floats = [](uint64_t v) __attribute__((always_inline)) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<i64>(v))));
  };
  const __m256 s = floats(s8) * _mm256_set1_ps(from_half(b.d)),
               low = floats(z8) * _mm256_set1_ps(-from_half(b.dmin)),
               high = s * _mm256_set1_ps(kFive ? 31.0f : 15.0f) + low;
  // The largest as integers, so that a NaN is larger than all.
  const auto size = [](__m256 v) __attribute__((always_inline)) {
    return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
  };
  __m256i most = _mm256_max_epi32(size(low), size(high));
  most = _mm256_max_epi32(most, _mm256_shuffle_epi32(most, 0x4e));
  most = _mm256_max_epi32(most, _mm256_shuffle_epi32(most, 0xb1));
  const __m256 step = _mm256_castsi256_ps(most) * _mm256_set1_ps(1.0f / 127.0f);
  const __mmask8 some = _mm256_cmp_ps_mask(step, _mm256_set1_ps(1e-32f), _CMP_GT_OQ);
  const __m256 inverse = _mm256_maskz_div_ps(some, _mm256_set1_ps(1.0f), step);
  alignas(32) float factor[8], first[8], steps[8];
  _mm256_store_ps(factor, s * inverse);
  _mm256_store_ps(first, low * inverse + _mm256_set1_ps(128.0f));
  _mm256_store_ps(steps, step);
  scale[0] = steps[0];
  scale[1] = steps[4];

  const auto table = [&](int j, __m512 levels) __attribute__((always_inline)) {
    const __m512 v = levels * _mm512_set1_ps(factor[j]) + _mm512_set1_ps(first[j]);
    return _mm256_broadcastsi128_si256(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  };
  const auto both = [](__m256i a, __m256i b) __attribute__((always_inline)) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
  };
  const __m512 levels = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {  // two sub-blocks: low nibbles and high ones
    __m512i v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(b.q + 32 * p)));
    v = _mm512_mask_srli_epi16(v, 0xffff0000u, v, 4);
    v = _mm512_and_si512(v, _mm512_set1_epi8(15));
    bytes[p] = _mm512_shuffle_epi8(both(table(2 * p, levels), table(2 * p + 1, levels)), v);
    if constexpr (kFive) {
      const __m512 more = levels + _mm512_set1_ps(16.0f);
      const __m512i fifths = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)b.high));
      const __m512i bit = both(_mm256_set1_epi8(static_cast<char>(1 << 2 * p)),
                               _mm256_set1_epi8(static_cast<char>(2 << 2 * p)));
      bytes[p] = _mm512_mask_shuffle_epi8(bytes[p], _mm512_test_epi8_mask(fifths, bit),
                                          both(table(2 * p, more), table(2 * p + 1, more)), v);
    }
  }
}

// A quantised matrix (O, I) as panels of bytes.
struct ByteSource : QuantRows {
  using ByTable = void (*)(const uint8_t* data, __m512i* bytes, float* scale);
  ByTable by_table;  // or null

  ByteSource(const QuantRows& rows, QuantFormat format)
      : QuantRows(rows),
        by_table(format == QuantFormat::q4_k   ? &bytes_by_table<Q4_K>
                 : format == QuantFormat::q5_k ? &bytes_by_table<Q5_K>
                                               : nullptr) {}
  bool super() const { return reader.layout == Layout::super; }
  // Rows o .. o + kCols, zeros past the last, of group g.
  void pack(BytePanel* to, i64 o, i64 g) const {
    for (int v = 0; v < kCols; v += kLanes) {
      __m512i bytes[kLanes][4];
      for (int r = 0; r < kLanes; ++r) row(to, v + r, o + v + r, g, bytes[r]);
      for (int c = 0; c < 4; ++c) {
        vf rows[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) rows[r] = (vf)bytes[r][c];
        transpose(rows);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r)
          std::memcpy(to->bytes + ((c * kLanes + r) * kCols + v) * 4, rows + r, sizeof rows[r]);
      }
    }
  }
  // Asks for part `part` of `parts` of what pack will read.
  void prefetch(i64 o, i64 g, i64 part, i64 parts) const {
    for (i64 r = part; r < at_most(kCols, O - o); r += parts)
      for (i64 i = 0; i < reader.group_bytes + 63; i += 64)
        __builtin_prefetch(group(o + r, g) + i, 0, 2);
  }

 private:
  // One row of a panel, its bytes still in their order.
  void row(BytePanel* to, int line, i64 o, i64 g, __m512i* bytes) const {
    if (o < O && by_table) {
      float scale[2];
      by_table(group(o, g), bytes, scale);
      to->scale[line] = scale[0];
      to->scale[kCols + line] = scale[1];
      return;
    }
    Group words;
    if (o < O)
      unpack(&words, o, g);
    else
      words = Group{};
    super() ? to_bytes(&words, to, line, bytes) : keep(&words, to, line, bytes);
  }
  // 64 words as bytes in their order, 128 higher.
  static TENARAI_ALWAYS __m512i narrow(vs a, vs b, __m512i order) {
    const __m512i v = _mm512_packs_epi16((__m512i)a, (__m512i)b);
    return _mm512_xor_si512(_mm512_permutexvar_epi64(order, v), _mm512_set1_epi8(-128));
  }
  static TENARAI_ALWAYS __m512i plain_order() { return _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7); }

  // Levels of plain formats are bytes already.
  void keep(const Group* from, BytePanel* to, int line, __m512i* bytes) const {
    const __m512i order =
        reader.layout == Layout::paired ? _mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7) : plain_order();
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      bytes[c] = narrow(from->words[2 * c], from->words[2 * c + 1], order);
    for (int j = 0; j < 8; ++j) to->scale[j * kCols + line] = from->scale[j];
    if (reader.min)
      for (int j = 0; j < 8; ++j) to->min[j * kCols + line] = from->min[2 * j];
  }

  // d · words − min, rounded twice: to 15 bits below a bound for the whole group, then to bytes
  // below the largest of each half.
  void to_bytes(const Group* from, BytePanel* to, int line, __m512i* bytes) const {
    constexpr float kFull = 16000.0f;
    const int shift = 31 - __builtin_clz(static_cast<unsigned>(32767 / reader.most_word));
    const float d = from->scale[0], most = static_cast<float>(reader.most_word);
    const float size = d < 0 ? -d : d;
    const float bound = size * most + (reader.min ? largest(_mm512_load_ps(from->min)) : 0.0f);
    const float unit = bound > 1e-30f ? kFull / bound : 0.0f;  // 0: what is that small is nothing
    const __m512i factor = word(d * unit * static_cast<float>(1 << 15 >> shift));
    __m512i minima = {};
    if (reader.min)
      minima = _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(
          _mm512_cvtps_epi32(_mm512_load_ps(from->min) * _mm512_set1_ps(unit))));
    const __m128i left = _mm_cvtsi32_si128(shift);
    const __m512i halves = _mm512_maskz_set1_epi16(0xffff0000u, 1);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i v[4], highest = {};
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const int chunk = 4 * half + c;
        v[c] = _mm512_mulhrs_epi16(_mm512_sll_epi16((__m512i)from->words[chunk], left), factor);
        if (reader.min)
          v[c] = _mm512_sub_epi16(
              v[c], _mm512_permutexvar_epi16(
                        _mm512_add_epi16(halves, _mm512_set1_epi16(static_cast<short>(2 * chunk))),
                        minima));
        highest = _mm512_max_epi16(highest, _mm512_abs_epi16(v[c]));
      }
      const int top = largest_word(highest);
      const int times = top > 127 ? 127 * 32768 / top : 32767;
      const __m512i by = _mm512_set1_epi16(static_cast<short>(times));
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c)
        bytes[2 * half + c] = narrow((vs)_mm512_mulhrs_epi16(v[2 * c], by),
                                     (vs)_mm512_mulhrs_epi16(v[2 * c + 1], by), plain_order());
      to->scale[half * kCols + line] = bound / kFull * (32768.0f / static_cast<float>(times));
    }
  }
  // Of sizes; NaN where there is one.
  static TENARAI_ALWAYS float largest(__m512 v) {
    const __m512i size = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
    const int32_t most = _mm512_reduce_max_epi32(size);
    float max;
    std::memcpy(&max, &most, 4);
    return max;
  }
  // Of words none of which is negative.
  static TENARAI_ALWAYS int largest_word(__m512i v) {
    const __m256i half =
        _mm256_max_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i eight =
        _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i inverse = _mm_xor_si128(eight, _mm_set1_epi32(-1));
    return 65535 - (_mm_cvtsi128_si32(_mm_minpos_epu16(inverse)) & 0xffff);
  }
  static TENARAI_ALWAYS __m512i word(float x) {
    return _mm512_set1_epi16(static_cast<short>(_mm_cvtss_si32(_mm_set_ss(x))));
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
