// A matrix product with seven multiplications where eight are usual (Strassen 1969).
//
// A step of the product takes kPairRows rows of A and kPairCols columns of B, and a block of k.
// Each is cut in two, so that there are four quadrants of A, of B and of the tile of C:
//
//   M1 = (A11 + A22)(B11 + B22)   M2 = (A21 + A22) B11   M3 = A11 (B12 − B22)
//   M4 = A22 (B21 − B11)          M5 = (A11 + A12) B22
//   M6 = (A21 − A11)(B11 + B12)   M7 = (A12 − A22)(B21 + B22)
//
//   C11 += M1 + M4 − M5 + M7   C12 += M3 + M5   C21 += M2 + M4   C22 += M1 − M2 + M3 + M6
//
// The quadrants are not those of the whole matrices but those of a tile: the sums of A and of B are
// made while they are packed, the Ms lie in L1 until all seven are there, and C is touched as often
// as in the plain product. So it pays from a few hundred rows on.
//
// What it costs is accuracy: the rounding errors of an element are those of its tile, not of its
// own row and column. They stay some two or three times those of a plain product where rows are of
// one size; a row of zeros, or one that is far smaller than its neighbours, gets their errors.
//
// Which rows, columns and ks form a tile depends on M, N and K alone: the bits are the same for
// every thread count.
#pragma once

#include "gemm.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kPairRows = 2 * kRows, kPairCols = 2 * kCols;

// Zeros in the vectors of the last panel, or of the one there is, that no line is in: an element of
// a tile is made of sums with others, which must be numbers though they cancel.
template <int kWidth>
TENARAI_INLINE void clear_rest(float* panels, i64 lines, i64 K) {
  if constexpr (kWidth > kLanes)
    for (i64 line = round_up(lines, kLanes); line % kWidth || line == 0; line += kLanes)
      for (i64 k = 0; k < K; ++k) store_lines<kWidth>(panels, line, k, K, vf{});
}

template <class A, class B, class Epilogue>
struct SevenProducts {
  A a;
  B b;
  Epilogue epilogue;
  float* row_sums;
  i64 M, N, K;

  // Is it faster than the plain product? Not where much of its tiles would be padding.
  static bool worthwhile(i64 M, i64 N, i64 K) {
    if (M < 64 || N < kPairCols || K < 96) return false;
    const i64 padded =
        round_up(M, kPairRows) * (N / kPairCols * kPairCols + 2 * half_of(N % kPairCols));
    return padded * 15 <= M * N * 16;
  }

  void run(Pool& pool) const { compute_blocks(pool, *this); }

  static constexpr i64 kRowGrain = kPairRows, kColumnGrain = kPairCols, kPanel = kPairCols;
  static constexpr i64 kLineGrain = kPairRows, kPackGrain = 4 * kPairRows;
  static constexpr i64 kPairDepth = 384, kPairRowBlock = 512, kBlock = kPairRowBlock * kPairDepth;
  i64 block_depth() const { return even_block(K, kPairDepth, 16); }
  i64 a_floats(i64 lines, i64 k) const { return 7 * (lines / 2) * (k / 2); }
  i64 b_floats(i64 k) const { return 7 * kCols * (k / 2); }

  void pack_rows(float* panels, i64 i0, i64 m, Range part, i64 k0, i64 k, bool sums) const {
    const i64 low = first_half(k);
    for (i64 i = part.begin; i < part.end; i += kGroup)
      pack_a(panels + i / 2 * 7 * low, i0 + i, at_most(kGroup, m - i), k0, low, k - low,
             sums && row_sums ? row_sums + i0 + i : nullptr);
  }

  void times_columns(const float* a_panels, float* b_panels, i64 i0, i64 m, Range columns,
                     Range share, i64 k0, i64 k) const {
    const i64 low = first_half(k), depth = block_depth();
    for (i64 j0 = columns.begin; j0 < columns.end; j0 += kPairCols) {
      const i64 n = at_most(kPairCols, columns.end - j0);
      pack_b(b_panels, j0, n, k0, low, k - low);
      strip(a_panels, b_panels, i0, m, j0, n, low, k0 == 0, k0 + k == K,
            next_panel(share, j0, kPairCols, k0, depth, K));
    }
    if (epilogue.streams()) stream_end();
  }

 private:
  static constexpr i64 kTile = kRows * kCols, kGroup = kPackGrain;

  // A strip of n columns: how many are left, the others right.
  static i64 half_of(i64 n) { return round_up((n + 1) / 2, kLanes); }

  // Where the factors of the Ms are among seven panels of B: first the quadrants as they are
  // packed, B11 B12 B21 B22, and each becomes a factor; then further sums.
  static constexpr int kB[7] = {4, 0, 1, 2, 3, 5, 6};
  // Those of line i among the panels of a block of m lines: see pack_a.
  static void a_panel(const float** factors, const float* panels, i64 i, i64 m, i64 k) {
    const i64 size = kRows * k, group = i / kGroup * kGroup, pair = (i - group) / kPairRows;
    const i64 pairs = (at_most(kGroup, m - group) + kPairRows - 1) / kPairRows;
    const float *lower = panels + group / 2 * 7 * k, *upper = lower + 2 * pairs * size;
    const float* sums = upper + (2 * pairs + pair) * size;
    lower += 2 * pair * size;
    upper += 2 * pair * size;
    const float* all[7] = {sums,         sums + pairs * size,     lower,
                           upper + size, sums + 2 * pairs * size, lower + size,
                           upper};
    for (int p = 0; p < 7; ++p) factors[p] = all[p];
  }

  static i64 first_half(i64 k) { return at_most(round_up((k + 1) / 2, 8), k); }

  // Lines are packed kGroup at a time, because a row of memory that gives more is read faster.
  // A group of g pairs: [A11 A21] g times, [A12 A22] g times, then g panels of each further sum.
  void pack_a(float* p, i64 i0, i64 m, i64 k0, i64 low, i64 high, float* sums) const {
    const i64 size = kRows * low, pairs = (m + kPairRows - 1) / kPairRows;
    float *upper = p + 2 * pairs * size, *more = upper + 2 * pairs * size;
    pack_quadrants(p, i0, m, k0, low, low);
    pack_quadrants(upper, i0, m, k0 + low, high, low);
    if (sums) {
      add_row_sums(sums, p, m, low);
      add_row_sums(sums, upper, m, low);
    }
    for (i64 pair = 0; pair < pairs; ++pair)
      for (i64 i = 0; i < size; i += kLanes) {
        float *p11 = p + 2 * pair * size + i, *p21 = p11 + size;
        float *p12 = upper + 2 * pair * size + i, *p22 = p12 + size;
        float* sum = more + pair * size + i;
        const vf a11 = load(p11), a21 = load(p21), a12 = load(p12), a22 = load(p22);
        store(p21, a21 - a11);
        store(p12, a12 - a22);
        store(sum, a11 + a22);
        store(sum + pairs * size, a21 + a22);
        store(sum + 2 * pairs * size, a11 + a12);
      }
  }
  // Whole pairs of panels of length K, of which k are there.
  void pack_quadrants(float* p, i64 i0, i64 m, i64 k0, i64 k, i64 K) const {
    a.template pack<kRows>(p, i0, m, k0, k);
    clear_rest<kRows>(p, m, k);
    const i64 panels = (m + kRows - 1) / kRows;
    if (k < K)
      for (i64 panel = panels - 1; panel >= 0; --panel) {
        float* to = p + panel * kRows * K;
        std::memmove(to, p + panel * kRows * k, static_cast<size_t>(kRows * k) * 4);
        std::memset(to + kRows * k, 0, static_cast<size_t>(kRows * (K - k)) * 4);
      }
    if (panels % 2) std::memset(p + panels * kRows * K, 0, static_cast<size_t>(kRows * K) * 4);
  }

  void pack_b(float* p, i64 j0, i64 n, i64 k0, i64 low, i64 high) const {
    const i64 size = kCols * low, left = at_most(half_of(n), n), right = n - left;
    for (i64 quadrant = 0; quadrant < 4; ++quadrant) {
      const i64 j = quadrant % 2 ? j0 + left : j0, columns = quadrant % 2 ? right : left;
      const i64 begin = quadrant < 2 ? k0 : k0 + low, ks = quadrant < 2 ? low : high;
      b.template pack<kCols>(p + quadrant * size, j, columns, begin, ks);
      clear_rest<kCols>(p + quadrant * size, columns, ks);
    }
    for (i64 i = kCols * high; i < size; ++i) p[2 * size + i] = p[3 * size + i] = 0;
    for (i64 i = 0; i < size; i += kLanes) {
      float *p11 = p + i, *p12 = p11 + size, *p21 = p12 + size, *p22 = p21 + size;
      const vf b11 = load(p11), b12 = load(p12), b21 = load(p21), b22 = load(p22);
      store(p12, b12 - b22);
      store(p21, b21 - b11);
      store(p22 + size, b11 + b22);
      store(p22 + 2 * size, b11 + b12);
      store(p22 + 3 * size, b21 + b22);
    }
  }

  // All rows of the block times one strip of B.
  void strip(const float* a_panels, const float* b_panels, i64 i0, i64 m, i64 j0, i64 n, i64 k,
             bool first, bool last, PlaceOfB next) const {
    const i64 left = at_most(half_of(n), n), tiles = (m + kPairRows - 1) / kPairRows;
    const bool streams = epilogue.streams() && first && last && n == kPairCols && aligned();
    const MicroKernel kernel = choose_micro_kernel(kRows, left);
    Ahead ahead(b.reads(next.j, next.columns, next.k, next.depth), 7 * tiles * k);
    alignas(64) float tile[7 * kTile];
    for (i64 t = 0; t < tiles; ++t) {
      const i64 i = t * kPairRows, rows = at_most(kPairRows, m - i);
      const float* panels[7];
      a_panel(panels, a_panels, i, m, k);
      for (i64 p = 0; p < 7; ++p) {
        if (p == 3 && !streams)
          ahead.c =
              Lines::of(epilogue.c + (i0 + i) * epilogue.stride + j0, epilogue.stride, rows, n);
        const float *pa = panels[p], *pb = b_panels + kB[p] * kCols * k;
        if (left == kCols)
          micro_kernel<kRows, kVectors>(tile + p * kTile, pa, pb, k, &ahead);
        else
          kernel(tile + p * kTile, pa, pb, k, &ahead);
      }
      if (rows == kPairRows && n == kPairCols) {
        if (streams)
          combine<true, true>(tile, i0 + i, rows, j0, left, n, first, last);
        else
          combine<true, false>(tile, i0 + i, rows, j0, left, n, first, last);
      } else {
        combine<false, false>(tile, i0 + i, rows, j0, left, n, first, last);
      }
    }
  }

  // The seven tiles' way into C.
  template <bool kFull, bool kStream>
  void combine(const float* tile, i64 i0, i64 rows, i64 j0, i64 left, i64 columns, bool first,
               bool last) const {
    const i64 width = kFull ? kCols : left;
    for (i64 row = 0; row < kRows; ++row)
#pragma GCC unroll 3
      for (i64 j = 0; j < width; j += kLanes) {
        vf m[7];
#pragma GCC unroll 7
        for (int p = 0; p < 7; ++p) m[p] = load(tile + p * kTile + row * kCols + j);
        const i64 n1 = kFull ? kLanes : at_most(kLanes, left - j);
        const i64 n2 = kFull ? kLanes : at_most(kLanes, columns - left - j);
        if (kFull || row < rows) {
          put<kStream>(m[0] + m[3] - m[4] + m[6], i0 + row, j0 + j, n1, first, last);
          if (n2 > 0) put<kStream>(m[2] + m[4], i0 + row, j0 + left + j, n2, first, last);
        }
        if (kFull || row + kRows < rows) {
          put<kStream>(m[1] + m[3], i0 + kRows + row, j0 + j, n1, first, last);
          if (n2 > 0)
            put<kStream>(m[0] - m[1] + m[2] + m[5], i0 + kRows + row, j0 + left + j, n2, first,
                         last);
        }
      }
  }

  template <bool kStream>
  TENARAI_ALWAYS void put(vf v, i64 i, i64 j, i64 n, bool first, bool last) const {
    float* c = epilogue.c + i * epilogue.stride + j;
    v += kStream || first ? epilogue.start(i, j, n) : load_upto(c, n);
    if (kStream || last) v = epilogue.finish(v, i, j, n);
    if (kStream)
      stream(c, v);
    else
      n == kLanes ? store(c, v) : store_n(c, v, n);
  }

  // Is every row of C, and so every tile that begins at whole vectors?
  bool aligned() const {
    return reinterpret_cast<uintptr_t>(epilogue.c) % kVectorBytes == 0 &&
           epilogue.stride % kLanes == 0;
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
