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
// A tile's row is a line of A, or four ks of all lines of B. Four are k, k + 16, k + 32 and k + 48,
// which come from four vectors whichever way the operand lies in memory.
#pragma once

#include <type_traits>

#include "amx.h"
#include "pack.h"
#include "words.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kDigitDepth = 64;  // ks of a tile

template <int kDigits>
struct DigitPanel {
  static_assert(kDigits == 2 || kDigits == 3, "what fits 32 bits when it is added up");
  static constexpr float kMost = kDigits == 3 ? 8355710.0f : 32639.0f;  // one less: x · inverse
  static constexpr i64 kStep = kDigits * kAmxFloats;                    // floats of 64 ks

  float *steps, *greatest;  // the latter of each line

  static i64 steps_of(i64 k) { return (k + kDigitDepth - 1) / kDigitDepth; }
  static i64 floats(i64 k) { return steps_of(k) * kStep + kLanes; }
  DigitPanel(float* memory, i64 k) : steps(memory), greatest(memory + steps_of(k) * kStep) {}

  // From lines [line, line + n) and ks [k0, k0 + k) of an operand, zeros where there is none.
  // sums (n) or null += those of the lines.
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
        for (i64 i = 0; i < k; i += 2 * kLanes) {
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
      put_steps<side == Side::b>(
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
      put_steps<side == Side::a>(
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
  // digits[j][r] = digit j of all four numbers of each lane.
  static TENARAI_ALWAYS void spread(vf (*digits)[kLanes], i64 r, const vi* four) {
    const auto moved = [&](int i, int by) __attribute__((always_inline)) {
      return by > 0 ? (__m512i)((vu)four[i] << (8 * by)) : (__m512i)((vu)four[i] >> (-8 * by));
    };
#pragma GCC unroll 3
    for (int j = 0; j < kDigits; ++j) {
      __m512i v = _mm512_mask_mov_epi8(moved(0, -j), 0x2222222222222222u, moved(1, 1 - j));
      v = _mm512_mask_mov_epi8(v, 0x4444444444444444u, moved(2, 2 - j));
      digits[j][r] = (vf)_mm512_mask_mov_epi8(v, 0x8888888888888888u, moved(3, 3 - j));
    }
  }
  // All steps of n lines and k ks. Row r of the tiles of step i is of the numbers value(whole, i,
  // r, j), four of them, which need not be looked for where the step is whole.
  template <bool kTurned, class Value>
  TENARAI_ALWAYS void put_steps(i64 n, i64 k, Value value) const {
    for (i64 i = 0; i < k; i += kDigitDepth) {
      vf digits[kDigits][kLanes];
      const bool whole = n == kLanes && k - i >= kDigitDepth;
#pragma GCC unroll 16
      for (i64 r = 0; r < kLanes; ++r) {
        vi four[4];
#pragma GCC unroll 4
        for (i64 j = 0; j < 4; ++j) four[j] = number(value(whole, i, r, j));
        spread(digits, r, four);
      }
      put<kTurned>(i, digits);
    }
  }
  template <bool kTurned>
  TENARAI_ALWAYS void put(i64 i, vf (*digits)[kLanes]) const {
    float* to = steps + i / kDigitDepth * kStep;
#pragma GCC unroll 3
    for (int j = 0; j < kDigits; ++j) {
      if constexpr (kTurned) transpose(digits[j]);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) store(to + j * kAmxFloats + r * kLanes, digits[j][r]);
    }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
