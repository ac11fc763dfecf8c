// Linear layers: y = f(x) wᵀ + b + residual, where f is GELU or nothing. With dy = dL/dy:
//
//   dx = (dy w) · f'(x)          dw += dyᵀ f(x)          db += Σ_rows dy
//
// Three products, one algorithm (gemm.h). f(x) is made while x is packed, for the second time in
// the backward: it is never stored.
#include "linear.h"

namespace tenarai {
namespace TENARAI_ISA {

template <Gelu f>
struct InputGradient {
  float* c;
  i64 stride;
  const float* x;
  static constexpr bool streams() { return false; }

  vf start(i64, i64, i64) const { return vf{}; }
  vf finish(vf sum, i64 i, i64 j, i64 n) const {
    if constexpr (f == Gelu::none) return sum;
    return sum * gelu_derivative<f == Gelu::tanh>(load_upto(x + i * stride + j, n));
  }
};

// Added to, or written: then past the caches, as a model's gradients exceed them.
template <bool kAdd>
struct WeightGradient {
  float* c;
  i64 stride;
  static constexpr bool streams() { return !kAdd; }

  vf start(i64 i, i64 j, i64 n) const { return kAdd ? load_upto(c + i * stride + j, n) : vf{}; }
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

// Floats of y from which on it is written past the caches. Where there is AMX a core's own cache
// takes 2 MB and the shared one is slow; elsewhere that may hold what is read next, but not a block
// of logits.
#if defined(TENARAI_AMX)
constexpr i64 kLarge = 1 << 19;
#else
constexpr i64 kLarge = 16 << 20;
#endif

// A few rows (a token being decoded): w is read once, as it lies, and the memory sets the pace.
constexpr i64 kFewRows = 4;

// acc[row][o] = x[row] · w[o] for R rows of x and kOutputs of w, each dot product in one vector.
template <int R, int kOutputs>
static void dots(float* y, i64 stride, const float* x, const float* w, i64 I, i64 outputs) {
  const float* rows[kOutputs];  // the last one again where there are fewer
  for (int o = 0; o < kOutputs; ++o) rows[o] = w + at_most(o, outputs - 1) * I;
  vf acc[R][kOutputs] = {};
  for (i64 i = 0; i < I; i += kLanes) {
    const i64 n = at_most(kLanes, I - i);
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      __builtin_prefetch(rows[o] + i + kOutputs * I);  // the next call's
      const vf v = load_upto(rows[o] + i, n);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][o] += load_upto(x + r * I + i, n) * v;
    }
  }
  for (int r = 0; r < R; ++r)
    for (i64 o = 0; o < outputs; ++o) y[r * stride + o] = sum(acc[r][o]);
}

template <class Map>
static void forward_few(Pool& pool, const Forward& forward, const float* x, const float* w, i64 M,
                        i64 I, i64 O) {
  parallel(pool, [&](int thread) {
    constexpr int kOutputs = 4;
    const Range range = split(O, pool.threads(), thread, kOutputs);
    float* fx = static_cast<float*>(pool.scratch(thread, static_cast<size_t>(M * I) * 4));
    for (i64 i = 0; i < M * I; i += kLanes) {
      const i64 n = at_most(kLanes, M * I - i);
      store_n(fx + i, Map::map(load_upto(x + i, n)), n);
    }
    for (i64 o = range.begin; o < range.end; o += kOutputs) {
      const i64 n = at_most(kOutputs, range.end - o);
      float sums[kFewRows * kOutputs];
      const auto kernel = M == 1   ? &dots<1, kOutputs>
                          : M == 2 ? &dots<2, kOutputs>
                          : M == 3 ? &dots<3, kOutputs>
                                   : &dots<4, kOutputs>;
      kernel(sums, kOutputs, fx, w + o * I, I, n);
      for (i64 m = 0; m < M; ++m)
        for (i64 j = 0; j < n; ++j) {
          const i64 at = m * O + o + j;
          forward.c[at] = sums[m * kOutputs + j] + (forward.bias ? forward.bias[o + j] : 0.0f) +
                          (forward.residual ? forward.residual[at] : 0.0f);
        }
    }
  });
}

void linear_forward(Pool& pool, float* y, const float* x, const float* w, const float* b,
                    const float* residual, i64 M, i64 I, i64 O, Gelu f, Products products) {
  if (M == 0) return;
  with(f, [&](auto function) {
    using Map = typename decltype(function)::Map;
    const Forward forward{y, O, b, residual, M * O >= kLarge};
    if (M <= kFewRows)
      forward_few<Map>(pool, forward, x, w, M, I, O);
    else
      multiply(products, pool, Along<Map>{x, I}, Along<Same>{w, I}, forward, M, O, I);
  });
}

void linear_backward(Pool& pool, float* dx, float* dw, float* db, const float* dy, const float* x,
                     const float* w, i64 M, i64 I, i64 O, Gelu f, bool add, Products products) {
  if (M == 0) {
    if (dw && !add) std::memset(dw, 0, static_cast<size_t>(O * I) * 4);
    return;
  }
  if (O == 0) {
    if (dx) std::memset(dx, 0, static_cast<size_t>(M * I) * 4);
    return;
  }
  with(f, [&](auto function) {
    using F = decltype(function);
    if (dx)
      multiply(products, pool, Along<Same>{dy, O}, Across<Same>{w, I},
               InputGradient<F::value>{dx, I, x}, M, I, O);
    const Across<Same> dy_across{dy, O};
    const Across<typename F::Map> x_across{x, I};
    if (dw && add)
      multiply(products, pool, dy_across, x_across, WeightGradient<true>{dw, I}, O, I, M, db);
    else if (dw)
      multiply(products, pool, dy_across, x_across, WeightGradient<false>{dw, I}, O, I, M, db);
  });
  if (db && !dw)
    for (i64 m = 0; m < M; ++m)
      for (i64 o = 0; o < O; ++o) db[o] += dy[m * O + o];
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
