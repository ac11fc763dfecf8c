// Gated linear attention and the delta rule, chunk by chunk; and a token at a time, for decoding.
//
//   S_t = diag(α_t) S_{t−1} + k_t u_tᵀ        y_t = scale S_tᵀ q_t
//   u_t = v_t, or by the delta rule  β_t (v_t − (diag(α_t) S_{t−1})ᵀ k_t)
//
// src/tenarai/ops/reference/linear_attention_chunk.py and delta_rule.py derive the chunked form and
// its gradient. Per head and chunk of 64 tokens, S and dS stay in scratch:
//
//   forward       L = pairs(k, k), (I + β L) u = β (v − (k ∘ start) S)      the delta rule alone
//                 A = pairs(q, k), y = (q ∘ start) S + A u,  S = all ∘ S + (k ∘ end)ᵀ u
//
//   backward      du = Aᵀ dy + (k ∘ end) dS
//                 dq = (dy Sᵀ) ∘ start,  dk = (u dSᵀ) ∘ end,  both += those of A by dA = dy uᵀ
//                 dS = all ∘ dS + (q ∘ start)ᵀ dy
//                 (I + β L)ᵀ z = du,  dβ = z · r,  dv = β ∘ z             the delta rule alone
//                 then k reads with the gradient −β ∘ z, as q did with dy
//                 dg = the sums from behind of q ∘ dq − k ∘ dk, and of S_C ∘ dS_C
//
// Saved: the state that each chunk begins with, the last one, and u. A thread has whole heads, so
// every sum has its order.
#include "linear_attention_chunk.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// Where the chunk from token t on of one head lies in the arrays.
struct Place {
  i64 head, token, count, rows, stride;  // token: b T H + t H + h; rows: in whole blocks
  i64 n;                                 // the chunk's number

  Place(const LinearAttentionShape& s, i64 bh, i64 chunk)
      : head(bh),
        token((bh / s.H * s.T + chunk * kChunk) * s.H + bh % s.H),
        count(at_most(s.T - chunk * kChunk, kChunk)),
        rows(round_up(count, kBlock)),
        stride(s.H),
        n(chunk) {}
};
i64 chunks_of(const LinearAttentionShape& s) { return (s.T + kChunk - 1) / kChunk; }

void load_state(const ChunkTiles& c, float* to, const float* from) {
  if (from) return copy_rows(to, c.Wv, from, c.V, c.D, c.V);
  for (i64 i = 0; i < c.D * c.Wv; i += kLanes) store(to + i, vf{});
}
void store_rows(float* to, i64 to_stride, const float* from, i64 width, i64 rows, i64 n) {
  for (i64 i = 0; i < rows; ++i)
    std::memcpy(to + i * to_stride, from + i * width, static_cast<size_t>(n) * 4);
}

void load_keys(const ChunkTiles& c, const LinearAttentionShape& s, const Place& p, const float* q,
               const float* k, const float* g) {
  const i64 width = p.stride * c.D;
  load_rows(c.q, c.W, q + p.token * c.D, width, p.count, p.rows, c.D, s.scale);
  load_rows(c.k, c.W, k + p.token * c.D, width, p.count, p.rows, c.D, 1.0f);
  const i64 n = c.channel ? c.D : 1;
  load_gates(c, g ? g + p.token * n : nullptr, p.stride * n, p.count, p.rows);
  if (!c.channel) transpose(c.k_t, kChunk, c.k, c.W, p.rows, c.D, 1.0f, true);
}
void load_values(const ChunkTiles& c, const Place& p, float* to, const float* from) {
  load_rows(to, c.Wv, from + p.token * c.V, p.stride * c.V, p.count, p.rows, c.V, 1.0f);
}

// S_d = all_d S_d + Σ_t (x_t ∘ f_t)_d y_t
void move_state(const ChunkTiles& c, float* S, const float* x, const float* f, const float* y,
                i64 rows, bool shrink) {
  for (i64 d = 0; d < c.D && shrink; ++d)
    for (i64 v = 0; v < c.Wv; v += kLanes)
      store(S + d * c.Wv + v, load(S + d * c.Wv + v) * c.all[d]);
  fade_rows(c.faded, x, f, rows, c.W, c.channel);
  tile_product<Left::columns>(S, c.Wv, c.faded, c.W, y, c.Wv, c.D, c.Wv, rows, true);
}
// to (rows, Wv) = or += (x ∘ f) S
void read_state(const ChunkTiles& c, float* to, const float* x, const float* f, const float* S,
                i64 rows, bool add) {
  fade_rows(c.faded, x, f, rows, c.W, c.channel);
  tile_product<Left::rows>(to, c.Wv, c.faded, c.W, S, c.Wv, rows, c.Wv, c.D, add);
}

// L, and N = −β L: the delta rule's equations are (I − N) u = ...
void load_equations(const ChunkTiles& c, const Place& p, const float* beta) {
  for (i64 i = 0; i < kChunk; ++i) c.beta[i] = i < p.count ? beta[p.token + i * p.stride] : 0;
  pairs(c, c.L, c.k, p.rows, true);
  for (i64 i = 0; i < p.rows; ++i)
    for (i64 j = 0; j < round_up(i + 1, kBlock); j += kLanes)
      store(c.N + i * kChunk + j, load(c.L + i * kChunk + j) * -c.beta[i]);
}
// to_i += n from_j
void add_row(float* to, const float* from, float n, i64 width) {
  for (i64 v = 0; v < width; v += kLanes) store(to + v, load(to + v) + load(from + v) * n);
}
// u = the solution of (I − N) x = u, from the first row on.
void solve(const ChunkTiles& c, float* u, i64 rows) {
  for (i64 s = 0; s < rows; s += kBlock) {
    if (s)
      tile_product<Left::rows>(u + s * c.Wv, c.Wv, c.N + s * kChunk, kChunk, u, c.Wv, kBlock, c.Wv,
                               s, true);
    for (i64 i = s + 1; i < s + kBlock; ++i)
      for (i64 j = s; j < i; ++j) add_row(u + i * c.Wv, u + j * c.Wv, c.N[i * kChunk + j], c.Wv);
  }
}
// z = the solution of (I − N)ᵀ x = z, from the last row on.
void solve_transposed(const ChunkTiles& c, float* z, i64 rows) {
  for (i64 s = rows - kBlock; s >= 0; s -= kBlock) {
    const i64 below = s + kBlock;
    if (below < rows)
      tile_product<Left::columns>(z + s * c.Wv, c.Wv, c.N + below * kChunk + s, kChunk,
                                  z + below * c.Wv, c.Wv, kBlock, c.Wv, rows - below, true);
    for (i64 i = below - 2; i >= s; --i)
      for (i64 j = i + 1; j < below; ++j)
        add_row(z + i * c.Wv, z + j * c.Wv, c.N[j * kChunk + i], c.Wv);
  }
}

void forward_chunk(const ChunkTiles& c, const LinearAttentionForward& f,
                   const LinearAttentionShape& s, const Place& p) {
  load_keys(c, s, p, f.q, f.k, f.g);
  load_values(c, p, c.u, f.v);
  if (f.beta) {
    load_equations(c, p, f.beta);
    read_state(c, c.x, c.k, c.start, c.S, p.rows, false);
    for (i64 i = 0; i < p.rows * c.Wv; i += kLanes)
      store(c.u + i, (load(c.u + i) - load(c.x + i)) * c.beta[i / c.Wv]);
    solve(c, c.u, p.rows);
    store_rows(f.u + p.token * c.V, p.stride * c.V, c.u, c.Wv, p.count, c.V);
  }
  pairs(c, c.A, c.q, p.rows, false);
  read_state(c, c.x, c.q, c.start, c.S, p.rows, false);
  lower_times(c.x, c.A, c.u, c.Wv, p.rows, true);
  store_rows(f.y + p.token * c.V, p.stride * c.V, c.x, c.Wv, p.count, c.V);
  move_state(c, c.S, c.k, c.end, c.u, p.rows, true);
}

// dr = (dread Sᵀ) ∘ start, and with dk += what the pairs give; dS += (r ∘ start)ᵀ dread.
void read_backward(const ChunkTiles& c, const Place& p, float* dr, const float* r,
                   const float* dread, bool strict) {
  tile_product<Left::rows>(c.tmp, c.W, dread, c.Wv, c.S_t, c.W, p.rows, c.W, c.V, false);
  fade_rows(dr, c.tmp, c.start, p.rows, c.W, c.channel);
  lower_product(c.dA, dread, c.Wv, c.u_t, p.rows, c.V);
  pairs_backward(c, dr, c.dk, c.dA, r, p.rows, strict);
  move_state(c, c.dS, r, c.start, dread, p.rows, !strict);
}

// The delta rule's part: from du in z to dβ and dv, and what k gets as a reader, in dr.
void equations_backward(const ChunkTiles& c, const LinearAttentionBackward& f, const Place& p) {
  load_equations(c, p, f.beta);
  solve_transposed(c, c.z, p.rows);
  load_values(c, p, c.v, f.v);
  read_state(c, c.x, c.k, c.start, c.S, p.rows, false);
  lower_times(c.x, c.L, c.u, c.Wv, p.rows, true);
  for (i64 i = 0; i < p.rows; ++i) {
    vf total = {};
    for (i64 v = i * c.Wv; v < (i + 1) * c.Wv; v += kLanes) {
      const vf z = load(c.z + v);
      total += z * (load(c.v + v) - load(c.x + v));
      store(c.x + v, z * -c.beta[i]);
      store(c.z + v, z * c.beta[i]);
    }
    if (i < p.count) f.dbeta[p.token + i * p.stride] = sum(total);
  }
  read_backward(c, p, c.dr, c.k, c.x, true);
}

// dq, dk and dg of the chunk out of the tiles; `delta`: k was a reader too.
void store_gradients(const ChunkTiles& c, const LinearAttentionBackward& f,
                     const LinearAttentionShape& s, const Place& p, bool delta) {
  for (i64 i = p.count - 1; i >= 0; --i) {
    const i64 row = i * c.W, token = p.token + i * p.stride;
    vf of_head = {};
    for (i64 d = 0; d < c.W; d += kLanes) {
      const vf dq = load(c.dq + row + d), dk = load(c.dk + row + d), k = load(c.k + row + d);
      const vf dr = delta ? load(c.dr + row + d) : vf{};
      const vf db = load(c.q + row + d) * dq + k * (dr - dk);
      of_head += db;
      if (c.channel) store(c.end_sum + d, load(c.end_sum + d) + db);
      store(c.dq + row + d, dq * s.scale);
      store(c.dk + row + d, dk + dr);
    }
    std::memcpy(f.dq + token * c.D, c.dq + row, static_cast<size_t>(c.D) * 4);
    std::memcpy(f.dk + token * c.D, c.dk + row, static_cast<size_t>(c.D) * 4);
    if (!f.g) continue;
    if (c.channel)
      std::memcpy(f.dg + token * c.D, c.end_sum, static_cast<size_t>(c.D) * 4);
    else
      f.dg[token] = c.end_sum[0] += sum(of_head);
  }
}

// end_sum_d = Σ_v S_C ∘ dS_C, of all d together where a head has one gate.
void sum_end(const ChunkTiles& c, const float* S_end) {
  float all = 0;
  for (i64 d = 0; d < c.W; ++d) c.end_sum[d] = 0;
  for (i64 d = 0; d < c.D; ++d) {
    vf total = {};
    i64 v = 0;
    for (; v + kLanes <= c.V; v += kLanes)
      total += load(S_end + d * c.V + v) * load(c.dS + d * c.Wv + v);
    if (v < c.V) total += load_n(S_end + d * c.V + v, c.V - v) * load(c.dS + d * c.Wv + v);
    c.end_sum[d] = sum(total);
    all += c.end_sum[d];
  }
  if (!c.channel) c.end_sum[0] = all;
}

void backward_chunk(const ChunkTiles& c, const LinearAttentionBackward& f,
                    const LinearAttentionShape& s, const Place& p) {
  const i64 size = c.D * c.V, N = chunks_of(s);
  load_keys(c, s, p, f.q, f.k, f.g);
  load_values(c, p, c.u, f.u);
  load_values(c, p, c.dy, f.dy);
  load_state(c, c.S, f.states + (p.head * N + p.n) * size);
  if (f.g)
    sum_end(c, p.n + 1 < N ? f.states + (p.head * N + p.n + 1) * size : f.last + p.head * size);
  transpose(c.S_t, c.W, c.S, c.Wv, c.D, c.V, 1.0f, true);
  transpose(c.dS_t, c.W, c.dS, c.Wv, c.D, c.V, 1.0f, true);
  transpose(c.u_t, kChunk, c.u, c.Wv, p.rows, c.V, 1.0f, true);

  pairs(c, c.A, c.q, p.rows, false);
  lower_transposed_times(c.z, c.A, c.dy, c.Wv, p.rows, false);
  read_state(c, c.z, c.k, c.end, c.dS, p.rows, true);  // z = du
  tile_product<Left::rows>(c.tmp, c.W, c.u, c.Wv, c.dS_t, c.W, p.rows, c.W, c.V, false);
  fade_rows(c.dk, c.tmp, c.end, p.rows, c.W, c.channel);
  read_backward(c, p, c.dq, c.q, c.dy, false);
  if (f.beta) equations_backward(c, f, p);
  store_rows(f.dv + p.token * c.V, p.stride * c.V, c.z, c.Wv, p.count, c.V);
  store_gradients(c, f, s, p, f.beta != nullptr);
}

// f(tiles, head) for every batch and head, each with all its chunks.
template <class F>
void for_heads(Pool& pool, const LinearAttentionShape& s, F&& f) {
  for_parts(pool, s.B * s.H, s.T * (s.D + s.V) * 16, 1, [&](int thread, i64 begin, i64 end) {
    const auto c = tiles_of<ChunkTiles>(pool, thread, s);
    for (i64 head = begin; head < end; ++head) f(c, head);
  });
}

}  // namespace

void linear_attention_forward(Pool& pool, const LinearAttentionForward& f,
                              const LinearAttentionShape& s) {
  for_heads(pool, s, [&](const ChunkTiles& c, i64 head) {
    const i64 size = c.D * c.V, N = chunks_of(s);
    load_state(c, c.S, f.initial ? f.initial + head * size : nullptr);
    for (i64 n = 0; n < N; ++n) {
      store_rows(f.states + (head * N + n) * size, c.V, c.S, c.Wv, c.D, c.V);
      forward_chunk(c, f, s, Place(s, head, n));
    }
    store_rows(f.last + head * size, c.V, c.S, c.Wv, c.D, c.V);
  });
}

void linear_attention_backward(Pool& pool, const LinearAttentionBackward& f,
                               const LinearAttentionShape& s) {
  for_heads(pool, s, [&](const ChunkTiles& c, i64 head) {
    const i64 size = c.D * c.V;
    load_state(c, c.dS, f.dlast ? f.dlast + head * size : nullptr);
    for (i64 n = chunks_of(s) - 1; n >= 0; --n) backward_chunk(c, f, s, Place(s, head, n));
    if (f.dinitial) store_rows(f.dinitial + head * size, c.V, c.dS, c.Wv, c.D, c.V);
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
