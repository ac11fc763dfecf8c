// The search for the scale (and minimum) of a group of weights: sixteen at once, each in a lane of
// its own, so that no sum runs over lanes.
//
// A group has weights x and their importance c (column weights of an importance matrix, or ones).
// With scale s and minimum m a weight becomes s q − m, q the level nearest to (x + m) / s, and what
// is lost is
//
//     E(s, m) = Σ c (s q − m − x)²
//
// For fixed levels q it is least where ∂E/∂s = ∂E/∂m = 0:
//
//     s Σ c q² − m Σ c q = Σ c q x
//     s Σ c q  − m Σ c   = Σ c x
//
// New s and m give new levels, and so on: each round can only lower E. What it ends in depends on
// where it begins, hence several beginnings. E is always that of the numbers as stored.
#pragma once

#include "half.h"
#include "math.h"
#include "quant_unpack.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr int kTries = 16;
constexpr int kParts = kTries / kLanes;  // vectors

struct Tries {
  float scale[kTries];
  float min[kTries];
};

struct Group {
  const float* x;
  const float* c;
  int n;
};

// What the search finds.
struct Fit {
  float scale, min, error;
};

// Levels kLow to kHigh.
template <int kLow, int kHigh>
struct Whole {
  static constexpr int low = kLow, high = kHigh;
  TENARAI_INLINE vf nearest(vf t) {
    const float whole = 12582912.0f;  // 1.5 · 2^23: adding it leaves no fraction
    return (clamp(t, kLow, kHigh) + whole) - whole;
  }
};
// Those of IQ4_NL.
struct Table {
  static constexpr int low = -127, high = 113;
  TENARAI_INLINE vf nearest(vf t) {
    vf level = broadcast(kLevels[0]);
    for (int i = 1; i < 16; ++i)
      level = t > 0.5f * (kLevels[i - 1] + kLevels[i]) ? broadcast(kLevels[i]) : level;
    return level;
  }
};

// To the nearest float16, in float32; below its normal range in steps of 2^-24.
TENARAI_INLINE vf as_half(vf x) {
  x = clamp(x, -65504.0f, 65504.0f);
  const vi b = bits(x);
  const vf normal = from_bits((b + 0xfff + ((b >> 13) & 1)) & ~0x1fff);
  return abs(x) < 0x1p-14f ? (x + 0.75f) - 0.75f : normal;
}

struct Sums {
  vf error, qq, q, qx;  // Σ c (s q − m − x)², Σ c q², Σ c q, Σ c q x
};

template <class Levels, bool kMin>
TENARAI_INLINE Sums sums_of(const Group& g, vf scale, vf min) {
  const vf inverse = scale == 0.0f ? vf{} : 1.0f / scale;
  Sums s{};
  for (int i = 0; i < g.n; ++i) {
    const vf x = broadcast(g.x[i]);
    const vf q = Levels::nearest((kMin ? x + min : x) * inverse);
    const vf off = (kMin ? scale * q - min : scale * q) - x;
    const vf cq = q * g.c[i];
    s.error += off * off * g.c[i];
    s.qq += cq * q;
    s.qx += cq * x;
    if (kMin) s.q += cq;
  }
  return s;
}

// The lane of least error: the first of those that are equal.
TENARAI_INLINE int best_of(const float* error) {
  int best = 0;
  for (int i = 1; i < kTries; ++i) best = error[i] < error[best] ? i : best;
  return best;
}

enum class Minimum { none, free, not_negative };

// The best of the tries after `rounds` evaluations. kHalf: scale and minimum are stored as float16.
template <class Levels, Minimum kMinimum, bool kHalf>
static inline Fit search(const Group& g, const Tries& tries, int rounds) {
  constexpr bool kMin = kMinimum != Minimum::none;
  float total = 0, total_x = 0;  // Σ c, Σ c x
  for (int i = 0; i < g.n; ++i) {
    total += g.c[i];
    total_x += g.c[i] * g.x[i];
  }
  Tries found;
  float error[kTries];
  for (int part = 0; part < kParts; ++part) {
    vf scale = load(tries.scale + part * kLanes), min = load(tries.min + part * kLanes);
    vf best_scale{}, best_min{}, best = broadcast(__builtin_inff());
    for (int round = 0; round < rounds; ++round) {
      if (kHalf) scale = as_half(scale), min = as_half(min);
      const Sums s = sums_of<Levels, kMin>(g, scale, min);
      const vi better = s.error < best;
      best = better ? s.error : best;
      best_scale = better ? scale : best_scale;
      best_min = better ? min : best_min;
      const vf alone = s.qq > 0.0f ? s.qx / s.qq : scale;
      scale = alone;
      if (!kMin) continue;
      const vf det = s.qq * total - s.q * s.q;
      const vf both = (s.qx * total - s.q * total_x) / det, m = (s.q * s.qx - s.qq * total_x) / det;
      vi holds = det > s.qq * total * 1e-5f;
      if (kMinimum == Minimum::not_negative) holds &= m >= 0.0f;
      scale = holds ? both : alone;
      min = holds ? m : vf{};
    }
    store(error + part * kLanes, best);
    store(found.scale + part * kLanes, best_scale);
    store(found.min + part * kLanes, best_min);
  }
  const int i = best_of(error);
  return {found.scale[i], found.min[i], error[i]};
}

// Beginnings. Without minimum: the largest weight lies on the last level or up to two steps from
// it, on either side of zero.
template <class Levels>
TENARAI_INLINE Tries symmetric_tries(const Group& g, float first, float step) {
  float most = 0;
  for (int i = 0; i < g.n; ++i)
    most = __builtin_fabsf(g.x[i]) > most ? __builtin_fabsf(g.x[i]) : most;
  Tries t;
  for (int i = 0; i < kTries; ++i) {
    const float scale = most / (first + step * static_cast<float>(i / 2));
    t.scale[i] = i % 2 ? -scale : scale;
    t.min[i] = 0;
  }
  return t;
}
// With minimum: four for the lowest level times four for the highest, from a little outside the
// weights to `inside` steps within them.
template <class Levels>
TENARAI_INLINE Tries ranged_tries(const Group& g, bool negative_only, float outside, float inside) {
  float low = g.x[0], high = g.x[0];
  for (int i = 1; i < g.n; ++i) {
    low = g.x[i] < low ? g.x[i] : low;
    high = g.x[i] > high ? g.x[i] : high;
  }
  if (negative_only && low > 0) low = 0;
  const float step = (high - low) / Levels::high, each = (inside + outside) / 3;
  Tries t;
  for (int i = 0; i < kTries; ++i) {
    float from = low + step * (each * static_cast<float>(i % 4) - outside);
    const float to = high - step * (each * static_cast<float>(i / 4) - outside);
    if (negative_only && from > 0) from = 0;
    t.scale[i] = (to - from) / Levels::high;
    t.min[i] = -from;
  }
  return t;
}

// The levels of a group with the scale and minimum that are stored.
template <class Levels, bool kMin>
TENARAI_INLINE void levels_of(const Group& g, float scale, float min, int8_t* q) {
  const float inverse = scale == 0 ? 0 : 1 / scale;
  for (int i = 0; i < g.n; i += kLanes) {  // n is a multiple of 16
    const vf x = load(g.x + i);
    const vf level = Levels::nearest((kMin ? x + min : x) * inverse);
    for (int lane = 0; lane < kLanes; ++lane) q[i + lane] = static_cast<int8_t>(level[lane]);
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
