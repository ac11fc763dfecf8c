// Layer norm and RMS norm over the last dim, C.
//
//   x̂ = (x − mean) · rstd,  rstd = 1/√(variance + eps);   y = x̂ w + b
//
// Backward, with g = dy w the gradient of x̂: mean and rstd depend on every x of the row, so from
// g its mean goes off, and its part along x̂ (scaling or shifting x moves nothing):
//
//   dx = rstd · (g − mean(g) − x̂ mean(g x̂)),   dw += Σ dy x̂,   db += Σ dy
//
// RMS norm is the same without the mean: rstd = 1/√(mean(x²) + eps), dx = rstd (g − x̂ mean(g x̂)).
//
// Saved: mean and rstd, two numbers a row; x̂ is computed again. A row stays in L1 between the
// passes over it. dw and db are summed by each thread over its own rows, then in thread order.
#include <cmath>

#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// f(i, n): kLanes elements at i, n of them there (fewer in the last vector only).
template <class F>
TENARAI_INLINE void for_vectors(i64 C, F&& f) {
  i64 i = 0;
  for (; i + kLanes <= C; i += kLanes) f(i, i64{kLanes});
  if (i < C) f(i, C - i);
}
TENARAI_INLINE vf get(const float* p, i64 n) { return n == kLanes ? load(p) : load_n(p, n); }
TENARAI_INLINE void put(float* p, vf v, i64 n) { n == kLanes ? store(p, v) : store_n(p, v, n); }
TENARAI_INLINE vf first(vf v, i64 n) {
  if (n == kLanes) return v;
  float lane[kLanes];
  store(lane, v);
  return load_n(lane, n);
}

}  // namespace

void layer_norm_forward(Pool& pool, float* y, float* mean, float* rstd, const float* x,
                        const float* w, const float* b, i64 M, i64 C, float eps) {
  for_parts(pool, M, C, 1, [=](int, i64 begin, i64 end) {
    for (i64 m = begin; m < end; ++m) {
      const float* row = x + m * C;
      vf total = {};
      for_vectors(C, [&](i64 i, i64 n) { total += get(row + i, n); });
      const float mu = sum(total) / C;
      vf squares = {};
      for_vectors(C, [&](i64 i, i64 n) {
        const vf d = first(get(row + i, n) - mu, n);
        squares += d * d;
      });
      const float r = 1 / sqrtf(sum(squares) / C + eps);
      for_vectors(C, [&](i64 i, i64 n) {
        put(y + m * C + i, (get(row + i, n) - mu) * r * get(w + i, n) + get(b + i, n), n);
      });
      mean[m] = mu;
      rstd[m] = r;
    }
  });
}

void rms_norm_forward(Pool& pool, float* y, float* rstd, const float* x, const float* w, i64 M,
                      i64 C, float eps) {
  for_parts(pool, M, C, 1, [=](int, i64 begin, i64 end) {
    for (i64 m = begin; m < end; ++m) {
      const float* row = x + m * C;
      vf squares = {};
      for_vectors(C, [&](i64 i, i64 n) {
        const vf v = get(row + i, n);
        squares += v * v;
      });
      const float r = 1 / sqrtf(sum(squares) / C + eps);
      for_vectors(
          C, [&](i64 i, i64 n) { put(y + m * C + i, get(row + i, n) * r * get(w + i, n), n); });
      rstd[m] = r;
    }
  });
}

namespace {

// Both backwards; without `mean` and `db` it is RMS norm's.
template <bool kCentered>
void norm_backward(Pool& pool, float* dx, float* dw, float* db, const float* dy,
                   const float* dresidual, const float* x, const float* w, const float* mean,
                   const float* rstd, i64 M, i64 C) {
  const i64 cost = 2 * C;
  // A thread's own sums of dw, then db.
  const auto sums = [&](int thread) {
    return static_cast<float*>(pool.scratch(thread, 2 * C * sizeof(float)));
  };
  for_parts(pool, M, cost, 1, [&](int thread, i64 begin, i64 end) {
    float *dw_sum = sums(thread), *db_sum = dw_sum + C;
    for (i64 i = 0; i < 2 * C; ++i) dw_sum[i] = 0;
    for (i64 m = begin; m < end; ++m) {
      const float *x_row = x + m * C, *dy_row = dy + m * C;
      const float mu = kCentered ? mean[m] : 0, r = rstd[m];
      vf g_total = {}, gx_total = {};
      for_vectors(C, [&](i64 i, i64 n) {
        const vf d = get(dy_row + i, n), xhat = (get(x_row + i, n) - mu) * r;
        const vf g = d * get(w + i, n);
        put(dw_sum + i, get(dw_sum + i, n) + d * xhat, n);
        if (kCentered) put(db_sum + i, get(db_sum + i, n) + d, n);
        g_total += g;
        gx_total += g * xhat;
      });
      const float g_mean = kCentered ? sum(g_total) / C : 0, gx_mean = sum(gx_total) / C;
      for_vectors(C, [&](i64 i, i64 n) {
        const vf xhat = (get(x_row + i, n) - mu) * r, g = get(dy_row + i, n) * get(w + i, n);
        vf d = (g - g_mean - xhat * gx_mean) * r;
        if (dresidual) d += get(dresidual + m * C + i, n);
        put(dx + m * C + i, d, n);
      });
    }
  });
  if (M == 0) return;
  for (int thread = 0; thread < parts_of(pool, M, cost); ++thread) {
    const float *dw_sum = sums(thread), *db_sum = dw_sum + C;
    for (i64 i = 0; i < C; ++i) dw[i] += dw_sum[i];
    if (kCentered)
      for (i64 i = 0; i < C; ++i) db[i] += db_sum[i];
  }
}

}  // namespace

void layer_norm_backward(Pool& pool, float* dx, float* dw, float* db, const float* dy,
                         const float* dresidual, const float* x, const float* w, const float* mean,
                         const float* rstd, i64 M, i64 C) {
  norm_backward<true>(pool, dx, dw, db, dy, dresidual, x, w, mean, rstd, M, C);
}

void rms_norm_backward(Pool& pool, float* dx, float* dw, const float* dy, const float* dresidual,
                       const float* x, const float* w, const float* rstd, i64 M, i64 C) {
  norm_backward<false>(pool, dx, dw, nullptr, dy, dresidual, x, w, nullptr, rstd, M, C);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
