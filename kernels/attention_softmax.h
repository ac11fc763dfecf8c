// What attention does between its products: the tiles of a panel, the softmax of a tile forward and
// backward, how a panel begins and ends.
#pragma once

#include <cmath>

#include "attention_tiles.h"

namespace tenarai {
namespace TENARAI_ISA {

static inline float dot(const float* a, const float* b, i64 n) {
  vf total = {};
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(a + i) * load(b + i);
  if (i < n) total += load_n(a + i, n - i) * load_n(b + i, n - i);
  return sum(total);
}

// A float holds p = 2^8 as well as 1, and y need not shrink with every new record.
constexpr float kSlack = 8;

// Below every score: the greatest so far of a query that has met no key of its window yet.
constexpr float kLowest = -3e38f;

struct ForwardTiles {
  float *q, *y, *p;    // (D, 64), (D and more, 64), (64 keys, 64)
  float *top, *total;  // (64): m and l

  void lay(Cut& cut, const AttentionShape& s) {
    q = cut(s.D * kPanel), y = cut(round_up(s.D, kLanes) * kPanel), p = cut(kKeyTile * kPanel);
    top = cut(kPanel), total = cut(kPanel);
  }
};

// For kLanes queries and a tile of keys: a becomes p = 2^(a − m), m rises where a score is above it
// by more than `slack`, and l and y so far shrink by 2^(old m − new m). p is at most 2^slack. It is
// kept as the product wants it: weighed(p, row).
template <class Weighed>
static inline void softmax_column(const ForwardTiles& w, const Seen& seen, i64 column, i64 key,
                                  Range rows, i64 D, bool first, float slack, Weighed weighed) {
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
  top = top > old + slack ? top : old;
  for (i64 s = rows.begin; s < rows.end; ++s) {
    const vf e = exp2_weight(load(p + s * kPanel) - top);
    total += e;
    store(p + s * kPanel, weighed(e, s));
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

static inline void softmax_column(const ForwardTiles& w, const Seen& seen, i64 column, i64 key,
                                  Range rows, i64 D, bool first, float slack = kSlack) {
  softmax_column(w, seen, column, key, rows, D, first, slack, [](vf p, i64) { return p; });
}

// For queries [begin, end) that have met no key.
static inline void saw_nothing(const ForwardTiles& w, i64 begin, i64 end, i64 D) {
  for (i64 i = begin; i < end; i += kLanes) {
    store(w.top + i, broadcast(kLowest));
    for (i64 d = 0; d < D; ++d) store(w.y + d * kPanel + i, vf{});
  }
}

// y and ℓ of a panel from its sums; the sink comes in here. Queries that see no key have y = 0.
static inline void finish_panel(const AttentionForward& f, const AttentionShape& shape,
                                const ForwardTiles& w, const Panel& panel, const Seen& seen) {
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

struct BackwardTiles {
  float *q_t, *dy_t, *dq_t;  // (D, 64): transposed; dq_t has room for whole vectors of rows
  float *q, *dy;             // (64, W): rows as wide as whole vectors
  float *p, *da;             // (64 keys, 64)
  float *lse, *delta;        // (64): ℓ in base 2, and D_t
  float *dk, *dv;            // (units, S, W): the sums over a unit's queries; whole vectors of rows

  void lay(Cut& cut, const AttentionShape& s, i64 units) {
    const i64 W = round_up(s.D, kLanes);
    q_t = cut(s.D * kPanel), dy_t = cut(s.D * kPanel), dq_t = cut(W * kPanel);
    q = cut(kPanel * W), dy = cut(kPanel * W);
    p = cut(kKeyTile * kPanel), da = cut(kKeyTile * kPanel), lse = cut(kPanel), delta = cut(kPanel);
    const i64 size = round_up(s.S, kLanes) * W;
    dk = cut(units * size), dv = cut(units * size);
  }
};

// For kLanes queries: p = 2^(a − ℓ) and da = p (dp − delta), of a and dp in the tiles, are kept by
// keep(p, da, row).
template <class Keep>
static inline void scores_backward_column(const BackwardTiles& w, const Seen& seen, vf delta,
                                          i64 column, i64 key, Range rows, Keep keep) {
  const vf lse = load(w.lse + column);
  const Range free = seen.free_rows(column, key, rows);
  for (i64 s = rows.begin; s < rows.end; ++s) {
    const i64 at = s * kPanel + column;
    vf weight = exp2_weight(load(w.p + at) - lse);
    if (s < free.begin || s >= free.end) weight = seen.mask(weight, column, key + s, 0);
    keep(weight, weight * (load(w.da + at) - delta), s);
  }
}
// Where a and dp stood.
static inline void scores_backward_column(const BackwardTiles& w, const Seen& seen, vf delta,
                                          i64 column, i64 key, Range rows) {
  scores_backward_column(w, seen, delta, column, key, rows, [&](vf p, vf da, i64 s) {
    store(w.p + s * kPanel + column, p);
    store(w.da + s * kPanel + column, da);
  });
}

// The panel's q, dy, ℓ and D_t into the tiles, each the way that a product wants it.
static inline void load_panel(const AttentionBackward& f, const AttentionShape& shape,
                              const BackwardTiles& w, const Panel& panel, float factor) {
  const i64 D = shape.D, W = round_up(D, kLanes);
  const float *dy = f.dy + panel.query(f.dys), *y = f.y + panel.query(f.ys);
  copy_rows(w.q, W, f.q + panel.query(f.qs), f.qs.t, panel.count, D);
  copy_rows(w.dy, W, dy, f.dys.t, panel.count, D);
  transpose(w.q_t, kPanel, w.q, W, panel.count, D, factor, true);
  transpose(w.dy_t, kPanel, w.dy, W, panel.count, D, 1.0f, true);
  const float* lse = f.lse + (panel.b * shape.H + panel.h) * shape.T + panel.t;
  for (i64 t = 0; t < kPanel; ++t) {
    w.lse[t] = t < panel.count ? lse[t] * kLog2E : -kLowest;  // no weight past the last
    w.delta[t] = t < panel.count ? dot(w.dy + t * W, y + t * f.ys.t, D) : 0;
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
