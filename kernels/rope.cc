// Rotary position embedding: each pair (a, b) of a head's channels turns by the angle of its
// position and frequency,
//
//   a' = a cos − b sin
//   b' = b cos + a sin
//
// so a query's product with a key depends on their distance alone. A rotation's transpose is the
// rotation back: the backward is the same with −sin.
#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// Pairs i with i + n; n = D/2.
void turn_halves(float* y, const float* x, const float* cos, const float* sin, float sign, i64 n) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf a = load(x + i), b = load(x + n + i), c = load(cos + i), s = load(sin + i) * sign;
    store(y + i, a * c - b * s);
    store(y + n + i, b * c + a * s);
  }
  for (; i < n; ++i) {
    const float a = x[i], b = x[n + i], c = cos[i], s = sin[i] * sign;
    y[i] = a * c - b * s;
    y[n + i] = b * c + a * s;
  }
}

// Pairs 2i with 2i + 1. The compiler vectorises this one: y is x itself or apart from it.
void turn_neighbours(float* y, const float* x, const float* cos, const float* sin, float sign,
                     i64 n) {
#pragma GCC ivdep
  for (i64 i = 0; i < n; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1], c = cos[i], s = sin[i] * sign;
    y[2 * i] = a * c - b * s;
    y[2 * i + 1] = b * c + a * s;
  }
}

}  // namespace

void rope(Pool& pool, float* y, const float* x, const float* cos, const float* sin,
          const int32_t* positions, i64 B, i64 T, i64 H, i64 D, Strides ys, Strides xs,
          bool adjacent, bool backward) {
  const float sign = backward ? -1.0f : 1.0f;
  const i64 n = D / 2;
  for_parts(pool, B * T, H * D, 1, [=](int, i64 begin, i64 end) {
    for (i64 place = begin; place < end; ++place) {
      const i64 b = place / T, t = place % T, angle = (positions ? positions[place] : t) * n;
      for (i64 h = 0; h < H; ++h) {
        float* to = y + b * ys.b + t * ys.t + h * ys.h;
        const float* from = x + b * xs.b + t * xs.t + h * xs.h;
        if (adjacent)
          turn_neighbours(to, from, cos + angle, sin + angle, sign, n);
        else
          turn_halves(to, from, cos + angle, sin + angle, sign, n);
      }
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
