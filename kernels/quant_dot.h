// Few rows times a quantised weight: a token being decoded, or a handful of them. The weight is
// read once, as it lies, unpacked in registers and multiplied with every row; memory sets the pace.
//
// For a row of weights and each row of activations, group by group of 256:
//
//     y += x_scale · Σ_32 scale · Σ word q  −  Σ_16 min · sums
//
// What a lane adds up depends on nothing but the row's length, so an element of y has the same bits
// whatever other rows there are, and for every thread count.
#pragma once

#include "linear.h"
#include "quant_activations.h"
#include "quant_words.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kMostRows = 8;  // of activations at a time
constexpr i64 kAhead = 2048;  // bytes that are asked for before their turn

TENARAI_INLINE void prefetch_bytes(const uint8_t* p, i64 n) {
#pragma GCC unroll 8
  for (i64 i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 3);
}

// The scale of each lane for part `part` of the vectors of words.
template <Layout layout>
TENARAI_INLINE vf lane_scale(const Group& w, int part) {
#if defined(__AVX512F__)
  if constexpr (layout == Layout::paired) {
    const __m512 all = _mm512_broadcast_f32x8(_mm256_load_ps(w.scale));
    const __m512i low = _mm512_set1_epi32(2 * part);
    const __m512i index = _mm512_mask_add_epi32(low, 0xff00, low, _mm512_set1_epi32(1));
    return (vf)_mm512_permutexvar_ps(index, all);
  }
#endif
  return broadcast(w.scale[part]);
}

// totals[m] + what one group of weights adds for row m of the activations at q.
template <Layout layout, bool kMin, int M>
TENARAI_INLINE void add_group(vf* totals, const Group& w, const int16_t* q, const float* x_scale,
                              const float* x_sums) {
  constexpr int kParts = layout == Layout::super ? 1 : layout == Layout::plain ? 8 : 4;
  constexpr int kPart = kChunks / kParts;  // vectors that share their lanes' scales
  vf group[M] = {};
#pragma GCC unroll 8
  for (int j = 0; j < kParts; ++j) {
    vi sums[M] = {};
#pragma GCC unroll 32
    for (int c = j * kPart; c < (j + 1) * kPart; ++c) {
      const vs words = w.words[c];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
        sums[m] = add_products(sums[m], words, load_words(q + m * kGroup + c * kWords));
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
      if constexpr (layout == Layout::super)
        totals[m] += to_floats(sums[m]) * (w.scale[0] * x_scale[m]);
      else
        group[m] += to_floats(sums[m]) * lane_scale<layout>(w, j);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    if constexpr (layout != Layout::super) totals[m] += group[m] * x_scale[m];
    if constexpr (kMin)
#pragma GCC unroll 4
      for (int i = 0; i < 16; i += kLanes)
        totals[m] -= load(w.min + i) * load(x_sums + m * kSums + i);
  }
}

// A row's last group where it is not whole: a copy, followed by blocks of zeros.
struct LastGroup {
  uint8_t bytes[8 * sizeof(Q8_0)] = {};
  LastGroup(const uint8_t* data, i64 n) { std::memcpy(bytes, data, static_cast<size_t>(n)); }
};

// sum, whose lanes add up to x · w, for one row w of blocks.
template <class Block>
static void dot_row(vf* sum, const uint8_t* row, i64 I, const Activations& x) {
  using G = GroupOf<Block>;
  vf total = {};
  const auto add = [&](const uint8_t* data, i64 g) __attribute__((always_inline)) {
    Group group;
    G::unpack(data, &group);
    add_group<G::layout, G::Shape::has_min, 1>(&total, group, x.q + g * kGroup, x.scale + g,
                                               x.sums + g * kSums);
  };
  const i64 whole = I / kSuperBlock;
  for (i64 g = 0; g < whole; ++g, row += G::bytes) {
    prefetch_bytes(row + kAhead, G::bytes);
    add(row, g);
  }
  if constexpr (G::plain)
    if (whole < x.groups)
      add(LastGroup(row, I % kSuperBlock / kBlock * static_cast<i64>(sizeof(Block))).bytes, whole);
  *sum = total;
}

// How a matrix of some format is read, a group at a time.
struct Reader {
  void (*unpack)(const uint8_t* data, Group*);
  void (*dot)(vf* sum, const uint8_t* row, i64 I, const Activations&);  // one row of activations
  i64 group_bytes, block_bytes;
  Layout layout;
  bool min;
  i64 min_terms;      // minima that differ in a group: 8 or 16
  int32_t most_word;  // the largest word there can be
};
template <class Block>
static void unpack_group(const uint8_t* data, Group* g) {
  GroupOf<Block>::unpack(data, g);
}
template <class Block>
static Reader reader_of() {
  using G = GroupOf<Block>;
  return {&unpack_group<Block>,
          &dot_row<Block>,
          G::bytes,
          sizeof(Block),
          G::layout,
          G::Shape::has_min,
          G::Shape::group == 16 ? 16 : 8,
          most_word<Block>()};
}

// sums[m], whose lanes add up to x[m] · w.
template <Layout layout, bool kMin, int M>
static void dot_row_many(vf* sums, const uint8_t* row, i64 I, const Activations& x,
                         const Reader& reader) {
  vf totals[M] = {};
  const i64 whole = I / kSuperBlock;
  for (i64 g = 0; g < x.groups; ++g, row += reader.group_bytes) {
    Group group;
    if (g < whole) {
      for (i64 i = 0; i < reader.group_bytes; i += 64) __builtin_prefetch(row + kAhead + i);
      reader.unpack(row, &group);
    } else {
      reader.unpack(LastGroup(row, I % kSuperBlock / kBlock * reader.block_bytes).bytes, &group);
    }
    add_group<layout, kMin, M>(totals, group, x.q + g * M * kGroup, x.scale + g * M,
                               x.sums + g * M * kSums);
  }
  for (int m = 0; m < M; ++m) sums[m] = totals[m];
}
template <int M>
static void dot_row_any(vf* sums, const uint8_t* row, i64 I, const Activations& x,
                        const Reader& reader) {
  if constexpr (M == 1) return reader.dot(sums, row, I, x);
  if (reader.layout == Layout::super)
    return reader.min ? dot_row_many<Layout::super, true, M>(sums, row, I, x, reader)
                      : dot_row_many<Layout::super, false, M>(sums, row, I, x, reader);
  if (reader.layout == Layout::plain)
    return reader.min ? dot_row_many<Layout::plain, true, M>(sums, row, I, x, reader)
                      : dot_row_many<Layout::plain, false, M>(sums, row, I, x, reader);
  return reader.min ? dot_row_many<Layout::paired, true, M>(sums, row, I, x, reader)
                    : dot_row_many<Layout::paired, false, M>(sums, row, I, x, reader);
}

// The sums of kLanes vectors, each in its own lane.
TENARAI_INLINE vf sums_of(vf* rows) {
  transpose(rows);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) rows[i] += rows[i + width];
  return rows[0];
}

// Outputs `range` of y = x wᵀ for M rows from row m0 on. dot(sums, o): the vectors that add up to
// output o of each row.
template <int M, class Dot>
static void dot_rows(const Forward& forward, Range range, i64 m0, Dot dot) {
  for (i64 o = range.begin; o < range.end; o += kLanes) {
    const i64 n = at_most(kLanes, range.end - o);
    vf rows[M][kLanes];
    for (i64 r = 0; r < kLanes; ++r) {
      vf sums[M] = {};
      if (r < n) dot(sums, o + r);
      for (int m = 0; m < M; ++m) rows[m][r] = sums[m];
    }
    for (int m = 0; m < M; ++m) {
      float* y = forward.c + (m0 + m) * forward.stride + o;
      const vf v = sums_of(rows[m]) + forward.start(m0 + m, o, n);
      n == kLanes ? store(y, v) : store_n(y, v, n);
    }
  }
}

// body(M as a type) for 1 to kMostRows rows.
template <int M>
struct RowCount {
  static constexpr int value = M;
};
template <class Body>
static void with_rows(i64 M, Body body) {
  switch (M) {
      // clang-format off
    case 1: return body(RowCount<1>());
    case 2: return body(RowCount<2>());
    case 3: return body(RowCount<3>());
    case 4: return body(RowCount<4>());
    case 5: return body(RowCount<5>());
    case 6: return body(RowCount<6>());
    case 7: return body(RowCount<7>());
    default: return body(RowCount<8>());
      // clang-format on
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
