// Linear layers, forward and backward.
#include "math.h"
#include "ops.h"

namespace tenarai {
namespace TENARAI_ISA {

static float apply(float x, Gelu f) {
  const vf v = broadcast(x);
  return (f == Gelu::none ? v : f == Gelu::tanh ? gelu<true>(v) : gelu<false>(v))[0];
}
static float derivative(float x, Gelu f) {
  const vf v = broadcast(x);
  return f == Gelu::none   ? 1.0f
         : f == Gelu::tanh ? gelu_derivative<true>(v)[0]
                           : gelu_derivative<false>(v)[0];
}

void linear_forward(Pool& pool, float* y, const float* x, const float* w, const float* b,
                    const float* residual, i64 M, i64 I, i64 O, Gelu f) {
  float* fx = static_cast<float*>(pool.scratch(0, static_cast<size_t>(M * I) * 4));
  for (i64 i = 0; i < M * I; ++i) fx[i] = apply(x[i], f);
  parallel(pool, [&](int thread) {
    const Range r = split(O, pool.threads(), thread);
    for (i64 m = 0; m < M; ++m)
      for (i64 o = r.begin; o < r.end; ++o) {
        vf acc = {};
        i64 i = 0;
        for (; i + kLanes <= I; i += kLanes) acc += load(fx + m * I + i) * load(w + o * I + i);
        float total = sum(acc);
        for (; i < I; ++i) total += fx[m * I + i] * w[o * I + i];
        y[m * O + o] = total + (b ? b[o] : 0.0f) + (residual ? residual[m * O + o] : 0.0f);
      }
  });
}

void linear_backward(Pool& pool, float* dx, float* dw, float* db, const float* dy, const float* x,
                     const float* w, i64 M, i64 I, i64 O, Gelu f) {
  for (i64 m = 0; db && m < M; ++m)
    for (i64 o = 0; o < O; ++o) db[o] += dy[m * O + o];
  parallel(pool, [&](int thread) {
    const Range rows = split(M, pool.threads(), thread);
    for (i64 m = rows.begin; dx && m < rows.end; ++m) {
      for (i64 i = 0; i < I; ++i) dx[m * I + i] = 0;
      for (i64 o = 0; o < O; ++o)
        for (i64 i = 0; i < I; ++i) dx[m * I + i] += dy[m * O + o] * w[o * I + i];
      for (i64 i = 0; f != Gelu::none && i < I; ++i) dx[m * I + i] *= derivative(x[m * I + i], f);
    }
    const Range columns = split(I, pool.threads(), thread);
    for (i64 m = 0; dw && m < M; ++m)
      for (i64 i = columns.begin; i < columns.end; ++i) {
        const float fx = apply(x[m * I + i], f);
        for (i64 o = 0; o < O; ++o) dw[o * I + i] += dy[m * O + o] * fx;
      }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
