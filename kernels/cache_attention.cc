// Attention of new tokens to a KV cache: each row to its own sequence's past, within a window.
//
//   a_s = scale Σ_d q_d k_sd      p_s = exp(a_s) / Σ_u exp(a_u)      y_d = Σ_s p_s v_sd
//
// over the positions s of the row's sequence with position − window < s ≤ position. One kernel for
// one token, for one token of each of several sequences, and for a prompt.
//
// Panels. The query heads that share a key head read the same keys, and so do the rows of one
// sequence. With G = H/K query heads a key head, column r·G + g is row r's g-th one; a panel is up
// to 64 columns side by side of one sequence. It meets its keys 64 at a time: a tile of the cache
// is expanded to float32 once, which costs little beside the products, and then
//
//   up to 8 columns    as in attention_few.h: lanes hold channels, keys are read once
//   more               as in attention.cc: queries transposed, lanes hold columns
//
// Soft-cap and ALiBi change a tile's scores where they stand; a sink is one more score in l, added
// when a panel's parts are put together.
//
// The division of the work. All tiles of all panels and heads stand in one line, each as long as it
// costs, and each thread gets an equal piece of the line. Where a cut goes through a panel's keys,
// its parts have their own m, l and y, put together in the end as in attention_few.h.
#include <cmath>

#include "attention_few.h"
#include "cache_rows.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr i64 kFew = 8;            // columns
constexpr float kHidden = -1e30f;  // a score that weighs nothing; finite, so that differences are

struct Work {
  const CacheStore& c;
  const CacheRows& rows;
  const float* q;
  Strides qs;
  float* y;
  i64 G, H;
  const CacheScores& how;

  i64 position(i64 column) const { return rows.positions[column / G]; }
  i64 first_seen(i64 column) const { return at_least(position(column) - how.window + 1, 0); }
};

// Columns [column, column + count) of one sequence, and the positions from lo to hi that they see.
struct CachePanel {
  i64 column = 0, count = 0, slot = 0, lo = 0, hi = 0;

  i64 tiles() const { return (hi - lo + kKeyTile - 1) / kKeyTile; }
  // A tile's cost, in columns; expanding it costs about as much as four of them.
  i64 weight() const { return 4 + (count <= kFew ? count : round_up(count, 16)); }
  i64 cost() const { return tiles() * weight(); }

  // The panel behind this one (the first, where this one is new); false after the last.
  bool next(const Work& w) {
    column += count;
    const i64 columns = w.rows.N * w.G;
    if (column >= columns) return false;
    slot = w.rows.slots[column / w.G];
    lo = w.first_seen(column), hi = w.position(column) + 1;
    for (count = 1; count < kPanel && column + count < columns; ++count) {
      if (w.rows.slots[(column + count) / w.G] != slot) break;
      lo = at_most(lo, w.first_seen(column + count));
      hi = at_least(hi, w.position(column + count) + 1);
    }
    return true;
  }
};

// The sums of a panel's head over some of its tiles: m, l (64) and y (64, W), not yet divided.
struct Sums {
  float *top, *total, *y;
};

struct CacheTiles {
  float *k, *v, *p;       // (64 keys, W) twice, (64, 64)
  float *place, *slope;   // (64): each column's position, and ALiBi's slope of its head
  float *rows, *q, *y_t;  // (64, W): queries; (D, 64): transposed; (D, 64)
  float* sums[3];         // of a panel begun by the thread before, ended by the next one, whole

  void lay(Cut& cut, i64 D) {
    const i64 W = round_up(D, kLanes), height = round_up(W, 16);
    k = cut(kKeyTile * W), v = cut(kKeyTile * W), p = cut(kKeyTile * kPanel);
    place = cut(kPanel), slope = cut(kPanel);
    rows = cut(kPanel * W), q = cut(height * kPanel), y_t = cut(height * kPanel);
    for (float*& part : sums) part = cut(2 * kPanel + kPanel * W);
  }
  Sums part(int i) const { return {sums[i], sums[i] + kPanel, sums[i] + 2 * kPanel}; }
};

void load_queries(const Work& w, const CacheTiles& t, const CachePanel& p, i64 kh) {
  const i64 D = w.c.D, W = round_up(D, kLanes);
  const float factor = w.how.soft_cap ? w.how.scale / w.how.soft_cap : w.how.scale * kLog2E;
  for (i64 j = 0; j < p.count; ++j) {
    const i64 column = p.column + j, h = kh * w.G + column % w.G;
    const float* q = w.q + column / w.G * w.qs.t + h * w.qs.h;
    for (i64 d = 0; d < W; ++d) t.rows[j * W + d] = d < D ? q[d] * factor : 0;
  }
  for (i64 j = 0; j < kPanel; ++j) {
    const i64 column = p.column + at_most(j, p.count - 1);
    t.place[j] = static_cast<float>(w.position(column));
    t.slope[j] = w.how.alibi ? w.how.alibi[kh * w.G + column % w.G] * kLog2E : 0;
  }
}

// Products become scores: soft-cap, and ALiBi for keys that lie so far behind.
TENARAI_INLINE vf score(const CacheScores& how, vf r, vf behind, vf slope) {
  if (how.soft_cap != 0) r = tanh(r) * (how.soft_cap * kLog2E);
  return how.alibi ? r - abs(behind) * slope : r;
}

// A few columns and one tile of keys.
void few_tile(const Work& w, const CacheTiles& t, const CachePanel& panel, const Sums& sums,
              i64 first, i64 count) {
  const i64 W = round_up(w.c.D, kLanes);
  for (i64 j = 0; j < panel.count; ++j) {
    float* p = t.p + j * kKeyTile;
    for (i64 i = 0; i < count; i += kLanes)
      few_scores(p + i, t.rows + j * W, t.k + i * W, W, count - i, W);
    const vf keys = lane_numbers() + static_cast<float>(first);
    for (i64 i = 0; w.how.modified() && i < count; i += kLanes)
      store(p + i, score(w.how, load(p + i), t.place[j] - (keys + static_cast<float>(i)),
                         broadcast(t.slope[j])));
    const i64 column = panel.column + j, end = w.position(column) + 1 - first;
    few_softmax(p, {w.first_seen(column) - first, at_most(end, count)}, count, sums.top + j,
                sums.total + j, sums.y + j * W, W);
  }
  tile_product<Left::rows>(sums.y, W, t.p, kKeyTile, t.v, W, panel.count, W, count, true);
}

// The first and last position that each column of a panel sees; columns past the last are as it.
struct SeenPositions {
  int32_t first[kPanel], last[kPanel];

  SeenPositions(const Work& w, const CachePanel& p) {
    for (i64 j = 0; j < kPanel; ++j) {
      const i64 column = p.column + at_most(j, p.count - 1);
      first[j] = static_cast<int32_t>(w.first_seen(column));
      last[j] = static_cast<int32_t>(w.position(column));
    }
  }
  // The positions that some of the columns [from, from + n) see, and those that all of them see.
  Range some(i64 from, i64 n) const {
    Range r = {first[from], last[from] + 1};
    for (i64 j = from; j < from + n; ++j)
      r = {at_most(r.begin, first[j]), at_least(r.end, last[j] + 1)};
    return r;
  }
  Range all(i64 from, i64 n) const {
    Range r = {first[from], last[from] + 1};
    for (i64 j = from; j < from + n; ++j)
      r = {at_least(r.begin, first[j]), at_most(r.end, last[j] + 1)};
    return r;
  }
};

// For kLanes columns and the rows [begin, end) of the tile that begins at position `first`:
// p = 2^(a − m) where a stood; m rises, l and y so far shrink by 2^(old m − new m).
void panel_softmax(const CacheTiles& t, const Sums& sums, const SeenPositions& seen, i64 first,
                   i64 column, Range rows, i64 D) {
  float* p = t.p + column;
  const Range all = seen.all(column, kLanes);
  const vi from = load_ints(seen.first + column), to = load_ints(seen.last + column);
  const vf old = load(sums.top + column);
  vf top = old, total = {};
  for (i64 s = rows.begin; s < rows.end; ++s) {
    vf a = load(p + s * kPanel);
    const int32_t position = static_cast<int32_t>(first + s);
    if (position < all.begin || position >= all.end) {
      const vi here = vi{} + position;
      a = ((here >= from) & (here <= to)) ? a : broadcast(kHidden);
      store(p + s * kPanel, a);
    }
    top = max(top, a);
  }
  for (i64 s = rows.begin; s < rows.end; ++s) {
    const vf e = exp2_weight(load(p + s * kPanel) - top);
    total += e;
    store(p + s * kPanel, e);
  }
  const vf shrink = exp2_weight(old - top);
  store(sums.top + column, top);
  store(sums.total + column, load(sums.total + column) * shrink + total);
  for (i64 d = 0; d < D; ++d) {
    float* y = t.y_t + d * kPanel + column;
    store(y, load(y) * shrink);
  }
}

// Many columns and one tile of keys.
void panel_tile(const Work& w, const CacheTiles& t, const CachePanel& panel, const Sums& sums,
                const SeenPositions& seen, i64 first, i64 count) {
  const i64 D = w.c.D, W = round_up(D, kLanes), width = round_up(panel.count, kLanes);
  for (i64 strip = 0; strip < width; strip += kStrip) {
    const i64 n = at_most(width - strip, kStrip);
    const Range some = seen.some(strip, n);
    const i64 begin = at_least(some.begin - first, 0) / kTileRows * kTileRows;
    const i64 end = at_most(round_up(at_least(some.end - first, 0), kTileRows), count);
    if (begin >= end) continue;
    float* p = t.p + begin * kPanel + strip;
    tile_product<Left::rows>(p, kPanel, t.k + begin * W, W, t.q + strip, kPanel, end - begin, n, D,
                             false);
    for (i64 i = strip; w.how.modified() && i < strip + n; i += kLanes)
      for (i64 s = begin; s < end; ++s) {
        const vf behind = load(t.place + i) - static_cast<float>(first + s);
        float* a = t.p + s * kPanel + i;
        store(a, score(w.how, load(a), behind, load(t.slope + i)));
      }
    for (i64 i = 0; i < n; i += kLanes)
      panel_softmax(t, sums, seen, first, strip + i, {begin, end}, D);
    tile_product<Left::columns>(t.y_t + strip, kPanel, t.v + begin * W, W, p, kPanel, D, n,
                                end - begin, true);
  }
}

// The sums of one head of a panel over the tiles [tiles.begin, tiles.end) of its keys.
void sum_tiles(const Work& w, const CacheTiles& t, const CachePanel& panel, i64 kh, Range tiles,
               const Sums& sums) {
  const i64 D = w.c.D, W = round_up(D, kLanes);
  const bool few = panel.count <= kFew;
  load_queries(w, t, panel, kh);
  for (i64 j = 0; j < kPanel; ++j) sums.top[j] = few ? -INFINITY : kHidden, sums.total[j] = 0;
  for (i64 i = 0; i < (few ? panel.count * W : 0); ++i) sums.y[i] = 0;
  if (!few) {
    transpose(t.q, kPanel, t.rows, W, panel.count, D, 1.0f, true);
    for (i64 i = 0; i < D * kPanel; ++i) t.y_t[i] = 0;
  }
  const SeenPositions seen(w, panel);
  for (i64 tile = tiles.begin; tile < tiles.end; ++tile) {
    const i64 first = panel.lo + tile * kKeyTile, count = at_most(panel.hi - first, kKeyTile);
    expand_rows(t.k, W, w.c, w.c.k, w.c.k_scale, panel.slot, kh, first, count, kKeyTile);
    expand_rows(t.v, W, w.c, w.c.v, w.c.v_scale, panel.slot, kh, first, count, kKeyTile);
    if (few)
      few_tile(w, t, panel, sums, first, count);
    else
      panel_tile(w, t, panel, sums, seen, first, count);
  }
  if (!few) transpose(sums.y, W, t.y_t, kPanel, D, panel.count, 1.0f, false);
}

// y of one head of a panel, from the sums of its parts.
void write_panel(const Work& w, const CachePanel& panel, i64 kh, const Sums* parts, i64 n) {
  const i64 D = w.c.D, W = round_up(D, kLanes);
  for (i64 j = 0; j < panel.count; ++j) {
    const i64 column = panel.column + j, h = kh * w.G + column % w.G;
    float m = w.how.sinks ? w.how.sinks[h] * kLog2E : kHidden, l = 0;
    const float sink = m;
    for (i64 i = 0; i < n; ++i) m = parts[i].top[j] > m ? parts[i].top[j] : m;
    if (w.how.sinks) l = exp2_weight(broadcast(sink - m))[0];
    float* y = w.y + (column / w.G * w.H + h) * D;
    for (i64 i = 0; i < n; ++i) {
      const float weight = exp2_weight(broadcast(parts[i].top[j] - m))[0];
      const float* from = parts[i].y + j * W;
      l += weight * parts[i].total[j];
      for (i64 d = 0; d < D; ++d) y[d] = (i ? y[d] : 0) + weight * from[d];
    }
    for (i64 d = 0; d < D; ++d) y[d] /= l;
  }
}

// The line of all tiles, and its division among the threads.
struct Line {
  i64 cost, threads;

  Range share(i64 thread) const { return split(cost, threads, thread); }
  // Of a panel's head whose tiles begin at `start`, those that begin in a thread's share.
  Range tiles(i64 thread, const CachePanel& p, i64 start) const {
    const Range mine = share(thread);
    const i64 weight = p.weight(), n = p.tiles();
    const auto tile_at = [&](i64 place) {
      return at_most((at_least(place - start, 0) + weight - 1) / weight, n);
    };
    return {tile_at(mine.begin), tile_at(mine.end)};
  }
};

void work_share(const Work& w, const Line& line, i64 thread, const CacheTiles& t) {
  const Range mine = line.share(thread);
  i64 start = 0;
  for (CachePanel panel; start < mine.end && panel.next(w);)
    for (i64 kh = 0; kh < w.c.K; ++kh, start += panel.cost()) {
      const Range tiles = line.tiles(thread, panel, start);
      if (tiles.begin >= tiles.end) continue;
      const bool whole = tiles.begin == 0 && tiles.end == panel.tiles();
      const Sums sums = t.part(whole ? 2 : tiles.begin > 0 ? 0 : 1);
      sum_tiles(w, t, panel, kh, tiles, sums);
      if (whole) write_panel(w, panel, kh, &sums, 1);
    }
}

// Puts together the panels that a cut went through.
void join_shares(const Work& w, const Line& line, Pool& pool) {
  i64 start = 0, thread = 0;
  for (CachePanel panel; panel.next(w);)
    for (i64 kh = 0; kh < w.c.K; ++kh, start += panel.cost()) {
      Sums parts[kMaxParts];
      i64 n = 0;
      for (i64 i = thread; i < line.threads && line.share(i).begin < start + panel.cost(); ++i) {
        const Range tiles = line.tiles(i, panel, start);
        if (tiles.begin < tiles.end)
          parts[n++] = tiles_of<CacheTiles>(pool, i, w.c.D).part(tiles.begin > 0 ? 0 : 1);
        if (line.share(i).end <= start) thread = i;
      }
      if (n > 1) write_panel(w, panel, kh, parts, n);
    }
}

}  // namespace

void cache_append(Pool& pool, const CacheStore& c, const float* k, const float* v, Strides ks,
                  Strides vs, const CacheRows& rows) {
  for_parts(pool, rows.N * c.K, 2 * c.D, 1, [=, &c, &rows](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const i64 n = i / c.K, h = i % c.K;
      const i64 row = cache_row(c, rows.slots[n], h, rows.positions[n]);
      write_row(c, c.k, c.k_scale, row, k + n * ks.t + h * ks.h);
      write_row(c, c.v, c.v_scale, row, v + n * vs.t + h * vs.h);
    }
  });
}

void cache_attention(Pool& pool, const CacheStore& c, float* y, const float* q, Strides qs,
                     const CacheRows& rows, i64 H, const CacheScores& how) {
  const Work w{c, rows, q, qs, y, H / c.K, H, how};
  Line line = {0, at_most(pool.threads(), kMaxParts)};
  for (CachePanel panel; panel.next(w);) line.cost += c.K * panel.cost();
  if (line.cost * c.D * kKeyTile < 4 * kWorthAThread) line.threads = 1;
  if (line.threads == 1) return work_share(w, line, 0, tiles_of<CacheTiles>(pool, 0, c.D));
  parallel(pool, [&](int thread) {
    if (thread < line.threads) work_share(w, line, thread, tiles_of<CacheTiles>(pool, thread, c.D));
  });
  join_shares(w, line, pool);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
