// Float32 weights into blocks. How a scale is searched for stands in quant_search.h.
//
// Plain formats: one search a block. Formats of 256 weights: a search for each sub-block in float
// first; then d and dmin so that the largest scale and minimum fit, the whole numbers s and z of
// each sub-block from those around the quotient, by the error itself; then d and dmin by least
// squares over the whole block with s, z and the levels held,
//
//     w = d (s q) − dmin z:   d Σ c (s q)² − dmin Σ c s q z = Σ c s q x
//                             d Σ c s q z  − dmin Σ c z²    = Σ c z x
//
// and again. The best that was met is stored.
#include "ops.h"
#include "parts.h"
#include "quant_pack.h"
#include "quant_search.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr int kRounds = 4;  // evaluations of a group's search; more gain less than 0.1 %
constexpr int kBlockRounds = 4;

float half_of(float x) { return from_half(to_half(x > 65504 ? 65504 : x < -65504 ? -65504 : x)); }
int clipped(float x, int low, int high) {
  const int whole = static_cast<int>(__builtin_rintf(x < low ? low : x > high ? high : x));
  return whole;
}

// How each format is searched: its levels, whether codes are levels plus an offset, beginnings.
template <class Block>
struct Recipe;
// clang-format off
template <> struct Recipe<Q4_0> { using Levels = Whole<-8, 7>; static constexpr float first = 6.2f, step = 0.35f; };
template <> struct Recipe<Q5_0> { using Levels = Whole<-16, 15>; static constexpr float first = 14, step = 0.35f; };
template <> struct Recipe<Q8_0> { using Levels = Whole<-127, 127>; static constexpr float first = 124.5f, step = 0.4f; };
template <> struct Recipe<Q8_K> { using Levels = Whole<-127, 127>; static constexpr float first = 124.5f, step = 0.4f; };
template <> struct Recipe<IQ4_NL> { using Levels = Table; static constexpr float first = 95, step = 6; };
template <> struct Recipe<IQ4_XS> { using Levels = Table; static constexpr float first = 95, step = 6; static constexpr int low = -32, high = 31; };
template <> struct Recipe<Q3_K> { using Levels = Whole<-4, 3>; static constexpr float first = 2.2f, step = 0.3f; static constexpr int low = -32, high = 31; };
template <> struct Recipe<Q6_K> { using Levels = Whole<-32, 31>; static constexpr float first = 30, step = 0.35f; static constexpr int low = -128, high = 127; };
template <> struct Recipe<Q4_1> { using Levels = Whole<0, 15>; static constexpr float outside = 0.3f, inside = 1.2f; };
template <> struct Recipe<Q5_1> { using Levels = Whole<0, 31>; static constexpr float outside = 0.3f, inside = 1.2f; };
template <> struct Recipe<Q2_K> { using Levels = Whole<0, 3>; static constexpr float outside = 0.1f, inside = 0.5f; static constexpr int high = 15; };
template <> struct Recipe<Q4_K> { using Levels = Whole<0, 15>; static constexpr float outside = 0.3f, inside = 1.2f; static constexpr int high = 63; };
template <> struct Recipe<Q5_K> { using Levels = Whole<0, 31>; static constexpr float outside = 0.3f, inside = 1.2f; static constexpr int high = 63; };
// clang-format on

void to_codes(Whole<-127, 127>, int8_t* q, uint8_t* code, int n) {
  for (int i = 0; i < n; ++i) code[i] = static_cast<uint8_t>(q[i] + 128);
}
template <int kLow, int kHigh>
void to_codes(Whole<kLow, kHigh>, int8_t* q, uint8_t* code, int n) {
  for (int i = 0; i < n; ++i) code[i] = static_cast<uint8_t>(q[i] - kLow);
}
void to_codes(Table, int8_t* q, uint8_t* code, int n) {
  for (int i = 0; i < n; ++i) {
    code[i] = 0;
    while (kLevels[code[i]] != q[i]) ++code[i];
  }
}

template <class Levels, class Block>
void store_levels(Block& b, int8_t* q) {
  uint8_t code[ShapeOf<Block>::weights];
  to_codes(Levels{}, q, code, ShapeOf<Block>::weights);
  pack_codes(b, code);
}

// One scale and no minimum: Q4_0, Q5_0, Q8_0, IQ4_NL, and Q8_K, whose scale is a float32.
template <class Block>
void make_plain(Block& b, const float* x, const float* c) {
  using R = Recipe<Block>;
  using L = typename R::Levels;
  constexpr bool kHalf = sizeof b.d == 2;
  const Group g{x, c, ShapeOf<Block>::weights};
  const Fit fit =
      search<L, Minimum::none, kHalf>(g, symmetric_tries<L>(g, R::first, R::step), kRounds);
  int8_t q[ShapeOf<Block>::weights];
  levels_of<L, false>(g, fit.scale, 0, q);
  if constexpr (kHalf)
    b.d = to_half(fit.scale);
  else
    b.d = fit.scale;
  store_levels<L>(b, q);
}

// One scale, one minimum: Q4_1, Q5_1.
template <class Block>
void make_ranged(Block& b, const float* x, const float* c) {
  using R = Recipe<Block>;
  using L = typename R::Levels;
  const Group g{x, c, ShapeOf<Block>::weights};
  const Tries tries = ranged_tries<L>(g, false, R::outside, R::inside);
  const Fit fit = search<L, Minimum::free, true>(g, tries, kRounds);
  int8_t q[ShapeOf<Block>::weights];
  levels_of<L, true>(g, fit.scale, fit.min, q);
  b.d = to_half(fit.scale);
  b.m = to_half(-fit.min);
  store_levels<L>(b, q);
}

// d, dmin, s and z of a block of 256, and what they lose.
struct Scales {
  float d, dmin, error;
  int s[16], z[16];
};
// Sums of the least squares for d and dmin.
struct BlockSums {
  float qq = 0, qz = 0, zz = 0, qx = 0, zx = 0;
};

// The best s and z around those of `at`, for each group. Without minima s is also tried with the
// other sign.
template <class Block>
BlockSums settle(Scales& at, const Group* groups) {
  using S = ShapeOf<Block>;
  using R = Recipe<Block>;
  using L = typename R::Levels;
  BlockSums sums;
  at.error = 0;
  for (int j = 0; j < S::groups; ++j) {
    const Group& g = groups[j];
    int s[kTries], z[kTries];
    Tries t;
    for (int i = 0; i < kTries; ++i) {
      if constexpr (S::has_min) {  // 3 scales, 5 minima
        s[i] = clipped(static_cast<float>(at.s[j] + (i < 15 ? i / 5 - 1 : 0)), 0, R::high);
        z[i] = clipped(static_cast<float>(at.z[j] + (i < 15 ? i % 5 - 2 : 0)), 0, R::high);
      } else {  // 8 scales of either sign
        const int around = at.s[j] + i / 2 - 4;
        s[i] = clipped(static_cast<float>(i % 2 ? -around : around), R::low, R::high);
        z[i] = 0;
      }
      t.scale[i] = at.d * static_cast<float>(s[i]);
      t.min[i] = at.dmin * static_cast<float>(z[i]);
    }
    float error[kTries], qq[kTries], q[kTries], qx[kTries];
    for (int part = 0; part < kParts; ++part) {
      const int lane = part * kLanes;
      const Sums found = sums_of<L, S::has_min>(g, load(t.scale + lane), load(t.min + lane));
      store(error + lane, found.error);
      store(qq + lane, found.qq);
      store(q + lane, found.q);
      store(qx + lane, found.qx);
    }
    const int best = best_of(error);
    const float sj = static_cast<float>(s[best]), zj = static_cast<float>(z[best]);
    at.s[j] = s[best];
    at.z[j] = z[best];
    at.error += error[best];
    sums.qq += sj * sj * qq[best];
    sums.qx += sj * qx[best];
    if (!S::has_min) continue;
    float total = 0, total_x = 0;
    for (int i = 0; i < g.n; ++i) total += g.c[i], total_x += g.c[i] * g.x[i];
    sums.qz += sj * zj * q[best];
    sums.zz += zj * zj * total;
    sums.zx += zj * total_x;
  }
  return sums;
}

// The d and dmin of least squares; those of `at` where there is no better answer.
void solve(Scales& at, const BlockSums& sums, bool has_min) {
  const float det = sums.qq * sums.zz - sums.qz * sums.qz;
  if (has_min && det > sums.qq * sums.zz * 1e-5f) {
    const float d = (sums.qx * sums.zz - sums.qz * sums.zx) / det;
    const float dmin = (sums.qz * sums.qx - sums.qq * sums.zx) / det;
    if (d > 0 && dmin > 0) {
      at.d = half_of(d);
      at.dmin = half_of(dmin);
    }
  } else if (sums.qq > 0) {
    at.d = half_of(sums.qx / sums.qq);
  }
}

// Where to begin: each group's own best scale and minimum in float, and d and dmin that let the
// largest of them be stored.
template <class Block>
Scales begin(const Group* groups) {
  using S = ShapeOf<Block>;
  using R = Recipe<Block>;
  using L = typename R::Levels;
  Fit fits[S::groups];
  Scales at{};
  float most = 0, most_min = 0;
  for (int j = 0; j < S::groups; ++j) {
    const Group& g = groups[j];
    if constexpr (S::has_min)
      fits[j] = search<L, Minimum::not_negative, false>(
          g, ranged_tries<L>(g, true, R::outside, R::inside), kRounds);
    else
      fits[j] =
          search<L, Minimum::none, false>(g, symmetric_tries<L>(g, R::first, R::step), kRounds);
    const float scale = fits[j].scale;
    if (__builtin_fabsf(scale) > __builtin_fabsf(most)) most = scale;
    if (fits[j].min > most_min) most_min = fits[j].min;
  }
  if constexpr (S::has_min) {
    at.d = half_of(most / R::high);
    at.dmin = half_of(most_min / R::high);
  } else {
    at.d = half_of(most / R::low);
  }
  for (int j = 0; j < S::groups; ++j) {
    if constexpr (S::has_min) {
      at.s[j] = at.d == 0 ? 0 : clipped(fits[j].scale / at.d, 0, R::high);
      at.z[j] = at.dmin == 0 ? 0 : clipped(fits[j].min / at.dmin, 0, R::high);
    } else {
      at.s[j] = at.d == 0 ? 0 : clipped(fits[j].scale / at.d, R::low, R::high);
    }
  }
  return at;
}

// Q2_K to Q6_K and IQ4_XS.
template <class Block>
void make_super(Block& b, const float* x, const float* c) {
  using S = ShapeOf<Block>;
  using L = typename Recipe<Block>::Levels;
  Group groups[S::groups];
  for (int j = 0; j < S::groups; ++j) groups[j] = {x + j * S::group, c + j * S::group, S::group};
  Scales at = begin<Block>(groups), best{};
  best.error = __builtin_inff();
  for (int round = 0; round < kBlockRounds; ++round) {
    const BlockSums sums = settle<Block>(at, groups);
    if (at.error < best.error) best = at;
    solve(at, sums, S::has_min);
  }
  int8_t q[S::weights];
  for (int j = 0; j < S::groups; ++j)
    levels_of<L, S::has_min>(groups[j], best.d * static_cast<float>(best.s[j]),
                             best.dmin * static_cast<float>(best.z[j]), q + j * S::group);
  b.d = to_half(best.d);
  if constexpr (S::has_min) {
    b.dmin = to_half(best.dmin);
    pack_scales(b, best.s, best.z);
  } else {
    pack_scales(b, best.s);
  }
  store_levels<L>(b, q);
}

// clang-format off
void make(Q4_0& b, const float* x, const float* c) { make_plain(b, x, c); }
void make(Q5_0& b, const float* x, const float* c) { make_plain(b, x, c); }
void make(Q8_0& b, const float* x, const float* c) { make_plain(b, x, c); }
void make(Q8_K& b, const float* x, const float* c) { make_plain(b, x, c); }
void make(IQ4_NL& b, const float* x, const float* c) { make_plain(b, x, c); }
void make(Q4_1& b, const float* x, const float* c) { make_ranged(b, x, c); }
void make(Q5_1& b, const float* x, const float* c) { make_ranged(b, x, c); }
// clang-format on
template <class Block>
void make(Block& b, const float* x, const float* c) {
  make_super(b, x, c);
}

void make_row(uint8_t* data, QuantFormat format, const float* x, const float* c, i64 n) {
  const bool blocks = with_block(format, [=](auto sample) {
    using Block = decltype(sample);
    constexpr int kN = ShapeOf<Block>::weights;
    float ones[kN];
    for (int i = 0; i < kN; ++i) ones[i] = 1;
    for (i64 i = 0; i < n / kN; ++i) {
      Block block;
      make(block, x + i * kN, c ? c + i * kN : ones);
      std::memcpy(data + i * static_cast<i64>(sizeof block), &block, sizeof block);
    }
  });
  if (blocks) return;
  if (format == QuantFormat::f32) {
    std::memcpy(data, x, static_cast<size_t>(n) * 4);
    return;
  }
  for (i64 i = 0; i < n; ++i) {
    const uint16_t h = format == QuantFormat::f16 ? to_half(x[i]) : to_bfloat(x[i]);
    std::memcpy(data + 2 * i, &h, 2);
  }
}

}  // namespace

void quantize(Pool& pool, uint8_t* data, const float* x, QuantFormat format,
              const float* importance, i64 O, i64 I, i64 row_bytes) {
  const i64 cost = I * 32;  // a weight takes some ten times as long as moving it
  for_parts(pool, O, cost, 1, [=](int, i64 begin, i64 end) {
    for (i64 o = begin; o < end; ++o)
      make_row(data + o * row_bytes, format, x + o * I, importance, I);
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
