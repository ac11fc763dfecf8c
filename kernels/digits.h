// float32 as whole numbers of a few digits to the base 256, and panels of digits for AMX.
//
//     x ≈ scale · n     n = Σ digit[j] 256^j     −128 <= digit < 128
//
// scale = the greatest |x| of a line's block of ks / the greatest number that so many digits hold:
// 8,355,711 of three (23 bits and a sign, as many as a float has), 32,639 of two. Digits are the
// bytes of n + 0x808080, each less 128, which is to say with its upper bit turned.
//
// A panel is 16 lines (rows of A or columns of B) wide:
//     [K / 64][digits][tile of 1 KB]     a tile: 16 lines, 64 ks
//     the greatest |x| of each line [16]
// A tile's row is a line of A, or four ks of all lines of B. Four are k, k + 32, k + 16 and k + 48,
// which come from four vectors whichever way the operand lies in memory.
//
// Where the last step has 32 ks at most, a tile holds two digits of each, and one product adds up
// two: four products are made where a whole step has six (two for three). By their pairs of bytes
//     A     2 1 | 0 .          with two digits     1 0
//     B     2 . | 1 2 | 0 1                        1 . | 0 1
#pragma once

#include <type_traits>

#include "amx.h"
#include "pack.h"
#include "words.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kDigitDepth = 64;  // ks of a tile
constexpr i64 kHalfDepth = 32;

template <int kDigits>
struct DigitPanel {
  static_assert(kDigits == 2 || kDigits == 3, "what fits 32 bits when it is added up");
  static constexpr float kMost = kDigits == 3 ? 8355710.0f : 32639.0f;  // one less: x · inverse
  static constexpr i64 kStep = kDigits * kAmxFloats;                    // floats of 64 ks

  float *steps, *greatest;  // the latter of each line
  i64 depth;                // ks that there is room for

  static i64 steps_of(i64 k) { return (k + kDigitDepth - 1) / kDigitDepth; }
  static i64 whole_steps(i64 k) { return (k + kDigitDepth - 1 - kHalfDepth) / kDigitDepth; }
  static i64 floats(i64 k) { return steps_of(k) * kStep + kLanes; }
  DigitPanel(float* memory, i64 k)
      : steps(memory), greatest(memory + steps_of(k) * kStep), depth(k) {}

  // From lines [line, line + n) and ks [k0, k0 + k) of an operand, zeros where there is none. They
  // are as many as there is room for, or fewer. sums (n) or null += those of the lines.
  template <Side side, class Map>
  void take(const Along<Map>& from, i64 line, i64 n, i64 k0, i64 k, float* sums) const {
    if constexpr (!std::is_same_v<Map, Same>) {
      alignas(64) float mapped[kLanes * kMapped];
      for (i64 r = 0; r < n; ++r)
        for (i64 i = 0; i < k; i += kLanes) {
          const float* p = from.p + (line + r) * from.stride + k0 + i;
          store(mapped + r * kMapped + i, Map::map(k - i < kLanes ? load_n(p, k - i) : load(p)));
        }
      return take<side>(Along<Same>{mapped, kMapped}, 0, n, 0, k, sums);
    } else {
      const float* p = from.p + line * from.stride + k0;
      const auto part = [&](i64 r, i64 i) __attribute__((always_inline)) {
        const i64 left = r < n ? k - i : 0;
        const float* q = p + r * from.stride + i;
        return left >= kLanes ? load(q) : left > 0 ? load_n(q, left) : vf{};
      };
      vf most[kLanes];
      for (i64 r = 0; r < kLanes; ++r) {
        vi even = {}, odd = {};
        vf total = {};
        const float* next = p + (r + kLanes) * from.stride;  // for the panel after this one
        for (i64 i = 0; i < k; i += 2 * kLanes) {
          __builtin_prefetch(next + i), __builtin_prefetch(next + i + kLanes);
          const vf a = part(r, i), b = part(r, i + kLanes);
          even = larger(even, magnitude(a));
          odd = larger(odd, magnitude(b));
          if (sums) total += a + b;
        }
        most[r] = (vf)larger(even, odd);
        if (sums && r < n) sums[r] += sum(total);
      }
      transpose(most);
      float inverse[kLanes];
      store(inverse, scale(largest_of(most)));
      put_steps<side, side == Side::b>(
          n, k, [&](bool whole, i64 i, i64 r, i64 j) __attribute__((always_inline)) {
            const i64 at = i + j * kLanes;
            return (whole ? load(p + r * from.stride + at) : part(r, at)) * inverse[r];
          });
    }
  }
  template <Side side, class Map>
  void take(const Across<Map>& from, i64 line, i64 n, i64 k0, i64 k, float* sums) const {
    const float* p = from.p + k0 * from.stride + line;
    const auto row = [&](i64 at) __attribute__((always_inline)) {
      return n == kLanes ? load(p + at * from.stride) : load_n(p + at * from.stride, n);
    };
    if constexpr (!std::is_same_v<Map, Same>) {
      alignas(64) float mapped[kLanes * kMapped];
      for (i64 i = 0; i < k; ++i) store(mapped + i * kLanes, Map::map(row(i)));
      return take<side>(Across<Same>{mapped, kLanes}, 0, n, 0, k, sums);
    } else {
      vi even = {}, odd = {};
      vf total = {};
      i64 i = 0;
      for (; i + 2 <= k; i += 2) {
        const float* next = p + i * from.stride + kLanes;
        __builtin_prefetch(next), __builtin_prefetch(next + from.stride);
        const vf a = row(i), b = row(i + 1);
        even = larger(even, magnitude(a));
        odd = larger(odd, magnitude(b));
        total += a + b;
      }
      if (i < k) {
        even = larger(even, magnitude(row(i)));
        total += row(i);
      }
      if (sums)
        n == kLanes ? store(sums, load(sums) + total) : store_n(sums, load_n(sums, n) + total, n);
      const vf inverse = scale(larger(even, odd));
      put_steps<side, side == Side::a>(
          n, k, [&](bool whole, i64 i, i64 r, i64 j) __attribute__((always_inline)) {
            const i64 at = i + r + j * kLanes;
            return (whole ? load(p + at * from.stride) : at < k ? row(at) : vf{}) * inverse;
          });
    }
  }

  // Of an operand whose lines are made on the way.
  template <Side side, class Made>
  void take(const Made& from, i64 line, i64 n, i64 k0, i64 k, float* sums) const {
    alignas(64) float made[kLanes * kMapped];
    for (i64 r = 0; r < n; ++r) from.make(made + r * kMapped, line + r, k0, k);
    take<side>(Along<Same>{made, kMapped}, 0, n, 0, k, sums);
  }

  static constexpr i64 kMapped = 512;  // ks of lines that are changed first, at most

 private:
  // Stores the greatest magnitudes of lines; what makes whole numbers of floats.
  vf scale(vi largest) const {
    store(greatest, (vf)largest);
    return (vf)largest > 1e-30f ? kMost / (vf)largest : vf{};
  }
  // The digits of a number below 2^24 as bytes of a lane.
  TENARAI_INLINE vi number(vf x) {
    constexpr int32_t kUpper = kDigits == 3 ? 0x808080 : 0x8080;
    return (to_words(x) + kUpper) ^ kUpper;
  }
  // Of each pair of bytes the first of one and the second of the other.
  TENARAI_INLINE vi pairs(vu first, vu second) {
    return (vi)_mm512_mask_mov_epi8((__m512i)first, 0xaaaaaaaaaaaaaaaau, (__m512i)second);
  }
  // The lower halves of two numbers, and their upper ones.
  struct Halves {
    vu low, high;
    Halves(vi a, vi b)
        : low((vu)_mm512_mask_mov_epi16((__m512i)a, 0xaaaaaaaau, (__m512i)((vu)b << 16))),
          high((vu)_mm512_mask_mov_epi16((__m512i)((vu)a >> 16), 0xaaaaaaaau, (__m512i)b)) {}
  };
  // digits[j] = digit j of all four numbers of each lane.
  static TENARAI_ALWAYS void spread(vi* digits, const vi* four) {
    const Halves a(four[0], four[1]), b(four[2], four[3]);
    digits[0] = pairs(a.low, b.low << 8);
    digits[1] = pairs(a.low >> 8, b.low);
    if constexpr (kDigits == 3) digits[2] = pairs(a.high, b.high << 8);
  }
  // The same of two numbers, as a step of half the length has them: the tiles in the order of
  // whole steps, the greatest digit last.
  template <Side side>
  static TENARAI_ALWAYS void spread_half(vi* tiles, const vi* two) {
    const Halves a(two[0], two[1]);
    const vu first = vu{} + 0x00ff00ffu;
    if constexpr (kDigits == 3) {
      tiles[0] = side == Side::a ? (vi)(a.low & first) : (vi)a.low;
      tiles[1] = side == Side::a ? vi{} : pairs(a.low >> 8, a.high << 8);
      tiles[2] = side == Side::a ? pairs(a.high, a.low) : (vi)(a.high & first);
    } else {
      tiles[0] = side == Side::a ? vi{} : (vi)a.low;
      tiles[1] = side == Side::a ? pairs(a.low >> 8, a.low << 8) : (vi)(a.low >> 8 & first);
    }
  }
  // All steps of n lines and k ks. Row r of the tiles of step i is of the numbers value(whole, i,
  // r, j), four of them, which need not be looked for where the step is whole.
  template <Side side, bool kTurned, class Value>
  TENARAI_ALWAYS void put_steps(i64 n, i64 k, Value value) const {
    float* to = steps;
    for (i64 i = 0; i < depth; i += kDigitDepth, to += kStep)
      if (depth - i > kHalfDepth)
        put_step<kTurned>(to, [&](i64 r, vi* tiles) __attribute__((always_inline)) {
          const bool whole = n == kLanes && k - i >= kDigitDepth;
          vi four[4];
#pragma GCC unroll 4
          for (i64 j = 0; j < 4; ++j) four[j] = number(value(whole, i, r, j));
          spread(tiles, four);
        });
      else
        put_step<kTurned>(to, [&](i64 r, vi* tiles) __attribute__((always_inline)) {
          const vi two[2] = {number(value(false, i, r, 0)), number(value(false, i, r, 1))};
          spread_half<side>(tiles, two);
        });
  }
  // The tiles of a step from their rows, or from their columns.
  template <bool kTurned, class Row>
  static TENARAI_ALWAYS void put_step(float* to, Row row) {
    if constexpr (!kTurned) {
#pragma GCC unroll 4
      for (i64 r = 0; r < kLanes; ++r) {
        vi tiles[kDigits];
        row(r, tiles);
#pragma GCC unroll 3
        for (int j = 0; j < kDigits; ++j) store(to + j * kAmxFloats + r * kLanes, (vf)tiles[j]);
      }
    } else {
      vf tiles[kDigits][kLanes];
#pragma GCC unroll 16
      for (i64 r = 0; r < kLanes; ++r) {
        vi column[kDigits];
        row(r, column);
#pragma GCC unroll 3
        for (int j = 0; j < kDigits; ++j) tiles[j][r] = (vf)column[j];
      }
#pragma GCC unroll 3
      for (int j = 0; j < kDigits; ++j) {
        transpose(tiles[j]);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) store(to + j * kAmxFloats + r * kLanes, tiles[j][r]);
      }
    }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
