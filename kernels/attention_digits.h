// Attention's products on AMX, of floats as whole numbers of digits (digits.h): the same tiles.
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
// Each line of a panel has a scale for what is summed over, so three digits a float are as exact as
// floats beside the greatest of their row: a channel far above the others costs q k and dy v as
// many digits as it is above them. What is NaN or infinite in a key reaches all 64 queries of a
// panel that sees anything of its tile, in a query its own row alone, and in a gradient 64 keys.
#pragma once

#include "attention_softmax.h"
#include "digit_tiles.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

// From half a panel of queries on. Where it pays, with many more, is ops/fast_attention.py's
// affair.
static inline bool in_digits(const AttentionShape& s) {
  return s.products != Products::plain && s.T >= 32;
}

// The power of two below the greatest magnitude, 2^126 at most, and one over it. 0 of what is below
// 2^-100, 1 of what is not finite.
struct Size {
  float value = 1, inverse = 1;

  Size(const float* x, i64 n) {
    vi most = {};
    for (i64 i = 0; i < n; i += kLanes)
      most = larger(most, magnitude(n - i < kLanes ? load_n(x + i, n - i) : load(x + i)));
    int32_t greatest = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      greatest = most[lane] > greatest ? most[lane] : greatest;
    constexpr int32_t kOne = 127 << 23, kLeast = 27 << 23, kMost = 253 << 23, kNone = 255 << 23;
    const int32_t exponent = greatest & kNone;
    if (exponent == kNone) return;
    if (exponent < kLeast) {
      value = inverse = 0;
      return;
    }
    const int32_t power = exponent > kMost ? kMost : exponent, under = 2 * kOne - power;
    std::memcpy(&value, &power, sizeof value);
    std::memcpy(&inverse, &under, sizeof inverse);
  }
};

// The keys or values of a head: along d, and tile by tile with d as the lines. There each key is
// divided by its size, with which the other operand is multiplied instead: what a query does not
// see, and what weighs little, makes no line coarse.
struct DigitKeys {
  DigitPanels along, turned;
  float *sizes, *tile;
  i64 S, D;
  bool has_along, has_turned;

  void lay(Cut& cut, const AttentionShape& s, bool wants_along, bool wants_turned) {
    S = s.S, D = s.D;
    has_along = wants_along, has_turned = wants_turned;
    along.lay(cut, has_along ? S : 0, D);
    turned.lay(cut, has_turned ? (S + kKeyTile - 1) / kKeyTile * round_up(D, kLanes) : 0, kKeyTile);
    sizes = cut(has_turned ? round_up(S, kKeyTile) : 0);
    tile = cut(has_turned ? kKeyTile * round_up(D, kLanes) : 0);
  }
  void take(const float* x, i64 stride) const {
    if (has_along) along.template take<Side::a>(Along<Same>{x, stride}, S, D);
    const i64 W = round_up(D, kLanes);
    for (i64 key = 0; has_turned && key < S; key += kKeyTile) {
      const i64 count = at_most(S - key, kKeyTile);
      copy_rows(tile, W, x + key * stride, stride, count, D);
      for (i64 s = 0; s < count; ++s) sizes[key + s] = divided_by_size(tile + s * W, W);
      of_tile(key).template take<Side::a>(Across<Same>{tile, W}, D, count);
    }
  }
  DigitPanels of_tile(i64 key) const { return turned.from(key / kKeyTile * round_up(D, kLanes)); }
  static float divided_by_size(float* row, i64 W) {
    const Size size(row, W);
    for (i64 d = 0; d < W; d += kLanes) store(row + d, load(row + d) * size.inverse);
    return size.value;
  }
};

// The rows of a tile of keys that some query of a panel sees, and those of whole panels.
struct KeyRows {
  Range seen, panels;

  KeyRows(const Seen& all, i64 width, i64 key, i64 count)
      : seen(all.rows_of_all(width, key, count)),
        panels{seen.begin / kLanes * kLanes, round_up(seen.end, kLanes)} {}
  // Rows of panels that nobody sees, and those before them, become zeros.
  void clear(float* tile, i64 width) const {
    for (i64 s = 0; s < panels.end; ++s)
      if (s < seen.begin || s >= seen.end)
        for (i64 i = 0; i < width; i += kLanes) store(tile + s * kPanel + i, vf{});
  }
  i64 lines() const { return panels.end - panels.begin; }
};

struct DigitForward : ForwardTiles {
  DigitKeys k, v;
  DigitPanels q_panels, p_panels;

  void lay(Cut& cut, const AttentionShape& s) {
    ForwardTiles::lay(cut, s);
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
      digit_product(p + rows.panels.begin * kPanel, kPanel, k.along.from(s + rows.panels.begin),
                    q_panels, rows.lines(), width, false);
      for (i64 i = 0; i < width; i += kLanes) {
        if (!scores.plain()) modify(p + i, scores, place + static_cast<float>(i), s, rows.seen);
        softmax_column(*this, seen, i, s, rows.seen, D, first, kSlack,
                       [&](vf weight, i64 row) { return weight * v.sizes[s + row]; });
      }
      rows.clear(p, width);
      p_panels.template take<Side::b>(Across<Same>{p, kPanel}, width, rows.panels.end);
      digit_product(y, kPanel, v.of_tile(s), p_panels, D, width, !first);
      first = false;
    }
    if (first) saw_nothing(*this, 0, width, D);
    finish_panel(f, shape, *this, panel, seen);
  }
};

struct DigitBackward : BackwardTiles {
  DigitKeys k, v;
  DigitPanels q_panels, dy_panels;           // (64 queries, D)
  DigitPanels q_down, dy_down;               // (D, 64 queries)
  DigitPanels p_panels, da_panels, da_down;  // (64 keys, 64 queries), and the other way
  float *da_k, *q_sizes, *dy_sizes;          // da · the keys' sizes; (64)

  void lay(Cut& cut, const AttentionShape& s, const i64& units) {
    BackwardTiles::lay(cut, s, units);
    const i64 W = round_up(s.D, kLanes);
    k.lay(cut, s, true, true), v.lay(cut, s, true, false);
    q_panels.lay(cut, kPanel, s.D), dy_panels.lay(cut, kPanel, s.D);
    q_down.lay(cut, W, kPanel), dy_down.lay(cut, W, kPanel);
    p_panels.lay(cut, kKeyTile, kPanel), da_panels.lay(cut, kKeyTile, kPanel);
    da_down.lay(cut, kPanel, kKeyTile);
    da_k = cut(kKeyTile * kPanel), q_sizes = cut(kPanel), dy_sizes = cut(kPanel);
  }
  void take_keys(const AttentionBackward& f, const AttentionShape&, const Panel& any, bool) {
    k.take(f.k + any.key(f.ks, 0), f.ks.t);
    v.take(f.v + any.key(f.vs, 0), f.vs.t);
  }
  void panel(const AttentionBackward& f, const AttentionShape& shape, const Panel& panel, float* dk,
             float* dv) const {
    const WholeTiles tiles;
    const i64 D = shape.D, W = round_up(D, kLanes), width = round_up(panel.count, kLanes);
    const Seen seen(shape, panel.b, panel.t, panel.count);
    const Scores scores(shape, panel.h);
    const float place = static_cast<float>(panel.t + shape.S - shape.T);
    load_panel(f, shape, *this, panel, scores.factor);
    q_panels.template take<Side::b>(Across<Same>{q_t, kPanel}, width, D);
    dy_panels.template take<Side::b>(Across<Same>{dy_t, kPanel}, width, D);
    for (i64 t = 0; t < kPanel; ++t) {
      q_sizes[t] = t < panel.count ? DigitKeys::divided_by_size(q + t * W, W) : 0;
      dy_sizes[t] = t < panel.count ? DigitKeys::divided_by_size(dy + t * W, W) : 0;
    }
    q_down.template take<Side::b>(Across<Same>{q, W}, W, panel.count);
    dy_down.template take<Side::b>(Across<Same>{dy, W}, W, panel.count);
    bool first = true;
    for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
      const KeyRows rows(seen, width, s, at_most(shape.S - s, kKeyTile));
      if (empty(rows.seen)) continue;
      const i64 lines = rows.lines(), key = s + rows.panels.begin, at = rows.panels.begin * kPanel;
      digit_product(p + at, kPanel, k.along.from(key), q_panels, lines, width, false);
      digit_product(da + at, kPanel, v.along.from(key), dy_panels, lines, width, false);
      for (i64 i = 0; i < width; i += kLanes) {
        vf less = load(delta + i);
        if (!scores.plain()) {
          modify_backward(p + i, da + i, less, scores, place + static_cast<float>(i), s, rows.seen);
          less = vf{};
        }
        const vf dy_size = load(dy_sizes + i), q_size = load(q_sizes + i);
        scores_backward_column(*this, seen, less, i, s, rows.seen,
                               [&](vf weight, vf gradient, i64 row) {
                                 const i64 here = row * kPanel + i;
                                 store(p + here, weight * dy_size);
                                 store(da + here, gradient * q_size);
                                 store(da_k + here, gradient * k.sizes[s + row]);
                               });
      }
      rows.clear(p, width), rows.clear(da, width), rows.clear(da_k, width);
      p_panels.template take<Side::a>(Along<Same>{p + at, kPanel}, lines, panel.count);
      da_panels.template take<Side::a>(Along<Same>{da + at, kPanel}, lines, panel.count);
      da_down.template take<Side::b>(Across<Same>{da_k, kPanel}, width, rows.panels.end);
      digit_product(dq_t, kPanel, k.of_tile(s), da_down, D, width, !first);
      digit_product(dv + key * W, W, p_panels, dy_down, lines, W, true);
      digit_product(dk + key * W, W, da_panels, q_down, lines, W, true);
      first = false;
    }
    for (i64 i = 0; first && i < D * kPanel; i += kLanes) store(dq_t + i, vf{});  // saw nothing
    transpose(f.dq + panel.query(f.dqs), f.dqs.t, dq_t, kPanel, D, panel.count, shape.scale, false);
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
