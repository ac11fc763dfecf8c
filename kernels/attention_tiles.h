// What attention's forward and backward share: how the work is divided, what is done to scores.
#pragma once

#include "attention_seen.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kMaxParts = 256;

// What becomes of the products r = factor · q·k: scores in base 2, a = cap tanh(r) − slope |x − s|.
struct Scores {
  float factor, cap, slope;  // cap 0: a = r; slope 0: none

  Scores(const AttentionShape& s, i64 h)
      : factor(s.soft_cap ? s.scale / s.soft_cap : s.scale * kLog2E),
        cap(s.soft_cap * kLog2E),
        slope(s.alibi ? s.alibi[h] * kLog2E : 0) {}
  bool plain() const { return cap == 0 && slope == 0; }
  // Of the key that lies `behind` it, lane for lane.
  TENARAI_ALWAYS vf bias(vf a, vf behind) const { return slope == 0 ? a : a - abs(behind) * slope; }
};
TENARAI_INLINE vf lane_numbers() {
  vf lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<float>(i);
  return lane;
}

// A tile of products, rows of keys from `key` on against kLanes queries from `place` on: scores.
static inline void modify(float* tile, const Scores& scores, float place, i64 key, Range rows) {
  const vf x = lane_numbers() + place;
  for (i64 s = rows.begin; s < rows.end; ++s) {
    vf a = load(tile + s * kPanel);
    if (scores.cap != 0) a = tanh(a) * scores.cap;
    store(tile + s * kPanel, scores.bias(a, x - static_cast<float>(key + s)));
  }
}
// The same, and dp becomes (dp − D) ∂a/∂r: what is left to do is to multiply by p.
static inline void modify_backward(float* tile, float* dp, vf delta, const Scores& scores,
                                   float place, i64 key, Range rows) {
  const vf x = lane_numbers() + place;
  for (i64 s = rows.begin; s < rows.end; ++s) {
    vf a = load(tile + s * kPanel), slope = vf{} + 1.0f;
    if (scores.cap != 0) {
      const vf u = tanh(a);
      a = u * scores.cap;
      slope = 1.0f - u * u;
    }
    store(tile + s * kPanel, scores.bias(a, x - static_cast<float>(key + s)));
    store(dp + s * kPanel, (load(dp + s * kPanel) - delta) * slope);
  }
}

// Up to 64 queries of one head.
struct Panel {
  i64 b, h, kh, t, count;
  i64 query(Strides s) const { return b * s.b + t * s.t + h * s.h; }
  i64 key(Strides s, i64 row) const { return b * s.b + row * s.t + kh * s.h; }
};

// The tile of keys with which the window of query t begins.
static inline i64 first_tile(const AttentionShape& s, i64 t) {
  return at_least(t + s.S - s.T - s.window + 1, 0) / kKeyTile * kKeyTile;
}

// Into how many parts each of `heads` equal pieces of work goes so that threads get nearly as much.
// At least `least` a thread, as far as that goes.
static inline i64 balanced_parts(i64 heads, i64 most, i64 threads, i64 least = 1) {
  if (threads == 1) return 1;
  i64 parts = 1;
  double best = 0;
  most = at_most(at_most(most, 2 * threads), kMaxParts);
  for (i64 n = 1; n <= most && best < 0.9; ++n) {
    if (heads * n < least * threads && n < most) continue;
    const i64 rounds = (heads * n + threads - 1) / threads;
    const double busy = static_cast<double>(heads * n) / static_cast<double>(rounds * threads);
    if (busy > best) best = busy, parts = n;
  }
  return parts;
}

// The division of the work. A unit is a part of the queries that share a batch and a key head; the
// parts are as many as it takes to give each thread nearly as much, and hold about as many scores.
struct Division {
  const AttentionShape& shape;
  i64 threads, panels, parts = 1;

  // least: units a thread should have, of which others can take those that it has not begun.
  Division(const AttentionShape& s, const Pool& pool, i64 least)
      : shape(s), threads(pool.threads()), panels(s.H / s.K * ((s.T + kPanel - 1) / kPanel)) {
    const i64 heads = s.B * s.K, work = heads * panels * s.S * s.D;
    if (work < 4096) threads = 1;
    parts = balanced_parts(heads, panels, threads, least);
  }

  i64 units() const { return shape.B * shape.K * parts; }
  Range units_of(i64 thread) const {
    return thread < threads ? split(units(), threads, thread) : Range{0, 0};
  }
  i64 thread_of(i64 unit) const {
    i64 thread = 0;
    while (unit >= units_of(thread).end) ++thread;
    return thread;
  }

  Panel panel(i64 unit, i64 index) const {
    const i64 per_head = panels / (shape.H / shape.K), head = unit / parts;
    const i64 kh = head % shape.K, t = index % per_head * kPanel;
    const i64 h = kh * (shape.H / shape.K) + index / per_head;
    return {head / shape.K, h, kh, t, at_most(shape.T - t, kPanel)};
  }
  // How many keys a panel sees, but for documents and lengths.
  i64 keys_of(i64 unit, i64 index) const {
    const Panel p = panel(unit, index);
    const i64 end = shape.causal ? p.t + p.count + shape.S - shape.T : shape.S;
    return at_least(end - first_tile(shape, p.t), 1);
  }
  // The panels of a unit's part: those whose share of all keys seen begins in its share of the sum.
  Range panels_of(i64 unit) const {
    i64 sum = 0, before = 0;
    for (i64 i = 0; i < panels; ++i) sum += keys_of(unit, i);
    const i64 part = unit % parts;
    Range range = {panels, panels};
    for (i64 i = 0; i < panels; ++i) {
      const i64 owner = before * parts / sum;
      if (owner == part && range.begin == panels) range.begin = i;
      if (owner > part) {
        range.end = i;
        break;
      }
      before += keys_of(unit, i);
    }
    if (range.begin > range.end) range.begin = range.end;
    return range;
  }

  // f(thread, some units, whose they are): all units, each once.
  template <class F>
  void run(Pool& pool, F&& f) const {
    if (threads == 1) return f(0, units_of(0), 0);
    parallel_pieces(pool, units(), threads, 1,
                    [&](int thread, Pool::Piece piece) { f(thread, piece.range, piece.owner); });
  }
};

// Memory cut from a thread's scratch: first counted (base null), then handed out.
struct Cut {
  float* base;
  i64 used;
  float* operator()(i64 floats) {
    float* here = base ? base + used : nullptr;
    used += round_up(floats, 16);
    return here;
  }
};
// A struct of pointers whose member lay(cut, args...) takes each from the cut.
template <class Tiles, class... Args>
static inline Tiles tiles_of(Pool& pool, i64 thread, const Args&... args) {
  Tiles tiles;
  Cut cut = {nullptr, 0};
  tiles.lay(cut, args...);
  const size_t bytes = static_cast<size_t>(cut.used) * sizeof(float);
  cut = {static_cast<float*>(pool.scratch(static_cast<int>(thread), bytes)), 0};
  tiles.lay(cut, args...);
  return tiles;
}

// to (rows, width) = from (rows, n), width >= n, zeros between.
static inline void copy_rows(float* to, i64 width, const float* from, i64 from_stride, i64 rows,
                             i64 n) {
  for (i64 r = 0; r < rows; ++r) {
    std::memcpy(to + r * width, from + r * from_stride, static_cast<size_t>(n) * 4);
    for (i64 i = n; i < width; ++i) to[r * width + i] = 0;
  }
}

// Keys or values of one head: in place, or a copy with the rows side by side, where the rows of
// many heads would lie pages apart and be read many times.
struct Rows {
  const float* p;
  i64 stride;
};
static inline Rows rows_of(const float* x, Strides s, const Panel& panel, float* copy, i64 S, i64 D,
                           bool many) {
  const float* from = x + panel.key(s, 0);
  if (!many || s.t == D) return {from, s.t};
  copy_rows(copy, D, from, s.t, S, D);
  return {copy, D};
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
