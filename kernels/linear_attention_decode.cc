// One token of gated linear attention or the delta rule: a state is read once and written once.
//
//   old = diag(α) S       u = v, or β (v − oldᵀ k)
//   S'  = old + k uᵀ      y = S'ᵀ q = oldᵀ q + (q · k) u
//
// so both reads, by k and by q, are of the old state, taken in one pass; the second pass writes.
// Heads are divided among the threads; a head's rows go in order, so several may be of one
// sequence.
#include "attention_tiles.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

struct StepTiles {
  float *alpha, *of_k, *of_q, *u;  // (D), (V) thrice, in whole vectors
  void lay(Cut& cut, const LinearAttentionShape& s) {
    const i64 V = round_up(s.V, kLanes);
    alpha = cut(round_up(s.D, kLanes)), of_k = cut(V), of_q = cut(V), u = cut(V);
  }
};

template <class F>
TENARAI_INLINE void for_values(i64 V, F&& f) {
  i64 v = 0;
  for (; v + kLanes <= V; v += kLanes) f(v, i64{kLanes});
  if (v < V) f(v, V - v);
}
TENARAI_INLINE vf get(const float* p, i64 n) { return n == kLanes ? load(p) : load_n(p, n); }
TENARAI_INLINE void put(float* p, vf v, i64 n) { n == kLanes ? store(p, v) : store_n(p, v, n); }

void load_alpha(float* alpha, const float* g, i64 n, i64 D) {
  for (i64 d = 0; d < D; d += kLanes) {
    const vf x = !g ? vf{} : n == 1 ? broadcast(*g) : get(g + d, at_most(D - d, kLanes));
    store(alpha + d, exp(x));
  }
}

void step(const StepTiles& w, const LinearAttentionStep& f, const LinearAttentionShape& s, i64 row,
          i64 h) {
  const i64 D = s.D, V = s.V, at = row * s.H + h, gates = s.channel ? D : 1;
  const float *q = f.q + at * D, *k = f.k + at * D, *v = f.v + at * V;
  float* S = f.states + (f.slots[row] * s.H + h) * D * V;
  load_alpha(w.alpha, f.g ? f.g + at * gates : nullptr, gates, D);
  float qk = 0;
  for (i64 i = 0; i < V; i += kLanes) store(w.of_k + i, vf{}), store(w.of_q + i, vf{});
  for (i64 d = 0; d < D; ++d) {
    qk += q[d] * k[d];
    const float a = w.alpha[d];
    for_values(V, [&](i64 i, i64 n) {
      const vf old = get(S + d * V + i, n) * a;
      store(w.of_q + i, load(w.of_q + i) + old * q[d]);
      if (f.beta) store(w.of_k + i, load(w.of_k + i) + old * k[d]);
    });
  }
  for_values(V, [&](i64 i, i64 n) {
    const vf value = get(v + i, n);
    const vf u = f.beta ? (value - load(w.of_k + i)) * f.beta[at] : value;
    store(w.u + i, u);
    put(f.y + at * V + i, (load(w.of_q + i) + u * qk) * s.scale, n);
  });
  for (i64 d = 0; d < D; ++d)
    for_values(V, [&](i64 i, i64 n) {
      float* p = S + d * V + i;
      put(p, get(p, n) * w.alpha[d] + load(w.u + i) * k[d], n);
    });
}

}  // namespace

void linear_attention_decode(Pool& pool, const LinearAttentionStep& f,
                             const LinearAttentionShape& s) {
  for_parts(pool, s.H, s.B * s.D * s.V, 1, [&](int thread, i64 begin, i64 end) {
    const auto w = tiles_of<StepTiles>(pool, thread, s);
    for (i64 h = begin; h < end; ++h)
      for (i64 row = 0; row < s.B; ++row) step(w, f, s, row, h);
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
