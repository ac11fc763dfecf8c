// Products in words (words.h) of tiles that fit the caches: the two ways of rounding a tile, and
// the product of two of them, as tile.h's.
#pragma once

#include "attention_tiles.h"
#include "words.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)

namespace tenarai {
namespace TENARAI_ISA {

// Lines rounded, each with its scale: pairs of words, `stride` from row to row. Along: a line is a
// row. Down: a row holds a pair of each line.
struct Words {
  float *pairs, *scales;
  i64 stride;

  // Columns of `height` floats become lines, whole vectors of them; row i is multiplied by
  // factor[i] first, where there are factors. Pairs with nothing below are zero.
  void down(const float* from, i64 from_stride, i64 height, i64 lines,
            const float* factor = nullptr) const {
    for (i64 j = 0; j < lines; j += kLanes) {
      const auto value = [&](i64 row) __attribute__((always_inline)) {
        const vf x = load(from + row * from_stride + j);
        return factor ? x * factor[row] : x;
      };
      vi low = {}, high = {};
      i64 i = 0;
      for (; i + 2 <= height; i += 2) {
        low = larger(low, magnitude(value(i)));
        high = larger(high, magnitude(value(i + 1)));
      }
      if (i < height) low = larger(low, magnitude(value(i)));
      const Rounding rounding(larger(low, high));
      store(scales + j, rounding.scale);
      const auto word = [&](i64 row) __attribute__((always_inline)) {
        return to_words(value(row) * rounding.inverse);
      };
      float* to = pairs + j;
      for (i = 0; i + 2 <= height; i += 2, to += stride)
        store(to, pair_words(word(i), word(i + 1)));
      if (i < height) store(to, pair_words(word(i), vi{}));
    }
  }
};
static inline Words words_of(Cut& cut, i64 rows, i64 stride, i64 scales) {
  Words words;
  words.pairs = cut(rows * stride), words.scales = cut(scales), words.stride = stride;
  return words;
}

// Rows of `width` floats, whole vectors, each with a scale of its own: pairs of neighbours along
// them, pairs of two rows down them, or both.
static inline void round_rows(const float* from, i64 from_stride, i64 rows, i64 width,
                              float* scales, const Words* along, const Words* down) {
  for (i64 r = 0; r < rows; r += kLanes) {
    const i64 n = at_most(kLanes, rows - r);
    const float* x = from + r * from_stride;
    vf most[kLanes] = {};
    for (i64 i = 0; i < n; ++i) {
      vi largest = {};
      for (i64 j = 0; j < width; j += kLanes)
        largest = larger(largest, magnitude(load(x + i * from_stride + j)));
      most[i] = (vf)largest;
    }
    transpose(most);
    const Rounding rounding(largest_of(most));
    store_n(scales + r, rounding.scale, n);
    float inverse[kLanes];
    store(inverse, rounding.inverse);
    const auto words = [&](i64 i, i64 j) __attribute__((always_inline)) {
      const vi w = to_words(load(x + i * from_stride + j) * inverse[i]);
      if (along)
        _mm256_storeu_si256((__m256i*)(along->pairs + (r + i) * along->stride + j / 2),
                            _mm512_cvtepi32_epi16((__m512i)w));
      return w;
    };
    for (i64 i = 0; i < n; i += 2)
      for (i64 j = 0; j < width; j += kLanes) {
        const vi even = words(i, j), odd = i + 1 < n ? words(i + 1, j) : vi{};
        if (down) store(down->pairs + (r + i) / 2 * down->stride + j, pair_words(even, odd));
      }
  }
}

// Without the first `lines`, which stand `step` apart.
static inline Words after(const Words& words, i64 lines, i64 step) {
  return {words.pairs + lines * step, words.scales + lines, words.stride};
}

// c = or += left · right, a block of kRows rows of kVectors vectors, `steps` pairs deep. Not
// inlined, as tile_block.
template <Left kLeft, int kVectors, int kRows>
static __attribute__((noinline)) void word_block(float* c, i64 c_stride, Words left, Words right,
                                                 i64 steps, bool add) {
  const i64 row = kLeft == Left::rows ? left.stride : 1;
  const i64 step = kLeft == Left::rows ? 1 : left.stride;
  vi sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sum[i][j] = vi{};
  for (i64 r = 0; r < steps; ++r) {
    vi pairs[kVectors];
    for (int j = 0; j < kVectors; ++j)
      pairs[j] = load_pairs(right.pairs + r * right.stride + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const vi pair = broadcast_pair(left.pairs + i * row + r * step);
      for (int j = 0; j < kVectors; ++j) sum[i][j] = add_pair_products(sum[i][j], pair, pairs[j]);
    }
  }
  // Unrolled: in loops GCC 12 would keep the sums in memory.
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* to = c + i * c_stride + j * kLanes;
      const vf scale = load(right.scales + j * kLanes) * left.scales[i];
      vf product = __builtin_convertvector(sum[i][j], vf) * scale;
      if (add) product += load(to);
      store(to, product);
    }
}

template <Left kLeft, int kVectors, int kRows>
static inline void word_column(float* c, i64 c_stride, const Words& left, const Words& right, i64 M,
                               i64 steps, bool add) {
  const i64 row = kLeft == Left::rows ? left.stride : 1;
  i64 i = 0;
  for (; i + kRows <= M; i += kRows)
    word_block<kLeft, kVectors, kRows>(c + i * c_stride, c_stride, after(left, i, row), right,
                                       steps, add);
  if constexpr (kRows > 1)
    if (i < M)
      word_column<kLeft, kVectors, kRows - 1>(c + i * c_stride, c_stride, after(left, i, row),
                                              right, M - i, steps, add);
}

// C (M, N) = or += left (M lines) · right (N lines, down), N a multiple of kLanes.
template <Left kLeft, int kVectors = kWideVectors>
static inline void word_product(float* c, i64 c_stride, const Words& left, const Words& right,
                                i64 M, i64 N, i64 steps, bool add) {
  constexpr int kHeight = kVectors == kWideVectors ? kWideRows : kTileRows;
  i64 n = 0;
  for (; n + kVectors * kLanes <= N; n += kVectors * kLanes)
    word_column<kLeft, kVectors, kHeight>(c + n, c_stride, left, after(right, n, 1), M, steps, add);
  if constexpr (kVectors > 1)
    if (n < N)
      word_product<kLeft, kVectors / 2>(c + n, c_stride, left, after(right, n, 1), M, N - n, steps,
                                        add);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
