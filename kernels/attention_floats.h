// Attention's products in float32, a panel of queries at a time.
#pragma once

#include "attention_softmax.h"

namespace tenarai {
namespace TENARAI_ISA {

struct FloatForward : ForwardTiles {
  float *k_copy, *v_copy;  // (S, D)
  Rows k, v;

  void lay(Cut& cut, const AttentionShape& s) {
    ForwardTiles::lay(cut, s);
    k_copy = cut(s.S * s.D), v_copy = cut(s.S * s.D);
  }
  // The keys of a head, for the panels to come; `many` of them.
  void take_keys(const AttentionForward& f, const AttentionShape& s, const Panel& any, bool many) {
    k = rows_of(f.k, f.ks, any, k_copy, s.S, s.D, many);
    v = rows_of(f.v, f.vs, any, v_copy, s.S, s.D, many);
  }
  void panel(const AttentionForward& f, const AttentionShape& shape, const Panel& panel) const;
};

inline void FloatForward::panel(const AttentionForward& f, const AttentionShape& shape,
                                const Panel& panel) const {
  const FloatForward& w = *this;
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
    if (fresh[strip / kStrip]) saw_nothing(w, strip, strip + kStrip, D);
  finish_panel(f, shape, w, panel, seen);
}

// p = da = 0 for a strip and the rows of a tile that its queries do not see.
static inline void clear_rows(const BackwardTiles& w, i64 strip, i64 n, Range rows) {
  for (i64 s = rows.begin; s < rows.end; ++s)
    for (i64 i = strip; i < strip + n; i += kLanes) {
      store(w.p + s * kPanel + i, vf{});
      store(w.da + s * kPanel + i, vf{});
    }
}

struct FloatBackward : BackwardTiles {
  float *k_copy, *v_copy;  // (S, D)
  Rows k, v;

  void lay(Cut& cut, const AttentionShape& s, const i64& units) {
    BackwardTiles::lay(cut, s, units);
    k_copy = cut(s.S * s.D), v_copy = cut(s.S * s.D);
  }
  void take_keys(const AttentionBackward& f, const AttentionShape& s, const Panel& any, bool many) {
    k = rows_of(f.k, f.ks, any, k_copy, s.S, s.D, many);
    v = rows_of(f.v, f.vs, any, v_copy, s.S, s.D, many);
  }
  void panel(const AttentionBackward& f, const AttentionShape& shape, const Panel& panel, float* dk,
             float* dv) const;
};

inline void FloatBackward::panel(const AttentionBackward& f, const AttentionShape& shape,
                                 const Panel& panel, float* dk, float* dv) const {
  const FloatBackward& w = *this;
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

}  // namespace TENARAI_ISA
}  // namespace tenarai
