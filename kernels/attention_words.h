// Attention's products in words (words.h): the same tiles, of whole numbers.
//
//                      left, broadcast            right, in lanes          summed over
//   a = k qᵀ           k along d, a scale a key   qᵀ, a scale a query      d
//   yᵀ = (r v)ᵀ p/r    r v down s, a scale a d    p, a scale r a key       64 keys
//
//   dp = v dyᵀ         v along d                  dyᵀ                      d
//   dv = p dy          p along t, a scale a key   dy, a scale a d          64 queries
//   dk = da q          da along t                 q                        64 queries
//   dqᵀ = (r k)ᵀ da/r  r k down s, a scale a d    da, a scale r a key      64 keys
//
// p and da have a scale for each key of a tile: a key that takes most of the weight, as the first
// one often does, must not make the steps of the others coarse. Where keys are summed over, the
// scales go to the other factor, which is rounded for each tile as it then counts. l, and so ℓ,
// sums p before it is rounded; forward and backward round q and k alike, so a is the same to the
// bit. Sums over d are of 128 channels at most, wider heads take several.
//
// What is lost is a part of what is summed, 3e-4: da = p (dp − D) is off by so much of p |dy| |v|
// however small the difference is, which is more than all of it where a query has one key. A NaN in
// a query or a key reaches all 64 queries of a panel that sees it.
#pragma once

#include "attention_softmax.h"
#include "word_tiles.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kTilePairs = kKeyTile / 2;

static inline bool in_words(const AttentionShape& s) {
  return s.products == Products::words && s.T >= 32;
}

// Channels d to d + count, as many as a sum may have; f(block, d, count) for each.
template <class F>
static inline void for_blocks(i64 D, F&& f) {
  for (i64 block = 0, d = 0; d < D; ++block, d += kWordBlock)
    f(block, d, at_most(D - d, kWordBlock));
}

// The queries of a panel, or dy of them, pairs along d: (D / 2, 64), scales (blocks, 64).
struct WordQueries {
  Words all;

  void lay(Cut& cut, i64 D) {
    all = words_of(cut, (D + 1) / 2, kPanel, (D + kWordBlock - 1) / kWordBlock * kPanel);
  }
  Words block(i64 i) const {
    return {all.pairs + i * kWordBlock / 2 * kPanel, all.scales + i * kPanel, kPanel};
  }
  void take(const float* transposed, i64 D, i64 width) const {
    for_blocks(D, [&](i64 i, i64 d, i64 count) {
      block(i).down(transposed + d * kPanel, kPanel, count, width);
    });
  }
};

// The keys or values of a head: floats (S, W), and words along d, scales (blocks, S), or, of one
// tile, down the keys.
struct WordKeys {
  float* floats;
  Words along, down;
  i64 S, D, W;
  bool has_along, has_down;

  void lay(Cut& cut, const AttentionShape& s, bool wants_along, bool wants_down) {
    S = s.S, D = s.D, W = round_up(s.D, kLanes);
    has_along = wants_along, has_down = wants_down;
    floats = cut((has_down ? S : kKeyTile) * W);
    const i64 blocks = (D + kWordBlock - 1) / kWordBlock;
    along = words_of(cut, has_along ? S : 0, W / 2, has_along ? blocks * S : 0);
    down = words_of(cut, has_down ? kTilePairs : 0, W, has_down ? W : 0);
  }
  // Of rows `stride` apart, what was laid out.
  void take(const float* x, i64 stride) const {
    for (i64 key = 0; key < S; key += kKeyTile) {
      const i64 n = at_most(S - key, kKeyTile);
      float* tile = floats + (has_down ? key * W : 0);
      copy_rows(tile, W, x + key * stride, stride, n, D);
      if (has_along)
        for_blocks(W, [&](i64 i, i64 d, i64 count) {
          const Words to = from_key(key, i);
          round_rows(tile + d, W, n, count, to.scales, &to, nullptr);
        });
    }
  }
  Words from_key(i64 key, i64 block) const {
    const Words words = {along.pairs + block * kWordBlock / 2, along.scales + block * S,
                         along.stride};
    return after(words, key, along.stride);
  }
  // tile (height keys from `key` on, 64) = their products with queries.
  void times_queries(float* tile, const WordQueries& queries, i64 key, i64 height,
                     i64 width) const {
    for_blocks(D, [&](i64 i, i64, i64 count) {
      word_product<Left::rows>(tile, kPanel, from_key(key, i), queries.block(i), height, width,
                               (count + 1) / 2, i > 0);
    });
  }
  // The keys from `key` on, each times its factor.
  const Words& times(const float* factor, i64 key, i64 height) const {
    down.down(floats + key * W, W, height, W, factor);
    return down;
  }
};

// Of lines whose scales are elsewhere.
static inline void fill_ones(const Words& words) {
  for (i64 i = 0; i < kPanel; i += kLanes) store(words.scales + i, vf{} + 1.0f);
}

struct WordForward : ForwardTiles {
  WordKeys k, v;
  WordQueries q_words;
  Words p_words;      // (64 keys, 64)
  float* key_scales;  // (64)

  void lay(Cut& cut, const AttentionShape& s) {
    ForwardTiles::lay(cut, s);
    k.lay(cut, s, true, false), v.lay(cut, s, false, true);
    q_words.lay(cut, s.D);
    p_words = words_of(cut, kTilePairs, kPanel, kPanel);
    key_scales = cut(kKeyTile);
  }
  void take_keys(const AttentionForward& f, const AttentionShape&, const Panel& any, bool) {
    k.take(f.k + any.key(f.ks, 0), f.ks.t);
    v.take(f.v + any.key(f.vs, 0), f.vs.t);
    fill_ones(p_words);
  }
  void panel(const AttentionForward& f, const AttentionShape& shape, const Panel& panel) const;
};

inline void WordForward::panel(const AttentionForward& f, const AttentionShape& shape,
                               const Panel& panel) const {
  const i64 D = shape.D, width = round_up(panel.count, kLanes);
  const Seen seen(shape, panel.b, panel.t, panel.count);
  const Scores scores(shape, panel.h);
  const float place = static_cast<float>(panel.t + shape.S - shape.T);
  transpose(q, kPanel, f.q + panel.query(f.qs), f.qs.t, panel.count, D, scores.factor, true);
  q_words.take(q, D, width);
  bool first = true;
  for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
    const Range rows = seen.rows_of_all(width, s, at_most(shape.S - s, kKeyTile));
    if (empty(rows)) continue;
    const i64 height = rows.end - rows.begin;
    float* a = p + rows.begin * kPanel;
    k.times_queries(a, q_words, s + rows.begin, height, width);
    for (i64 i = 0; i < width; i += kLanes) {
      if (!scores.plain()) modify(p + i, scores, place + static_cast<float>(i), s, rows);
      softmax_column(*this, seen, i, s, rows, D, first, 0);  // p <= 1: words' scale
    }
    for (i64 row = rows.begin; row < rows.end; ++row)  // no weight past the last query
      for (i64 i = panel.count; i < width; ++i) p[row * kPanel + i] = 0;
    round_rows(a, kPanel, height, width, key_scales, nullptr, &p_words);
    word_product<Left::columns>(y, kPanel, v.times(key_scales, s + rows.begin, height), p_words, D,
                                width, (height + 1) / 2, !first);
    first = false;
  }
  if (first) saw_nothing(*this, 0, width, D);
  finish_panel(f, shape, *this, panel, seen);
}

struct WordBackward : BackwardTiles {
  WordKeys k, v;
  WordQueries q_words, dy_words;
  Words q_down, dy_down;             // (64, W)
  Words p_words, da_words, da_down;  // (64 keys, 64)

  void lay(Cut& cut, const AttentionShape& s, const i64& units) {
    BackwardTiles::lay(cut, s, units);
    k.lay(cut, s, true, true), v.lay(cut, s, true, false);
    const i64 W = k.W;
    q_words.lay(cut, s.D), dy_words.lay(cut, s.D);
    q_down = words_of(cut, kPanel / 2, W, W), dy_down = words_of(cut, kPanel / 2, W, W);
    p_words = words_of(cut, kKeyTile, kPanel / 2, kKeyTile);
    da_words = words_of(cut, kKeyTile, kPanel / 2, kKeyTile);
    da_down = words_of(cut, kTilePairs, kPanel, kPanel);
  }
  void take_keys(const AttentionBackward& f, const AttentionShape&, const Panel& any, bool) {
    k.take(f.k + any.key(f.ks, 0), f.ks.t);
    v.take(f.v + any.key(f.vs, 0), f.vs.t);
    fill_ones(da_down);
  }
  void panel(const AttentionBackward& f, const AttentionShape& shape, const Panel& panel, float* dk,
             float* dv) const;
};

inline void WordBackward::panel(const AttentionBackward& f, const AttentionShape& shape,
                                const Panel& panel, float* dk, float* dv) const {
  const i64 D = shape.D, W = k.W, width = round_up(panel.count, kLanes);
  const Seen seen(shape, panel.b, panel.t, panel.count);
  const Scores scores(shape, panel.h);
  const float place = static_cast<float>(panel.t + shape.S - shape.T);
  load_panel(f, shape, *this, panel, scores.factor);
  q_words.take(q_t, D, width), dy_words.take(dy_t, D, width);
  q_down.down(q, W, panel.count, W), dy_down.down(dy, W, panel.count, W);
  for (i64 i = 0; i < D * kPanel; i += kLanes) store(dq_t + i, vf{});
  for (i64 s = seen.whole.begin / kKeyTile * kKeyTile; s < seen.whole.end; s += kKeyTile) {
    const Range rows = seen.rows_of_all(width, s, at_most(shape.S - s, kKeyTile));
    if (empty(rows)) continue;
    const i64 height = rows.end - rows.begin, key = s + rows.begin, at = rows.begin * kPanel;
    const i64 queries = (panel.count + 1) / 2;
    k.times_queries(p + at, q_words, key, height, width);
    v.times_queries(da + at, dy_words, key, height, width);
    for (i64 i = 0; i < width; i += kLanes) {
      vf less = load(delta + i);
      if (!scores.plain()) {
        modify_backward(p + i, da + i, less, scores, place + static_cast<float>(i), s, rows);
        less = vf{};
      }
      scores_backward_column(*this, seen, less, i, s, rows);
    }
    round_rows(p + at, kPanel, height, width, p_words.scales, &p_words, nullptr);
    round_rows(da + at, kPanel, height, width, da_words.scales, &da_words, &da_down);
    word_product<Left::columns>(dq_t, kPanel, k.times(da_words.scales, key, height), da_down, D,
                                width, (height + 1) / 2, true);
    word_product<Left::rows>(dv + key * W, W, p_words, dy_down, height, W, queries, true);
    word_product<Left::rows>(dk + key * W, W, da_words, q_down, height, W, queries, true);
  }
  transpose(f.dq + panel.query(f.dqs), f.dqs.t, dq_t, kPanel, D, panel.count, shape.scale, false);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
