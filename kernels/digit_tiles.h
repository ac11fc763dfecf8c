// Products of panels of digits (digits.h) that fit the caches and are packed anew all the time:
// attention's. Three digits; each panel is as deep as what is summed over, and has its scales.
//
//     C(i, j) = or += s_A(i) s_B(j) Σ_k n m
#pragma once

#include "amx.h"
#include "attention_tiles.h"
#include "digits.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

using AttentionPanel = DigitPanel<3>;

// Panels of as many ks, one after the other.
struct DigitPanels {
  float* memory;
  i64 k;

  void lay(Cut& cut, i64 lines, i64 ks) {
    k = ks;
    memory = cut((lines + kLanes - 1) / kLanes * floats());
  }
  i64 floats() const { return AttentionPanel::floats(k); }
  i64 steps() const { return AttentionPanel::steps_of(k); }
  i64 whole_steps() const { return AttentionPanel::whole_steps(k); }
  // Without the lines before a panel.
  DigitPanels from(i64 line) const { return {memory + line / kLanes * floats(), k}; }
  // Lines and ks of an operand; zeros fill up panels and steps.
  template <Side side, class Operand>
  void take(const Operand& from, i64 lines, i64 ks) const {
    for (i64 line = 0; line < lines; line += kLanes)
      AttentionPanel(memory + line / kLanes * floats(), k)
          .template take<side>(from, line, at_most(lines - line, kLanes), 0, ks, nullptr);
  }
};

// A block's sums (3, 16, 16) on their way into c (16, 16): = or += the sums, times the scales of
// A's lines and of B's. A few rows at a time, between the next block's products: the tiles have a
// unit of their own, but much at once would fill the buffer in which instructions wait.
template <bool kAdd>
struct SumsToPut {
  float* c;
  i64 c_stride;
  const int32_t* sums;
  const float* a_scales;
  vf b_scales;

  template <int kFirst, int kRows>
  TENARAI_ALWAYS void rows() const {
#pragma GCC unroll 16
    for (int r = kFirst; r < kFirst + kRows; ++r) {
      vf v = (whole(r, 0) * 256.0f + whole(r, 1)) * 256.0f + whole(r, 2);
      float* to = c + r * c_stride;
      v = v * a_scales[r] * b_scales;
      store(to, kAdd ? v + load(to) : v);
    }
    tiles_read_memory();  // so that they stay where they are
  }

 private:
  TENARAI_ALWAYS vf whole(int r, int power) const {
    vi v;
    std::memcpy(&v, sums + power * kAmxFloats + r * kLanes, sizeof v);
    return __builtin_convertvector(v, vf);
  }
};

// Tiles 0 to 2 are the sums, 3 to 5 A's, 6 and 7 B's. A's panel has kWhole steps (2: any number
// from two on) and half a step. Of one, or of half a step alone, its tiles stay for the next block.
template <bool kAdd, int kWhole, bool kHalf>
struct DigitBlock {
  using Before = SumsToPut<kAdd>;
  static constexpr i64 kTile = kAmxFloats, kStep = AttentionPanel::kStep;

  static TENARAI_ALWAYS void keep(const float* a) {
    _tile_loadd(3, a, 64);
    if constexpr (kWhole > 0) _tile_loadd(4, a + kTile, 64);
    _tile_loadd(5, a + 2 * kTile, 64);
  }
  static TENARAI_ALWAYS void sums(int32_t* to, const float* a, const float* b, i64 steps,
                                  const Before& before) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    if constexpr (kWhole > 0) {
      step<true>(to, b, before);
      for (i64 i = 1; kWhole > 1 && i < steps; ++i) {
        a += kStep, b += kStep;
        keep(a);
        step<false>(to, b, before);
      }
      a += kStep, b += kStep;
    }
    if constexpr (kHalf) half(a, b, before);
    if constexpr (!kOneStep) {
      _tile_stored(0, to, 64);
      _tile_stored(1, to + kTile, 64);
      _tile_stored(2, to + 2 * kTile, 64);
    }
  }

 private:
  static constexpr bool kOneStep = kWhole == 1 && !kHalf;
  template <bool kSome, int kFirst, int kRows>
  static TENARAI_ALWAYS void rows(const Before& before) {
    if constexpr (kSome) before.template rows<kFirst, kRows>();
  }
  // Rows of the block before go between the first step's products, or some of them between those
  // of the half that follows.
  template <bool kFirst>
  static TENARAI_ALWAYS void step(int32_t* to, const float* b, const Before& before) {
    constexpr int kMany = kWhole == 1 && kHalf ? 2 : 3;
    _tile_loadd(6, b + 2 * kTile, 64);
    _tile_dpbssd(0, 5, 6);
    rows<kFirst, 0, kMany>(before);
    _tile_loadd(7, b + kTile, 64);
    _tile_dpbssd(1, 4, 6);
    rows<kFirst, kMany, kMany>(before);
    if constexpr (kOneStep) _tile_stored(0, to, 64);
    _tile_dpbssd(2, 3, 6);
    rows<kFirst, 2 * kMany, kMany>(before);
    _tile_loadd(6, b, 64);
    _tile_dpbssd(1, 5, 7);
    rows<kFirst, 3 * kMany, kMany>(before);
    _tile_dpbssd(2, 4, 7);
    rows<kFirst, 4 * kMany, 2>(before);
    if constexpr (kOneStep) _tile_stored(1, to + kTile, 64);
    _tile_dpbssd(2, 5, 6);
    rows<kFirst, 4 * kMany + 2, 2>(before);
    if constexpr (kOneStep) _tile_stored(2, to + 2 * kTile, 64);
  }
  static TENARAI_ALWAYS void half(const float* a, const float* b, const Before& before) {
    if constexpr (kWhole == 0) {
      _tile_loadd(6, b + 2 * kTile, 64);
      _tile_dpbssd(0, 5, 6);
      before.template rows<0, 4>();
      _tile_loadd(7, b + kTile, 64);
      _tile_dpbssd(2, 3, 6);
      before.template rows<4, 4>();
      _tile_loadd(6, b, 64);
      _tile_dpbssd(1, 5, 7);
      before.template rows<8, 4>();
      _tile_dpbssd(2, 5, 6);
      before.template rows<12, 4>();
    } else {
      _tile_loadd(6, a + 2 * kTile, 64);
      _tile_loadd(7, b + 2 * kTile, 64);
      _tile_dpbssd(0, 6, 7);
      rows<kWhole == 1, 12, 1>(before);
      _tile_loadd(7, b + kTile, 64);
      _tile_dpbssd(1, 6, 7);
      rows<kWhole == 1, 13, 1>(before);
      _tile_loadd(7, b, 64);
      _tile_dpbssd(2, 6, 7);
      rows<kWhole == 1, 14, 1>(before);
      _tile_loadd(6, a, 64);
      _tile_loadd(7, b + 2 * kTile, 64);
      _tile_dpbssd(2, 6, 7);
      rows<kWhole == 1, 15, 1>(before);
    }
  }
};

// C (M, N) = or += A (M lines) B (N lines). Whole tiles of C are written. The thread has
// WholeTiles.
template <bool kAdd, int kWhole, bool kHalf>
static __attribute__((noinline)) void digit_blocks(float* c, i64 c_stride, const DigitPanels& a,
                                                   const DigitPanels& b, i64 M, i64 N) {
  using Block = DigitBlock<kAdd, kWhole, kHalf>;
  constexpr float kUnit = 65536.0f / AttentionPanel::kMost / AttentionPanel::kMost;
  alignas(64) int32_t sums[2][3 * kAmxFloats];
  alignas(64) float a_scales[2][kLanes] = {}, nowhere[kAmxFloats] = {};
  const i64 greatest = a.steps() * AttentionPanel::kStep;
  SumsToPut<kAdd> before{nowhere, kLanes, sums[1], a_scales[0], vf{}};
  int now = 0, line = 0;
  tiles_read_memory();
  for (i64 i = 0; i < M; i += kLanes) {
    const float* pa = a.from(i).memory;
    line ^= 1;
    store(a_scales[line], load(pa + greatest) * kUnit);
    for (i64 j = 0; j < N; j += kLanes, now ^= 1) {
      const float* pb = b.from(j).memory;
      if (j == 0 || kWhole > 1) Block::keep(pa);
      Block::sums(sums[now], pa, pb, a.whole_steps(), before);
      before = {c + i * c_stride + j, c_stride, sums[now], a_scales[line], load(pb + greatest)};
    }
  }
  before.template rows<0, kLanes>();
}
template <bool kAdd>
static auto blocks_for(i64 whole, bool half) {
  return whole == 0   ? &digit_blocks<kAdd, 0, true>
         : whole == 1 ? half ? &digit_blocks<kAdd, 1, true> : &digit_blocks<kAdd, 1, false>
         : half       ? &digit_blocks<kAdd, 2, true>
                      : &digit_blocks<kAdd, 2, false>;
}
static void digit_product(float* c, i64 c_stride, const DigitPanels& a, const DigitPanels& b, i64 M,
                          i64 N, bool add) {
  const i64 whole = a.whole_steps();
  const bool half = a.steps() > whole;
  (add ? blocks_for<true>(whole, half) : blocks_for<false>(whole, half))(c, c_stride, a, b, M, N);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
