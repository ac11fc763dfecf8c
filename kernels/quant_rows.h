// Rows of quantised weights as float32, a piece at a time: for products of float32 and, with AMX,
// of digits. Few rows of x meet a piece of each row of w in a buffer; for many, pieces are packed
// into the panels of the matrix product (gemm.h, digit_gemm.h).
#pragma once

#include "quant_dot.h"

namespace tenarai {
namespace TENARAI_ISA {

// Makes n weights from the i-th on of a row, both multiples of the block's size.
using ExpandPiece = void (*)(float* to, const uint8_t* row, i64 i, i64 n);

template <class Block>
static void expand_blocks(float* to, const uint8_t* row, i64 i, i64 n) {
  constexpr i64 kSize = ShapeOf<Block>::weights;
  const uint8_t* from = row + i / kSize * static_cast<i64>(sizeof(Block));
  for (i64 k = 0; k < n; k += kSize, from += sizeof(Block))
    expand_block(*reinterpret_cast<const Block*>(from), to + k);
}
static void expand_floats(float* to, const uint8_t* row, i64 i, i64 n) {
  std::memcpy(to, row + 4 * i, static_cast<size_t>(n) * 4);
}
template <bool kBfloat>
static void expand_halves(float* to, const uint8_t* row, i64 i, i64 n) {
  for (i64 k = 0; k < n; ++k) {
    uint16_t h;
    std::memcpy(&h, row + 2 * (i + k), 2);
    to[k] = kBfloat ? from_bfloat(h) : from_half(h);
  }
}
static ExpandPiece expander(QuantFormat format) {
  ExpandPiece f = format == QuantFormat::f32   ? &expand_floats
                  : format == QuantFormat::f16 ? &expand_halves<false>
                                               : &expand_halves<true>;
  with_block(format, [&](auto sample) { f = &expand_blocks<decltype(sample)>; });
  return f;
}

// A quantised matrix whose rows come in pieces.
struct PieceRows {
  ExpandPiece piece;
  const uint8_t* data;
  i64 row_bytes;

  void expand(float* to, i64 o, i64 i, i64 n) const { piece(to, data + o * row_bytes, i, n); }
};

// totals[m][r], whose lanes add up to x[m] · w[o + r] for n rows of w; x (M, I).
template <int M>
static void dot_float_tile(vf (*totals)[kLanes], const PieceRows& w, i64 o, i64 n, const float* x,
                           i64 I) {
  alignas(64) float piece[kSuperBlock];
  for (i64 r = 0; r < n; ++r) {
    vf total[M] = {};
    for (i64 k0 = 0; k0 < I; k0 += kSuperBlock) {
      const i64 length = at_most(kSuperBlock, I - k0);
      w.expand(piece, o + r, k0, length);
      for (i64 k = 0; k < length; k += kLanes) {
        const i64 lanes = at_most(kLanes, length - k);
        const vf v = load_upto(piece + k, lanes);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) total[m] += v * load_upto(x + m * I + k0 + k, lanes);
      }
    }
    for (int m = 0; m < M; ++m) totals[m][r] = total[m];
  }
}
using FloatTile = void (*)(vf (*)[kLanes], const PieceRows&, i64, i64, const float*, i64);
static FloatTile choose_float_tile(i64 M) {
  constexpr FloatTile tiles[kMostRows] = {
      &dot_float_tile<1>, &dot_float_tile<2>, &dot_float_tile<3>, &dot_float_tile<4>,
      &dot_float_tile<5>, &dot_float_tile<6>, &dot_float_tile<7>, &dot_float_tile<8>};
  return tiles[M - 1];
}

// A policy of packing (pack.h): lines are rows of weights.
struct Expanded {
  static constexpr i64 kDepthGrain = kSuperBlock;
  PieceRows rows;

  template <int kWidth>
  void pack(float* panels, i64 line0, i64 lines, i64 k0, i64 K) const {
    static_assert(kWidth % kLanes == 0, "a group of lines lies in one panel");
    constexpr i64 kMostDepth = 2 * kSuperBlock;
    static_assert(kDepthBlock < kMostDepth, "a block of k rounded up to whole super-blocks");
    constexpr i64 kStride = kMostDepth + kLanes;  // no two rows in the same sets of the cache
    alignas(64) float piece[kLanes * kStride];
    for (i64 line = 0; line < lines; line += kLanes) {
      const i64 n = at_most(kLanes, lines - line);
      for (i64 i = 0; i < n; ++i) rows.expand(piece + i * kStride, line0 + line + i, k0, K);
      float* to = panels + line / kWidth * kWidth * K + line % kWidth;
      Along<Same>{piece, kStride}.template pack<kWidth>(to, 0, n, 0, K);
    }
  }
  void make(float* to, i64 line, i64 k0, i64 K) const { rows.expand(to, line, k0, K); }
  Lines reads(i64, i64, i64, i64) const { return {}; }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
