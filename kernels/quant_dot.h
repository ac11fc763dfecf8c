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

// How many parts of a group have scales of their own.
template <Layout layout>
constexpr int parts_of_group() {
  return layout == Layout::super ? 1 : layout == Layout::plain ? 8 : 4;
}

// totals[r][m] + what the first parts of group w[r] add for row m of the activations at q.
template <Layout layout, bool kMin, int R, int M>
TENARAI_INLINE void add_groups(vf (*totals)[M], const Group* w, const int16_t* q,
                               const float* x_scale, const float* x_sums,
                               int parts = parts_of_group<layout>()) {
  constexpr int kPart = kChunks / parts_of_group<layout>();  // vectors that share lanes' scales
  vf group[R][M] = {};
#pragma GCC unroll 8
  for (int j = 0; j < parts; ++j) {
    vi sums[R][M] = {};
#pragma GCC unroll 32
    for (int c = j * kPart; c < (j + 1) * kPart; ++c) {
      vs words[R];
      for (int r = 0; r < R; ++r) words[r] = w[r].words[c];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        vs x = load_words(q + m * kGroup + c * kWords);
        if constexpr (R > 1) x = keep_in_register(x);
        for (int r = 0; r < R; ++r) sums[r][m] = add_products(sums[r][m], words[r], x);
      }
    }
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
        if constexpr (layout == Layout::super)
          totals[r][m] += to_floats(sums[r][m]) * (broadcast(w[r].scale[0]) * x_scale[m]);
        else
          group[r][m] += to_floats(sums[r][m]) * lane_scale<layout>(w[r], j);
  }
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      if constexpr (layout != Layout::super) totals[r][m] += group[r][m] * x_scale[m];
      if constexpr (kMin)
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += kLanes)
          totals[r][m] -= load(w[r].min + i) * load(x_sums + m * kSums + i);
    }
}

// How a matrix of some format is read. A tile is n <= kLanes rows of w from row o on, times all
// rows of x: totals[m][r], whose lanes add up to x[m] · w[o + r].
struct QuantRows;
using Tile = void (*)(vf (*totals)[kLanes], const QuantRows& w, i64 o, i64 n, const WordRows& x);
struct Reader {
  void (*unpack)(const uint8_t* data, i64 weights, Group*);
  Tile tiles[4];  // for 1, 2, 4 and 8 rows of x
  i64 group_bytes, block_bytes;
  Layout layout;
  bool min;
  i64 min_terms;      // minima that differ in a group: 8 or 16
  int32_t most_word;  // the largest word there can be
};

// A quantised matrix (O, I).
struct QuantRows {
  const Reader& reader;
  const uint8_t* data;
  i64 O, I, row_bytes;

  Tile tile(i64 M) const { return reader.tiles[M == 1 ? 0 : M == 2 ? 1 : M == 4 ? 2 : 3]; }
  const uint8_t* group(i64 o, i64 g) const { return data + o * row_bytes + g * reader.group_bytes; }
  void unpack(Group* to, i64 o, i64 g) const {
    reader.unpack(group(o, g), at_most(kGroup, I - g * kGroup), to);
  }
};

// Two rows of w meet every load of activations, where there are registers enough and the memory is
// not the limit anyway. The groups are taken some at a time, so that the activations stay in the
// cache of the first level; what the next rows need is asked for meanwhile.
template <class Block, int M>
static void dot_tile(vf (*totals)[kLanes], const QuantRows& w, i64 o, i64 n, const WordRows& x) {
  using G = GroupOf<Block>;
  constexpr int R = M > 1 && (kVectorBytes == 64 || M <= 4) ? 2 : 1;
  constexpr i64 kGroups = 32 / M;  // 16 KB of activations
  const i64 whole = w.I / kSuperBlock;
  const i64 next = x.groups > kGroups         ? kLanes * w.row_bytes
                   : R * w.row_bytes > kAhead ? R * w.row_bytes
                                              : kAhead;
  for (i64 g0 = 0; g0 < x.groups; g0 += kGroups)
    for (i64 row = 0; row < n; row += R) {
      vf sums[R][M];
      const uint8_t* from[R];
      for (int r = 0; r < R; ++r) {
        const i64 line = at_most(row + r, n - 1);  // the last one again where there are fewer
        from[r] = w.group(o + line, g0);
        for (int m = 0; m < M; ++m) sums[r][m] = g0 ? totals[m][line] : vf{};
      }
      const auto add = [&](Group* groups, i64 g, int parts) __attribute__((always_inline)) {
        add_groups<G::layout, G::Shape::has_min, R, M>(
            sums, groups, x.q + g * M * kGroup, x.scale + g * M, x.sums + g * M * kSums, parts);
      };
      const i64 end = at_most(g0 + kGroups, whole);
      i64 g = g0;
      for (; g < end; ++g) {
        Group groups[R];
        for (int r = 0; r < R; ++r, from[r - 1] += G::bytes) {
          prefetch_bytes(from[r] + next, G::bytes);
          G::unpack(from[r], groups + r);
        }
        add(groups, g, parts_of_group<G::layout>());
      }
      if constexpr (G::plain)
        if (g < at_most(g0 + kGroups, x.groups)) {
          Group groups[R];
          const i64 blocks = w.I % kSuperBlock / kBlock;
          for (int r = 0; r < R; ++r) G::unpack_some(from[r], blocks, groups + r);
          add(groups, g, static_cast<int>((blocks * parts_of_group<G::layout>() + 7) / 8));
        }
      for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) totals[m][at_most(row + r, n - 1)] = sums[r][m];
    }
}
template <class Block>
static void unpack_group(const uint8_t* data, i64 weights, Group* g) {
  if constexpr (GroupOf<Block>::plain)
    if (weights < kGroup) {
      *g = Group{};
      return GroupOf<Block>::unpack_some(data, weights / kBlock, g);
    }
  GroupOf<Block>::unpack(data, g);
}
// Rows of x that are computed for M of them: tiles for every number would take long to compile.
TENARAI_INLINE i64 rows_computed(i64 M) { return M <= 2 ? M : M <= 4 ? 4 : kMostRows; }

template <class Block>
static Reader reader_of() {
  using G = GroupOf<Block>;
  return {&unpack_group<Block>,
          {&dot_tile<Block, 1>, &dot_tile<Block, 2>, &dot_tile<Block, 4>, &dot_tile<Block, 8>},
          G::bytes,
          sizeof(Block),
          G::layout,
          G::Shape::has_min,
          G::Shape::group == 16 ? 16 : 8,
          most_word<Block>()};
}
// The sums of kLanes vectors, each in its own lane.
TENARAI_INLINE vf sums_of(vf* rows) {
  transpose(rows);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) rows[i] += rows[i + width];
  return rows[0];
}

// Outputs `range` of y = x wᵀ for M rows. tile(totals, o, n): as above.
template <class F>
static void dot_rows(const Forward& forward, Range range, i64 M, F tile) {
  for (i64 o = range.begin; o < range.end; o += kLanes) {
    const i64 n = at_most(kLanes, range.end - o);
    vf totals[kMostRows][kLanes] = {};
    tile(totals, o, n);
    for (int m = 0; m < M; ++m) {
      float* y = forward.c + m * forward.stride + o;
      const vf v = sums_of(totals[m]) + forward.start(m, o, n);
      n == kLanes ? store(y, v) : store_n(y, v, n);
    }
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
