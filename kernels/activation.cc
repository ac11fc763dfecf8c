// Elementwise functions and their derivatives.
//
//   gelu(x) = x Φ(x), Φ the normal distribution: ½ (1 + erf(x/√2)), or with tanh for it
//   gelu'   = Φ(x) + x Φ'(x)
//   silu(x) = x σ(x),  silu' = σ (1 + x (1 − σ)),  σ(x) = 1/(1 + e⁻ˣ)
//   swiglu(gate, up) = silu(gate) up
//
// Nothing is saved but the input; the backward computes the function again.
#include <cmath>

#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr float kSqrt2OverPi = 0.7978845608028654f, kCubic = 0.044715f;
constexpr float kSqrtHalf = 0.7071067811865476f, kInvSqrt2Pi = 0.3989422804014327f;

float sigmoid(float x) { return 1 / (1 + expf(-x)); }

}  // namespace

void gelu_forward(Pool& pool, float* y, const float* x, i64 n, Gelu form) {
  for_parts(pool, n, 16, 16, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const float v = x[i];
      const float a = form == Gelu::tanh ? tanhf(kSqrt2OverPi * (v + kCubic * v * v * v))
                                         : erff(kSqrtHalf * v);
      y[i] = form == Gelu::none ? v : v * (0.5f + 0.5f * a);
    }
  });
}

void gelu_backward(Pool& pool, float* dx, const float* dy, const float* x, i64 n, Gelu form) {
  for_parts(pool, n, 16, 16, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const float v = x[i];
      float slope = 1;
      if (form == Gelu::tanh) {
        const float a = tanhf(kSqrt2OverPi * (v + kCubic * v * v * v));
        slope = 0.5f + 0.5f * a +
                0.5f * v * (1 - a * a) * kSqrt2OverPi * (1 + 3 * kCubic * v * v);
      } else if (form == Gelu::erf) {
        slope = 0.5f + 0.5f * erff(kSqrtHalf * v) + v * kInvSqrt2Pi * expf(-0.5f * v * v);
      }
      dx[i] = dy[i] * slope;
    }
  });
}

void silu_forward(Pool& pool, float* y, const float* x, i64 n) {
  for_parts(pool, n, 16, 16, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) y[i] = x[i] * sigmoid(x[i]);
  });
}

void silu_backward(Pool& pool, float* dx, const float* dy, const float* x, i64 n) {
  for_parts(pool, n, 16, 16, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const float s = sigmoid(x[i]);
      dx[i] = dy[i] * s * (1 + x[i] * (1 - s));
    }
  });
}

void swiglu_forward(Pool& pool, float* y, const float* gate, const float* up, i64 n) {
  for_parts(pool, n, 16, 16, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
  });
}

void swiglu_backward(Pool& pool, float* dgate, float* dup, const float* dy, const float* gate,
                     const float* up, i64 n) {
  for_parts(pool, n, 16, 16, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const float g = gate[i], s = sigmoid(g), d = dy[i], u = up[i];
      dup[i] = d * g * s;
      dgate[i] = d * u * s * (1 + g * (1 - s));
    }
  });
}

void add(Pool& pool, float* y, const float* a, const float* b, i64 n) {
  for_parts(pool, n, 1, 16, [=](int, i64 begin, i64 end) {
    i64 i = begin;
    for (; i + kLanes <= end; i += kLanes) store(y + i, load(a + i) + load(b + i));
    for (; i < end; ++i) y[i] = a[i] + b[i];
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
