// Every kernel: its shapes, and what it writes. Included once per instruction set (TENARAI_ISA).
//
// Letters as in src/tenarai/ops/__init__.py; M stands for all leading dims together. Arrays are
// float32, contiguous, row-major, and do not overlap unless a line says they may. A pointer
// marked "or null" leaves that part out. Outputs are written whole; those marked += are added to.
#pragma once

#include <cstdint>

#include "quant_formats.h"
#include "threads.h"

namespace tenarai {

// Strides in floats of a (B, T, H, D) array whose last dim is contiguous.
struct Strides {
  int64_t b, t, h;
};

// What activations become in products with quantised weights.
enum class Activations { float32, words, bytes };

// How large products of float32 matrices are made. plain: as ever. fast: as exact on the whole,
// with seven multiplications for eight (strassen.h), or with AMX of 24-bit whole numbers
// (digit_gemm.h). words: of 16-bit whole numbers with AMX, AVX-512 VNNI or AVX2 (word_gemm.h),
// elsewhere fast.
enum class Products { plain, fast, words };

constexpr int64_t kNoWindow = int64_t{1} << 40;  // wider than any sequence is long

// The options are those of src/tenarai/ops/attention_options.py, which says what each means.
struct AttentionShape {
  int64_t B, T, S, H, K, D;  // H a multiple of K
  float scale;
  bool causal;
  int64_t window = kNoWindow;
  const int32_t* documents = nullptr;                   // (B, S): where each key's document begins
  const int32_t *lengths = nullptr, *prefix = nullptr;  // (B)
  float soft_cap = 0;                                   // 0: none
  const float *alibi = nullptr, *sinks = nullptr;       // (H)
  Products products = Products::plain;  // words with AVX-512 VNNI, with AMX fast too
};

// q, y, dq, dy (B, T, H, D); k, v, dk, dv (B, S, K, D); lse (B, H, T).
struct AttentionForward {
  float* y;
  float* lse;
  const float *q, *k, *v;
  Strides ys, qs, ks, vs;
};
struct AttentionBackward {
  float *dq, *dk, *dv;
  const float *dy, *q, *k, *v, *y, *lse;
  Strides dqs, dks, dvs, dys, qs, ks, vs, ys;
  float* dsinks = nullptr;  // (H), += , or null
};

// A layer's keys and values of past tokens: k, v (slots, K, capacity, D) float16, float32, or int8
// with scales k_scale, v_scale (slots, K, capacity). Position s of a sequence lies at row
// s % capacity of its slot.
enum class CacheType : int { f16, f32, i8 };
struct CacheStore {
  void *k, *v;
  float *k_scale, *v_scale;
  CacheType type;
  int64_t slots, K, capacity, D;
};
// Whose each of N rows is, and its place there.
struct CacheRows {
  const int32_t *slots, *positions;
  int64_t N;
};

// How they are attended to: options as in AttentionShape.
struct CacheScores {
  int64_t window;
  float scale, soft_cap;       // 0: none
  const float *alibi, *sinks;  // (H), or null
  bool modified() const { return soft_cap != 0 || alibi; }
};

// Linear attention: S_t = diag(e^g) S_{t-1} + k uᵀ, y = scale Sᵀ q; u = v, or where beta is not
// null beta (v - (diag(e^g) S_{t-1})ᵀ k). Arrays are contiguous: q, k (B, T, H, D), v, y, u (B, T,
// H, V), beta (B, T, H), g (B, T, H, D) where `channel`, else (B, T, H), or null for none; a state
// (B, H, D, V). states (B, H, chunks, D, V) are those that chunks of 64 tokens begin with.
struct LinearAttentionShape {
  int64_t B, T, H, D, V;
  float scale;
  bool channel;
};
struct LinearAttentionForward {
  float *y, *last, *states, *u;                 // u is not written where beta is null
  const float *q, *k, *v, *beta, *g, *initial;  // initial or null
};
struct LinearAttentionBackward {
  float *dq, *dk, *dv, *dbeta, *dg, *dinitial;            // the last three null where theirs is
  const float *dy, *dlast;                                // dlast or null
  const float *q, *k, *v, *beta, *g, *states, *last, *u;  // u is v where beta is null
};
// One token each of B sequences (T is 1), whose states are those of their slots (slots, H, D, V).
struct LinearAttentionStep {
  float *y, *states;
  const int32_t* slots;
  const float *q, *k, *v, *beta, *g;
};

enum class Gelu : int { none = 0, tanh = 1, erf = 2 };

constexpr int64_t kExpandedRows = 512;  // of a quantised weight, expanded at a time

struct AdamW {
  float lr, beta1, beta2, eps, weight_decay;
  float correction1, correction2;  // 1 - beta1^step, 1 - beta2^step
  float grad_scale;                // g is multiplied by it first
};

struct MuonMatrix {
  float *p, *m;
  const float* g;
  int64_t O, I;
};
struct Muon {
  float lr, momentum, weight_decay, grad_scale;
  Products products;
};

namespace TENARAI_ISA {

// linear.cc. y (M, O) = f(x) (M, I) · w (O, I)ᵀ + b (O) or null + residual (M, O) or null, where
// f is GELU or nothing. y may be residual.
void linear_forward(Pool&, float* y, const float* x, const float* w, const float* b,
                    const float* residual, int64_t M, int64_t I, int64_t O, Gelu, Products);
// dx (M, I) or null = dy (M, O) · w, times f'(x) where f is GELU; dw (O, I) or null += dyᵀ · f(x),
// or = where not `add`; db (O) or null += the sum of dy over M. x is not read where dw is null and
// f is nothing.
void linear_backward(Pool&, float* dx, float* dw, float* db, const float* dy, const float* x,
                     const float* w, int64_t M, int64_t I, int64_t O, Gelu, bool add, Products);

// quant_linear.cc. The same without f, with w (O, I) quantised: O rows of row_bytes in the format's
// blocks, at any address. Activations stay float32, or become whole numbers: of 12 bits and more
// (with AMX and many rows of 16, and so do the weights), or of 8, which pays with many rows (words
// are taken where the CPU has no products of bytes, bfloat16 where it has AMX). The backward is
// that of x alone, dx = dy w: in float32, or with dy and w rounded to whole numbers where the CPU
// has AVX-512 VNNI (quant_gradient.h) or AMX (Products::words, from 16 rows on); expanded
// (kExpandedRows, I) is for its own use.
void quant_linear_forward(Pool&, float* y, const float* x, const uint8_t* w, QuantFormat,
                          const float* b, const float* residual, int64_t M, int64_t I, int64_t O,
                          int64_t row_bytes, Activations);
void quant_linear_backward(Pool&, float* dx, float* expanded, const float* dy, const uint8_t* w,
                           QuantFormat, int64_t M, int64_t I, int64_t O, int64_t row_bytes,
                           Products, Activations);

// norm.cc. mean, rstd (M) are kept for the backward. dresidual (M, C) or null is added into dx
// and may be dx.
void layer_norm_forward(Pool&, float* y, float* mean, float* rstd, const float* x, const float* w,
                        const float* b, int64_t M, int64_t C, float eps);
void layer_norm_backward(Pool&, float* dx, float* dw /*+=*/, float* db /*+=*/, const float* dy,
                         const float* dresidual, const float* x, const float* w, const float* mean,
                         const float* rstd, int64_t M, int64_t C);
void rms_norm_forward(Pool&, float* y, float* rstd, const float* x, const float* w, int64_t M,
                      int64_t C, float eps);
void rms_norm_backward(Pool&, float* dx, float* dw /*+=*/, const float* dy, const float* dresidual,
                       const float* x, const float* w, const float* rstd, int64_t M, int64_t C);

// activation.cc, over n elements; y may be x, dx may be dy.
void gelu_forward(Pool&, float* y, const float* x, int64_t n, Gelu);
void gelu_backward(Pool&, float* dx, const float* dy, const float* x, int64_t n, Gelu);
void silu_forward(Pool&, float* y, const float* x, int64_t n);
void silu_backward(Pool&, float* dx, const float* dy, const float* x, int64_t n);
void swiglu_forward(Pool&, float* y, const float* gate, const float* up, int64_t n);
void swiglu_backward(Pool&, float* dgate, float* dup, const float* dy, const float* gate,
                     const float* up, int64_t n);
// gelu(gate) · up, GELU with tanh
void geglu_forward(Pool&, float* y, const float* gate, const float* up, int64_t n);
void geglu_backward(Pool&, float* dgate, float* dup, const float* dy, const float* gate,
                    const float* up, int64_t n);
void add(Pool&, float* y, const float* a, const float* b, int64_t n);  // y may be a or b
void scale(Pool&, float* y, const float* x, float factor, int64_t n);  // y may be x

// bfloat16.cc. y (n) = x (n) as bfloat16, the upper half of a float32, rounded to the nearest, ties
// to even; and back, which is exact. A NaN stays one.
void to_bfloat16(Pool&, uint16_t* y, const float* x, int64_t n);
void from_bfloat16(Pool&, float* y, const uint16_t* x, int64_t n);

// embedding.cc. x (B, T, C) = wte (V, C)[tokens (B, T)] + wpe (.., C)[start + t] or null, or with
// positions (B, T) or null, wpe[positions]. Every token is in [0, V), every position in wpe: the
// caller has looked.
void embedding_forward(Pool&, float* x, const int32_t* tokens, const float* wte, const float* wpe,
                       const int32_t* positions, int64_t B, int64_t T, int64_t C, int64_t start);
void embedding_backward(Pool&, float* dwte /*+=*/, float* dwpe /*+=, or null*/, const float* dx,
                        const int32_t* tokens, int64_t B, int64_t T, int64_t C, int64_t start);

// quant.cc. y (O, I) = the weights of `data`, O rows of row_bytes in the format's blocks; and the
// embedding above with wte (V, C) so stored.
void dequantize(Pool&, float* y, const uint8_t* data, QuantFormat, int64_t O, int64_t I,
                int64_t row_bytes);
void quant_embedding_forward(Pool&, float* x, const int32_t* tokens, const uint8_t* data,
                             QuantFormat, const float* wpe, const int32_t* positions, int64_t B,
                             int64_t T, int64_t C, int64_t row_bytes, int64_t start);

// quantize.cc. x (O, I) finite into blocks, so that the sum of importance (I, or null:
// ones) times the squared error is small.
void quantize(Pool&, uint8_t* data, const float* x, QuantFormat, const float* importance, int64_t O,
              int64_t I, int64_t row_bytes);

// rope.cc. cos, sin (T, D/2), or with positions (B, T) or null, the rows of (.., D/2) that they
// name. Pairs i with i + D/2, or where `adjacent` 2i with 2i + 1; the
// backward is the rotation the other way. y may be x where the strides are the same.
void rope(Pool&, float* y, const float* x, const float* cos, const float* sin,
          const int32_t* positions, int64_t B, int64_t T, int64_t H, int64_t D, Strides y_strides,
          Strides x_strides, bool adjacent, bool backward);

// attention.cc
void attention_forward(Pool&, const AttentionForward&, const AttentionShape&);
void attention_backward(Pool&, const AttentionBackward&, const AttentionShape&);

// cache_attention.cc. Rows k, v (N, K, D) into the cache; and y (N, H, D) = the attention of q
// (N, H, D) to the rows' own sequences, from position - window + 1 to position. Of strides, t is
// from row to row. Slots and positions are within the cache: the caller has looked.
void cache_append(Pool&, const CacheStore&, const float* k, const float* v, Strides k_strides,
                  Strides v_strides, const CacheRows&);
void cache_attention(Pool&, const CacheStore&, float* y, const float* q, Strides q_strides,
                     const CacheRows&, int64_t H, const CacheScores&);

// linear_attention.cc, linear_attention_decode.cc. Slots are within the states: the caller has
// looked.
void linear_attention_forward(Pool&, const LinearAttentionForward&, const LinearAttentionShape&);
void linear_attention_backward(Pool&, const LinearAttentionBackward&, const LinearAttentionShape&);
void linear_attention_decode(Pool&, const LinearAttentionStep&, const LinearAttentionShape&);

// cross_entropy.cc. Rows of logits (M, V) against targets (M), negative ones ignored. Returns the
// sum of the losses of the rows that count, each ℓ − logit of the target + z_loss · ℓ², where ℓ is
// the log of the sum of exponentials. Where `scale` is not 0, logits become their own gradient,
// scale · ((1 + 2 z_loss ℓ) softmax − onehot), zero in ignored rows; where it is 0 they are only
// read.
double cross_entropy(Pool&, float* logits, const int32_t* targets, int64_t M, int64_t V,
                     float scale, float z_loss);

// dropout.cc. y[i] = x[i] · scale where the counted random number (seed, counter + i) is at least
// threshold, else 0. y may be x.
void dropout(Pool&, float* y, const float* x, int64_t n, uint32_t threshold, float scale,
             uint64_t seed, uint64_t counter);

// optim.cc
void adamw_step(Pool&, float* p, const float* g, float* m, float* v, int64_t n, const AdamW&);
double square_sum(Pool&, const float* x, int64_t n);

// muon.cc. A step for each of the matrices (O, I).
void muon_step(Pool&, const MuonMatrix* matrices, int64_t count, const Muon&);

}  // namespace TENARAI_ISA
}  // namespace tenarai

// Their names, for the table (dispatch.h) and whoever goes through all of them.
// clang-format off
#define TENARAI_KERNELS(X)                                              \
  X(linear_forward) X(linear_backward)                                  \
  X(quant_linear_forward) X(quant_linear_backward)                      \
  X(layer_norm_forward) X(layer_norm_backward)                          \
  X(rms_norm_forward) X(rms_norm_backward)                              \
  X(gelu_forward) X(gelu_backward) X(silu_forward) X(silu_backward)     \
  X(swiglu_forward) X(swiglu_backward) X(geglu_forward)                 \
  X(geglu_backward) X(add) X(scale) X(to_bfloat16) X(from_bfloat16)     \
  X(embedding_forward) X(embedding_backward) X(rope)                    \
  X(dequantize) X(quant_embedding_forward) X(quantize)                  \
  X(attention_forward) X(attention_backward)                            \
  X(cache_append) X(cache_attention)                                    \
  X(linear_attention_forward) X(linear_attention_backward)              \
  X(linear_attention_decode)                                            \
  X(cross_entropy) X(dropout) X(adamw_step) X(square_sum) X(muon_step)
// clang-format on
