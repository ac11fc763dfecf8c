// Small matrix products and transposes, on tiles that fit the caches. Nothing is packed: what is
// broadcast may have any stride, and what is read as vectors has rows of its own width.
#pragma once

#include "simd.h"
#include "transpose.h"

namespace tenarai {
namespace TENARAI_ISA {

// The block of C that stays in registers: kTileRows rows of kTileVectors vectors. A step of the
// sum is a broadcast a row, a load a vector, and a multiply-add for each pair of them.
#if defined(__AVX512F__) || defined(__ARM_FEATURE_SVE)
constexpr int kTileRows = 8, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int kTileRows = 6, kTileVectors = 4;
#else
constexpr int kTileRows = 6, kTileVectors = 2;  // sixteen registers in all
#endif

// Where the left factor keeps row i, step r of the sum: a[i · stride + r] or a[i + r · stride].
enum class Left { rows, columns };

// C = or += A B for kRows rows and kVectors vectors, over R steps. Not inlined: among other code
// the compiler would keep one of the sums in memory.
template <Left kLeft, int kVectors, int kRows>
static __attribute__((noinline)) void tile_block(float* c, i64 c_stride, const float* a,
                                                 i64 a_stride, const float* b, i64 b_stride, i64 R,
                                                 bool add) {
  const i64 row = kLeft == Left::rows ? a_stride : 1, step = kLeft == Left::rows ? 1 : a_stride;
  vf sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sum[i][j] = add ? load(c + i * c_stride + j * kLanes) : vf{};
  for (i64 r = 0; r < R; ++r) {
    vf right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + r * b_stride + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const float left = a[i * row + r * step];
      for (int j = 0; j < kVectors; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) store(c + i * c_stride + j * kLanes, sum[i][j]);
}

// The blocks below each other, M rows in all; the last is as high as what is left.
template <Left kLeft, int kVectors, int kRows = kTileRows>
static inline void tile_column(float* c, i64 c_stride, const float* a, i64 a_stride, const float* b,
                               i64 b_stride, i64 M, i64 R, bool add) {
  const i64 row = kLeft == Left::rows ? a_stride : 1;
  i64 i = 0;
  for (; i + kRows <= M; i += kRows)
    tile_block<kLeft, kVectors, kRows>(c + i * c_stride, c_stride, a + i * row, a_stride, b,
                                       b_stride, R, add);
  if constexpr (kRows > 1)
    if (i < M)
      tile_column<kLeft, kVectors, kRows - 1>(c + i * c_stride, c_stride, a + i * row, a_stride, b,
                                              b_stride, M - i, R, add);
}

// Where C is four vectors wide and high enough, a block of six rows of them: fewer loads, and the
// left factor is read once.
#if defined(__AVX512F__) || defined(__ARM_FEATURE_SVE)
constexpr int kWideRows = 6, kWideVectors = 4;
#else
constexpr int kWideRows = kTileRows, kWideVectors = kTileVectors;
#endif

// C (M, N) = or += A (M, R) · B (R, N), N a multiple of kLanes.
template <Left kLeft, int kVectors = kTileVectors>
static inline void tile_product(float* c, i64 c_stride, const float* a, i64 a_stride,
                                const float* b, i64 b_stride, i64 M, i64 N, i64 R, bool add) {
  constexpr i64 kWidth = kVectors * kLanes, kWide = kWideVectors * kLanes;
  i64 n = 0;
  if constexpr (kVectors == kTileVectors && kWideVectors > kTileVectors)
    for (; M >= 2 * kTileRows && n + kWide <= N; n += kWide)
      tile_column<kLeft, kWideVectors, kWideRows>(c + n, c_stride, a, a_stride, b + n, b_stride, M,
                                                  R, add);
  for (; n + kWidth <= N; n += kWidth)
    tile_column<kLeft, kVectors>(c + n, c_stride, a, a_stride, b + n, b_stride, M, R, add);
  if constexpr (kVectors > 1)
    if (n < N)
      tile_product<kLeft, kVectors - 1>(c + n, c_stride, a, a_stride, b + n, b_stride, M, N - n, R,
                                        add);
}

// to (N, M) = from (M, N)ᵀ · factor. Rows of `to` are written up to a multiple of kLanes, with
// zeros past M, where `pad`; else to their M elements.
static inline void transpose(float* to, i64 to_stride, const float* from, i64 from_stride, i64 M,
                             i64 N, float factor, bool pad) {
  for (i64 m = 0; m < M; m += kLanes)
    for (i64 n = 0; n < N; n += kLanes) {
      const i64 height = M - m < kLanes ? M - m : kLanes, width = N - n < kLanes ? N - n : kLanes;
      vf rows[kLanes];
      for (i64 i = 0; i < kLanes; ++i) {
        const float* row = from + (m + i) * from_stride + n;
        rows[i] = i >= height ? vf{} : (width == kLanes ? load(row) : load_n(row, width)) * factor;
      }
      transpose(rows);
      for (i64 i = 0; i < width; ++i) {
        float* row = to + (n + i) * to_stride + m;
        pad || height == kLanes ? store(row, rows[i]) : store_n(row, rows[i], height);
      }
    }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
