// Linear layers: y = f(x) wᵀ + b + residual, where f is GELU or nothing. With dy = dL/dy:
//
//   dx = (dy w) · f'(x)          dw += dyᵀ f(x)          db += Σ_rows dy
//
// Three products, one algorithm (gemm.h). f(x) is made while x is packed, for the second time in
// the backward: it is never stored.
#include "gemm.h"
#include "ops.h"

namespace tenarai {
namespace TENARAI_ISA {

TENARAI_INLINE vf load_upto(const float* p, i64 n) { return n == kLanes ? load(p) : load_n(p, n); }

struct Forward {
  float* c;
  i64 stride;
  const float *bias, *residual;

  vf start(i64 i, i64 j, i64 n) const {
    vf v = {};
    if (bias) v += load_upto(bias + j, n);
    if (residual) v += load_upto(residual + i * stride + j, n);
    return v;
  }
  vf finish(vf sum, i64, i64, i64) const { return sum; }
};

template <Gelu f>
struct InputGradient {
  float* c;
  i64 stride;
  const float* x;

  vf start(i64, i64, i64) const { return vf{}; }
  vf finish(vf sum, i64 i, i64 j, i64 n) const {
    if constexpr (f == Gelu::none) return sum;
    return sum * gelu_derivative < f == Gelu::tanh > (load_upto(x + i * stride + j, n));
  }
};

struct WeightGradient {
  float* c;
  i64 stride;

  vf start(i64 i, i64 j, i64 n) const { return load_upto(c + i * stride + j, n); }
  vf finish(vf sum, i64, i64, i64) const { return sum; }
};

// f as a type: calls body(policy of packing, constant).
template <Gelu f>
struct Function {
  static constexpr Gelu value = f;
  using Map = GeluOf<f == Gelu::tanh>;
};
template <>
struct Function<Gelu::none> {
  static constexpr Gelu value = Gelu::none;
  using Map = Same;
};
template <class Body>
static void with(Gelu f, Body body) {
  if (f == Gelu::tanh)
    body(Function<Gelu::tanh>());
  else if (f == Gelu::erf)
    body(Function<Gelu::erf>());
  else
    body(Function<Gelu::none>());
}

void linear_forward(Pool& pool, float* y, const float* x, const float* w, const float* b,
                    const float* residual, i64 M, i64 I, i64 O, Gelu f) {
  with(f, [&](auto function) {
    using Map = typename decltype(function)::Map;
    multiply(pool, Along<Map>{x, I}, Along<Same>{w, I}, Forward{y, O, b, residual}, M, O, I);
  });
}

void linear_backward(Pool& pool, float* dx, float* dw, float* db, const float* dy, const float* x,
                     const float* w, i64 M, i64 I, i64 O, Gelu f) {
  with(f, [&](auto function) {
    using F = decltype(function);
    if (dx)
      multiply(pool, Along<Same>{dy, O}, Across<Same>{w, I}, InputGradient<F::value>{dx, I, x}, M,
               I, O);
    if (dw)
      multiply(pool, Across<Same>{dy, O}, Across<typename F::Map>{x, I}, WeightGradient{dw, I}, O,
               I, M, db);
  });
  if (db && !dw)
    for (i64 m = 0; m < M; ++m)
      for (i64 o = 0; o < O; ++o) db[o] += dy[m * O + o];
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
