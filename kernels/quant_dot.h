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
#include "quant_dot_pair.h"
#include "quant_words.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kMostRows = 8;  // of activations at a time
constexpr i64 kAhead = 2048;  // bytes that are asked for before their turn

// Into the cache of the first level, or the second.
template <int kLevel>
TENARAI_INLINE void prefetch_bytes(const uint8_t* p, i64 n) {
#pragma GCC unroll 8
  for (i64 i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 4 - kLevel);
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

typedef float vfour __attribute__((vector_size(16)));
constexpr int kMinVectors = 16 / kLanes;  // of a group

// totals[r][m] + what the first parts of group w[r] add for row m of the activations at q.
template <Layout layout, int R, int M>
TENARAI_INLINE void add_groups(vf (*totals)[M], const Group* w, const int16_t* q,
                               const float* x_scale, int parts = parts_of_group<layout>()) {
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
          totals[r][m] += to_floats(sums[r][m]) * broadcast(w[r].scale[0] * x_scale[m]);
        else
          group[r][m] += to_floats(sums[r][m]) * lane_scale<layout>(w[r], j);
  }
  if constexpr (layout != Layout::super)
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) totals[r][m] += group[r][m] * x_scale[m];
}

// The same for a block in steps: words meet activations while they are in registers. min[r] gets
// its minima.
template <class Block, int R, int M>
TENARAI_INLINE void add_in_steps(vf (*totals)[M], const uint8_t* const* from, vf* min,
                                 const int16_t* q, const float* x_scale) {
  constexpr int kStep = Steps<Block>::kStep;
  Steps<Block> steps[R];
  alignas(64) float minima[R][16];
  float scale[R][M];
  // Whole numbers: their sum is the same however it is made. Of one row it is made in four, lest
  // each product wait for the one before it.
  constexpr int kChains = R * M == 1 ? 4 : R * M <= 4 ? 2 : 1;
  vi sums[R][M][kChains] = {};
  const auto block = [&](int r) __attribute__((always_inline)) -> const Block& {
    return *reinterpret_cast<const Block*>(from[r]);
  };
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    steps[r].begin(block(r), minima[r]);
    const float d = from_half(block(r).d);
    if constexpr (M % 4 == 0)
      for (int m = 0; m < M; m += 4) {
        vfour four;
        std::memcpy(&four, x_scale + m, sizeof four);
        four *= d;
        std::memcpy(scale[r] + m, &four, sizeof four);
      }
    else
      for (int m = 0; m < M; ++m) scale[r][m] = d * x_scale[m];
  }
  keep_in_memory(&scale);  // broadcasts from there cost nothing
#pragma GCC unroll 4
  for (int i = 0; i < kChunks / kStep; ++i) {
    vs words[R][kStep];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      steps[r].words(block(r), i, words[r]);
#pragma GCC unroll 32
      for (int c = 0; c < kStep; ++c) words[r][c] = keep_in_register(words[r][c]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 32
      for (int c = 0; c < kStep; ++c) {
        vs x = load_words(q + m * kGroup + (i * kStep + c) * kWords);
        if constexpr (R > 1) x = keep_in_register(x);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          vi& sum = sums[r][m][(i * kStep + c) % kChains];
          sum = add_products(sum, words[r][c], x);
        }
      }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      vi sum = sums[r][m][0];
      for (int chain = 1; chain < kChains; ++chain) sum += sums[r][m][chain];
      totals[r][m] += to_floats(sum) * broadcast(scale[r][m]);
    }
    if constexpr (ShapeOf<Block>::has_min)
      for (int i = 0; i < kMinVectors; ++i) min[r * kMinVectors + i] = load(minima[r] + i * kLanes);
  }
}

// totals[r][m] − min · sums after group g. Of 8 minima a group, each twice in `min`, those of two
// groups make one vector of 16 lanes: the first group's are kept in `before` until the second's
// turn.
template <bool kEight, int R, int M>
TENARAI_INLINE void subtract_minima(vf (*totals)[M], vf* min, vf* before, const WordRows& x, i64 g,
                                    bool last) {
  const float* sums = x.sums + (kEight ? g / 2 : g) * M * kSums;
#if defined(__AVX512F__)
  if constexpr (kEight) {
    if (g % 2 == 0) {
      for (int r = 0; r < R; ++r) before[r] = min[r];
      if (!last) return;
      for (int r = 0; r < R; ++r) min[r] = vf{};
    }
    const __m512i each =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const vf both = (vf)_mm512_permutex2var_ps((__m512)before[r], each, (__m512)min[r]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) totals[r][m] -= both * load(sums + m * kSums);
    }
    return;
  }
#endif
  constexpr int kTerms = kEight ? 8 : 16;
  (void)before, (void)last;
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    float each[16];
    for (int i = 0; i < kMinVectors; ++i) store(each + i * kLanes, min[r * kMinVectors + i]);
    if (kEight)
      for (int j = 0; j < 8; ++j) each[j] = each[2 * j];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < kTerms; i += kLanes)
        totals[r][m] -=
            load_upto(each + i, at_most(kLanes, kTerms - i)) *
            load_upto(sums + m * kSums + (kEight ? g % 2 * 8 : 0) + i, at_most(kLanes, kTerms - i));
  }
}

// How a matrix of some format is read. A tile is n <= kLanes rows of w from row o on, times all
// rows of x: totals[m][r], whose lanes add up to x[m] · w[o + r].
struct QuantRows;
using Tile = void (*)(vf (*totals)[kLanes], const QuantRows& w, i64 o, i64 n, const WordRows& x);
struct Reader {
  void (*unpack)(const uint8_t* data, i64 weights, Group*);
  Tile tiles[5];  // for 1, 2, 4, 6 and 8 rows of x
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

  Tile tile(i64 M) const { return reader.tiles[M == 1 ? 0 : M / 2]; }
  const uint8_t* group(i64 o, i64 g) const { return data + o * row_bytes + g * reader.group_bytes; }
  void unpack(Group* to, i64 o, i64 g) const {
    reader.unpack(group(o, g), at_most(kGroup, I - g * kGroup), to);
  }
};

template <class Block>
constexpr int min_terms() {
  return ShapeOf<Block>::group == 16 ? 16 : 8;
}
template <class Block, int R, int M>
TENARAI_INLINE void add_unpacked(vf (*totals)[M], const Group* w, vf* min, vf* before,
                                 const WordRows& x, i64 g, int parts) {
  using G = GroupOf<Block>;
  add_groups<G::layout, R, M>(totals, w, x.q + g * M * kGroup, x.scale + g * M, parts);
  if constexpr (G::Shape::has_min) {
    for (int i = 0; i < R * kMinVectors; ++i)
      min[i] = load(w[i / kMinVectors].min + i % kMinVectors * kLanes);
    subtract_minima<min_terms<Block>() == 8, R, M>(totals, min, before, x, g, g + 1 == x.groups);
  }
}

// Two rows of w meet every load of activations, where there are registers enough and the memory is
// not the limit anyway. The groups are taken some at a time, so that the activations stay in the
// cache of the first level; what the next rows need is asked for meanwhile.
template <class Block, int M>
static void dot_tile(vf (*totals)[kLanes], const QuantRows& w, i64 o, i64 n, const WordRows& x) {
  using G = GroupOf<Block>;
  constexpr bool kEight = min_terms<Block>() == 8;
  constexpr int R = M > 1 && (kVectorBytes == 64 || M <= 4) ? 2 : 1;
  constexpr i64 kGroups = (M == 1 ? 32 : 64) / M;  // 16 or 32 KB of x; an even number
  constexpr int kLevel = M == 1 ? 1 : 2;           // the first one is full of activations
  const i64 whole = w.I / kSuperBlock;
  const i64 next = M > 1 || x.groups > kGroups ? kLanes * w.row_bytes
                   : w.row_bytes > kAhead      ? w.row_bytes
                                               : kAhead;
  for (i64 g0 = 0; g0 < x.groups; g0 += kGroups)
    for (i64 row = 0; row < n; row += R) {
      vf sums[R][M];
      vf min[R * kMinVectors], before[R] = {};
      const uint8_t* from[R];
      for (int r = 0; r < R; ++r) from[r] = w.group(o + at_most(row + r, n - 1), g0);
#pragma GCC unroll 16  // or the sums would not stay in registers
      for (int i = 0; i < R * M; ++i)
        sums[i / M][i % M] = g0 ? totals[i % M][at_most(row + i / M, n - 1)] : vf{};
      const i64 end = at_most(g0 + kGroups, whole);
      i64 g = g0;
      if constexpr (M == 1 && in_pairs<Block>())
        for (; g + 2 <= end; g += 2, from[0] += 2 * G::bytes) {
          prefetch_bytes<kLevel>(from[0] + next, 2 * G::bytes);
          sums[0][0] = add_two<Block>(sums[0][0], from[0], x, g);
        }
      for (; g < end; ++g) {
        for (int r = 0; r < R; ++r) prefetch_bytes<kLevel>(from[r] + next, G::bytes);
        if constexpr (Steps<Block>::kStep > 0) {
          const i64 at = g * M;
          add_in_steps<Block, R, M>(sums, from, min, x.q + at * kGroup, x.scale + at);
          if constexpr (G::Shape::has_min)
            subtract_minima<kEight, R, M>(sums, min, before, x, g, g + 1 == x.groups);
        } else {
          Group groups[R];
          for (int r = 0; r < R; ++r) G::unpack(from[r], groups + r);
          add_unpacked<Block, R, M>(sums, groups, min, before, x, g, parts_of_group<G::layout>());
        }
        for (int r = 0; r < R; ++r) from[r] += G::bytes;
      }
      if constexpr (G::plain)
        if (g < at_most(g0 + kGroups, x.groups)) {
          Group groups[R];
          const i64 blocks = w.I % kSuperBlock / kBlock;
          for (int r = 0; r < R; ++r) G::unpack_some(from[r], blocks, groups + r);
          const i64 parts = (blocks * parts_of_group<G::layout>() + 7) / 8;
          add_unpacked<Block, R, M>(sums, groups, min, before, x, g, static_cast<int>(parts));
        }
#pragma GCC unroll 16
      for (int i = 0; i < R * M; ++i)
        totals[i % M][at_most(row + i / M, n - 1)] = sums[i / M][i % M];
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
TENARAI_INLINE i64 rows_computed(i64 M) { return M <= 2 ? M : (M + 1) / 2 * 2; }

template <class Block>
static Reader reader_of() {
  using G = GroupOf<Block>;
  return {&unpack_group<Block>,
          {&dot_tile<Block, 1>, &dot_tile<Block, 2>, &dot_tile<Block, 4>, &dot_tile<Block, 6>,
           &dot_tile<Block, 8>},
          G::bytes,
          sizeof(Block),
          G::layout,
          G::Shape::has_min,
          min_terms<Block>(),
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
