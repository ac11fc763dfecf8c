// Many rows times a quantised weight in bfloat16: a prompt, where the machine multiplies tiles of
// them (AMX). Weights are expanded into panels of bfloat16, activations are rounded to them:
//
//     y[m][o] = start + Σ bfloat16(x[m][i]) bfloat16(w[o][i])      sums in float32
//
// A bfloat16 has eight bits for every number, however large its neighbours are, so there is no
// scale to choose and no outlier to set apart.
//
//   for rectangles of y, which the threads share out
//     for outputs of it, 256 of them at a time                 their sums stay in L2, 512 KB
//       for k, 512 or more at a time                           so do x's rows, 512 KB
//         for outputs, kBfloatOutputs at a time
//           expand them                                        in L2, too
//           for k, kPanelDepth at a time                       weights stay in L1, 40 KB at most
//             for rows, 32 at a time
//               sums += weights × rows, two tiles by two
//       transpose: y = start + sums
//
// Weights are the first operand of a tile's product, since its rows lie along k as theirs do; the
// rows of x are the second, and are interleaved once. An element of y is summed over k in one
// order, so it is the same whatever other rows there are, and for every thread count.
#pragma once

#include "quant_bfloat_panels.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kPanelDepth = 512, kMostExpanded = 8 * kPanelDepth;
constexpr i64 kWholeDepth = 640;  // so many ks are one panel: 512 and a rest cost more
static_assert(kPanelDepth % 256 == 0, "what is expanded are whole blocks of every format");
constexpr i64 kBfloatRows = 2 * kAmxRows;  // of x that meet a panel together
constexpr i64 kBfloatSums = 1 << 17;       // of a thread at a time
constexpr i64 kBfloatMostOutputs = 256;
constexpr i64 kBfloatBlock = 1 << 18;  // rows times ks of x that stay in L2

// Rows of activations in tiles, zeros past the last: [M / 16][I / 32][16 pairs of ks][16 rows][2].
struct BfloatRows {
  i64 M, steps;
  uint16_t* tiles;

  static size_t bytes(i64 M, i64 I) { return static_cast<size_t>(round_up(M, kAmxRows) * I) * 2; }
  BfloatRows(void* memory, i64 M, i64 I)
      : M(M), steps(I / kBfloatStep), tiles(static_cast<uint16_t*>(memory)) {}

  i64 panels() const { return (M + kAmxRows - 1) / kAmxRows; }
  const uint16_t* panel(i64 m) const { return tiles + m / kAmxRows * steps * kBfloatTile; }

  // Tiles [begin, end) of x (M, I).
  void round(const float* x, i64 I, i64 begin, i64 end) const {
    for (i64 tile = begin; tile < end; ++tile) {
      const i64 m = tile / steps * kAmxRows, k = tile % steps * kBfloatStep;
      vf pairs[kAmxRows] = {};
      for (i64 r = 0; r < at_most(kAmxRows, M - m); ++r) {
        const float* from = x + (m + r) * I + k;
        pairs[r] = (vf)bfloats(_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes));
      }
      transpose(pairs);
      std::memcpy(tiles + tile * kBfloatTile, pairs, sizeof pairs);
    }
  }
};

// sums (2, kTiles, 16 outputs, 16 rows) = or += a panel of weights times kTiles panels of x, which
// are `next` apart. Asks for the sums that follow. x is read past the first level of the caches as
// far as that goes, since the weights stay there.
template <int kTiles>
static void bfloat_kernel(float* sums, const uint16_t* w, const uint16_t* x, i64 next, i64 steps,
                          bool first) {
  constexpr i64 kSum = kAmxFloats;
  tiles_read_memory();
  if (first) {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (kTiles == 2) {
      _tile_zero(1);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(2, sums + kTiles * kSum, 64);
    if constexpr (kTiles == 2) {
      _tile_loadd(1, sums + kSum, 64);
      _tile_loadd(3, sums + 3 * kSum, 64);
    }
  }
  for (i64 step = 0; step < steps; ++step, w += kStepStride, x += kBfloatTile) {
    const float* ask = sums + 2 * kTiles * kSum + step % 16 * 64;
    for (int i = 0; i < 4; ++i) __builtin_prefetch(ask + 16 * i, 1);
    _tile_loadd(4, w, 64);
    _tile_stream_loadd(6, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w + kBfloatTile, 64);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTiles == 2) {
      _tile_stream_loadd(7, x + next, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(2, sums + kTiles * kSum, 64);
  if constexpr (kTiles == 2) {
    _tile_stored(1, sums + kSum, 64);
    _tile_stored(3, sums + 3 * kSum, 64);
  }
}

// y (M, O) = x wᵀ + bias + residual
struct BfloatProduct {
  const Forward& forward;
  const BfloatSource& w;
  const BfloatRows& x;

  struct Memory {
    alignas(64) uint16_t panel[kBfloatOutputs * kMostExpanded];
    alignas(64) float sums[1];  // [outputs / 32][rows / 32][2][1 or 2][16 outputs][16 rows]
  };
  // Outputs whose sums there is room for; up to 4096 rows.
  static i64 outputs_of(i64 rows) {
    const i64 n = kBfloatSums / round_up(rows, kBfloatRows);
    return at_most(n / kBfloatOutputs * kBfloatOutputs, kBfloatMostOutputs);
  }
  // Ks of I that are expanded at a time: the fewer rows, the more.
  static i64 depth_of(i64 rows, i64 I) {
    if (I <= kWholeDepth) return I;
    const i64 k = kBfloatBlock / rows / kPanelDepth * kPanelDepth;
    return k < kPanelDepth ? kPanelDepth : at_most(k, kMostExpanded);
  }
  static size_t bytes(i64 rows) {
    const i64 sums = kBfloatMostOutputs * round_up(rows, kBfloatRows);
    return sizeof(Memory) + static_cast<size_t>(at_most(sums, kBfloatSums)) * 4;
  }

  void rectangle(Range rows, Range outputs, Memory* memory) const {
    if (rows.begin == rows.end) return;
    const WholeTiles tiles;
    const i64 most = outputs_of(rows.end - rows.begin),
              depth = depth_of(rows.end - rows.begin, w.I);
    for (i64 o = outputs.begin; o < outputs.end; o += most) {
      const i64 end = at_most(o + most, outputs.end);
      for (i64 k = 0; k < w.I; k += depth)
        for (i64 panel = o; panel < end; panel += kBfloatOutputs) {
          w.pack(memory->panel, panel, k, at_most(depth, w.I - k));
          Next next{panel + kBfloatOutputs, k};
          if (next.o >= end) next = {o, k + depth};
          if (next.k >= w.I) next = {end < outputs.end ? end : w.O, 0};
          times_rows(rows, memory, (panel - o) / kBfloatOutputs, k, depth, next);
        }
      finish(rows, {o, end}, memory->sums);
    }
  }

 private:
  static i64 blocks_of(Range rows) {
    return (rows.end - rows.begin + kBfloatRows - 1) / kBfloatRows;
  }
  struct Next {  // what is expanded next; none where o is w.O or more
    i64 o, k;
  };
  // Rows times panel number `panel`, ks from k on; asks for the next weights meanwhile.
  void times_rows(Range rows, Memory* memory, i64 panel, i64 k, i64 depth, Next next) const {
    const i64 blocks = blocks_of(rows), n = at_most(depth, w.I - k);
    const i64 panel_depth = n <= kWholeDepth ? n : kPanelDepth;
    for (i64 i = 0; i < n; i += panel_depth)
      for (i64 b = 0; b < blocks; ++b) {
        if (i == 0) w.prefetch(next.o, next.k, at_most(depth, w.I - next.k), b, blocks);
        const i64 m = rows.begin + b * kBfloatRows;
        const auto kernel = rows.end - m > kAmxRows ? &bfloat_kernel<2> : &bfloat_kernel<1>;
        kernel(memory->sums + (panel * blocks + b) * kBfloatOutputs * kBfloatRows,
               memory->panel + i / kBfloatStep * kStepStride, x.panel(m) + (k + i) * kAmxRows,
               x.steps * kBfloatTile, at_most(panel_depth, n - i) / kBfloatStep, k + i == 0);
      }
  }
  void finish(Range rows, Range outputs, const float* sums) const {
    const i64 blocks = blocks_of(rows);
    for (i64 m = rows.begin; m < rows.end; m += kAmxRows) {
      const i64 b = (m - rows.begin) / kBfloatRows, tile = (m - rows.begin) / kAmxRows % 2;
      const i64 tiles = rows.end - rows.begin - b * kBfloatRows > kAmxRows ? 2 : 1;
      for (i64 o = outputs.begin; o < outputs.end; o += kAmxRows) {
        const i64 at = (o - outputs.begin) / kAmxRows;
        const float* from = sums + (at / 2 * blocks + b) * kBfloatOutputs * kBfloatRows +
                            (at % 2 * tiles + tile) * kAmxFloats;
        vf v[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) v[i] = load(from + i * kLanes);
        transpose(v);
        const i64 n = at_most(kLanes, outputs.end - o);
        for (i64 i = 0; i < at_most(kAmxRows, rows.end - m); ++i) {
          float* y = forward.c + (m + i) * forward.stride + o;
          const vf sum = forward.start(m + i, o, n) + v[i];
          n == kLanes ? store(y, sum) : store_n(y, sum, n);
        }
      }
    }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
