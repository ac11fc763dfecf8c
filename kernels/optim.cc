// The optimiser: AdamW over flat arrays, and the sum of squares for clipping. Both go once through
// memory and are bound by it.
#include "ops.h"
#include "simd.h"

namespace tenarai {
namespace TENARAI_ISA {

// With g' = g · grad_scale:
//   m = β1 m + (1 - β1) g'
//   v = β2 v + (1 - β2) g'²
//   p = p - lr · weight_decay · p - lr · (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε)
// (Loshchilov and Hutter 2019). Written plainly, because compilers vectorise it whole.
static void adamw_range(float* __restrict p, const float* __restrict g, float* __restrict m,
                        float* __restrict v, i64 n, const AdamW& a) {
  const float keep = 1.0f - a.lr * a.weight_decay;
  const float rate = a.lr / a.correction1;
  const float root = 1.0f / __builtin_sqrtf(a.correction2);
  const float beta1 = a.beta1, beta2 = a.beta2, eps = a.eps, scale = a.grad_scale;
  for (i64 i = 0; i < n; ++i) {
    const float gi = g[i] * scale;
    const float first = beta1 * m[i] + (1.0f - beta1) * gi;
    const float second = beta2 * v[i] + (1.0f - beta2) * (gi * gi);
    m[i] = first;
    v[i] = second;
    p[i] = keep * p[i] - rate * first / (__builtin_sqrtf(second) * root + eps);
  }
}

void adamw_step(Pool& pool, float* p, const float* g, float* m, float* v, i64 n, const AdamW& a) {
  parallel_pieces(pool, n, pool.threads(), 1 << 14, [&](int, Pool::Piece piece) {
    const Range r = piece.range;
    adamw_range(p + r.begin, g + r.begin, m + r.begin, v + r.begin, r.end - r.begin, a);
  });
}

typedef double vd __attribute__((vector_size(2 * kVectorBytes)));

static double square_sum_range(const float* x, i64 n) {
  vd acc[4] = {};
  i64 i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const vd d = __builtin_convertvector(load(x + i + j * kLanes), vd);
      acc[j] += d * d;
    }
  acc[0] = (acc[0] + acc[1]) + (acc[2] + acc[3]);
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += acc[0][lane];
  for (; i < n; ++i) total += static_cast<double>(x[i]) * x[i];
  return total;
}

// Blocks of a fixed size, added up in order: the same bits for every thread count.
double square_sum(Pool& pool, const float* x, i64 n) {
  const i64 block = 1 << 16, blocks = (n + block - 1) / block;
  double* sums = static_cast<double*>(pool.scratch(0, static_cast<size_t>(blocks) * 8));
  parallel_pieces(pool, blocks, pool.threads(), 1, [&](int, Pool::Piece piece) {
    for (i64 i = piece.range.begin; i < piece.range.end; ++i)
      sums[i] = square_sum_range(x + i * block, i + 1 < blocks ? block : n - i * block);
  });
  double total = 0;
  for (i64 i = 0; i < blocks; ++i) total += sums[i];
  return total;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
