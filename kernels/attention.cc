// Attention, forward and backward, tile by tile: no T × S array is ever stored.
//
//   a_ts = scale Σ_d q_td k_sd      ℓ_t = log Σ_s exp(a_ts)      p_ts = exp(a_ts − ℓ_t)
//   y_td = Σ_s p_ts v_sd
//
// Forward. A panel of queries meets one tile of keys after another and knows only the keys so
// far: their greatest score m_t, l_t = Σ_s exp(a_ts − m_t) and y_td = Σ_s exp(a_ts − m_t) v_sd.
// When a tile raises m_t, what was summed is multiplied by exp(old m_t − new m_t). In the end
// y_t /= l_t and ℓ_t = m_t + log l_t.
//
// Backward. From ℓ alone each tile of p is made again; with D_t = Σ_d dy_td y_td
// (src/tenarai/ops/reference/attention.py derives it)
//
//   dv_sd = Σ_t p_ts dy_td                     dp_ts = Σ_d dy_td v_sd
//   da_ts = p_ts (dp_ts − D_t)
//   dk_sd = scale Σ_t da_ts q_td               dq_td = scale Σ_s da_ts k_sd
//
// Saved: q, k, v, y and ℓ. Recomputed: a and p, one product in five. T numbers a head instead of
// T².
//
// Tiles. The queries stand in the lanes of the vectors: a tile of scores is kept (keys, queries),
// so the maximum and the sum over keys need no step across lanes. For that a panel of queries is
// transposed once, and then meets all its keys:
//
//   for each batch, key head                     (a unit of work, or a part of one)
//     for each query head of the group, panel of 64 queries
//       qᵀ (D, 64)                               transposed, times scale · log₂ e
//       for each tile of 64 keys that it sees
//         a (64, 64) = k qᵀ
//         p = 2^(a − m)                          base 2: the exponent is then a whole number's bits
//         yᵀ (D, 64) += vᵀ p
//
//   backward, the same loops                     qᵀ, dyᵀ (D, 64) and q, dy (64, D)
//         a = k qᵀ, dp = v dyᵀ                   (64, 64)
//         p = 2^(a − ℓ), da = p (dp − D)
//         dv (64, D) += p dy                     dk, dv of all keys stay in scratch
//         dk (64, D) += da q
//         dqᵀ (D, 64) += kᵀ da
//
// Masks (attention_seen.h): products are made for the blocks of eight keys or so that a strip of
// queries sees (in words and digits: that a panel sees), so on the causal diagonal they stop
// above it. Soft-cap and ALiBi change the tile a where it stands, dp with it: da = p (dp − D) (1 −
// tanh²). A sink is one more score in l, and its gradient a sum over the queries of what is known
// without keys.
//
// The products are of floats (attention_floats.h), of words (attention_words.h) or, with AMX, of
// digits (attention_digits.h); what is between them is in attention_softmax.h.
#include "attention_digits.h"
#include "attention_few.h"
#include "attention_floats.h"
#include "attention_words.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// dsinks_h −= Σ_t exp(sink_h − ℓ_t) D_t
void sinks_backward(Pool& pool, const AttentionBackward& f, const AttentionShape& s) {
  for_parts(pool, s.H, 2 * s.B * s.T * s.D, 1, [=, &f, &s](int, i64 begin, i64 end) {
    for (i64 h = begin; h < end; ++h) {
      double sum = 0;
      for (i64 b = 0; b < s.B; ++b)
        for (i64 t = 0; t < s.T; ++t) {
          const float* dy = f.dy + b * f.dys.b + t * f.dys.t + h * f.dys.h;
          const float* y = f.y + b * f.ys.b + t * f.ys.t + h * f.ys.h;
          sum += expf(s.sinks[h] - f.lse[(b * s.H + h) * s.T + t]) * dot(dy, y, s.D);
        }
      f.dsinks[h] -= static_cast<float>(sum);
    }
  });
}

// to[i] = scale · Σ from[part][i]
void sum_parts(float* to, const float* const* from, i64 parts, i64 offset, i64 n, float scale) {
  for (i64 i = 0; i < n; i += kLanes) {  // rows of `from` are whole vectors
    vf sum = load(from[0] + offset + i);
    for (i64 part = 1; part < parts; ++part) sum += load(from[part] + offset + i);
    n - i >= kLanes ? store(to + i, sum * scale) : store_n(to + i, sum * scale, n - i);
  }
}

// Tiles are a thread's: take_keys(...) makes a head's keys ready, panel(...) meets them with a
// panel of queries.
template <class Tiles>
void forward_units(Pool& pool, const AttentionForward& f, const AttentionShape& s) {
  const Division work(s, pool, 4);
  for (i64 thread = 0; thread < work.threads; ++thread) tiles_of<Tiles>(pool, thread, s);
  work.run(pool, [&](int thread, Range units, int) {
    auto w = tiles_of<Tiles>(pool, thread, s);
    for (i64 unit = units.begin; unit < units.end; ++unit) {
      const Range panels = work.panels_of(unit);
      if (empty(panels)) continue;
      w.take_keys(f, s, work.panel(unit, panels.begin), panels.end - panels.begin > 1);
      for (i64 i = panels.begin; i < panels.end; ++i) w.panel(f, s, work.panel(unit, i));
    }
  });
}

template <class Tiles>
void backward_units(Pool& pool, const AttentionBackward& f, const AttentionShape& s) {
  const Division work(s, pool, 2);
  const i64 W = round_up(s.D, kLanes), size = round_up(s.S, kLanes) * W;
  const auto tiles = [&](i64 thread) {
    const Range units = work.units_of(thread);
    return tiles_of<Tiles>(pool, thread, s, work.parts > 1 ? units.end - units.begin : 1);
  };
  // dk and dv of a head's keys, from the parts of its queries.
  const auto write = [&](i64 head, const float* const* dk, const float* const* dv, Range keys) {
    const i64 b = head / s.K, kh = head % s.K;
    for (i64 row = keys.begin; row < keys.end; ++row) {
      sum_parts(f.dk + b * f.dks.b + row * f.dks.t + kh * f.dks.h, dk, work.parts, row * W, s.D,
                s.scale);
      sum_parts(f.dv + b * f.dvs.b + row * f.dvs.t + kh * f.dvs.h, dv, work.parts, row * W, s.D,
                1.0f);
    }
  };
  for (i64 thread = 0; thread < work.threads; ++thread) tiles(thread);  // so that others find them
  work.run(pool, [&](int thread, Range units, int owner) {
    Tiles w = tiles(thread);
    const Tiles kept = work.parts > 1 ? tiles(owner) : w;  // has the parts of dk and dv
    for (i64 unit = units.begin; unit < units.end; ++unit) {
      const i64 slot = work.parts > 1 ? unit - work.units_of(owner).begin : 0;
      float *dk = kept.dk + slot * size, *dv = kept.dv + slot * size;
      for (i64 i = 0; i < size; ++i) dk[i] = dv[i] = 0;
      const Range panels = work.panels_of(unit);
      w.take_keys(f, s, work.panel(unit, panels.begin), panels.end - panels.begin > 1);
      for (i64 i = panels.begin; i < panels.end; ++i) w.panel(f, s, work.panel(unit, i), dk, dv);
      if (work.parts == 1) write(unit, &dk, &dv, {0, s.S});
    }
  });
  if (work.parts == 1) return;
  parallel(pool, [&](int thread) {
    const float *dk[kMaxParts], *dv[kMaxParts];
    for (i64 head = 0; head < s.B * s.K; ++head) {
      for (i64 part = 0; part < work.parts; ++part) {
        const i64 unit = head * work.parts + part, owner = work.thread_of(unit);
        const Tiles w = tiles(owner);
        dk[part] = w.dk + (unit - work.units_of(owner).begin) * size;
        dv[part] = w.dv + (unit - work.units_of(owner).begin) * size;
      }
      write(head, dk, dv, split(s.S, pool.threads(), thread));
    }
  });
}

}  // namespace

void attention_forward(Pool& pool, const AttentionForward& f, const AttentionShape& s) {
  if (s.T == 0 || s.S == 0 || s.D == 0) return;
  if (few_queries(s)) return few_forward(pool, f, s);
#if defined(TENARAI_AMX)
  if (in_digits(s)) return forward_units<DigitForward>(pool, f, s);
#elif defined(__AVX512VNNI__)
  if (in_words(s)) return forward_units<WordForward>(pool, f, s);
#endif
  forward_units<FloatForward>(pool, f, s);
}

void attention_backward(Pool& pool, const AttentionBackward& f, const AttentionShape& s) {
  if (s.T == 0 || s.S == 0 || s.D == 0) return;
  if (f.dsinks && s.sinks) sinks_backward(pool, f, s);
#if defined(TENARAI_AMX)
  if (in_digits(s)) return backward_units<DigitBackward>(pool, f, s);
#elif defined(__AVX512VNNI__)
  if (in_words(s)) return backward_units<WordBackward>(pool, f, s);
#endif
  backward_units<FloatBackward>(pool, f, s);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
