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
// queries sees, so on the causal diagonal they stop above it. Soft-cap and ALiBi change the tile a
// where it stands, dp with it: da = p (dp − D) (1 − tanh²). A sink is one more score in l, and its
// gradient a sum over the queries of what is known without keys.
#include <cmath>

#include "attention_few.h"
#include "attention_tiles.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

float dot(const float* a, const float* b, i64 n) {
  vf total = {};
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(a + i) * load(b + i);
  if (i < n) total += load_n(a + i, n - i) * load_n(b + i, n - i);
  return sum(total);
}

// Below every score: the greatest so far of a query that has met no key of its window yet.
constexpr float kLowest = -3e38f;

struct ForwardTiles {
  float *q, *y, *p;        // (D, 64), (D, 64), (64 keys, 64)
  float *top, *total;      // (64): m and l
  float *k_copy, *v_copy;  // (S, D)

  void lay(Cut& cut, const AttentionShape& s) {
    q = cut(s.D * kPanel), y = cut(s.D * kPanel), p = cut(kKeyTile * kPanel);
    top = cut(kPanel), total = cut(kPanel);
    k_copy = cut(s.S * s.D), v_copy = cut(s.S * s.D);
  }
};

// For kLanes queries and a tile of keys: a becomes p = 2^(a − m), m rises, and l and y so far
// shrink by 2^(old m − new m).
void softmax_column(const ForwardTiles& w, const Seen& seen, i64 column, i64 key, Range rows, i64 D,
                    bool first) {
  float* p = w.p + column;
  const Range free = seen.free_rows(column, key, rows);
  const vf old = first ? broadcast(kLowest) : load(w.top + column);
  vf top = old, total = {};
  const auto hide = [&](i64 begin, i64 end) {
    for (i64 s = begin; s < end; ++s) {
      store(p + s * kPanel, seen.mask(load(p + s * kPanel), column, key + s, -INFINITY));
      top = max(top, load(p + s * kPanel));
    }
  };
  hide(rows.begin, free.begin);
  vf tops[4] = {top, top, top, top};  // lest each wait for the one before it
  i64 row = free.begin;
  for (; row + 4 <= free.end; row += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) tops[i] = max(tops[i], load(p + (row + i) * kPanel));
  for (; row < free.end; ++row) tops[0] = max(tops[0], load(p + row * kPanel));
  top = max(max(tops[0], tops[1]), max(tops[2], tops[3]));
  hide(free.end, rows.end);
  for (i64 s = rows.begin; s < rows.end; ++s) {
    const vf e = exp2_weight(load(p + s * kPanel) - top);
    total += e;
    store(p + s * kPanel, e);
  }
  const vf shrink = exp2_weight(old - top);
  store(w.top + column, top);
  store(w.total + column, first ? total : load(w.total + column) * shrink + total);
  if (first || max_lane(top - old) == 0) return;  // as most often, further on
  for (i64 d = 0; d < D; ++d) {
    float* y = w.y + d * kPanel + column;
    store(y, load(y) * shrink);
  }
}

// y and ℓ of a panel from its sums; the sink comes in here. Queries that see no key have y = 0.
void finish_panel(const AttentionForward& f, const AttentionShape& shape, const ForwardTiles& w,
                  const Panel& panel, const Seen& seen) {
  const i64 D = shape.D, width = round_up(panel.count, kLanes);
  for (i64 i = 0; i < width; i += kLanes) {
    vf top = load(w.top + i), total = seen.of_those_who_see(load(w.total + i), i), shrink = {};
    shrink += 1.0f;
    if (shape.sinks) {
      const vf sink = broadcast(shape.sinks[panel.h] * kLog2E), old = top;
      top = max(sink, top);
      shrink = exp2_weight(old - top);
      total = total * shrink + exp2_weight(sink - top);
    }
    const vf share = seen.of_those_who_see(shrink / total, i);
    for (i64 d = 0; d < D; ++d) store(w.y + d * kPanel + i, load(w.y + d * kPanel + i) * share);
    store(w.top + i, top), store(w.total + i, total);
  }
  transpose(f.y + panel.query(f.ys), f.ys.t, w.y, kPanel, D, panel.count, 1.0f, false);
  float* lse = f.lse + (panel.b * shape.H + panel.h) * shape.T + panel.t;
  for (i64 i = 0; i < panel.count; ++i)
    lse[i] = w.total[i] == 0 ? 0 : w.top[i] * kLn2 + logf(w.total[i]);
}

void forward_panel(const AttentionForward& f, const AttentionShape& shape, const ForwardTiles& w,
                   const Panel& panel, Rows k, Rows v) {
  const i64 D = shape.D, width = round_up(panel.count, kLanes);
  const Seen seen(shape, panel.b, panel.t, panel.count);
  const Scores scores(shape, panel.h);
  const float place = static_cast<float>(panel.t + shape.S - shape.T);
  transpose(w.q, kPanel, f.q + panel.query(f.qs), f.qs.t, panel.count, D, scores.factor, true);
  bool fresh[kPanel / kStrip];
  for (bool& strip : fresh) strip = true;
  for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
    const i64 count = at_most(shape.S - s, kKeyTile);
    for (i64 strip = 0, n; strip < width; strip += n) {
      const Range rows = seen.rows(strip / kStrip, s, count);
      i64 last = strip / kStrip;  // of the strips that are taken together
      while ((last + 1) * kStrip < width && seen.rows(last + 1, s, count) == rows &&
             fresh[last + 1] == fresh[last])
        ++last;
      n = at_most((last + 1) * kStrip, width) - strip;
      if (empty(rows)) continue;
      const i64 height = rows.end - rows.begin;
      const bool first = fresh[last];
      float *q = w.q + strip, *y = w.y + strip, *p = w.p + rows.begin * kPanel + strip;
      tile_product<Left::rows>(p, kPanel, k.p + (s + rows.begin) * k.stride, k.stride, q, kPanel,
                               height, n, D, false);
      for (i64 i = strip; i < strip + n; i += kLanes) {
        if (!scores.plain()) modify(w.p + i, scores, place + static_cast<float>(i), s, rows);
        softmax_column(w, seen, i, s, rows, D, first);
      }
      tile_product<Left::columns>(y, kPanel, v.p + (s + rows.begin) * v.stride, v.stride, p, kPanel,
                                  D, n, height, !first);
      for (i64 i = strip / kStrip; i <= last; ++i) fresh[i] = false;
    }
  }
  for (i64 strip = 0; strip < width; strip += kStrip)
    if (fresh[strip / kStrip])  // saw nothing
      for (i64 i = strip; i < strip + kStrip; i += kLanes) {
        store(w.top + i, broadcast(kLowest));
        for (i64 d = 0; d < D; ++d) store(w.y + d * kPanel + i, vf{});
      }
  finish_panel(f, shape, w, panel, seen);
}

struct BackwardTiles {
  float *q_t, *dy_t, *dq_t;  // (D, 64): transposed
  float *q, *dy;             // (64, W): rows as wide as whole vectors
  float *p, *da;             // (64 keys, 64)
  float *lse, *delta;        // (64): ℓ in base 2, and D_t
  float *k_copy, *v_copy;    // (S, D)
  float *dk, *dv;            // (units, S, W): the sums over a unit's queries

  void lay(Cut& cut, const AttentionShape& s, const i64& units) {
    const i64 W = round_up(s.D, kLanes);
    q_t = cut(s.D * kPanel), dy_t = cut(s.D * kPanel), dq_t = cut(s.D * kPanel);
    q = cut(kPanel * W), dy = cut(kPanel * W);
    p = cut(kKeyTile * kPanel), da = cut(kKeyTile * kPanel), lse = cut(kPanel), delta = cut(kPanel);
    k_copy = cut(s.S * s.D), v_copy = cut(s.S * s.D);
    dk = cut(units * s.S * W), dv = cut(units * s.S * W);
  }
};

// For kLanes queries: p = 2^(a − ℓ) and da = p (dp − delta), where a and dp stood.
void scores_backward_column(const BackwardTiles& w, const Seen& seen, vf delta, i64 column, i64 key,
                            Range rows) {
  const vf lse = load(w.lse + column);
  const Range free = seen.free_rows(column, key, rows);
  for (i64 s = rows.begin; s < rows.end; ++s) {
    float *p = w.p + s * kPanel + column, *da = w.da + s * kPanel + column;
    vf weight = exp2_weight(load(p) - lse);
    if (s < free.begin || s >= free.end) weight = seen.mask(weight, column, key + s, 0);
    store(p, weight);
    store(da, weight * (load(da) - delta));
  }
}

// p = da = 0 for a strip and the rows of a tile that its queries do not see.
void clear_rows(const BackwardTiles& w, i64 strip, i64 n, Range rows) {
  for (i64 s = rows.begin; s < rows.end; ++s)
    for (i64 i = strip; i < strip + n; i += kLanes) {
      store(w.p + s * kPanel + i, vf{});
      store(w.da + s * kPanel + i, vf{});
    }
}

// The panel's q, dy, ℓ and D_t into the tiles, each the way that a product wants it.
void load_panel(const AttentionBackward& f, const AttentionShape& shape, const BackwardTiles& w,
                const Panel& panel, float factor) {
  const i64 D = shape.D, W = round_up(D, kLanes);
  const float *dy = f.dy + panel.query(f.dys), *y = f.y + panel.query(f.ys);
  copy_rows(w.q, W, f.q + panel.query(f.qs), f.qs.t, panel.count, D);
  copy_rows(w.dy, W, dy, f.dys.t, panel.count, D);
  transpose(w.q_t, kPanel, w.q, W, panel.count, D, factor, true);
  transpose(w.dy_t, kPanel, w.dy, W, panel.count, D, 1.0f, true);
  const float* lse = f.lse + (panel.b * shape.H + panel.h) * shape.T + panel.t;
  for (i64 t = 0; t < kPanel; ++t) {
    w.lse[t] = t < panel.count ? lse[t] * kLog2E : 0;
    w.delta[t] = t < panel.count ? dot(w.dy + t * W, y + t * f.ys.t, D) : 0;
  }
}

void backward_panel(const AttentionBackward& f, const AttentionShape& shape, const BackwardTiles& w,
                    const Panel& panel, Rows k, Rows v, float* dk, float* dv) {
  const i64 D = shape.D, W = round_up(D, kLanes), width = round_up(panel.count, kLanes);
  const Seen seen(shape, panel.b, panel.t, panel.count);
  const Scores scores(shape, panel.h);
  const float place = static_cast<float>(panel.t + shape.S - shape.T);
  load_panel(f, shape, w, panel, scores.factor);
  for (i64 i = 0; i < D * kPanel; i += kLanes) store(w.dq_t + i, vf{});
  for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
    const i64 count = at_most(shape.S - s, kKeyTile);
    for (i64 strip = 0, n; strip < width; strip += n) {
      const Range rows = seen.rows(strip / kStrip, s, count);
      i64 last = strip / kStrip;
      while ((last + 1) * kStrip < width && seen.rows(last + 1, s, count) == rows) ++last;
      n = at_most((last + 1) * kStrip, width) - strip;
      clear_rows(w, strip, n, {0, rows.begin});
      clear_rows(w, strip, n, {rows.end, count});
      if (empty(rows)) continue;
      const i64 height = rows.end - rows.begin, at = rows.begin * kPanel + strip;
      const float* k_rows = k.p + (s + rows.begin) * k.stride;
      tile_product<Left::rows>(w.p + at, kPanel, k_rows, k.stride, w.q_t + strip, kPanel, height, n,
                               D, false);
      tile_product<Left::rows>(w.da + at, kPanel, v.p + (s + rows.begin) * v.stride, v.stride,
                               w.dy_t + strip, kPanel, height, n, D, false);
      for (i64 i = strip; i < strip + n; i += kLanes) {
        vf delta = load(w.delta + i);
        if (!scores.plain()) {
          modify_backward(w.p + i, w.da + i, delta, scores, place + static_cast<float>(i), s, rows);
          delta = vf{};
        }
        scores_backward_column(w, seen, delta, i, s, rows);
      }
      tile_product<Left::columns>(w.dq_t + strip, kPanel, k_rows, k.stride, w.da + at, kPanel, D, n,
                                  height, true);
    }
    const bool all = seen.shared.begin <= s && s + count <= seen.shared.end;
    const i64 step = all ? kKeyTile : kTileRows;
    for (i64 row = 0; row < count; row += step) {
      const i64 rows = at_most(count - row, step);
      const Range queries = seen.queries({s + row, s + row + rows}, panel.count);
      if (empty(queries)) continue;
      const i64 from = queries.begin, n = queries.end - from;
      const float *p = w.p + row * kPanel + from, *da = w.da + row * kPanel + from;
      tile_product<Left::rows>(dv + (s + row) * W, W, p, kPanel, w.dy + from * W, W, rows, W, n,
                               true);
      tile_product<Left::rows>(dk + (s + row) * W, W, da, kPanel, w.q + from * W, W, rows, W, n,
                               true);
    }
  }
  transpose(f.dq + panel.query(f.dqs), f.dqs.t, w.dq_t, kPanel, D, panel.count, shape.scale, false);
}

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

}  // namespace

void attention_forward(Pool& pool, const AttentionForward& f, const AttentionShape& s) {
  if (s.T == 0 || s.S == 0 || s.D == 0) return;
  if (few_queries(s)) return few_forward(pool, f, s);
  const Division work(s, pool);
  work.run(pool, [&](int thread, Range units) {
    const auto w = tiles_of<ForwardTiles>(pool, thread, s);
    for (i64 unit = units.begin; unit < units.end; ++unit) {
      const Range panels = work.panels_of(unit);
      if (panels.begin == panels.end) continue;
      const Panel any = work.panel(unit, panels.begin);
      const bool many = panels.end - panels.begin > 1;
      const Rows k = rows_of(f.k, f.ks, any, w.k_copy, s.S, s.D, many);
      const Rows v = rows_of(f.v, f.vs, any, w.v_copy, s.S, s.D, many);
      for (i64 i = panels.begin; i < panels.end; ++i)
        forward_panel(f, s, w, work.panel(unit, i), k, v);
    }
  });
}

void attention_backward(Pool& pool, const AttentionBackward& f, const AttentionShape& s) {
  if (s.T == 0 || s.S == 0 || s.D == 0) return;
  if (f.dsinks && s.sinks) sinks_backward(pool, f, s);
  const Division work(s, pool);
  const i64 W = round_up(s.D, kLanes), size = s.S * W;
  const auto tiles = [&](i64 thread) {
    const Range units = work.units_of(thread);
    return tiles_of<BackwardTiles>(pool, thread, s, work.parts > 1 ? units.end - units.begin : 1);
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
  work.run(pool, [&](int thread, Range units) {
    const BackwardTiles w = tiles(thread);
    for (i64 unit = units.begin; unit < units.end; ++unit) {
      const i64 slot = work.parts > 1 ? unit - units.begin : 0;
      float *dk = w.dk + slot * size, *dv = w.dv + slot * size;
      for (i64 i = 0; i < size; ++i) dk[i] = dv[i] = 0;
      const Range panels = work.panels_of(unit);
      const Panel any = work.panel(unit, panels.begin);
      const bool many = panels.end - panels.begin > 1;
      const Rows k = rows_of(f.k, f.ks, any, w.k_copy, s.S, s.D, many);
      const Rows v = rows_of(f.v, f.vs, any, w.v_copy, s.S, s.D, many);
      for (i64 i = panels.begin; i < panels.end; ++i)
        backward_panel(f, s, w, work.panel(unit, i), k, v, dk, dv);
      if (work.parts == 1) write(unit, &dk, &dv, {0, s.S});
    }
  });
  if (work.parts == 1) return;
  parallel(pool, [&](int thread) {
    const float *dk[kMaxParts], *dv[kMaxParts];
    for (i64 head = 0; head < s.B * s.K; ++head) {
      for (i64 part = 0; part < work.parts; ++part) {
        const i64 unit = head * work.parts + part, owner = work.thread_of(unit);
        const BackwardTiles w = tiles(owner);
        dk[part] = w.dk + (unit - work.units_of(owner).begin) * size;
        dv[part] = w.dv + (unit - work.units_of(owner).begin) * size;
      }
      write(head, dk, dv, split(s.S, pool.threads(), thread));
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
