// Elementwise functions and their derivatives.
//
//   gelu(x) = x Φ(x), Φ the normal distribution: ½ (1 + erf(x/√2)), or with tanh for it
//   gelu'   = Φ(x) + x Φ'(x)                                         (both in math.h)
//   silu(x) = x σ(x),  silu' = σ (1 + x (1 − σ)),  σ(x) = 1/(1 + e⁻ˣ)
//   swiglu(gate, up) = silu(gate) up        geglu(gate, up) = gelu(gate) up, with tanh
//
// Nothing is saved but the input; the backward computes the function again.
#include "math.h"
#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr i64 kCost = 8;  // of an exponential, in floats moved
constexpr i64 kGrain = 16;

TENARAI_INLINE vf sigmoid(vf x) { return 1.0f / (exp(-x) + 1.0f); }
// x itself, but finite: σ' falls faster than x grows, and infinity times 0 is not a number.
TENARAI_INLINE vf silu_derivative(vf x) {
  const vf s = sigmoid(x), rest = sigmoid(-x);  // 1 − σ without cancellation
  return s + s * (rest * clamp(x, -100.0f, 100.0f));
}

// f(i, n) for each vector of [0, n); the last may hold fewer than kLanes elements.
template <class F>
static inline void for_vectors(Pool& pool, i64 n, i64 cost, F&& f) {
  for_parts(pool, n, cost, kGrain, [&](int, i64 begin, i64 end) {
    i64 i = begin;
    for (; i + kLanes <= end; i += kLanes) f(i, i64{kLanes});
    if (i < end) f(i, end - i);
  });
}
TENARAI_INLINE vf get(const float* p, i64 n) { return n == kLanes ? load(p) : load_n(p, n); }
TENARAI_INLINE void put(float* p, vf v, i64 n) { n == kLanes ? store(p, v) : store_n(p, v, n); }

template <bool kTanh>
void gelu_forward_as(Pool& pool, float* y, const float* x, i64 n) {
  for_vectors(pool, n, kCost,
              [=](i64 i, i64 count) { put(y + i, gelu<kTanh>(get(x + i, count)), count); });
}
template <bool kTanh>
void gelu_backward_as(Pool& pool, float* dx, const float* dy, const float* x, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    put(dx + i, get(dy + i, count) * gelu_derivative<kTanh>(get(x + i, count)), count);
  });
}
void copy(float* to, const float* from, i64 n) {
  if (to != from) std::memcpy(to, from, static_cast<size_t>(n) * 4);
}

}  // namespace

void gelu_forward(Pool& pool, float* y, const float* x, i64 n, Gelu form) {
  if (form == Gelu::tanh) return gelu_forward_as<true>(pool, y, x, n);
  if (form == Gelu::erf) return gelu_forward_as<false>(pool, y, x, n);
  copy(y, x, n);
}

void gelu_backward(Pool& pool, float* dx, const float* dy, const float* x, i64 n, Gelu form) {
  if (form == Gelu::tanh) return gelu_backward_as<true>(pool, dx, dy, x, n);
  if (form == Gelu::erf) return gelu_backward_as<false>(pool, dx, dy, x, n);
  copy(dx, dy, n);
}

void silu_forward(Pool& pool, float* y, const float* x, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    const vf v = get(x + i, count);
    put(y + i, v * sigmoid(v), count);
  });
}

void silu_backward(Pool& pool, float* dx, const float* dy, const float* x, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    put(dx + i, get(dy + i, count) * silu_derivative(get(x + i, count)), count);
  });
}

void swiglu_forward(Pool& pool, float* y, const float* gate, const float* up, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    const vf g = get(gate + i, count);
    put(y + i, g * sigmoid(g) * get(up + i, count), count);
  });
}

void swiglu_backward(Pool& pool, float* dgate, float* dup, const float* dy, const float* gate,
                     const float* up, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    const vf g = get(gate + i, count), u = get(up + i, count), d = get(dy + i, count);
    put(dgate + i, d * u * silu_derivative(g), count);
    put(dup + i, d * (g * sigmoid(g)), count);
  });
}

void geglu_forward(Pool& pool, float* y, const float* gate, const float* up, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    put(y + i, gelu<true>(get(gate + i, count)) * get(up + i, count), count);
  });
}

void geglu_backward(Pool& pool, float* dgate, float* dup, const float* dy, const float* gate,
                    const float* up, i64 n) {
  for_vectors(pool, n, kCost, [=](i64 i, i64 count) {
    const vf g = get(gate + i, count), u = get(up + i, count), d = get(dy + i, count);
    put(dgate + i, d * u * gelu_derivative<true>(g), count);
    put(dup + i, d * gelu<true>(g), count);
  });
}

void scale(Pool& pool, float* y, const float* x, float factor, i64 n) {
  for_vectors(pool, n, 1, [=](i64 i, i64 count) { put(y + i, get(x + i, count) * factor, count); });
}

void add(Pool& pool, float* y, const float* a, const float* b, i64 n) {
  for_vectors(pool, n, 1,
              [=](i64 i, i64 count) { put(y + i, get(a + i, count) + get(b + i, count), count); });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
