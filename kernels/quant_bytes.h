// Many rows times a quantised weight in bytes: a prompt, where the machine multiplies bytes four at
// a time (AVX-512 VNNI). Weights are expanded into panels of bytes, activations are rounded to
// bytes:
//
//     x[i] ≈ x_scale[i / 32] · q[i]                  |q| <= 127, or x[i] itself, one of 32
//     w[i] ≈ scale[i / 128] · (u[i] − 128)           K formats, 0 <= u < 256
//     w[i] = scale[i / 32] · (u[i] − 128) − min[i / 32]   plain formats, exactly
//
//   for rectangles of y, which the threads share out
//     for outputs of it, kCols at a time
//       for groups of 256
//         expand and transpose kCols × 256 bytes           stays in L1, 12 KB
//         for rows of it, kTileRows at a time
//           micro-kernel: sums of 32 products in integers, kTileRows × kCols in registers,
//           each times x_scale into floats; y += scale · those
//
// Real models have activations that are much larger than all around them. Where the largest of 32
// is more than kApart times every other it is left out and multiplied by itself, so the others
// keep their bits: of the KL divergence of Gemma 3 a quarter is left (docs/LOG.md). 128 weights a
// scale cost a quarter of the conversions that 32 would. A row of y is the same whatever other rows
// there are.
#pragma once

#include "quant_byte_panels.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kTileRows = 4;
constexpr float kApart = 2;

// M rows of activations, group by group, and zeros up to a multiple of kTileRows.
struct ByteRows {
  i64 M, groups;
  int8_t* q;       // (groups, M, 256)
  float* scale;    // (groups, M, 8)
  float* sums;     // (groups, M, 8): Σ x as rounded
  int32_t* start;  // (groups, M, 8): −128 Σ q, because weights are stored 128 higher
  float* outlier;  // (groups, M, 8): the activation that stands apart
  uint8_t* place;  // (groups, M, 8): where in its block
  uint8_t* which;  // (groups, M): bit j: block j has one

  static size_t bytes(i64 M, i64 I) {
    const i64 rows = WordRows::groups_of(I) * round_up(M, kTileRows);
    return static_cast<size_t>(round_up(rows * (kGroup + kBlocks * 17 + 1), 64));
  }
  ByteRows(void* memory, i64 rows, i64 I)
      : M(round_up(rows, kTileRows)), groups(WordRows::groups_of(I)) {
    q = static_cast<int8_t*>(memory);
    scale = reinterpret_cast<float*>(q + groups * M * kGroup);
    sums = scale + groups * M * kBlocks;
    start = reinterpret_cast<int32_t*>(sums + groups * M * kBlocks);
    outlier = reinterpret_cast<float*>(start + groups * M * kBlocks);
    place = reinterpret_cast<uint8_t*>(outlier + groups * M * kBlocks);
    which = place + groups * M * kBlocks;
  }

  // Rows [begin, end) of x (rows, I), `stride` from row to row.
  void round(const float* x, i64 stride, i64 I, i64 rows, i64 begin, i64 end) const {
    for (i64 m = begin; m < end; ++m)
      for (i64 g = 0; g < groups; ++g) {
        int apart = 0;
        for (int j = 0; j < kBlocks; ++j) {
          const i64 i = g * kGroup + j * kBlock, n = m < rows ? at_most(kBlock, I - i) : 0;
          apart |= round_block((g * M + m) * kBlocks + j, x + m * stride + i, n < 0 ? 0 : n) << j;
        }
        which[g * M + m] = static_cast<uint8_t>(apart);
      }
  }

 private:
  // The largest is found as an integer, so that a NaN is larger than all and makes the scale NaN.
  static TENARAI_ALWAYS float largest(__m512 a, __m512 b) {
    const int32_t most =
        _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
    float max;
    std::memcpy(&max, &most, 4);
    return max;
  }
  // Whether one of them stands apart.
  bool round_block(i64 at, const float* x, i64 n) const {
    const auto mask = [n](i64 from) {
      const i64 left = n - from;
      return static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
    };
    __m512 a = _mm512_maskz_loadu_ps(mask(0), x), b = _mm512_maskz_loadu_ps(mask(16), x + 16);
    float max = largest(_mm512_abs_ps(a), _mm512_abs_ps(b));
    const __m512 bound = _mm512_set1_ps(max * (1 / kApart));
    const __mmask16 of_a = _mm512_cmp_ps_mask(_mm512_abs_ps(a), bound, _CMP_GE_OQ),
                    of_b = _mm512_cmp_ps_mask(_mm512_abs_ps(b), bound, _CMP_GE_OQ);
    const uint32_t large = of_a | static_cast<uint32_t>(of_b) << 16;
    const bool apart = large != 0 && (large & (large - 1)) == 0;
    outlier[at] = 0;
    if (apart) {
      place[at] = static_cast<uint8_t>(__builtin_ctz(large));
      outlier[at] = x[place[at]];
      a = _mm512_maskz_mov_ps(static_cast<__mmask16>(~of_a), a);
      b = _mm512_maskz_mov_ps(static_cast<__mmask16>(~of_b), b);
      max = largest(_mm512_abs_ps(a), _mm512_abs_ps(b));
    }
    const __m512 inverse = _mm512_set1_ps(max > 1e-30f ? 127.0f / max : 0.0f);
    const __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)),
                  r = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    _mm_storeu_si128((__m128i*)(q + at * kBlock), _mm512_cvtsepi32_epi8(p));
    _mm_storeu_si128((__m128i*)(q + at * kBlock + 16), _mm512_cvtsepi32_epi8(r));
    const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(p, r));
    scale[at] = max / 127.0f;
    sums[at] = scale[at] * static_cast<float>(sum) + outlier[at];
    start[at] = -128 * sum;
    return apart;
  }
};

// y (kTileRows, kCols), `stride` apart, += the group of rows `row` .. of x times a panel.
template <bool kSuper, bool kMin>
static void byte_kernel(float* y, i64 stride, const ByteRows& rows, i64 row,
                        const BytePanel& panel) {
#define TENARAI_TILE(X) X(0) X(1) X(2) X(3)
  const uint8_t* w = panel.bytes;
  const float* scale = panel.scale;
  const int8_t* x = rows.q + row * kGroup;
  const float *x_scale = rows.scale + row * kBlocks, *x_sums = rows.sums + row * kBlocks;
  const int32_t* start = rows.start + row * kBlocks;
  uint32_t apart;  // a byte a row
  std::memcpy(&apart, rows.which + row, sizeof apart);
  const auto at = [](const auto* p) __attribute__((always_inline)) { return _mm512_load_si512(p); };
  constexpr int kParts = kSuper ? 2 : 1;  // of a group, that have sums in floats of their own
  for (int part = 0; part < kParts; ++part) {
#define DECLARE(i) __m512 f##i##0 = {}, f##i##1 = {}, f##i##2 = {};
    TENARAI_TILE(DECLARE)
#undef DECLARE
    for (int j = part * 8 / kParts; j < (part + 1) * 8 / kParts; ++j) {
#define DECLARE(i) \
  __m512i c##i##0 = _mm512_set1_epi32(start[i * kBlocks + j]), c##i##1 = c##i##0, c##i##2 = c##i##0;
      TENARAI_TILE(DECLARE)
#undef DECLARE
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k, w += 4 * kCols) {
        const __m512i b0 = at(w), b1 = at(w + 64), b2 = at(w + 128);
#define ACCUMULATE(i)                                       \
  {                                                         \
    int32_t four;                                           \
    std::memcpy(&four, x + i * kGroup + j * 32 + k * 4, 4); \
    const __m512i a = _mm512_set1_epi32(four);              \
    c##i##0 = _mm512_dpbusd_epi32(c##i##0, b0, a);          \
    c##i##1 = _mm512_dpbusd_epi32(c##i##1, b1, a);          \
    c##i##2 = _mm512_dpbusd_epi32(c##i##2, b2, a);          \
  }
        TENARAI_TILE(ACCUMULATE)
#undef ACCUMULATE
      }
      const __m512 s0 = _mm512_load_ps(scale + j * kCols),
                   s1 = _mm512_load_ps(scale + j * kCols + 16),
                   s2 = _mm512_load_ps(scale + j * kCols + 32);
      const float* min = panel.min + j * kCols;
#define SCALE(i, v, s)                                                                 \
  f##i##v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c##i##v), kSuper ? t : t * s, f##i##v); \
  if constexpr (kMin) f##i##v = _mm512_fnmadd_ps(_mm512_load_ps(min + 16 * v), u, f##i##v);
#define FINISH(i)                                                           \
  {                                                                         \
    const __m512 t = _mm512_set1_ps(x_scale[i * kBlocks + j]);              \
    const __m512 u = _mm512_set1_ps(kMin ? x_sums[i * kBlocks + j] : 0.0f); \
    SCALE(i, 0, s0) SCALE(i, 1, s1) SCALE(i, 2, s2)(void) u;                \
  }
      TENARAI_TILE(FINISH)
#undef FINISH
#undef SCALE
    }
    if (const uint32_t here = apart >> part * 4 & (kSuper ? 0x0f0f0f0fu : ~0u)) {
#define FINISH(i)                                                                              \
  for (uint32_t left = here >> 8 * i & 255; left; left &= left - 1) {                          \
    const int j = __builtin_ctz(left) + part * 4, place = rows.place[(row + i) * kBlocks + j]; \
    const uint8_t* from = panel.bytes + (j * 8 + place / 4) * 4 * kCols;                       \
    const __m512i pick = _mm512_set1_epi32(1 << place % 4 * 8);                                \
    const __m512 t = _mm512_set1_ps(rows.outlier[(row + i) * kBlocks + j]);                    \
    const auto add = [&](__m512 f, int v) __attribute__((always_inline)) {                     \
      const __m512i u = _mm512_dpbusd_epi32(_mm512_set1_epi32(-128), at(from + 64 * v), pick); \
      return _mm512_fmadd_ps(_mm512_cvtepi32_ps(u),                                            \
                             kSuper ? t : t * _mm512_load_ps(scale + j * kCols + 16 * v), f);  \
    };                                                                                         \
    f##i##0 = add(f##i##0, 0), f##i##1 = add(f##i##1, 1), f##i##2 = add(f##i##2, 2);           \
  }
      TENARAI_TILE(FINISH)
#undef FINISH
    }
    const float* of_part = scale + part * kCols;
#define ADD(i, v)                                                                                 \
  {                                                                                               \
    float* to = y + i * stride + 16 * v;                                                          \
    const __m512 before = _mm512_loadu_ps(to);                                                    \
    _mm512_storeu_ps(to, kSuper                                                                   \
                             ? _mm512_fmadd_ps(f##i##v, _mm512_load_ps(of_part + 16 * v), before) \
                             : before + f##i##v);                                                 \
  }
#define FINISH(i) ADD(i, 0) ADD(i, 1) ADD(i, 2)
    TENARAI_TILE(FINISH)
#undef FINISH
#undef ADD
  }
#undef TENARAI_TILE
}
using ByteKernel = void (*)(float*, i64, const ByteRows&, i64, const BytePanel&);

static ByteKernel choose_byte_kernel(const Reader& reader) {
  return reader.layout == Layout::super ? &byte_kernel<true, false>
         : reader.min                   ? &byte_kernel<false, true>
                                        : &byte_kernel<false, false>;
}

// y (M, O) = x wᵀ + bias + residual. Sums of kCols outputs lie together until they are done: rows
// of y are often a multiple of 4 KB apart and would share few sets of the caches.
struct ByteProduct {
  const Forward& forward;
  const ByteSource& w;
  const ByteRows& x;

  struct Memory {
    BytePanel panel;
    alignas(64) float sums[1];  // (rows, kCols)
  };
  static size_t bytes(i64 rows) {
    return sizeof(Memory) + static_cast<size_t>(round_up(rows, kTileRows) * kCols) * 4;
  }

  void rectangle(Range rows, Range outputs, Memory* memory) const {
    const ByteKernel kernel = choose_byte_kernel(w.reader);
    BytePanel& panel = memory->panel;
    const i64 tiles = (rows.end - rows.begin + kTileRows - 1) / kTileRows;
    for (i64 o = outputs.begin; o < outputs.end; o += kCols) {
      std::memset(memory->sums, 0, static_cast<size_t>(tiles * kTileRows * kCols) * 4);
      for (i64 g = 0; g < x.groups; ++g) {
        w.pack(&panel, o, g);
        const i64 next_g = g + 1 < x.groups ? g + 1 : 0, next_o = next_g ? o : o + kCols;
        for (i64 t = 0; t < tiles; ++t) {
          if (next_o < outputs.end) w.prefetch(next_o, next_g, t, tiles);
          const i64 at = g * x.M + rows.begin + t * kTileRows;
          float* sums = memory->sums + t * kTileRows * kCols;
          for (i64 i = 0; i < kTileRows * kCols; i += 16) __builtin_prefetch(sums + i, 1);
          const int8_t* next = x.q + (at + kTileRows) * kGroup;
          for (i64 i = 0; i < kTileRows * kGroup; i += 64) __builtin_prefetch(next + i);
          kernel(sums, kCols, x, at, panel);
        }
      }
      finish(rows, o, at_most(kCols, outputs.end - o), memory->sums);
    }
  }

 private:
  void finish(Range rows, i64 o, i64 n, const float* sums) const {
    for (i64 m = rows.begin; m < rows.end; ++m, sums += kCols)
      for (i64 j = 0; j < n; j += kLanes) {
        const i64 lanes = at_most(kLanes, n - j);
        const vf v = forward.start(m, o + j, lanes) + load(sums + j);
        float* y = forward.c + m * forward.stride + o + j;
        lanes == kLanes ? store(y, v) : store_n(y, v, lanes);
      }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
