// float32 as a sum of bfloat16s, and products of tiles of them on AMX.
//
//     x = x₀ + x₁ + x₂     x₀ = bfloat16(x), x₁ = bfloat16(x − x₀), x₂ = bfloat16(x − x₀ − x₁)
//
// A bfloat16 has 8 bits and float32's exponents, so three hold the 24 bits of a float exactly
// (parts below 1e-38 are lost). Of the nine products of two such sums the six are made whose parts'
// numbers add up to 2 at most: what is left out is below the 2^-24 that rounding a product costs,
// so a sum is as exact as one of floats, element by element. Of two parts, 16 bits, three are made.
//
// A panel is 16 lines (rows of A or columns of B) wide: [K / 32][parts][tile of 1 KB]. A tile's row
// is a line of A, or two ks of all lines of B: k and k + 16, which come from two vectors whichever
// way the operand lies in memory.
//
// Twice as many products as of digits (digits.h) for the same, but there are no scales: for tiles
// that fit the caches and change all the time.
#pragma once

#include "amx.h"
#include "attention_tiles.h"
#include "pack.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kBfloatDepth = 32;  // ks of a tile

// pairs[part] of two vectors, one pair a lane. Parts are rounded to nearest, the last one is cut
// (of three it is exact): so each NaN has a part that is one. Numbers above 3.39e38 become
// infinite.
template <int kParts>
TENARAI_INLINE void split_pair(vi* pairs, vf first, vf second) {
  constexpr int32_t kUpper = static_cast<int32_t>(0xffff0000u);
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    const int32_t half = part == kParts - 1 ? 0 : 0x8000;
    const vi a = (vi)first + half, b = (vi)second + half;
    pairs[part] = (vi)_mm512_mask_blend_epi16(0xaaaaaaaau, (__m512i)((vu)a >> 16), (__m512i)b);
    first -= (vf)(a & kUpper);
    second -= (vf)(b & kUpper);
  }
}

// Panels of an operand, one after the other.
template <int kParts>
struct BfloatPanels {
  static constexpr i64 kStep = kParts * kAmxFloats;
  float* memory;
  i64 stride;  // from panel to panel

  static i64 steps_of(i64 k) { return (k + kBfloatDepth - 1) / kBfloatDepth; }
  // Of that many lines and ks.
  void lay(Cut& cut, i64 lines, i64 k) {
    stride = steps_of(k) * kStep;
    memory = cut((lines + kLanes - 1) / kLanes * stride);
  }
  // Without the first lines and ks, whole panels and steps.
  BfloatPanels from(i64 line, i64 k) const {
    return {memory + line / kLanes * stride + k / kBfloatDepth * kStep, stride};
  }

  // From the first lines and ks of an operand; zeros fill up panels and steps.
  template <Side side>
  void take(const Along<Same>& from, i64 lines, i64 k) const {
    each_tile(lines, k, [&](float* to, i64 line, i64 n, i64 at, i64 depth) {
      const float* p = from.p + line * from.stride + at;
      const auto part = [&](i64 r, i64 i) __attribute__((always_inline)) {
        const i64 left = r < n ? depth - i : 0;
        const float* q = p + r * from.stride + i;
        return left >= kLanes ? load(q) : left > 0 ? load_n(q, left) : vf{};
      };
      put<side == Side::b>(
          to, [&](i64 r) { return part(r, 0); }, [&](i64 r) { return part(r, kLanes); });
    });
  }
  template <Side side>
  void take(const Across<Same>& from, i64 lines, i64 k) const {
    each_tile(lines, k, [&](float* to, i64 line, i64 n, i64 at, i64 depth) {
      const float* p = from.p + at * from.stride + line;
      const auto row = [&](i64 i) __attribute__((always_inline)) {
        const float* q = p + i * from.stride;
        return i >= depth ? vf{} : n == kLanes ? load(q) : load_n(q, n);
      };
      put<side == Side::a>(
          to, [&](i64 r) { return row(r); }, [&](i64 r) { return row(kLanes + r); });
    });
  }

 private:
  template <class F>
  TENARAI_ALWAYS void each_tile(i64 lines, i64 k, F&& f) const {
    for (i64 line = 0; line < lines; line += kLanes)
      for (i64 at = 0; at < k; at += kBfloatDepth)
        f(memory + line / kLanes * stride + at / kBfloatDepth * kStep, line,
          at_most(lines - line, kLanes), at, at_most(k - at, kBfloatDepth));
  }
  template <bool kTurned, class First, class Second>
  static TENARAI_ALWAYS void put(float* to, First first, Second second) {
    vf a[kLanes], b[kLanes];
#pragma GCC unroll 16
    for (i64 r = 0; r < kLanes; ++r) a[r] = first(r), b[r] = second(r);
    if constexpr (kTurned) {
      transpose(a);
      transpose(b);
    }
#pragma GCC unroll 16
    for (i64 r = 0; r < kLanes; ++r) {
      vi pairs[kParts];
      split_pair<kParts>(pairs, a[r], b[r]);
#pragma GCC unroll 3
      for (int part = 0; part < kParts; ++part)
        store(to + part * kAmxFloats + r * kLanes, (vf)pairs[part]);
    }
  }
};

// c = or += A B for kI panels of A and kJ of B. Tiles 0 to 3 are the sums, 4 and 5 are A's, 6 and 7
// B's; one that stays for the next product is not loaded again.
template <int kParts, int kI, int kJ>
static void bfloat_block(float* c, i64 c_stride, const BfloatPanels<kParts>& a,
                         const BfloatPanels<kParts>& b, i64 steps, bool add) {
  const size_t row = static_cast<size_t>(c_stride) * 4;
  float *c1 = c + kLanes, *c2 = c + kLanes * c_stride, *c3 = c2 + kLanes;
  tiles_read_memory();
  if (add) {
    _tile_loadd(0, c, row);
    if constexpr (kJ > 1) _tile_loadd(1, c1, row);
    if constexpr (kI > 1) _tile_loadd(2, c2, row);
    if constexpr (kI > 1 && kJ > 1) _tile_loadd(3, c3, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const float *pa = a.memory, *pb = b.memory;
  for (i64 step = 0; step < steps; ++step, pa += a.kStep, pb += b.kStep) {
    const auto load_a = [&](int part) __attribute__((always_inline)) {
      _tile_loadd(4, pa + part * kAmxFloats, 64);
      if constexpr (kI > 1) _tile_loadd(5, pa + a.stride + part * kAmxFloats, 64);
    };
    const auto load_b = [&](int part) __attribute__((always_inline)) {
      _tile_loadd(6, pb + part * kAmxFloats, 64);
      if constexpr (kJ > 1) _tile_loadd(7, pb + b.stride + part * kAmxFloats, 64);
    };
    const auto multiply = []() __attribute__((always_inline)) {
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kJ > 1) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kI > 1) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kI > 1 && kJ > 1) _tile_dpbf16ps(3, 5, 7);
    };
    load_a(0), load_b(0), multiply();
    load_b(1), multiply();
    if constexpr (kParts > 2) {
      load_b(2), multiply();
      load_a(1), load_b(1), multiply();
      load_b(0), multiply();
      load_a(2), multiply();
    } else {
      load_a(1), load_b(0), multiply();
    }
  }
  _tile_stored(0, c, row);
  if constexpr (kJ > 1) _tile_stored(1, c1, row);
  if constexpr (kI > 1) _tile_stored(2, c2, row);
  if constexpr (kI > 1 && kJ > 1) _tile_stored(3, c3, row);
}

// C (M, N) = or += A (M lines) B (N lines), as many ks as `steps` have. Whole tiles of C are
// written. The thread has WholeTiles.
template <int kParts>
static void bfloat_product(float* c, i64 c_stride, const BfloatPanels<kParts>& a,
                           const BfloatPanels<kParts>& b, i64 M, i64 N, i64 steps, bool add) {
  for (i64 j = 0; j < N; j += 2 * kLanes)
    for (i64 i = 0; i < M; i += 2 * kLanes) {
      const bool low = M - i > kLanes, wide = N - j > kLanes;
      const auto block = low    ? wide ? &bfloat_block<kParts, 2, 2> : &bfloat_block<kParts, 2, 1>
                         : wide ? &bfloat_block<kParts, 1, 2>
                                : &bfloat_block<kParts, 1, 1>;
      block(c + i * c_stride + j, c_stride, a.from(i, 0), b.from(j, 0), steps, add);
    }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
