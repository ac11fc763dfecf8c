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
#include "digits.h"

#if defined(TENARAI_AMX)

namespace tenarai {
namespace TENARAI_ISA {

// From half a panel of queries on. Where it pays, with many more, is ops/fast_attention.py's
// affair.
static inline bool in_digits(const AttentionShape& s) {
  return s.products != Products::plain && s.T >= 32;
}

using AttentionPanel = DigitPanel<3>;

// Panels of as many ks, one after the other.
struct DigitPanels {
  float* memory;
  i64 k;

  void lay(Cut& cut, i64 lines, i64 ks) {
    k = ks;
    memory = cut((lines + kLanes - 1) / kLanes * floats());
  }
  i64 floats() const { return AttentionPanel::floats(k); }
  i64 steps() const { return AttentionPanel::steps_of(k); }
  i64 whole_steps() const { return AttentionPanel::whole_steps(k); }
  // Without the lines before a panel.
  DigitPanels from(i64 line) const { return {memory + line / kLanes * floats(), k}; }
  // Lines and ks of an operand; zeros fill up panels and steps.
  template <Side side, class Operand>
  void take(const Operand& from, i64 lines, i64 ks) const {
    for (i64 line = 0; line < lines; line += kLanes)
      AttentionPanel(memory + line / kLanes * floats(), k)
          .template take<side>(from, line, at_most(lines - line, kLanes), 0, ks, nullptr);
  }
};

// A block's sums (3, 16, 16) on their way into c (16, 16): = or += the sums, times the scales of
// A's lines and of B's. A few rows at a time, between the next block's products: the tiles have a
// unit of their own, but much at once would fill the buffer in which instructions wait.
template <bool kAdd>
struct SumsToPut {
  float* c;
  i64 c_stride;
  const int32_t* sums;
  const float* a_scales;
  vf b_scales;

  template <int kFirst, int kRows>
  TENARAI_ALWAYS void rows() const {
#pragma GCC unroll 16
    for (int r = kFirst; r < kFirst + kRows; ++r) {
      vf v = (whole(r, 0) * 256.0f + whole(r, 1)) * 256.0f + whole(r, 2);
      float* to = c + r * c_stride;
      v = v * a_scales[r] * b_scales;
      store(to, kAdd ? v + load(to) : v);
    }
    tiles_read_memory();  // so that they stay where they are
  }

 private:
  TENARAI_ALWAYS vf whole(int r, int power) const {
    vi v;
    std::memcpy(&v, sums + power * kAmxFloats + r * kLanes, sizeof v);
    return __builtin_convertvector(v, vf);
  }
};

// Tiles 0 to 2 are the sums, 3 to 5 A's, 6 and 7 B's. A's panel has kWhole steps (2: any number
// from two on) and half a step. Of one, or of half a step alone, its tiles stay for the next block.
template <bool kAdd, int kWhole, bool kHalf>
struct DigitBlock {
  using Before = SumsToPut<kAdd>;
  static constexpr i64 kTile = kAmxFloats, kStep = AttentionPanel::kStep;

  static TENARAI_ALWAYS void keep(const float* a) {
    _tile_loadd(3, a, 64);
    if constexpr (kWhole > 0) _tile_loadd(4, a + kTile, 64);
    _tile_loadd(5, a + 2 * kTile, 64);
  }
  static TENARAI_ALWAYS void sums(int32_t* to, const float* a, const float* b, i64 steps,
                                  const Before& before) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    if constexpr (kWhole > 0) {
      step<true>(to, b, before);
      for (i64 i = 1; kWhole > 1 && i < steps; ++i) {
        a += kStep, b += kStep;
        keep(a);
        step<false>(to, b, before);
      }
      a += kStep, b += kStep;
    }
    if constexpr (kHalf) half(a, b, before);
    if constexpr (!kOneStep) {
      _tile_stored(0, to, 64);
      _tile_stored(1, to + kTile, 64);
      _tile_stored(2, to + 2 * kTile, 64);
    }
  }

 private:
  static constexpr bool kOneStep = kWhole == 1 && !kHalf;
  template <bool kSome, int kFirst, int kRows>
  static TENARAI_ALWAYS void rows(const Before& before) {
    if constexpr (kSome) before.template rows<kFirst, kRows>();
  }
  // Rows of the block before go between the first step's products, or some of them between those
  // of the half that follows.
  template <bool kFirst>
  static TENARAI_ALWAYS void step(int32_t* to, const float* b, const Before& before) {
    constexpr int kMany = kWhole == 1 && kHalf ? 2 : 3;
    _tile_loadd(6, b + 2 * kTile, 64);
    _tile_dpbssd(0, 5, 6);
    rows<kFirst, 0, kMany>(before);
    _tile_loadd(7, b + kTile, 64);
    _tile_dpbssd(1, 4, 6);
    rows<kFirst, kMany, kMany>(before);
    if constexpr (kOneStep) _tile_stored(0, to, 64);
    _tile_dpbssd(2, 3, 6);
    rows<kFirst, 2 * kMany, kMany>(before);
    _tile_loadd(6, b, 64);
    _tile_dpbssd(1, 5, 7);
    rows<kFirst, 3 * kMany, kMany>(before);
    _tile_dpbssd(2, 4, 7);
    rows<kFirst, 4 * kMany, 2>(before);
    if constexpr (kOneStep) _tile_stored(1, to + kTile, 64);
    _tile_dpbssd(2, 5, 6);
    rows<kFirst, 4 * kMany + 2, 2>(before);
    if constexpr (kOneStep) _tile_stored(2, to + 2 * kTile, 64);
  }
  static TENARAI_ALWAYS void half(const float* a, const float* b, const Before& before) {
    if constexpr (kWhole == 0) {
      _tile_loadd(6, b + 2 * kTile, 64);
      _tile_dpbssd(0, 5, 6);
      before.template rows<0, 4>();
      _tile_loadd(7, b + kTile, 64);
      _tile_dpbssd(2, 3, 6);
      before.template rows<4, 4>();
      _tile_loadd(6, b, 64);
      _tile_dpbssd(1, 5, 7);
      before.template rows<8, 4>();
      _tile_dpbssd(2, 5, 6);
      before.template rows<12, 4>();
    } else {
      _tile_loadd(6, a + 2 * kTile, 64);
      _tile_loadd(7, b + 2 * kTile, 64);
      _tile_dpbssd(0, 6, 7);
      rows<kWhole == 1, 12, 1>(before);
      _tile_loadd(7, b + kTile, 64);
      _tile_dpbssd(1, 6, 7);
      rows<kWhole == 1, 13, 1>(before);
      _tile_loadd(7, b, 64);
      _tile_dpbssd(2, 6, 7);
      rows<kWhole == 1, 14, 1>(before);
      _tile_loadd(6, a, 64);
      _tile_loadd(7, b + 2 * kTile, 64);
      _tile_dpbssd(2, 6, 7);
      rows<kWhole == 1, 15, 1>(before);
    }
  }
};

// C (M, N) = or += A (M lines) B (N lines). Whole tiles of C are written. The thread has
// WholeTiles.
template <bool kAdd, int kWhole, bool kHalf>
static __attribute__((noinline)) void digit_blocks(float* c, i64 c_stride, const DigitPanels& a,
                                                   const DigitPanels& b, i64 M, i64 N) {
  using Block = DigitBlock<kAdd, kWhole, kHalf>;
  constexpr float kUnit = 65536.0f / AttentionPanel::kMost / AttentionPanel::kMost;
  alignas(64) int32_t sums[2][3 * kAmxFloats];
  alignas(64) float a_scales[2][kLanes] = {}, nowhere[kAmxFloats] = {};
  const i64 greatest = a.steps() * AttentionPanel::kStep;
  SumsToPut<kAdd> before{nowhere, kLanes, sums[1], a_scales[0], vf{}};
  int now = 0, line = 0;
  tiles_read_memory();
  for (i64 i = 0; i < M; i += kLanes) {
    const float* pa = a.from(i).memory;
    line ^= 1;
    store(a_scales[line], load(pa + greatest) * kUnit);
    for (i64 j = 0; j < N; j += kLanes, now ^= 1) {
      const float* pb = b.from(j).memory;
      if (j == 0 || kWhole > 1) Block::keep(pa);
      Block::sums(sums[now], pa, pb, a.whole_steps(), before);
      before = {c + i * c_stride + j, c_stride, sums[now], a_scales[line], load(pb + greatest)};
    }
  }
  before.template rows<0, kLanes>();
}
template <bool kAdd>
static auto blocks_for(i64 whole, bool half) {
  return whole == 0   ? &digit_blocks<kAdd, 0, true>
         : whole == 1 ? half ? &digit_blocks<kAdd, 1, true> : &digit_blocks<kAdd, 1, false>
         : half       ? &digit_blocks<kAdd, 2, true>
                      : &digit_blocks<kAdd, 2, false>;
}
static void digit_product(float* c, i64 c_stride, const DigitPanels& a, const DigitPanels& b, i64 M,
                          i64 N, bool add) {
  const i64 whole = a.whole_steps();
  const bool half = a.steps() > whole;
  (add ? blocks_for<true>(whole, half) : blocks_for<false>(whole, half))(c, c_stride, a, b, M, N);
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

  KeyRows(const Seen& all, i64 width, i64 key, i64 count) : seen{0, 0} {
    for (i64 strip = 0; strip < width; strip += kStrip)
      seen = hull(seen, all.rows(strip / kStrip, key, count));
    panels = {seen.begin / kLanes * kLanes, round_up(seen.end, kLanes)};
  }
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
    if (first)  // saw nothing
      for (i64 i = 0; i < width; i += kLanes) {
        store(top + i, broadcast(kLowest));
        for (i64 d = 0; d < D; ++d) store(y + d * kPanel + i, vf{});
      }
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
