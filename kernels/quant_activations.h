// Activations for products with quantised weights, rounded to words of 16 bits:
//
//     x[i] ≈ scale · q[i]      |q| <= kMost, one scale a group of 256
//
// so that Σ w q, where w is a weight's whole number of at most 2^12, stays below 2^31 in every
// lane. Of few rows 256 / kLanes products come together in one, of many all 256 (quant_gemm.h).
// That is 4 to 8 bits more than bytes would keep, and costs nothing where memory sets the pace.
#pragma once

#include "integers.h"
#include "math.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kGroup = 256;                   // activations that share a scale
constexpr i64 kSums = kGroup / 16;            // sums of 16 in a group, for formats with minima
constexpr int32_t kMost = 2048 * kLanes - 1;  // of few rows
static_assert(kLanes <= 16, "words have 16 bits");

// M rows of I activations, group by group: what one group of weights meets lies together.
struct WordRows {
  i64 M, groups;
  int16_t* q;    // (groups, M, 256), zeros past I
  float* scale;  // (groups, M)
  float* sums;   // (groups, M, 16): scale · Σ q over 256 / terms, terms of them; of few rows with
                 // 8 terms (groups / 2, M, 16): those of two groups, zeros where one is missing

  float* eight_sums(i64 g, i64 m) const { return sums + (g / 2 * M + m) * kSums + g % 2 * 8; }

  static i64 groups_of(i64 I) { return (I + kGroup - 1) / kGroup; }
  static size_t bytes(i64 M, i64 I) {
    return static_cast<size_t>((groups_of(I) + 1) * M) * (kGroup * 2 + (kSums + 1) * 4) + 64;
  }
  WordRows(void* memory, i64 rows, i64 I) : M(rows), groups(groups_of(I)) {
    q = static_cast<int16_t*>(memory);
    sums = reinterpret_cast<float*>(q + groups * M * kGroup);
    scale = sums + (groups + 1) * M * kSums;
  }
};

// Where 16 activations go: `paired` puts those of a block of 32 next to the same half of the next
// block (quant_words.h).
TENARAI_INLINE i64 place_of(i64 i, bool paired) {
  const i64 sixteen = i / 16 % 4;
  return paired && (sixteen == 1 || sixteen == 2) ? i + (sixteen == 1 ? 16 : -16) : i;
}

// A group of n activations. The largest is found as an integer, so that a NaN is larger than all
// and makes the scale, and every sum with it, NaN.
static inline void round_group(int16_t* q, float* scale, float* sums, const float* x, i64 n,
                               bool paired, int32_t limit, i64 terms) {
  vi most = {};
  for (i64 i = 0; i < n; i += kLanes) {
    const vi v = bits(n - i < kLanes ? load_n(x + i, n - i) : load(x + i)) & 0x7fffffff;
    most = v > most ? v : most;
  }
  int32_t lane[kLanes], largest = 0;
  std::memcpy(lane, &most, sizeof lane);
  for (int i = 0; i < kLanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
  float max;
  std::memcpy(&max, &largest, 4);
  *scale = max / static_cast<float>(limit);
  const float inverse = max > 1e-30f ? static_cast<float>(limit) / max : 0.0f;

  typedef int16_t vnarrow __attribute__((vector_size(kVectorBytes / 2)));
  const float round = 12582912.0f;  // 1.5 · 2^23: adding it leaves the integer in the low bits
  for (i64 i = 0; i < kGroup; i += kLanes) {
    const vf v = n - i >= kLanes ? load(x + i) : n > i ? load_n(x + i, n - i) : vf{};
    const vnarrow words = __builtin_convertvector(bits(v * inverse + round) - 0x4b400000, vnarrow);
    std::memcpy(q + place_of(i, paired), &words, sizeof words);
  }
  const i64 length = kGroup / terms;
  for (i64 j = 0; j < terms; ++j) {
    int32_t sum = 0;
    for (i64 k = length * j; k < length * (j + 1); k += 16)
      for (int i = 0; i < 16; ++i) sum += q[place_of(k, paired) + i];
    sums[j] = *scale * static_cast<float>(sum);
  }
}

// Row m of x (M, I), rounded to at most `limit`, with `terms` sums a group (8 or 16).
// sums_of(g): where they go.
template <class F>
static inline void round_row(const WordRows& to, const float* x, i64 I, i64 m, bool paired,
                             int32_t limit, i64 terms, F sums_of) {
  for (i64 g = 0; g < to.groups; ++g) {
    const i64 at = g * to.M + m, i = g * kGroup;
    round_group(to.q + at * kGroup, to.scale + at, sums_of(g), x + m * I + i,
                I - i < kGroup ? I - i : kGroup, paired, limit, terms);
  }
}
// M of many rows: [begin, end).
static inline void round_activations(const WordRows& to, const float* x, i64 I, i64 begin, i64 end,
                                     int32_t limit, i64 terms) {
  for (i64 m = begin; m < end; ++m)
    round_row(to, x, I, m, false, limit, terms,
              [&](i64 g) { return to.sums + (g * to.M + m) * kSums; });
}
// The first M of few rows.
static inline void round_few(const WordRows& to, const float* x, i64 I, i64 M, bool paired,
                             i64 terms) {
  for (i64 m = 0; m < M; ++m) {
    if (terms == 16) {
      round_row(to, x, I, m, paired, kMost, terms,
                [&](i64 g) { return to.sums + (g * to.M + m) * kSums; });
      continue;
    }
    round_row(to, x, I, m, paired, kMost, terms, [&](i64 g) { return to.eight_sums(g, m); });
    if (to.groups % 2) std::memset(to.eight_sums(to.groups, m), 0, 8 * sizeof(float));
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
