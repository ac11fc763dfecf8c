// A chunk of linear attention: what is left of token j at token i, the pairs of tokens, and their
// gradients. The algebra stands in src/tenarai/ops/reference/linear_attention_chunk.py.
//
//   A_ij = Σ_d r_id k_jd F_ijd       F_ij = α_{j+1} ∘ … ∘ α_i       j <= i, strictly j < i
//
// One gate a head: F is a number for each pair, kept as a (64, 64) matrix, A = (r kᵀ) ∘ F.
// A gate a channel: F has D numbers for each pair. Tokens go in blocks of 16. With s the first of
// i's block, F_ij = prefix_i ∘ left_j for j < s: prefix_i = α_s … α_i, left_j = α_{j+1} … α_{s−1},
// so these pairs are a product, (r ∘ prefix) (k ∘ left)ᵀ. The 136 pairs inside of a block are taken
// one by one. Gates are only ever multiplied, never divided by: nothing overflows, and what falls
// below 1e-30 is 0, so that no product runs on denormal numbers.
#pragma once

#include "attention_tiles.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kChunk = 64;
constexpr i64 kBlock = 16;
static_assert(kBlock % kLanes == 0 && kChunk % kBlock == 0, "a block is whole vectors");

TENARAI_INLINE vf fade(vf a, vf b) {
  const vf c = a * b;
  return c < 1e-30f ? vf{} : c;  // a NaN stays
}
TENARAI_INLINE float fade(float a, float b) { return a * b < 1e-30f ? 0.0f : a * b; }

// One thread's tiles. Rows are tokens, as wide as whole vectors with zeros past D or V; tokens past
// the sequence are zeros with gates of 1, which leave no trace.
struct ChunkTiles {
  i64 D, V, W, Wv;  // W, Wv: D and V in whole vectors
  bool channel;
  float *q, *k, *v, *u, *dy;          // (64, W) or (64, Wv); q with its scale
  float *S, *dS;                      // (D, Wv)
  float *gate, *start, *end;          // α_i, e^{b_i}, e^{b_C − b_i}: (64, W), or (64) a head
  float* all;                         // e^{b_C} (W)
  float* pair;                        // F (64, 64) where a head has one gate
  float *A, *L, *N, *dA;              // (64, 64)
  float *k_t, *u_t, *S_t, *dS_t;      // (D, 64), (V, 64), (V, W) twice: transposed
  float *x, *z;                       // (64, Wv)
  float *faded, *dq, *dk, *dr;        // (64, W)
  float *left, *near, *prefix, *tmp;  // (64, W), (16, W) twice, (64, W)
  float *beta, *end_sum;              // (64), (W)

  void lay(Cut& cut, const LinearAttentionShape& s) {
    D = s.D, V = s.V, W = round_up(D, kLanes), Wv = round_up(V, kLanes), channel = s.channel;
    const i64 key = kChunk * W, value = kChunk * Wv, square = kChunk * kChunk;
    q = cut(key), k = cut(key), v = cut(value), u = cut(value), dy = cut(value);
    S = cut(D * Wv), dS = cut(D * Wv);
    gate = cut(key), start = cut(key), end = cut(key), all = cut(W), pair = cut(square);
    A = cut(square), L = cut(square), N = cut(square), dA = cut(square);
    k_t = cut(D * kChunk), u_t = cut(V * kChunk), S_t = cut(V * W), dS_t = cut(V * W);
    x = cut(value), z = cut(value);
    faded = cut(key), dq = cut(key), dk = cut(key), dr = cut(key);
    left = cut(key), near = cut(kBlock * W), prefix = cut(kBlock * W), tmp = cut(key);
    beta = cut(kChunk), end_sum = cut(W);
  }
};

// to (rows, width) = from (count, n) · factor, zeros around it.
static inline void load_rows(float* to, i64 width, const float* from, i64 stride, i64 count,
                             i64 rows, i64 n, float factor) {
  copy_rows(to, width, from, stride, count, n);
  for (i64 i = 0; i < count * width; i += kLanes) store(to + i, load(to + i) * factor);
  for (i64 i = count * width; i < rows * width; i += kLanes) store(to + i, vf{});
}

// to_i = x_i ∘ f_i, f (rows, W) or one number a row.
static inline void fade_rows(float* to, const float* x, const float* f, i64 rows, i64 W,
                             bool channel) {
  for (i64 i = 0; i < rows; ++i)
    for (i64 d = 0; d < W; d += kLanes) {
      const vf factor = channel ? load(f + i * W + d) : broadcast(f[i]);
      store(to + i * W + d, load(x + i * W + d) * factor);
    }
}

// start, end and all of the gates; and where a head has one gate, pair.
static inline void multiply_channels(const ChunkTiles& c, i64 rows) {
  const i64 W = c.W, last = (rows - 1) * W;
  for (i64 d = 0; d < W; d += kLanes) {
    vf start = broadcast(1.0f), end = start;
    for (i64 i = d; i <= last + d; i += W) {
      start = fade(start, load(c.gate + i));
      store(c.start + i, start);
    }
    store(c.all + d, start);
    for (i64 i = last + d; i >= 0; i -= W) {
      store(c.end + i, end);
      end = fade(end, load(c.gate + i));
    }
  }
}
static inline void multiply_heads(const ChunkTiles& c, i64 rows) {
  float start = 1, end = 1;
  for (i64 i = 0; i < rows; ++i) {
    c.start[i] = start = fade(start, c.gate[i]);
    float* row = c.pair + i * kChunk;
    const vf alpha = broadcast(c.gate[i]);
    for (i64 j = 0; j < kChunk; j += kLanes)
      store(row + j, i ? fade(load(row - kChunk + j), alpha) : vf{});
    row[i] = 1;
  }
  for (i64 i = rows - 1; i >= 0; --i) {
    c.end[i] = end;
    end = fade(end, c.gate[i]);
  }
  for (i64 d = 0; d < c.W; ++d) c.all[d] = start;
}

// The gates' products of a chunk, from g (count, n) with `stride` from token to token, or null.
static inline void load_gates(const ChunkTiles& c, const float* g, i64 stride, i64 count,
                              i64 rows) {
  const i64 w = c.channel ? c.W : 1, n = c.channel ? c.D : 1, size = round_up(rows * w, kLanes);
  for (i64 i = 0; i < size; i += kLanes) store(c.gate + i, vf{});
  if (g)
    for (i64 i = 0; i < count; ++i)
      std::memcpy(c.gate + i * w, g + i * stride, static_cast<size_t>(n) * 4);
  for (i64 i = 0; i < size; i += kLanes) store(c.gate + i, exp(load(c.gate + i)));
  c.channel ? multiply_channels(c, rows) : multiply_heads(c, rows);
}

// Products with a (rows, rows) matrix of which only the blocks up to the diagonal are there.
// a = r b, b (R, 64):
static inline void lower_product(float* a, const float* r, i64 width, const float* b, i64 rows,
                                 i64 R) {
  for (i64 s = 0; s < rows; s += kBlock)
    tile_product<Left::rows>(a + s * kChunk, kChunk, r + s * width, width, b, kChunk, kBlock,
                             s + kBlock, R, false);
}
// y (rows, width) = or += a x:
static inline void lower_times(float* y, const float* a, const float* x, i64 width, i64 rows,
                               bool add) {
  for (i64 s = 0; s < rows; s += kBlock)
    tile_product<Left::rows>(y + s * width, width, a + s * kChunk, kChunk, x, width, kBlock, width,
                             s + kBlock, add);
}
// y (rows, width) = or += aᵀ x:
static inline void lower_transposed_times(float* y, const float* a, const float* x, i64 width,
                                          i64 rows, bool add) {
  for (i64 s = 0; s < rows; s += kBlock)
    tile_product<Left::columns>(y + s * width, width, a + s * kChunk + s, kChunk, x + s * width,
                                width, kBlock, width, rows - s, add);
}

// a ∘ F where j <= i (or j < i), else 0.
static inline void fade_pairs(const ChunkTiles& c, float* a, i64 rows, bool strict) {
  for (i64 i = 0; i < rows; ++i) {
    float* row = a + i * kChunk;
    for (i64 j = 0; j < round_up(i + 1, kBlock); j += kLanes)
      store(row + j, load(row + j) * load(c.pair + i * kChunk + j));
    if (strict) row[i] = 0;
  }
}

// f(s, first): for each block of tokens, with prefix, and left (s, W), as they are then; within the
// block f goes on from token to token by next_token.
template <class F>
static inline void for_blocks(const ChunkTiles& c, i64 rows, F&& f) {
  const i64 W = c.W;
  for (i64 s = 0; s < rows; s += kBlock) {
    for (i64 i = 0; i < kBlock * W; i += kLanes) {
      const vf alpha = load(c.gate + s * W + i);
      store(c.prefix + i, i < W ? alpha : fade(load(c.prefix + i - W), alpha));
    }
    f(s);
    const float* last = c.prefix + (kBlock - 1) * W;
    for (i64 j = 0; j < s; ++j)
      for (i64 d = 0; d < W; d += kLanes)
        store(c.left + j * W + d, fade(load(c.left + j * W + d), load(last + d)));
    std::memcpy(c.left + s * W, c.near, static_cast<size_t>(kBlock * W) * 4);
  }
}
// near_j = F_ij of the block's tokens j <= i, from those of i − 1.
static inline void next_token(const ChunkTiles& c, i64 s, i64 i) {
  const i64 W = c.W;
  for (i64 d = 0; d < W; d += kLanes) {
    const vf alpha = load(c.gate + (s + i) * W + d);
    for (i64 j = 0; j < i; ++j) store(c.near + j * W + d, fade(load(c.near + j * W + d), alpha));
    store(c.near + i * W + d, broadcast(1.0f));
  }
}

// a (rows, 64): the pairs of r and k; k_t is kᵀ.
static inline void pairs(const ChunkTiles& c, float* a, const float* r, i64 rows, bool strict) {
  const i64 W = c.W, D = c.D;
  if (!c.channel) {
    lower_product(a, r, W, c.k_t, rows, D);
    return fade_pairs(c, a, rows, strict);
  }
  for_blocks(c, rows, [&](i64 s) {
    if (s) {
      fade_rows(c.tmp, c.k, c.left, s, W, true);
      transpose(c.k_t, kChunk, c.tmp, W, s, D, 1.0f, true);
      fade_rows(c.tmp, r + s * W, c.prefix, kBlock, W, true);
      tile_product<Left::rows>(a + s * kChunk, kChunk, c.tmp, W, c.k_t, kChunk, kBlock, s, D,
                               false);
    }
    for (i64 i = 0; i < kBlock; ++i) {
      next_token(c, s, i);
      for (i64 j = 0; j < kBlock; ++j) {
        vf total = {};
        if (strict ? j < i : j <= i)
          for (i64 d = 0; d < W; d += kLanes)
            total +=
                load(r + (s + i) * W + d) * load(c.k + (s + j) * W + d) * load(c.near + j * W + d);
        a[(s + i) * kChunk + s + j] = sum(total);
      }
    }
  });
}

// dr and dk (rows, W) += what the gradient of the pairs, da (rows, 64), gives them. Uses up da.
static inline void pairs_backward(const ChunkTiles& c, float* dr, float* dk, float* da,
                                  const float* r, i64 rows, bool strict) {
  const i64 W = c.W;
  if (!c.channel) {
    fade_pairs(c, da, rows, strict);
    lower_times(dr, da, c.k, W, rows, true);
    return lower_transposed_times(dk, da, r, W, rows, true);
  }
  for_blocks(c, rows, [&](i64 s) {
    const float* block = da + s * kChunk;
    const auto add_faded = [&](float* to, const float* f, i64 n) {
      for (i64 i = 0; i < n * W; i += kLanes)
        store(to + i, load(to + i) + load(f + i) * load(c.faded + i));
    };
    if (s) {
      fade_rows(c.tmp, c.k, c.left, s, W, true);
      tile_product<Left::rows>(c.faded, W, block, kChunk, c.tmp, W, kBlock, W, s, false);
      add_faded(dr + s * W, c.prefix, kBlock);
      fade_rows(c.tmp, r + s * W, c.prefix, kBlock, W, true);
      tile_product<Left::columns>(c.faded, W, block, kChunk, c.tmp, W, s, W, kBlock, false);
      add_faded(dk, c.left, s);
    }
    for (i64 i = 0; i < kBlock; ++i) {
      next_token(c, s, i);
      for (i64 j = 0; j < i + !strict; ++j) {
        const vf da_ij = broadcast(block[i * kChunk + s + j]);
        const i64 at = (s + i) * W, to = (s + j) * W;
        for (i64 d = 0; d < W; d += kLanes) {
          const vf f = da_ij * load(c.near + j * W + d);
          store(dr + at + d, load(dr + at + d) + f * load(c.k + to + d));
          store(dk + to + d, load(dk + to + d) + f * load(r + at + d));
        }
      }
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
