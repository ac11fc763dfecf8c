// One token of gated linear attention or the delta rule.
//
//   old = diag(α) S       u = v, or β (v − oldᵀ k)
//   S'  = old + k uᵀ      y = S'ᵀ q = oldᵀ q + (q · k) u
//
// Each column of the state is a matter of its own, and both reads, by k and by q, are of the old
// one: so a few columns are read, their u and y made, and the same columns written while they are
// in the L1 cache. Heads are divided among the threads; a head's rows go in order, so several may
// be of one sequence.
#include "attention_tiles.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr int kColumns = 4;  // vectors of columns at a time

struct StepTiles {
  float* alpha;  // (D), in whole vectors
  void lay(Cut& cut, const LinearAttentionShape& s) { alpha = cut(round_up(s.D, kLanes)); }
};

TENARAI_INLINE vf get(const float* p, i64 n) { return n == kLanes ? load(p) : load_n(p, n); }
TENARAI_INLINE void put(float* p, vf v, i64 n) { n == kLanes ? store(p, v) : store_n(p, v, n); }

// One head of one row: its vectors, its state (D, V), β or 1, q · k.
struct Head {
  const float *q, *k, *v, *alpha;
  float *y, *S;
  i64 D, V;
  float beta, qk, scale;
  bool delta;
};

void load_alpha(float* alpha, const float* g, bool channel, i64 D) {
  for (i64 d = 0; d < D; d += kLanes) {
    vf x = {};
    if (g) x = channel ? get(g + d, at_most(D - d, kLanes)) : broadcast(*g);
    store(alpha + d, exp(x));
  }
}

// Columns from `c` on: kVectors vectors, of the last one n lanes.
template <int kVectors>
TENARAI_INLINE void step_columns(const Head& h, i64 c, i64 n) {
  vf of_q[kVectors] = {}, of_k[kVectors] = {}, u[kVectors];
  for (i64 d = 0; d < h.D; ++d)
    for (int j = 0; j < kVectors; ++j) {
      const vf old = get(h.S + d * h.V + c + j * kLanes, n) * h.alpha[d];
      of_q[j] += old * h.q[d];
      of_k[j] += old * h.k[d];
    }
  for (int j = 0; j < kVectors; ++j) {
    const i64 at = c + j * kLanes;
    u[j] = get(h.v + at, n);
    if (h.delta) u[j] = (u[j] - of_k[j]) * h.beta;
    put(h.y + at, (of_q[j] + u[j] * h.qk) * h.scale, n);
  }
  for (i64 d = 0; d < h.D; ++d)
    for (int j = 0; j < kVectors; ++j) {
      float* p = h.S + d * h.V + c + j * kLanes;
      put(p, get(p, n) * h.alpha[d] + u[j] * h.k[d], n);
    }
}

void step(const Head& h) {
  i64 c = 0;
  for (; c + kColumns * kLanes <= h.V; c += kColumns * kLanes) step_columns<kColumns>(h, c, kLanes);
  for (; c + kLanes <= h.V; c += kLanes) step_columns<1>(h, c, kLanes);
  if (c < h.V) step_columns<1>(h, c, h.V - c);
}

}  // namespace

void linear_attention_decode(Pool& pool, const LinearAttentionStep& f,
                             const LinearAttentionShape& s) {
  for_parts(pool, s.H, s.B * s.D * s.V, 1, [&](int thread, i64 begin, i64 end) {
    const auto w = tiles_of<StepTiles>(pool, thread, s);
    for (i64 h = begin; h < end; ++h)
      for (i64 row = 0; row < s.B; ++row) {
        const i64 at = row * s.H + h;
        const float *q = f.q + at * s.D, *k = f.k + at * s.D;
        float qk = 0;
        for (i64 d = 0; d < s.D; ++d) qk += q[d] * k[d];
        load_alpha(w.alpha, f.g ? f.g + at * (s.channel ? s.D : 1) : nullptr, s.channel, s.D);
        step({q, k, f.v + at * s.V, w.alpha, f.y + at * s.V,
              f.states + (f.slots[row] * s.H + h) * s.D * s.V, s.D, s.V, f.beta ? f.beta[at] : 1.0f,
              qk, s.scale, f.beta != nullptr});
      }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
