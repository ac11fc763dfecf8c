// The micro-kernel: a tile of C in registers, a column of A times a row of B at every step.
//
//            kCols = 3 vectors
//         +------+------+------+
//         |  b0  |  b1  |  b2  |   B panel, [k][kCols]: one row of it a step
//         +------+------+------+
//   +---+ +------+------+------+
//   | a | | c00  | c01  | c02  |
//   | a | | c10  | c11  | c12  |   kRows × 3 accumulators, never in memory before the end
//   | a | |  ..  |  ..  |  ..  |
//   +---+ +------+------+------+
//   A panel, [k][kRows]: one element broadcast a row
//
// With 32 registers 8 × 3 accumulators, 3 of B and one broadcast; with 16 registers 4 × 3 and the
// same. Accumulators have names because GCC 12 spills those of an array. At the edges of C the same
// code runs with fewer rows and vectors.
#pragma once

#include "simd.h"

namespace tenarai {
namespace TENARAI_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kVectors = 3;
constexpr int kCols = kVectors * kLanes;

// Rows of floats in memory, to be asked for a cache line at a time.
struct Lines {
  const float* p;
  i64 stride, width, rows;  // the rows' distance, their length in lines, those not yet asked for
  i64 left;                 // lines of the first of them

  static Lines of(const float* p, i64 stride, i64 rows, i64 columns) {
    // The first row's lines; where the others begin elsewhere in theirs, perhaps one more.
    const i64 past = static_cast<i64>(reinterpret_cast<uintptr_t>(p) / 4 % 16);
    const i64 width = (past + columns + 15) / 16 + (stride % 16 ? 1 : 0);
    return {p, stride, width, rows, width};
  }
  template <bool kForWriting, int kLocality>
  TENARAI_ALWAYS void ask() {
    if (rows <= 0) return;
    __builtin_prefetch(p + (width - left) * 16, kForWriting, kLocality);
    if (--left > 0) return;
    left = width;
    p += stride;
    --rows;
  }
};

// What the micro-kernel asks for while it multiplies: rows of C, which its tile will go to, and the
// next panel of B, evenly over all tiles of this one. All at once they would fill the buffers of
// lines under way, a dozen or so, and the products would wait.
struct Ahead {
  Lines b, c;
  i64 step, wait = 0;  // lines of B for each four steps of a tile, in 64ths; those not asked for

  // Lines b over `steps` steps.
  Ahead(Lines b, i64 steps) : b(b), c{}, step(256 * b.rows * b.width / (steps + 1) + 1) {}

  TENARAI_ALWAYS void ask() {
    for (wait += step; wait >= 64; wait -= 64) b.ask<false, 2>();
    c.ask<true, 3>();
  }
};

#define TENARAI_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

// tile (R, kCols) = Σ_k a[k][i] b[k][j], of which the first V vectors of a row are written.
template <int R, int V>
static void micro_kernel(float* tile, const float* a, const float* b, i64 K, Ahead* ahead) {
#define DECLARE(i) vf c##i##0 = {}, c##i##1 = {}, c##i##2 = {};
  TENARAI_ROWS(DECLARE)
#undef DECLARE
  auto step = [&](const float* ak, const float* bk) __attribute__((always_inline)) {
    const vf b0 = load(bk);
    const vf b1 = V > 1 ? load(bk + kLanes) : b0;
    const vf b2 = V > 2 ? load(bk + 2 * kLanes) : b0;
#define ACCUMULATE(i)                       \
  if constexpr (R > i) {                    \
    const vf s = broadcast(ak[i]);          \
    c##i##0 += s * b0;                      \
    if constexpr (V > 1) c##i##1 += s * b1; \
    if constexpr (V > 2) c##i##2 += s * b2; \
  }
    TENARAI_ROWS(ACCUMULATE)
#undef ACCUMULATE
  };
  Ahead lines = *ahead;  // in registers
  for (; K >= 4; K -= 4, a += 4 * kRows, b += 4 * kCols) {
    lines.ask();
    step(a, b);
    step(a + kRows, b + kCols);
    step(a + 2 * kRows, b + 2 * kCols);
    step(a + 3 * kRows, b + 3 * kCols);
  }
  *ahead = lines;
  for (; K > 0; --K, a += kRows, b += kCols) step(a, b);
#define FINISH(i)                                                       \
  if constexpr (R > i) {                                                \
    store(tile + i * kCols, c##i##0);                                   \
    if constexpr (V > 1) store(tile + i * kCols + kLanes, c##i##1);     \
    if constexpr (V > 2) store(tile + i * kCols + 2 * kLanes, c##i##2); \
  }
  TENARAI_ROWS(FINISH)
#undef FINISH
}

using MicroKernel = void (*)(float* tile, const float* a, const float* b, i64 K, Ahead* ahead);

template <int R>
static MicroKernel micro_kernel_of(i64 vectors) {
  return vectors == 1   ? &micro_kernel<R, 1>
         : vectors == 2 ? &micro_kernel<R, 2>
                        : &micro_kernel<R, 3>;
}
// The one for a tile of so many rows and columns, up to kRows and kCols.
[[maybe_unused]] static MicroKernel choose_micro_kernel(i64 rows, i64 columns) {
  const i64 v = (columns + kLanes - 1) / kLanes;
  if (rows <= 4)
    return rows <= 1   ? micro_kernel_of<1>(v)
           : rows == 2 ? micro_kernel_of<2>(v)
           : rows == 3 ? micro_kernel_of<3>(v)
                       : micro_kernel_of<4>(v);
  if constexpr (kRows > 4)
    return rows == 5   ? micro_kernel_of<5>(v)
           : rows == 6 ? micro_kernel_of<6>(v)
           : rows == 7 ? micro_kernel_of<7>(v)
                       : micro_kernel_of<8>(v);
  return nullptr;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
