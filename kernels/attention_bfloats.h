// Attention's products on AMX, of floats as sums of bfloat16s (bfloats.h): the same tiles.
//
//                A                    B                summed over
//   a = k qᵀ     k along d            qᵀ               d
//   yᵀ = vᵀ p    v, turned            p                64 keys
//
//   dp = v dyᵀ   v along d            dyᵀ              d
//   dv = p dy    p                    dy               64 queries
//   dk = da q    da                   q                64 queries
//   dqᵀ = kᵀ da  k, turned            da               64 keys
//
// Three parts a float are as exact as floats. A NaN in a query or a key reaches all 64 queries of a
// panel that sees its tile.
#pragma once

#include "attention_softmax.h"
#include "bfloats.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

// From half a panel of queries on. Where it pays, with many more, is ops/fast_attention.py's affair.
static inline bool in_bfloats(const AttentionShape& s) {
  return s.products != Products::plain && s.T >= 32;
}

// The keys or values of a head: along d, and tile by tile with d as the lines.
template <int kParts>
struct BfloatKeys {
  BfloatPanels<kParts> along, turned;
  i64 S, D;
  bool has_along, has_turned;

  void lay(Cut& cut, const AttentionShape& s, bool wants_along, bool wants_turned) {
    S = s.S, D = s.D;
    has_along = wants_along, has_turned = wants_turned;
    along.lay(cut, has_along ? S : 0, D);
    turned.lay(cut, has_turned ? tiles() * round_up(D, kLanes) : 0, kKeyTile);
  }
  void take(const float* x, i64 stride) const {
    if (has_along) along.template take<Side::a>(Along<Same>{x, stride}, S, D);
    for (i64 key = 0; has_turned && key < S; key += kKeyTile)
      of_tile(key).template take<Side::a>(Across<Same>{x + key * stride, stride}, D,
                                          at_most(S - key, kKeyTile));
  }
  BfloatPanels<kParts> of_tile(i64 key) const {
    return turned.from(key / kKeyTile * round_up(D, kLanes), 0);
  }

 private:
  i64 tiles() const { return (S + kKeyTile - 1) / kKeyTile; }
};

// The rows of a tile of keys that some query of a panel sees; those of whole panels, and those of
// whole steps.
struct KeyRows {
  Range seen, panels, steps;

  KeyRows(const Seen& all, i64 width, i64 key, i64 count) : seen{0, 0} {
    for (i64 strip = 0; strip < width; strip += kStrip)
      seen = hull(seen, all.rows(strip / kStrip, key, count));
    panels = {seen.begin / kLanes * kLanes, round_up(seen.end, kLanes)};
    steps = {seen.begin / kBfloatDepth * kBfloatDepth, round_up(seen.end, kBfloatDepth)};
  }
  // Rows of steps that nobody sees become zeros.
  void clear(float* tile, i64 width) const {
    for (i64 s = steps.begin; s < steps.end; ++s)
      if (s < seen.begin || s >= seen.end)
        for (i64 i = 0; i < width; i += kLanes) store(tile + s * kPanel + i, vf{});
  }
  i64 lines() const { return panels.end - panels.begin; }
  i64 depth() const { return steps.end - steps.begin; }
  i64 count() const { return depth() / kBfloatDepth; }
};

template <int kParts>
struct BfloatForward : ForwardTiles {
  using Panels = BfloatPanels<kParts>;
  BfloatKeys<kParts> k, v;
  Panels q_panels, p_panels;

  void lay(Cut& cut, const AttentionShape& s) {
    ForwardTiles::lay(cut, s);
    y = cut(round_up(s.D, kLanes) * kPanel);
    k.lay(cut, s, true, false), v.lay(cut, s, false, true);
    q_panels.lay(cut, kPanel, s.D), p_panels.lay(cut, kPanel, kKeyTile);
  }
  void take_keys(const AttentionForward& f, const AttentionShape&, const Panel& any, bool) {
    k.take(f.k + any.key(f.ks, 0), f.ks.t);
    v.take(f.v + any.key(f.vs, 0), f.vs.t);
  }
  void panel(const AttentionForward& f, const AttentionShape& shape, const Panel& panel) const {
    const WholeTiles tiles;
    const i64 D = shape.D, width = round_up(panel.count, kLanes);
    const Seen seen(shape, panel.b, panel.t, panel.count);
    const Scores scores(shape, panel.h);
    const float place = static_cast<float>(panel.t + shape.S - shape.T);
    transpose(q, kPanel, f.q + panel.query(f.qs), f.qs.t, panel.count, D, scores.factor, true);
    q_panels.template take<Side::b>(Across<Same>{q, kPanel}, width, D);
    bool first = true;
    for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
      const KeyRows rows(seen, width, s, at_most(shape.S - s, kKeyTile));
      if (empty(rows.seen)) continue;
      bfloat_product(p + rows.panels.begin * kPanel, kPanel, k.along.from(s + rows.panels.begin, 0),
                     q_panels, rows.lines(), width, Panels::steps_of(D), false);
      for (i64 i = 0; i < width; i += kLanes) {
        if (!scores.plain()) modify(p + i, scores, place + static_cast<float>(i), s, rows.seen);
        softmax_column(*this, seen, i, s, rows.seen, D, first);
      }
      rows.clear(p, width);
      p_panels.template take<Side::b>(Across<Same>{p + rows.steps.begin * kPanel, kPanel}, width,
                                      rows.depth());
      bfloat_product(y, kPanel, v.of_tile(s).from(0, rows.steps.begin), p_panels, D, width,
                     rows.count(), !first);
      first = false;
    }
    if (first)  // saw nothing
      for (i64 i = 0; i < width; i += kLanes) {
        store(top + i, broadcast(kLowest));
        for (i64 d = 0; d < D; ++d) store(y + d * kPanel + i, vf{});
      }
    finish_panel(f, shape, *this, panel, seen);
  }
};

template <int kParts>
struct BfloatBackward : BackwardTiles {
  using Panels = BfloatPanels<kParts>;
  BfloatKeys<kParts> k, v;
  Panels q_panels, dy_panels;           // (64 queries, D)
  Panels q_down, dy_down;               // (D, 64 queries)
  Panels p_panels, da_panels, da_down;  // (64 keys, 64 queries), and the other way

  void lay(Cut& cut, const AttentionShape& s, const i64& units) {
    BackwardTiles::lay(cut, s, units);
    const i64 W = round_up(s.D, kLanes);
    dq_t = cut(W * kPanel);
    k.lay(cut, s, true, true), v.lay(cut, s, true, false);
    q_panels.lay(cut, kPanel, s.D), dy_panels.lay(cut, kPanel, s.D);
    q_down.lay(cut, W, kPanel), dy_down.lay(cut, W, kPanel);
    p_panels.lay(cut, kKeyTile, kPanel), da_panels.lay(cut, kKeyTile, kPanel);
    da_down.lay(cut, kPanel, kKeyTile);
  }
  void take_keys(const AttentionBackward& f, const AttentionShape&, const Panel& any, bool) {
    k.take(f.k + any.key(f.ks, 0), f.ks.t);
    v.take(f.v + any.key(f.vs, 0), f.vs.t);
  }
  void panel(const AttentionBackward& f, const AttentionShape& shape, const Panel& panel, float* dk,
             float* dv) const {
    const WholeTiles tiles;
    const i64 D = shape.D, W = round_up(D, kLanes), width = round_up(panel.count, kLanes);
    const i64 channels = Panels::steps_of(D), queries = Panels::steps_of(panel.count);
    const Seen seen(shape, panel.b, panel.t, panel.count);
    const Scores scores(shape, panel.h);
    const float place = static_cast<float>(panel.t + shape.S - shape.T);
    load_panel(f, shape, *this, panel, scores.factor);
    q_panels.template take<Side::b>(Across<Same>{q_t, kPanel}, width, D);
    dy_panels.template take<Side::b>(Across<Same>{dy_t, kPanel}, width, D);
    q_down.template take<Side::b>(Across<Same>{q, W}, W, panel.count);
    dy_down.template take<Side::b>(Across<Same>{dy, W}, W, panel.count);
    bool first = true;
    for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
      const KeyRows rows(seen, width, s, at_most(shape.S - s, kKeyTile));
      if (empty(rows.seen)) continue;
      const i64 lines = rows.lines(), key = s + rows.panels.begin, at = rows.panels.begin * kPanel;
      bfloat_product(p + at, kPanel, k.along.from(key, 0), q_panels, lines, width, channels, false);
      bfloat_product(da + at, kPanel, v.along.from(key, 0), dy_panels, lines, width, channels,
                     false);
      for (i64 i = 0; i < width; i += kLanes) {
        vf less = load(delta + i);
        if (!scores.plain()) {
          modify_backward(p + i, da + i, less, scores, place + static_cast<float>(i), s, rows.seen);
          less = vf{};
        }
        scores_backward_column(*this, seen, less, i, s, rows.seen);
      }
      rows.clear(p, width), rows.clear(da, width);
      p_panels.template take<Side::a>(Along<Same>{p + at, kPanel}, lines, panel.count);
      da_panels.template take<Side::a>(Along<Same>{da + at, kPanel}, lines, panel.count);
      da_down.template take<Side::b>(Across<Same>{da + rows.steps.begin * kPanel, kPanel}, width,
                                     rows.depth());
      bfloat_product(dq_t, kPanel, k.of_tile(s).from(0, rows.steps.begin), da_down, D, width,
                     rows.count(), !first);
      bfloat_product(dv + key * W, W, p_panels, dy_down, lines, W, queries, true);
      bfloat_product(dk + key * W, W, da_panels, q_down, lines, W, queries, true);
      first = false;
    }
    for (i64 i = 0; first && i < D * kPanel; i += kLanes) store(dq_t + i, vf{});  // saw nothing
    transpose(f.dq + panel.query(f.dqs), f.dqs.t, dq_t, kPanel, D, panel.count, shape.scale, false);
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
