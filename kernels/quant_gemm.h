// Many rows times a quantised weight: a prompt. Groups of 256 weights become words (quant_words.h),
// transposed into panels whose lanes are outputs, and every panel meets all rows of activations:
//
//   for rectangles of y, which the threads share out
//     for outputs of it, kCols at a time
//       for groups of 256
//         unpack and transpose kCols × 256 words           stays in L1, 24 KB
//         for rows of it, kRows at a time
//           micro-kernel: sums of 256 products in integers, kRows × kCols in registers
//           y += x_scale · scale · sums − Σ min · x_sums
//
// Two words of a row of x are broadcast at each step and meet those of kLanes rows of w. All 256
// products of a K block come together in a lane, so activations keep fewer bits than with few rows:
// 11 with Q6_K, 13 with Q4_K, and more with the plain formats, which are summed by 32.
#pragma once

#include "quant_dot.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kPairs = kGroup / 2;

// How far activations may go for sums of `terms` products with words of at most most_word.
TENARAI_INLINE int32_t limit_of(int32_t most_word, int32_t terms) {
  const int32_t limit = 0x7fffffff / terms / most_word;
  return limit < 32767 ? limit : 32767;
}

// kCols rows of one group of weights.
struct Panel {
  alignas(64) int32_t pairs[kPairs * kCols];  // [pair][kCols]: words 2·pair and 2·pair + 1
  alignas(64) float scale[8 * kCols];         // [8 or 1][kCols]
  alignas(64) float min[16 * kCols];          // [terms][kCols]
};

// A quantised matrix (O, I) as panels.
struct PanelSource : QuantRows {
  // Rows o .. o + kCols, zeros past the last, of group g.
  void pack(Panel* to, i64 o, i64 g) const {
    for (int v = 0; v < kCols; v += kLanes) {
      Group groups[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        if (o + v + r < O)
          unpack(groups + r, o + v + r, g);
        else
          groups[r] = Group{};
        copy_factors(to, v + r, groups[r]);
      }
      for (int c = 0; c < kChunks; ++c) {
        vf rows[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) rows[r] = (vf)groups[r].words[c];
        transpose(rows);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          const vi pair = (vi)rows[r];
          std::memcpy(to->pairs + place_of(c, r) * kCols + v, &pair, sizeof pair);
        }
      }
    }
  }

 private:
  // The place in the row of pair r of vector c.
  i64 place_of(int c, int r) const {
    if (reader.layout != Layout::paired) return c * kLanes + r;
    return (c / 2 * 2 + r / 8) * 16 + c % 2 * 8 + r % 8;
  }
  void copy_factors(Panel* to, int line, const Group& from) const {
    for (int j = 0; j < (reader.layout != Layout::super ? 8 : 1); ++j)
      to->scale[j * kCols + line] = from.scale[j];
    if (reader.min)
      for (i64 j = 0; j < reader.min_terms; ++j)
        to->min[j * kCols + line] = from.min[j * 16 / reader.min_terms];
  }
};

// tile (R, kCols) = or += scale · Σ pairs: R rows of x, kPairs apart, times a panel's pairs.
template <int R>
static void word_kernel(float* tile, const int32_t* x, const int32_t* w, const float* scale,
                        i64 pairs, bool first) {
#define DECLARE(i) vi c##i##0 = {}, c##i##1 = {}, c##i##2 = {};
  TENARAI_ROWS(DECLARE)
#undef DECLARE
  for (i64 k = 0; k < pairs; ++k, ++x, w += kCols) {
    vs b0, b1, b2;
    std::memcpy(&b0, w, sizeof b0);
    std::memcpy(&b1, w + kLanes, sizeof b1);
    std::memcpy(&b2, w + 2 * kLanes, sizeof b2);
#define ACCUMULATE(i)                        \
  if constexpr (R > i) {                     \
    const vs a = (vs)(vi{} + x[i * kPairs]); \
    c##i##0 = add_pairs(c##i##0, a, b0);     \
    c##i##1 = add_pairs(c##i##1, a, b1);     \
    c##i##2 = add_pairs(c##i##2, a, b2);     \
  }
    TENARAI_ROWS(ACCUMULATE)
#undef ACCUMULATE
  }
  const vf s0 = load(scale), s1 = load(scale + kLanes), s2 = load(scale + 2 * kLanes);
#define FINISH(i)                                                        \
  if constexpr (R > i) {                                                 \
    float* t = tile + i * kCols;                                         \
    const vf p0 = to_floats(c##i##0) * s0, p1 = to_floats(c##i##1) * s1, \
             p2 = to_floats(c##i##2) * s2;                               \
    store(t, first ? p0 : load(t) + p0);                                 \
    store(t + kLanes, first ? p1 : load(t + kLanes) + p1);               \
    store(t + 2 * kLanes, first ? p2 : load(t + 2 * kLanes) + p2);       \
  }
  TENARAI_ROWS(FINISH)
#undef FINISH
}
using WordKernel = void (*)(float*, const int32_t*, const int32_t*, const float*, i64, bool);
static WordKernel choose_word_kernel(i64 rows) {
  if constexpr (kRows > 4)
    if (rows > 4)
      return rows == 5   ? &word_kernel<5>
             : rows == 6 ? &word_kernel<6>
             : rows == 7 ? &word_kernel<7>
                         : &word_kernel<8>;
  return rows == 1   ? &word_kernel<1>
         : rows == 2 ? &word_kernel<2>
         : rows == 3 ? &word_kernel<3>
                     : &word_kernel<4>;
}

// y (M, O) = x wᵀ + bias + residual.
struct QuantProduct {
  const Forward& forward;
  const PanelSource& w;
  const WordRows& x;

  void rectangle(Range rows, Range outputs, Panel* panel) const {
    for (i64 o = outputs.begin; o < outputs.end; o += kCols)
      for (i64 g = 0; g < x.groups; ++g) {
        w.pack(panel, o, g);
        for (i64 m = rows.begin; m < rows.end; m += kRows)
          tile(*panel, m, at_most(kRows, rows.end - m), o, at_most(kCols, outputs.end - o), g);
      }
  }

 private:
  void tile(const Panel& panel, i64 m, i64 rows, i64 o, i64 n, i64 g) const {
    const i64 at = g * x.M + m;
    const int32_t* pairs = reinterpret_cast<const int32_t*>(x.q + at * kGroup);
    for (i64 i = 0; i < rows; ++i)  // needed when the sums are done
      for (i64 j = 0; j < n; j += 16)
        __builtin_prefetch(forward.c + (m + i) * forward.stride + o + j, 1);
    const WordKernel kernel = choose_word_kernel(rows);
    alignas(64) float sums[kRows * kCols];
    if (w.reader.layout != Layout::super)
      for (i64 j = 0; j < 8; ++j)
        kernel(sums, pairs + j * 16, panel.pairs + j * 16 * kCols, panel.scale + j * kCols, 16,
               j == 0);
    else
      kernel(sums, pairs, panel.pairs, panel.scale, kPairs, true);
    for (i64 i = 0; i < rows; ++i)
      finish(panel, sums + i * kCols, x.scale[at + i], x.sums + (at + i) * kSums, m + i, o, n,
             g == 0);
  }

  // A row of a tile, from its sums into y.
  void finish(const Panel& panel, const float* sums, float scale, const float* x_sums, i64 m, i64 o,
              i64 n, bool first) const {
    vf v[kVectors];
    for (int j = 0; j < kVectors; ++j) v[j] = load(sums + j * kLanes) * scale;
    const i64 terms = w.reader.min ? w.reader.min_terms : 0;
    for (i64 t = 0; t < terms; ++t)
      for (int j = 0; j < kVectors; ++j)
        v[j] -= load(panel.min + t * kCols + j * kLanes) * x_sums[t];
    float* y = forward.c + m * forward.stride + o;
    for (int j = 0; j < kVectors; ++j) {
      const i64 at = j * kLanes, lanes = at_most(kLanes, n - at);
      if (lanes <= 0) break;
      v[j] += first ? forward.start(m, o + at, lanes) : load_upto(y + at, lanes);
      lanes == kLanes ? store(y + at, v[j]) : store_n(y + at, v[j], lanes);
    }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
