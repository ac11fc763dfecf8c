// Attention, one query at a time.
#include <cmath>

#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

float dot(const float* a, const float* b, i64 n) {
  float s = 0;
  for (i64 i = 0; i < n; ++i) s += a[i] * b[i];
  return s;
}
void axpy(float* y, float a, const float* x, i64 n) {
  for (i64 i = 0; i < n; ++i) y[i] += a * x[i];
}
template <class P>
P* row(P* p, Strides s, i64 b, i64 t, i64 h) {
  return p + b * s.b + t * s.t + h * s.h;
}
i64 seen(const AttentionShape& s, i64 t) { return s.causal ? t + s.S - s.T + 1 : s.S; }

}  // namespace

void attention_forward(Pool& pool, const AttentionForward& a, const AttentionShape& s) {
  for_parts(pool, s.B * s.H * s.T, s.S * s.D, 1, [&](int thread, i64 begin, i64 end) {
    float* p = static_cast<float*>(pool.scratch(thread, s.S * sizeof(float)));
    for (i64 i = begin; i < end; ++i) {
      const i64 t = i % s.T, h = i / s.T % s.H, b = i / s.T / s.H, kh = h / (s.H / s.K);
      const i64 n = seen(s, t);
      float top = -INFINITY, total = 0;
      for (i64 j = 0; j < n; ++j) {
        p[j] = s.scale * dot(row(a.q, a.qs, b, t, h), row(a.k, a.ks, b, j, kh), s.D);
        top = p[j] > top ? p[j] : top;
      }
      for (i64 j = 0; j < n; ++j) total += p[j] = expf(p[j] - top);
      float* y = row(a.y, a.ys, b, t, h);
      for (i64 d = 0; d < s.D; ++d) y[d] = 0;
      for (i64 j = 0; j < n; ++j) axpy(y, p[j] / total, row(a.v, a.vs, b, j, kh), s.D);
      a.lse[i] = top + logf(total);
    }
  });
}

void attention_backward(Pool& pool, const AttentionBackward& a, const AttentionShape& s) {
  const i64 group = s.H / s.K;
  for_parts(pool, s.B * s.K, s.S * s.T * s.D, 1, [&](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const i64 kh = i % s.K, b = i / s.K;
      for (i64 j = 0; j < s.S; ++j)
        for (i64 d = 0; d < s.D; ++d)
          row(a.dk, a.dks, b, j, kh)[d] = row(a.dv, a.dvs, b, j, kh)[d] = 0;
      for (i64 h = kh * group; h < (kh + 1) * group; ++h)
        for (i64 t = 0; t < s.T; ++t) {
          const float *q = row(a.q, a.qs, b, t, h), *dy = row(a.dy, a.dys, b, t, h);
          const float lse = a.lse[(b * s.H + h) * s.T + t];
          const float mean = dot(dy, row(a.y, a.ys, b, t, h), s.D);
          float* dq = row(a.dq, a.dqs, b, t, h);
          for (i64 d = 0; d < s.D; ++d) dq[d] = 0;
          for (i64 j = 0; j < seen(s, t); ++j) {
            const float* k = row(a.k, a.ks, b, j, kh);
            const float p = expf(s.scale * dot(q, k, s.D) - lse);
            const float ds = s.scale * p * (dot(dy, row(a.v, a.vs, b, j, kh), s.D) - mean);
            axpy(row(a.dv, a.dvs, b, j, kh), p, dy, s.D);
            axpy(row(a.dk, a.dks, b, j, kh), ds, q, s.D);
            axpy(dq, ds, k, s.D);
          }
        }
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
