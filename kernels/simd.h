// Vectors as types, over the compilers' vector extensions (GCC 12, Clang 15 and later).
//
// One width a build: `vf` holds kLanes floats, `vi` as many int32. Arithmetic is written with
// the ordinary operators; what they lack stands below. Nothing here is visible outside the
// instruction set's own namespace: an inline function shared between builds would let the
// linker keep the AVX-512 one for everybody.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#pragma GCC diagnostic push  // GCC 12's own header reads what it has not set
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#ifndef TENARAI_ISA
#error "a kernel file is compiled once per instruction set, with -DTENARAI_ISA=name"
#endif

#define TENARAI_ALWAYS inline __attribute__((always_inline))
#define TENARAI_INLINE static TENARAI_ALWAYS

namespace tenarai {
namespace TENARAI_ISA {

using i64 = int64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS > 0
constexpr int kVectorBytes = __ARM_FEATURE_SVE_BITS / 8;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kLanes = kVectorBytes / 4;

typedef float vf __attribute__((vector_size(kVectorBytes)));
typedef int32_t vi __attribute__((vector_size(kVectorBytes)));
typedef uint32_t vu __attribute__((vector_size(kVectorBytes)));

TENARAI_INLINE vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TENARAI_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// Past the caches where the CPU can, for what is not read again soon; p is aligned to a vector.
// Others see it after stream_end.
#if defined(__AVX512F__)
TENARAI_INLINE void stream(float* p, vf v) { _mm512_stream_ps(p, v); }
#elif defined(__AVX2__)
TENARAI_INLINE void stream(float* p, vf v) { _mm256_stream_ps(p, v); }
#elif defined(__SSE2__)
TENARAI_INLINE void stream(float* p, vf v) { _mm_stream_ps(p, v); }
#else
TENARAI_INLINE void stream(float* p, vf v) { store(p, v); }
#endif
TENARAI_INLINE void stream_end() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The first n < kLanes elements; the rest are zero, and not read.
TENARAI_INLINE vf load_n(const float* p, i64 n) {
  vf v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
TENARAI_INLINE void store_n(float* p, vf v, i64 n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * 4);
}

TENARAI_INLINE vf broadcast(float x) { return x - vf{}; }  // x - 0 keeps the sign of -0

// a > b ? a : b, and so b where either is not a number; a < b ? a : b. One instruction on x86, of
// which the compilers make two where a is a constant.
#if defined(__AVX512F__)
TENARAI_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
TENARAI_INLINE vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
TENARAI_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
TENARAI_INLINE vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
TENARAI_INLINE vf max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
TENARAI_INLINE vf min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
#else
TENARAI_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
TENARAI_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
#endif

// Sums and maxima over the lanes, in a fixed order.
TENARAI_INLINE float sum(vf v) {
  float lane[kLanes];
  store(lane, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
TENARAI_INLINE float max_lane(vf v) {
  float lane[kLanes];
  store(lane, v);
  float m = lane[0];
  for (int i = 1; i < kLanes; ++i) m = lane[i] > m ? lane[i] : m;
  return m;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
