// Rows of a KV cache: keys or values of one head, float16, float32, or 8 bits with a scale a row.
#pragma once

#include "half.h"
#include "integers.h"
#include "math.h"
#include "ops.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tenarai {
namespace TENARAI_ISA {

// Where position s of a sequence's head lies, in rows. A window's layer is a ring.
static inline i64 cache_row(const CacheStore& c, i64 slot, i64 head, i64 s) {
  return (slot * c.K + head) * c.capacity + s % c.capacity;
}

TENARAI_INLINE void expand_half(float* to, const uint16_t* from, i64 n) {
  i64 i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(
        to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#elif defined(__aarch64__)
  for (; i + 4 <= n; i += 4)
    vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
#endif
  for (; i < n; ++i) to[i] = from_half(from[i]);
}

TENARAI_INLINE void round_to_half(uint16_t* to, const float* from, i64 n) {
  i64 i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(to + i),
        _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; i < n; ++i) to[i] = to_half(from[i]);
}

// to = round(from · 127 / max |from|), and the scale max |from| / 127 that leads back.
TENARAI_INLINE float round_to_bytes(int8_t* to, const float* from, i64 n) {
  float top = 0;
  for (i64 i = 0; i < n; ++i) {
    const float a = from[i] < 0 ? -from[i] : from[i];
    top = a > top ? a : top;
  }
  const float inverse = top > 0 ? 127 / top : 0;
  for (i64 i = 0; i < n; ++i) {
    const float round = 12582912.0f;  // 1.5 · 2^23: what stands behind the point goes
    to[i] = static_cast<int8_t>((from[i] * inverse + round) - round);
  }
  return top / 127;
}

TENARAI_INLINE void expand_bytes(float* to, const int8_t* from, float scale, i64 n) {
  i64 i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    store(to + i, (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)) * scale);
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
    store(to + i, (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) * scale);
  }
#endif
  for (; i < n; ++i) to[i] = static_cast<float>(from[i]) * scale;
}

// Asks for the row a tile further on, so that it comes while this tile is computed with.
TENARAI_INLINE void prefetch_row(const char* row, i64 bytes, i64 tile) {
  for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(row + tile * bytes + i, 0, 2);
}

// Rows (count, W) of float32 from position `first` on, zeros past D; W whole vectors. `tile` rows
// are wanted at a time.
static inline void expand_rows(float* to, i64 W, const CacheStore& c, const void* from,
                               const float* scales, i64 slot, i64 head, i64 first, i64 count,
                               i64 tile) {
  const i64 item = c.type == CacheType::f16 ? 2 : c.type == CacheType::f32 ? 4 : 1;
  const i64 base = cache_row(c, slot, head, 0), start = first % c.capacity;
  for (i64 i = 0; i < count; ++i, to += W) {
    const i64 ring = start + i, row = base + (ring < c.capacity ? ring : ring - c.capacity);
    const char* bytes = static_cast<const char*>(from) + row * c.D * item;
    prefetch_row(bytes, c.D * item, tile);
    if (c.type == CacheType::f16)
      expand_half(to, reinterpret_cast<const uint16_t*>(bytes), c.D);
    else if (c.type == CacheType::f32)
      std::memcpy(to, bytes, static_cast<size_t>(c.D) * 4);
    else
      expand_bytes(to, reinterpret_cast<const int8_t*>(bytes), scales[row], c.D);
    for (i64 d = c.D; d < W; ++d) to[d] = 0;
  }
}

static inline void write_row(const CacheStore& c, void* to, float* scales, i64 row,
                             const float* from) {
  if (c.type == CacheType::f16)
    round_to_half(static_cast<uint16_t*>(to) + row * c.D, from, c.D);
  else if (c.type == CacheType::f32)
    std::memcpy(static_cast<float*>(to) + row * c.D, from, static_cast<size_t>(c.D) * 4);
  else
    scales[row] = round_to_bytes(static_cast<int8_t*>(to) + row * c.D, from, c.D);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
