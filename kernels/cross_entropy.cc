// Cross-entropy of rows of logits, which become their own gradient.
//
//   loss = ℓ - x_t + z ℓ²       ℓ = ln Σ e^(x_j - m) + m, m = max x
//   dx_j = scale · ((1 + 2 z ℓ) e^(x_j - m) / Σ - [j = t])
//
// Three passes over a row (maximum; exponentials and their sum; gradient): a row of 50,257 logits
// is 200 KB and stays in the L2 cache between them.
#include "math.h"
#include "ops.h"

namespace tenarai {
namespace TENARAI_ISA {

// The last vector of a row: lanes beyond n hold -∞, which no maximum and no sum sees.
static vf load_tail(const float* x, i64 n) {
  vf v = broadcast(-__builtin_inff());
  std::memcpy(&v, x, static_cast<size_t>(n) * 4);
  return v;
}

static float row_max(const float* x, i64 V) {
  vf a = broadcast(-__builtin_inff()), b = a, c = a, d = a;
  i64 i = 0;
  for (; i + 4 * kLanes <= V; i += 4 * kLanes) {
    a = max(a, load(x + i));
    b = max(b, load(x + i + kLanes));
    c = max(c, load(x + i + 2 * kLanes));
    d = max(d, load(x + i + 3 * kLanes));
  }
  for (; i + kLanes <= V; i += kLanes) a = max(a, load(x + i));
  if (i < V) b = max(b, load_tail(x + i, V - i));
  return max_lane(max(max(a, b), max(c, d)));
}

// Σ e^(x - m), and where kStore x = e^(x - m), m being the greatest x. A NaN among x reaches the
// sum. Float sums of 32 vectors, added up in double. Meanwhile the row after this one is asked for:
// it is the calculation that takes the time here, and memory in the pass that finds the maximum.
template <bool kStore>
static double exponentials(float* x, i64 V, float m) {
  double total = 0;
  i64 i = 0;
  while (i + kLanes <= V) {
    const i64 end = i + 32 * kLanes < V ? i + 32 * kLanes : V;
    vf acc = {};
    for (; i + kLanes <= end; i += kLanes) {
      __builtin_prefetch(x + V + i, kStore, 2);
      const vf e = exp2_weight((load(x + i) - m) * kLog2E);
      if constexpr (kStore) store(x + i, e);
      acc += e;
    }
    total += static_cast<double>(sum(acc));
  }
  if (i < V) {
    const vf e = exp2_weight((load_tail(x + i, V - i) - m) * kLog2E);
    if constexpr (kStore) store_n(x + i, e, V - i);
    total += static_cast<double>(sum(e));
  }
  return total;
}

static void scale_row(float* x, i64 V, float factor) {
  for (i64 i = 0; i < V; ++i) x[i] *= factor;
}

static double row_loss(float* x, i64 V, int32_t target, float scale, double z) {
  if (target < 0) {
    if (scale != 0) std::memset(x, 0, static_cast<size_t>(V) * 4);
    return 0;
  }
  const float m = row_max(x, V);
  const double correct = static_cast<double>(x[target]) - m;
  const double total = scale != 0 ? exponentials<true>(x, V, m) : exponentials<false>(x, V, m);
  const double log_total = __builtin_log(total), lse = log_total + m;
  if (scale != 0) {
    scale_row(x, V, static_cast<float>(scale * (1 + 2 * z * lse) / total));
    x[target] -= scale;
  }
  return log_total - correct + z * lse * lse;
}

double cross_entropy(Pool& pool, float* logits, const int32_t* targets, i64 M, i64 V, float scale,
                     float z_loss) {
  double* losses = static_cast<double*>(pool.scratch(0, static_cast<size_t>(M) * 8));
  parallel_pieces(pool, M, pool.threads(), 1, [&](int, Pool::Piece piece) {
    for (i64 i = piece.range.begin; i < piece.range.end; ++i)
      losses[i] = row_loss(logits + i * V, V, targets[i], scale, z_loss);
  });
  double total = 0;  // in the rows' order: the same bits for every thread count
  for (i64 i = 0; i < M; ++i) total += losses[i];
  return total;
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
