// Attention of a few queries to many keys, as when a model writes: forward only.
//
// The keys and values are read once, in place, and that is what it costs; so here the lanes of a
// vector hold channels, not queries. kLanes keys at a time are multiplied with a query, and one
// transpose turns kLanes sums over lanes into additions. Where there are fewer heads than threads
// the keys are divided: each part has its own m, l and y, and parts are put together like tiles,
//
//   y = Σ_parts 2^(m_part − m) y_part / Σ_parts 2^(m_part − m) l_part,   m the greatest.
#pragma once

#include <cmath>

#include "attention_tiles.h"

namespace tenarai {
namespace TENARAI_ISA {

// Where a panel's vectors would be mostly empty, and no option but causal and window is in use.
static inline bool few_queries(const AttentionShape& s) {
  const bool plain = !s.documents && !s.lengths && !s.prefix && !s.alibi && !s.sinks &&
                     s.soft_cap == 0 && (s.causal || s.window == kNoWindow);
  return plain && s.T * 4 <= kStrip;
}

struct FewTiles {
  float *q, *p;            // (n, W), (n, 64 keys): n = the queries of a key head, W whole vectors
  float *y, *top, *total;  // (units, n, W), (units, n) twice

  void lay(Cut& cut, const AttentionShape& s, const i64& units) {
    const i64 n = s.H / s.K * s.T, W = round_up(s.D, kLanes);
    q = cut(n * W), p = cut(n * kKeyTile);
    y = cut(units * n * W), top = cut(units * n), total = cut(units * n);
  }
};

// p[i] = q · k_i for kLanes keys, of which `count` are there.
static inline void few_scores(float* p, const float* q, const float* k, i64 stride, i64 count,
                              i64 D) {
  vf sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = vf{};
  for (i64 d = 0; d < D; d += kLanes) {
    const vf left = load(q + d);
    for (int i = 0; i < kLanes; ++i) {
      const float* row = k + at_most(i, count - 1) * stride + d;
      sums[i] += left * (D - d >= kLanes ? load(row) : load_n(row, D - d));
    }
  }
  transpose(sums);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  store(p, sums[0]);
}

// One query and a tile of keys: p = 2^(a − m) in place; m, l and y as in softmax_column.
static inline void few_softmax(float* p, Range seen, i64 count, float* top, float* total, float* y,
                               i64 W) {
  for (i64 i = 0; i < at_most(seen.begin, count); ++i) p[i] = -INFINITY;
  for (i64 i = at_least(seen.end, 0); i < round_up(count, kLanes); ++i) p[i] = -INFINITY;
  vf greatest = broadcast(*top), sums = {};
  for (i64 i = 0; i < count; i += kLanes) greatest = max(greatest, load(p + i));
  const float m = max_lane(greatest);
  if (m == -INFINITY) {  // none seen so far
    for (i64 i = 0; i < count; ++i) p[i] = 0;
    return;
  }
  for (i64 i = 0; i < count; i += kLanes) {
    const vf e = exp2_weight(load(p + i) - m);
    sums += e;
    store(p + i, e);
  }
  const vf shrink = exp2_weight(broadcast(*top - m));
  *total = *total * shrink[0] + sum(sums);
  *top = m;
  for (i64 d = 0; d < W; d += kLanes) store(y + d, load(y + d) * shrink);
}

// The queries of one key head against the keys of a range.
static inline void few_unit(const AttentionForward& f, const AttentionShape& s, const FewTiles& w,
                            i64 slot, i64 b, i64 kh, Range keys) {
  const i64 G = s.H / s.K, n = G * s.T, W = round_up(s.D, kLanes), whole = s.D / kLanes * kLanes;
  float *y = w.y + slot * n * W, *top = w.top + slot * n, *total = w.total + slot * n;
  for (i64 j = 0; j < n; ++j) {
    const float* q = f.q + b * f.qs.b + j % s.T * f.qs.t + (kh * G + j / s.T) * f.qs.h;
    for (i64 d = 0; d < W; ++d) {
      w.q[j * W + d] = d < s.D ? q[d] * (s.scale * kLog2E) : 0;
      y[j * W + d] = 0;
    }
    top[j] = -INFINITY, total[j] = 0;
  }
  for (i64 first = keys.begin; first < keys.end; first += kKeyTile) {
    const i64 count = at_most(keys.end - first, kKeyTile);
    const float* k = f.k + b * f.ks.b + first * f.ks.t + kh * f.ks.h;
    const float* v = f.v + b * f.vs.b + first * f.vs.t + kh * f.vs.h;
    for (i64 j = 0; j < n; ++j) {
      float* p = w.p + j * kKeyTile;
      for (i64 i = 0; i < count; i += kLanes)
        few_scores(p + i, w.q + j * W, k + i * f.ks.t, f.ks.t, count - i, s.D);
      const i64 end = s.causal ? j % s.T + s.S - s.T + 1 - first : count;
      few_softmax(p, {end - s.window, at_most(end, count)}, count, top + j, total + j, y + j * W,
                  W);
    }
    tile_product<Left::rows>(y, W, w.p, kKeyTile, v, f.vs.t, n, whole, count, true);
    for (i64 j = 0; j < n; ++j)
      for (i64 i = 0; i < count; ++i)
        for (i64 d = whole; d < s.D; ++d) y[j * W + d] += w.p[j * kKeyTile + i] * v[i * f.vs.t + d];
  }
}

// A part's sums: l, m (n) and y (n, W).
struct FewSums {
  const float *y, *top, *total;
};

// y and lse of a key head's queries, from the sums of its parts.
static inline void few_write(const AttentionForward& f, const AttentionShape& s, i64 head,
                             const FewSums* sums, i64 parts) {
  const i64 G = s.H / s.K, W = round_up(s.D, kLanes), b = head / s.K;
  for (i64 j = 0; j < G * s.T; ++j) {
    const i64 h = head % s.K * G + j / s.T, t = j % s.T;
    float m = -INFINITY, l = 0, weight[kMaxParts];
    for (i64 part = 0; part < parts; ++part) m = sums[part].top[j] > m ? sums[part].top[j] : m;
    for (i64 part = 0; part < parts; ++part) {
      weight[part] = exp2_weight(broadcast(sums[part].top[j] - m))[0];
      l += weight[part] * sums[part].total[j];
    }
    float* y = f.y + b * f.ys.b + t * f.ys.t + h * f.ys.h;
    for (i64 d = 0; d < s.D; ++d) {
      float sum = 0;
      for (i64 part = 0; part < parts; ++part) sum += weight[part] * sums[part].y[j * W + d];
      y[d] = sum / l;
    }
    f.lse[(b * s.H + h) * s.T + t] = m * kLn2 + logf(l);
  }
}

static inline void few_forward(Pool& pool, const AttentionForward& f, const AttentionShape& s) {
  const i64 heads = s.B * s.K, n = s.H / s.K * s.T, W = round_up(s.D, kLanes);
  const i64 threads = heads * s.S * s.D < 16384 ? 1 : pool.threads();
  const i64 begin = first_tile(s, 0), keys = s.S - begin;  // before it nobody looks
  const i64 parts = balanced_parts(heads, at_least(keys / 256, 1), threads);
  const auto units_of = [=](i64 thread) { return split(heads * parts, threads, thread); };
  const auto tiles = [&](i64 thread) {
    return tiles_of<FewTiles>(pool, thread, s, units_of(thread).end - units_of(thread).begin);
  };
  const auto sums_of = [=](const FewTiles& w, i64 slot) {
    return FewSums{w.y + slot * n * W, w.top + slot * n, w.total + slot * n};
  };
  const auto work = [&](int thread) {
    if (thread >= threads) return;
    const Range mine = units_of(thread);
    const FewTiles w = tiles(thread);
    for (i64 unit = mine.begin; unit < mine.end; ++unit) {
      const i64 head = unit / parts, slot = unit - mine.begin;
      const Range part = split(keys, parts, unit % parts, kKeyTile);
      few_unit(f, s, w, slot, head / s.K, head % s.K, {begin + part.begin, begin + part.end});
      const FewSums sums = sums_of(w, slot);
      if (parts == 1) few_write(f, s, head, &sums, 1);
    }
  };
  if (threads == 1) return work(0);
  parallel(pool, [&](int thread) { work(thread); });
  if (parts == 1) return;
  i64 owner = 0;
  for (i64 head = 0; head < heads; ++head) {
    FewSums sums[kMaxParts];
    for (i64 part = 0; part < parts; ++part) {
      const i64 unit = head * parts + part;
      while (unit >= units_of(owner).end) ++owner;
      sums[part] = sums_of(tiles(owner), unit - units_of(owner).begin);
    }
    few_write(f, s, head, sums, parts);
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
