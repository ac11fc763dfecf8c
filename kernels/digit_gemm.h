// A matrix product of float32 on AMX, from whole numbers of two or three digits (digits.h).
//
//     C(i, j) ≈ s_A(i, block) s_B(block, j) Σ_k n m
//     Σ_k n m = 2^32 Σ a₂b₂ + 2^24 Σ (a₂b₁ + a₁b₂) + 2^16 Σ (a₂b₀ + a₁b₁ + a₀b₂) + ..
//
// The sums of products of digits are exact. With three digits the first six products of nine are
// made, with two the first three of four: what is left out is as small as what rounding to digits
// has cost. Of numbers spread as a bell a product of three is off by 3e-7 of its norm, as much as
// one in float32; where one number of a block is far above the others, by that much of what it
// would be if all were. NaN and infinity make their row or column NaN.
//
//   as in gemm.h, a block of A packed once, and then for columns of C, 16 at a time
//     pack B: 16 columns of the block's ks                     stays in L1, 24 KB
//     for rows of the block, 16 at a time                      A panel from L2
//       for ks, 64 at a time
//         six products of tiles, three sums in registers: one for each power of 256
//
// An element of C depends on its own row and column alone, and its bits not on the thread count.
#pragma once

#include "digits.h"
#include "gemm.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

// What is asked for while tiles are multiplied, as Ahead, but as much with every step: a wrong
// guess of what comes next would cost more than a line that is asked for early.
struct StepsAhead {
  Lines b, c;
  i64 each;  // lines of B a step

  StepsAhead(Lines b, i64 steps) : b(b), c{}, each((b.rows * b.width + steps - 1) / steps) {}

  TENARAI_ALWAYS void ask() {
    for (int i = 0; i < 4; ++i) c.ask<true, 3>();
    for (i64 i = 0; i < each; ++i) b.ask<false, 2>();
  }
};

// sums (kDigits, 16, 16) = those of the products of a panel of A and one of B, the greatest powers
// first. Tiles 0 to 2 are the sums.
template <int kDigits>
TENARAI_INLINE void digit_sums(int32_t* sums, const float* a, const float* b, i64 steps, bool half,
                               StepsAhead* ahead) {
  tiles_read_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  StepsAhead lines = *ahead;  // in registers
  constexpr i64 kTile = kAmxFloats;
  for (; steps > 0; --steps, a += kDigits * kTile, b += kDigits * kTile) {
    lines.ask();
    if constexpr (kDigits == 3) {
      _tile_loadd(3, a + 2 * kTile, 64);
      _tile_loadd(6, b + 2 * kTile, 64);
      _tile_dpbssd(0, 3, 6);
      _tile_loadd(4, a + kTile, 64);
      _tile_dpbssd(1, 4, 6);
      _tile_loadd(7, b + kTile, 64);
      _tile_dpbssd(2, 4, 7);
      _tile_loadd(5, a, 64);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(1, 3, 7);
      _tile_loadd(4, b, 64);
      _tile_dpbssd(2, 3, 4);
    } else {
      _tile_loadd(3, a + kTile, 64);
      _tile_loadd(6, b + kTile, 64);
      _tile_dpbssd(0, 3, 6);
      _tile_loadd(4, a, 64);
      _tile_dpbssd(1, 4, 6);
      _tile_loadd(7, b, 64);
      _tile_dpbssd(1, 3, 7);
    }
  }
  if (half) {
    if constexpr (kDigits == 3) {
      _tile_loadd(3, a + 2 * kTile, 64);
      _tile_loadd(6, b + 2 * kTile, 64);
      _tile_dpbssd(0, 3, 6);
      _tile_loadd(7, b + kTile, 64);
      _tile_dpbssd(1, 3, 7);
      _tile_loadd(4, b, 64);
      _tile_dpbssd(2, 3, 4);
      _tile_loadd(5, a, 64);
      _tile_dpbssd(2, 5, 6);
    } else {
      _tile_loadd(3, a + kTile, 64);
      _tile_loadd(6, b + kTile, 64);
      _tile_dpbssd(0, 3, 6);
      _tile_loadd(7, b, 64);
      _tile_dpbssd(1, 3, 7);
    }
  }
  *ahead = lines;
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTile, 64);
  if constexpr (kDigits == 3) _tile_stored(2, sums + 2 * kTile, 64);
}

template <class A, class B, class Epilogue, int kDigits>
struct DigitProduct {
  using Panel = DigitPanel<kDigits>;
  A a;
  B b;
  Epilogue epilogue;
  float* row_sums;
  i64 M, N, K;

  // Is it faster than a product of floats?
  static bool worthwhile(i64 M, i64 N, i64 K) { return M >= 16 && N >= 16 && K >= 32; }

  void run(Pool& pool) const { compute_blocks(pool, *this); }

  static constexpr i64 kDepth = 512, kLines = kAmxRows;
  static_assert(kDepth <= Panel::kMapped, "what is changed first has room");
  static constexpr i64 kRowGrain = kLines, kColumnGrain = kLines, kPanel = kLines;
  static constexpr i64 kLineGrain = kLines, kPackGrain = kLines;
  static constexpr i64 kBlock = 640 * kDepth;
  static constexpr i64 kDepthGrain = B::kDepthGrain > kDigitDepth ? B::kDepthGrain : kDigitDepth;
  static_assert(kDepth % kDepthGrain == 0, "no block is deeper");
  i64 block_depth() const { return even_block(K, kDepth, kDepthGrain); }
  i64 a_floats(i64 lines, i64 k) const { return lines / kLines * Panel::floats(k); }
  i64 b_floats(i64 k) const { return Panel::floats(k); }

  void pack_rows(float* panels, i64 i0, i64, Range part, i64 k0, i64 k, bool sums) const {
    for (i64 i = part.begin; i < part.end; i += kLines)
      Panel(panels + i / kLines * Panel::floats(k), k)
          .template take<Side::a>(a, i0 + i, at_most(kLines, part.end - i), k0, k,
                                  sums && row_sums ? row_sums + i0 + i : nullptr);
  }

  void times_columns(const float* a_panels, float* b_panel, i64 i0, i64 m, Range columns,
                     Range share, i64 k0, i64 k) const {
    const i64 depth = block_depth();
    const Panel panel(b_panel, k);
    const WholeTiles tiles;
    for (i64 j0 = columns.begin; j0 < columns.end; j0 += kLines) {
      const i64 n = at_most(kLines, columns.end - j0);
      panel.template take<Side::b>(b, j0, n, k0, k, nullptr);
      strip(a_panels, panel, i0, m, j0, n, k, k0 == 0, k0 + k == K,
            next_panel(share, j0, kLines, k0, depth, K));
    }
    if (epilogue.streams()) stream_end();
  }

 private:
  // All rows of the block times one panel of B.
  void strip(const float* a_panels, const Panel& panel, i64 i0, i64 m, i64 j0, i64 n, i64 k,
             bool first, bool last, PlaceOfB next) const {
    const Tiles<Epilogue, kLines, kLines> way{epilogue, first, last};
    const bool streams = way.stream(n);
    const i64 steps = Panel::steps_of(k), whole_steps = Panel::whole_steps(k);
    StepsAhead ahead(b.reads(next.j, next.columns, next.k, next.depth),
                     (m + kLines - 1) / kLines * steps);
    alignas(64) int32_t sums[kDigits * kAmxFloats];
    alignas(64) float tile[kAmxFloats];
    const vf columns = load(panel.greatest);
    for (i64 i = 0; i < m; i += kLines, a_panels += Panel::floats(k)) {
      const i64 rows = at_most(kLines, m - i);
      ahead.c = Lines::of(epilogue.c + (i0 + i) * epilogue.stride + j0, epilogue.stride,
                          streams ? 0 : rows, n);
      digit_sums<kDigits>(sums, a_panels, panel.steps, whole_steps, steps > whole_steps, &ahead);
      // Of the least power that is summed; and small, so that neither product is out of range.
      constexpr float kUnit = (kDigits == 3 ? 65536.0f : 256.0f) / Panel::kMost / Panel::kMost;
      const auto sum = [&](i64 r, i64) __attribute__((always_inline)) {
        vf v = whole(sums + r * kLanes) * 256.0f + whole(sums + kAmxFloats + r * kLanes);
        if constexpr (kDigits == 3) v = v * 256.0f + whole(sums + 2 * kAmxFloats + r * kLanes);
        v = v * kUnit * a_panels[steps * Panel::kStep + r] * columns;
        asm("" : "+v"(v));  // rounded, before it is added to anything, as at the edges
        return v;
      };
      if (rows == kLines && n == kLines) {
        way.put_whole(sum, i0 + i, j0, streams);
      } else {
        for (i64 r = 0; r < kLines; ++r) store(tile + r * kLanes, sum(r, 0));
        way.put(tile, i0 + i, rows, j0, n, streams);
      }
    }
  }
  TENARAI_INLINE vf whole(const int32_t* sums) {
    vi v;
    std::memcpy(&v, sums, sizeof v);
    return __builtin_convertvector(v, vf);
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
