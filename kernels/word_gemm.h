// A matrix product in words (words.h): 16-bit whole numbers.
//
//     A(i, k) ≈ s_A(i, block) p   |p| <= 4095     B(k, j) ≈ s_B(block, j) q   |q| <= 4095
//     C(i, j) ≈ Σ over blocks of 128 ks of s_A s_B Σ p q
//
// s is a block's largest magnitude over the limit, so the sums of 128 products fit 32 bits. For
// numbers spread as a bell a product is off by 2.6e-4 of its norm, as much as with TF32, a block
// with one number far above the others by more. NaN and infinity make their block's row or column
// NaN.
//
// Lines are packed as floats (pack.h), 128 ks at a time, and rounded in L1: lanes are lines there,
// whatever the operand's layout. Lines that are contiguous are rounded first and transposed then.
//
//   as in gemm.h, with kWordDepth ks in a block:
//     A: panels of kRows lines, pairs of words [k / 2][kRows], scales [k / 128][kRows]   L2, 512 KB
//     B: pairs [k / 2][kCols] and scales [k / 128][kCols]                                L2, 48 KB
//
// An element of C depends on its own row and column alone, and its bits not on the thread count.
#pragma once

#include <type_traits>

#include "gemm.h"
#include "words.h"

#if defined(TENARAI_WORDS)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kWordDepth = 512;  // ks of a block of the product
constexpr i64 kWordSteps = kWordBlock / 2;

// Panels of `width` lines: pairs [K / 2][width] and scales [blocks][width].
struct WordPanels {
  float *pairs, *scales;  // 32 bits each
  i64 steps, blocks;      // pairs a line (a multiple of 4), blocks of kWordBlock

  static i64 steps_of(i64 k) { return round_up(k, 8) / 2; }
  static i64 blocks_of(i64 k) { return (k + kWordBlock - 1) / kWordBlock; }
  static i64 floats(i64 lines, i64 k) { return lines * (steps_of(k) + blocks_of(k)); }
  WordPanels(float* memory, i64 lines, i64 k)
      : pairs(memory),
        scales(memory + lines * steps_of(k)),
        steps(steps_of(k)),
        blocks(blocks_of(k)) {}

  // Lines line .. line + kLanes - 1, ks of block `at`: k rows of `from`, `stride` apart.
  template <int kWidth>
  TENARAI_ALWAYS void round(i64 line, i64 at, const float* from, i64 stride, i64 k) const {
    vi low = {}, high = {};
    for (i64 i = 0; i + 1 < k; i += 2) {
      low = larger(low, magnitude(load(from + i * stride)));
      high = larger(high, magnitude(load(from + (i + 1) * stride)));
    }
    if (k % 2) low = larger(low, magnitude(load(from + (k - 1) * stride)));
    const vf inverse = scale<kWidth>(line, at, larger(low, high));
    const auto word = [&](i64 i) __attribute__((always_inline)) {
      return to_words(load(from + i * stride) * inverse);
    };
    const auto put = [&](i64 step, vi even, vi odd) __attribute__((always_inline)) {
      store_lines<kWidth>(pairs, line, at * kWordSteps + step, steps, pair_words(even, odd));
    };
    i64 step = 0;
    for (; 2 * step + 1 < k; ++step) put(step, word(2 * step), word(2 * step + 1));
    if (k % 2) put(step++, word(k - 1), vi{});
    for (; step % 4; ++step) put(step, vi{}, vi{});
  }

  // The same, where each line is contiguous, `stride` from line to line, and k a multiple of 32:
  // rounded as it lies, so that pairs of words are transposed and not floats.
  template <int kWidth>
  void round_along(i64 line, i64 at, const float* from, i64 stride, i64 k) const {
    vf most[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      vi low = {}, high = {};
      for (i64 i = 0; i < k; i += 2 * kLanes) {
        low = larger(low, magnitude(load(from + r * stride + i)));
        high = larger(high, magnitude(load(from + r * stride + i + kLanes)));
      }
      most[r] = (vf)larger(low, high);
    }
    transpose(most);
    float inverse[kLanes];
    store(inverse, scale<kWidth>(line, at, largest_of(most)));
    for (i64 i = 0; i < k; i += 2 * kLanes) {
      vf rows[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        const auto words = [&](i64 j) __attribute__((always_inline)) {
          return to_words(load(from + r * stride + i + j) * inverse[r]);
        };
        rows[r] = pack_words(words(0), words(kLanes));
      }
      transpose(rows);
      // A quarter of a vector of packed words holds two pairs of either half.
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        store_lines<kWidth>(pairs, line,
                            at * kWordSteps + i / 2 + r / 4 * 2 + r % 2 + r % 4 / 2 * (kLanes / 2),
                            steps, rows[r]);
    }
  }

 private:
  // Stores the scales of lines with these greatest magnitudes, and returns what makes numbers
  // words.
  template <int kWidth>
  TENARAI_ALWAYS vf scale(i64 line, i64 at, vi largest) const {
    const Rounding rounding(largest);
    store_lines<kWidth>(scales, line, at, blocks, rounding.scale);
    return rounding.inverse;
  }
};

// tile (kRows, kCols) = or += one block of a panel of A times one of B, of which the first V
// vectors of a row are written. The sums are in registers, 24 of 32 or 12 of 16; the tile is in L1.
// Not inlined: among other code the compiler would keep some of the sums in memory.
template <int V, bool kAdd>
static __attribute__((noinline)) void word_sums(float* tile, const float* a, const float* a_scale,
                                                const float* b, const float* b_scale, i64 steps,
                                                Ahead* ahead) {
#define DECLARE(i) vi c##i##0 = {}, c##i##1 = {}, c##i##2 = {};
  TENARAI_ROWS(DECLARE)
#undef DECLARE
  const auto step = [&](const float* ak, const float* bk) __attribute__((always_inline)) {
    const vi b0 = load_pairs(bk);
    const vi b1 = V > 1 ? load_pairs(bk + kLanes) : b0;
#if defined(__AVX512VNNI__)
    const vi b2 = V > 2 ? load_pairs(bk + 2 * kLanes) : b0;
#else
    const float* b2 = bk + 2 * kLanes;  // of 16 registers none is left
#endif
#define ACCUMULATE(i)                                                 \
  if constexpr (kRows > i) {                                          \
    const vi s = broadcast_pair(ak + i);                              \
    c##i##0 = add_pair_products(c##i##0, s, b0);                      \
    if constexpr (V > 1) c##i##1 = add_pair_products(c##i##1, s, b1); \
    if constexpr (V > 2) c##i##2 = add_pair_products(c##i##2, s, b2); \
  }
    TENARAI_ROWS(ACCUMULATE)
#undef ACCUMULATE
  };
  Ahead lines = *ahead;  // in registers
  for (; steps > 0; steps -= 4, a += 4 * kRows, b += 4 * kCols) {
    lines.ask();
    step(a, b);
    step(a + kRows, b + kCols);
    step(a + 2 * kRows, b + 2 * kCols);
    step(a + 3 * kRows, b + 3 * kCols);
  }
  *ahead = lines;
#define ADD(i, v)                                                \
  if constexpr (kRows > i && V > v) {                            \
    float* to = tile + i * kCols + v * kLanes;                   \
    const vf scale = load(b_scale + v * kLanes) * a_scale[i];    \
    const vf sum = __builtin_convertvector(c##i##v, vf) * scale; \
    store(to, kAdd ? load(to) + sum : sum);                      \
  }
#define FINISH(i) ADD(i, 0) ADD(i, 1) ADD(i, 2)
  TENARAI_ROWS(FINISH)
#undef FINISH
#undef ADD
}

// tile = a panel of A times a panel of B.
template <int V>
static void word_tile(float* tile, const float* a, const float* a_scale, const WordPanels& b,
                      Ahead* ahead) {
  word_sums<V, false>(tile, a, a_scale, b.pairs, b.scales, at_most(b.steps, kWordSteps), ahead);
  for (i64 at = 1, k = kWordSteps; k < b.steps; ++at, k += kWordSteps)
    word_sums<V, true>(tile, a + k * kRows, a_scale + at * kRows, b.pairs + k * kCols,
                       b.scales + at * kCols, at_most(b.steps - k, kWordSteps), ahead);
}

template <class A, class B, class Epilogue>
struct WordProduct {
  A a;
  B b;
  Epilogue epilogue;
  float* row_sums;
  i64 M, N, K;

  // Is it faster than a product of floats?
  static bool worthwhile(i64 M, i64 N, i64 K) { return M >= 32 && N >= kLanes && K >= 64; }

  void run(Pool& pool) const { compute_blocks(pool, *this); }

  static constexpr i64 kGroup = 2 * kLanes;  // lines packed at a time
  static constexpr i64 kRowGrain = kRows, kColumnGrain = kLanes, kPanel = kCols;
  static constexpr i64 kLineGrain = kGroup, kPackGrain = kGroup;
  static constexpr i64 kBlock = 512 * kWordDepth;
  i64 block_depth() const { return even_block(K, kWordDepth, kWordBlock); }
  i64 a_floats(i64 lines, i64 k) const { return WordPanels::floats(lines, k); }
  i64 b_floats(i64 k) const { return WordPanels::floats(kCols, k); }

  void pack_rows(float* panels, i64 i0, i64 m, Range part, i64 k0, i64 k, bool sums) const {
    const WordPanels to(panels, round_up(m, kLanes), k);
    const bool along = std::is_same_v<A, Along<Same>> && !(sums && row_sums);
    alignas(64) float floats[kGroup * kWordBlock];
    for (i64 i = part.begin; i < part.end; i += kGroup) {
      const i64 lines = at_most(kGroup, m - i);
      for (i64 at = 0; at < to.blocks; ++at) {
        const i64 ks = at_most(kWordBlock, k - at * kWordBlock), from_k = k0 + at * kWordBlock;
        if (along && lines == kGroup && ks % (2 * kLanes) == 0) {
          for (i64 line = i; line < i + kGroup; line += kLanes)
            to.template round_along<kRows>(line, at, a.p + (i0 + line) * a.stride + from_k,
                                           a.stride, ks);
          continue;
        }
        a.template pack<kLanes>(floats, i0 + i, lines, from_k, ks);
        for (i64 line = 0; line < lines; line += kLanes) {
          const float* from = floats + line * ks;
          to.template round<kRows>(i + line, at, from, kLanes, ks);
          if (sums && row_sums)
            add_sums(row_sums + i0 + i + line, from, ks, at_most(kLanes, lines - line));
        }
      }
    }
  }

  void times_columns(const float* a_panels, float* b_panel, i64 i0, i64 m, Range columns,
                     Range share, i64 k0, i64 k) const {
    const WordPanels from(const_cast<float*>(a_panels), round_up(m, kLanes), k);
    const WordPanels to(b_panel, kCols, k);
    const i64 depth = block_depth();
    for (i64 j0 = columns.begin; j0 < columns.end; j0 += kCols) {
      const i64 n = at_most(kCols, columns.end - j0);
      pack_b(to, j0, n, k0, k);
      strip(from, to, i0, m, j0, n, k0 == 0, k0 + k == K,
            next_panel(share, j0, kCols, k0, depth, K));
    }
    if (epilogue.streams()) stream_end();
  }

 private:
  // sums (n) += Σ_k of a panel of floats.
  static void add_sums(float* sums, const float* panel, i64 k, i64 n) {
    vf total = {};
    for (i64 i = 0; i < k; ++i) total += load(panel + i * kLanes);
    store_n(sums, load_upto(sums, n) + total, n);
  }

  void pack_b(const WordPanels& to, i64 j0, i64 n, i64 k0, i64 k) const {
    alignas(64) float floats[kCols * kWordBlock];
    for (i64 at = 0; at < to.blocks; ++at) {
      const i64 ks = at_most(kWordBlock, k - at * kWordBlock), from_k = k0 + at * kWordBlock;
      if (std::is_same_v<B, Along<Same>> && n % kLanes == 0 && ks % (2 * kLanes) == 0) {
        for (i64 j = 0; j < n; j += kLanes)
          to.template round_along<kCols>(j, at, b.p + (j0 + j) * b.stride + from_k, b.stride, ks);
        continue;
      }
      b.template pack<kCols>(floats, j0, n, from_k, ks);
      for (i64 j = 0; j < n; j += kLanes) to.template round<kCols>(j, at, floats + j, kCols, ks);
    }
  }

  // All rows of the block times one panel of B.
  void strip(const WordPanels& a_panels, const WordPanels& b_panel, i64 i0, i64 m, i64 j0, i64 n,
             bool first, bool last, PlaceOfB next) const {
    const Tiles<Epilogue> tiles{epilogue, first, last};
    const bool streams = tiles.stream(n);
    const auto kernel = n <= kLanes       ? &word_tile<1>
                        : n <= 2 * kLanes ? &word_tile<2>
                                          : &word_tile<3>;
    Ahead ahead(b.reads(next.j, next.columns, next.k, next.depth),
                round_up(m, kRows) / kRows * b_panel.steps);
    alignas(64) float tile[kRows * kCols];
    for (i64 i = 0; i < m; i += kRows) {
      const i64 rows = at_most(kRows, m - i);
      ahead.c = Lines::of(epilogue.c + (i0 + i) * epilogue.stride + j0, epilogue.stride,
                          streams ? 0 : rows, n);
      kernel(tile, a_panels.pairs + i * a_panels.steps, a_panels.scales + i * a_panels.blocks,
             b_panel, &ahead);
      tiles.put(tile, i0 + i, rows, j0, n, streams);
    }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
