// dx = dy w of a quantised weight w (O, I) in whole numbers, for gradients of activations:
//
//     dy[m][o] ≈ dy_scale · p     |p| <= 127 (bytes) or 8191 (words), a scale for 32 outputs
//     w[o][i]  ≈ w_scale · q      so too, for each input i a scale for 128 outputs
//
// Gradients of logits are one large number among many small ones, so a scale for more outputs would
// lose those beside it (docs/LOG.md).
//
// The sum runs over outputs and the blocks of w along inputs, so the blocks' scales cannot be taken
// out of it: w is expanded to floats, 128 outputs × 256 inputs at a time, and rounded once more.
// Inputs are the lanes, so nothing is transposed.
//
//   for rectangles of dx, which the threads share out
//     for inputs of it, kStrip at a time
//       for groups of 256 outputs
//         expand, round and interleave 256 × kStrip          stays in L2
//         for panels of kCols inputs, for tiles of rows
//           dx += the forward's micro-kernel (bytes), or one like it (words)
//
// Only where the CPU multiplies and adds whole numbers in one instruction (AVX-512 VNNI): elsewhere
// words are no faster than floats. A row of dx is the same whatever other rows there are, and for
// every thread count.
#pragma once

#include "quant_bytes.h"
#include "quant_gemm.h"
#include "quant_rows.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_TILE__)

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kStrip = 16 * kCols;             // inputs: whole panels, and whole blocks of 256
constexpr i64 kShared = kGroup / 2;            // outputs that share a scale
constexpr i64 kPiece = kSuperBlock;            // inputs expanded together
constexpr i64 kPieceStride = kPiece + kLanes;  // no two rows in the same sets of the cache
static_assert(kStrip % kSuperBlock == 0, "a strip has whole blocks");

// What bytes and words differ in.
struct GradientBytes {
  using Rows = ByteRows;
  using Panel = BytePanel;
  static constexpr i64 kTile = kTileRows;
  static constexpr float kLimit = 127.0f;

  // Rows [begin, end) of dy, n outputs of each; `stride` from row to row.
  static void round(const Rows& to, const float* dy, i64 stride, i64 n, i64 rows, i64 begin,
                    i64 end) {
    to.round(dy, stride, n, rows, begin, end);
  }
  // Outputs [at, at + kShared) of a panel's 16 inputs from column j on, times `inverse`.
  static void put(Panel* panel, i64 at, i64 j, const float* w, vf inverse) {
    const __m512 higher = _mm512_set1_ps(128.0f);
    const auto level = [&](i64 r) __attribute__((always_inline)) {
      return _mm512_cvtps_epi32(
          _mm512_fmadd_ps((__m512)load(w + r * kPieceStride), (__m512)inverse, higher));
    };
    uint8_t* to = panel->bytes + (at / 4 * kCols + j) * 4;
    for (i64 r = 0; r < kShared; r += 4, to += 4 * kCols) {
      const __m512i low = _mm512_or_si512(level(r), _mm512_slli_epi32(level(r + 1), 8));
      const __m512i high = _mm512_or_si512(level(r + 2), _mm512_slli_epi32(level(r + 3), 8));
      _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
  // to (kTile, kCols), `stride` apart, += rows of dy from place `at` on, times a panel.
  static TENARAI_ALWAYS void multiply(float* to, i64 stride, const Rows& dy, i64 at,
                                      const Panel& panel) {
    byte_kernel<true, false>(to, stride, dy, at, panel);
  }
};

// M rows of words with a scale for 32, and zeros up to a multiple of kTileRows.
struct FineWordRows {
  i64 M, groups;
  int16_t* q;    // (groups, M, 256)
  float* scale;  // (groups, M, 8)

  static size_t bytes(i64 M, i64 I) {
    const i64 rows = round_up(M, kTileRows);
    return static_cast<size_t>(WordRows::groups_of(I) * rows) * (kGroup * 2 + kBlocks * 4);
  }
  FineWordRows(void* memory, i64 rows, i64 I)
      : M(round_up(rows, kTileRows)), groups(WordRows::groups_of(I)) {
    q = static_cast<int16_t*>(memory);
    scale = reinterpret_cast<float*>(q + groups * M * kGroup);
  }
  // n numbers; the largest is found as an integer, so that a NaN is larger than all.
  void round_block(i64 at, const float* x, i64 n) const {
    const auto some = [&](i64 from) __attribute__((always_inline)) {
      const i64 left = n - from;
      return left >= kLanes ? load(x + from) : left > 0 ? load_n(x + from, left) : vf{};
    };
    const vf a = some(0), b = some(kLanes);
    const vi p = bits(a) & 0x7fffffff, r = bits(b) & 0x7fffffff;
    const int32_t most = _mm512_reduce_max_epi32((__m512i)(p > r ? p : r));
    float max;
    std::memcpy(&max, &most, 4);
    const float inverse = max > 1e-30f ? 8191.0f / max : 0.0f;
    const auto words = [&](vf v) __attribute__((always_inline)) {
      return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32((__m512)(v * inverse)));
    };
    _mm256_storeu_si256((__m256i*)(q + at * kBlock), words(a));
    _mm256_storeu_si256((__m256i*)(q + at * kBlock + kLanes), words(b));
    scale[at] = max / 8191.0f;
  }
};

// y (kTileRows, kCols), `stride` apart, += a group of rows, x and their scales, times a panel.
static void fine_word_kernel(float* y, i64 stride, const int16_t* x, const float* x_scale,
                             const Panel& panel) {
#define TENARAI_TILE(X) X(0) X(1) X(2) X(3)
  const int32_t* w = panel.pairs;
  for (int half = 0; half < 2; ++half) {
#define DECLARE(i) __m512 f##i##0 = {}, f##i##1 = {}, f##i##2 = {};
    TENARAI_TILE(DECLARE)
#undef DECLARE
    for (int j = 4 * half; j < 4 * half + 4; ++j) {
#define DECLARE(i) __m512i c##i##0 = {}, c##i##1 = {}, c##i##2 = {};
      TENARAI_TILE(DECLARE)
#undef DECLARE
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k, w += kCols) {
        const __m512i b0 = _mm512_load_si512(w), b1 = _mm512_load_si512(w + 16),
                      b2 = _mm512_load_si512(w + 32);
#define ACCUMULATE(i)                                      \
  {                                                        \
    int32_t two;                                           \
    std::memcpy(&two, x + i * kGroup + j * 32 + k * 2, 4); \
    const __m512i a = _mm512_set1_epi32(two);              \
    c##i##0 = _mm512_dpwssd_epi32(c##i##0, a, b0);         \
    c##i##1 = _mm512_dpwssd_epi32(c##i##1, a, b1);         \
    c##i##2 = _mm512_dpwssd_epi32(c##i##2, a, b2);         \
  }
        TENARAI_TILE(ACCUMULATE)
#undef ACCUMULATE
      }
#define FINISH(i)                                                       \
  {                                                                     \
    const __m512 t = _mm512_set1_ps(x_scale[i * kBlocks + j]);          \
    f##i##0 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c##i##0), t, f##i##0); \
    f##i##1 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c##i##1), t, f##i##1); \
    f##i##2 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c##i##2), t, f##i##2); \
  }
      TENARAI_TILE(FINISH)
#undef FINISH
    }
    const float* scale = panel.scale + half * kCols;
#define ADD(i, v)                                                                           \
  {                                                                                         \
    float* to = y + i * stride + 16 * v;                                                    \
    _mm512_storeu_ps(                                                                       \
        to, _mm512_fmadd_ps(f##i##v, _mm512_load_ps(scale + 16 * v), _mm512_loadu_ps(to))); \
  }
#define FINISH(i) ADD(i, 0) ADD(i, 1) ADD(i, 2)
    TENARAI_TILE(FINISH)
#undef FINISH
#undef ADD
  }
#undef TENARAI_TILE
}

struct GradientWords {
  using Rows = FineWordRows;
  using Panel = TENARAI_ISA::Panel;
  static constexpr i64 kTile = kTileRows;
  static constexpr float kLimit = 8191.0f;
  static_assert(8191 * 8191 <= 0x7fffffff / 32, "sums of 32 products fit");

  static void round(const Rows& to, const float* dy, i64 stride, i64 n, i64 rows, i64 begin,
                    i64 end) {
    for (i64 m = begin; m < end; ++m)
      for (i64 o = 0; o < to.groups * kGroup; o += kBlock)
        to.round_block((o / kGroup * to.M + m) * kBlocks + o % kGroup / kBlock, dy + m * stride + o,
                       m < rows ? n - o : 0);
  }
  static void put(Panel* panel, i64 at, i64 j, const float* w, vf inverse) {
    const auto level = [&](i64 r) __attribute__((always_inline)) {
      return _mm512_cvtps_epi32((__m512)(load(w + r * kPieceStride) * inverse));
    };
    int32_t* to = panel->pairs + at / 2 * kCols + j;
    for (i64 r = 0; r < kShared; r += 2, to += kCols)
      _mm512_store_si512(
          to, _mm512_mask_mov_epi16(_mm512_slli_epi32(level(r + 1), 16), 0x55555555u, level(r)));
  }
  static TENARAI_ALWAYS void multiply(float* to, i64 stride, const Rows& dy, i64 at,
                                      const Panel& panel) {
    fine_word_kernel(to, stride, dy.q + at * kGroup, dy.scale + at * kBlocks, panel);
  }
};

// Some outputs of w, as panels whose lanes are inputs.
struct OutputPanels {
  PieceRows rows;
  i64 I, first, O;  // outputs [first, O)

  // Outputs of group g and inputs [i, i + n): n / kCols panels. Zeros past O; lanes past n hold
  // anything.
  template <class Kind>
  void pack(typename Kind::Panel* panels, float* piece, i64 g, i64 i, i64 n) const {
    for (i64 half = 0; half < 2; ++half) {
      const i64 o = first + g * kGroup + half * kShared, outputs = at_most(kShared, O - o);
      for (i64 c = 0; c < n; c += kPiece) {
        const i64 width = at_most(kPiece, n - c);
        for (i64 r = 0; r < kShared; ++r)
          if (r < outputs)
            rows.expand(piece + r * kPieceStride, o + r, i + c, width);
          else
            std::memset(piece + r * kPieceStride, 0, static_cast<size_t>(width) * 4);
        for (i64 j = 0; j < width; j += kLanes)
          round<Kind>(panels + (c + j) / kCols, half, (c + j) % kCols, piece + j);
      }
    }
  }
  // Asks for part `part` of `parts` of what pack will read.
  void prefetch(i64 g, i64 i, i64 n, i64 part, i64 parts) const {
    const i64 o = first + g * kGroup, end = at_most(o + kGroup, O);
    const i64 from = i * rows.row_bytes / I, to = (i + n) * rows.row_bytes / I;
    for (i64 r = o + part; r < end; r += parts)
      for (i64 b = from; b < to + 63; b += 64)
        __builtin_prefetch(rows.data + r * rows.row_bytes + b, 0, 2);
  }

 private:
  // The largest is found as an integer, so that a NaN is larger than all and makes the scale NaN.
  template <class Kind>
  static TENARAI_ALWAYS void round(typename Kind::Panel* panel, i64 half, i64 j, const float* w) {
    vi most = {};
    for (i64 r = 0; r < kShared; ++r) {
      const vi size = bits(load(w + r * kPieceStride)) & 0x7fffffff;
      most = size > most ? size : most;
    }
    const vf max = (vf)most;
    const vf inverse = max > 1e-30f ? Kind::kLimit / max : vf{};
    Kind::put(panel, half * kShared, j, w, inverse);
    store(panel->scale + half * kCols + j, max * (1.0f / Kind::kLimit));
  }
};

// dx (M, I) += dy w over some outputs.
template <class Kind>
struct GradientProduct {
  using Panel = typename Kind::Panel;
  float* dx;
  i64 I, groups;
  const OutputPanels& w;
  const typename Kind::Rows& dy;

  static size_t scratch_bytes() {
    return kStrip / kCols * sizeof(Panel) + kShared * kPieceStride * sizeof(float);
  }

  void rectangle(Range rows, Range inputs, void* memory) const {
    Panel* panels = static_cast<Panel*>(memory);
    float* piece = reinterpret_cast<float*>(panels + kStrip / kCols);
    for (i64 i = inputs.begin; i < inputs.end; i += kStrip) {
      const i64 n = at_most(kStrip, inputs.end - i);
      for (i64 g = 0; g < groups; ++g) {
        w.pack<Kind>(panels, piece, g, i, n);
        const i64 next_g = g + 1 < groups ? g + 1 : 0, next_i = next_g ? i : i + kStrip;
        for (i64 j = 0; j < n; j += kCols) {
          if (next_i < inputs.end)
            w.prefetch(next_g, next_i, at_most(kStrip, inputs.end - next_i), j / kCols,
                       (n + kCols - 1) / kCols);
          for (i64 m = rows.begin; m < rows.end; m += Kind::kTile)
            tile(panels[j / kCols], m, at_most(Kind::kTile, rows.end - m), i + j,
                 at_most(kCols, n - j), g);
        }
      }
    }
  }

 private:
  void tile(const Panel& panel, i64 m, i64 rows, i64 i, i64 n, i64 g) const {
    float* y = dx + m * I + i;
    const i64 at = g * dy.M + m;
    if (rows == Kind::kTile && n == kCols) {
      for (i64 row = 0; row < rows; ++row)  // needed when the sums are done
        for (i64 j = 0; j < kCols; j += 16) __builtin_prefetch(y + row * I + j, 1);
      return Kind::multiply(y, I, dy, at, panel);
    }
    alignas(64) float edge[Kind::kTile * kCols] = {};
    for (i64 row = 0; row < rows; ++row)
      std::memcpy(edge + row * kCols, y + row * I, static_cast<size_t>(n) * 4);
    Kind::multiply(edge, kCols, dy, at, panel);
    for (i64 row = 0; row < rows; ++row)
      std::memcpy(y + row * I, edge + row * kCols, static_cast<size_t>(n) * 4);
  }
};

// Outputs of dy rounded at a time, for all threads, and rows.
constexpr i64 kOutputsRounded = 8192, kGradientRows = 1024;

// dx (M, I) = dy (M, O) w; blocks of w have `block` weights.
template <class Kind>
static void backward_rounded(Pool& pool, float* dx, const float* dy, const PieceRows& w, i64 block,
                             i64 M, i64 I, i64 O) {
  using Rows = typename Kind::Rows;
  const i64 most = at_most(M, kGradientRows);
  const size_t shared =
      round_up(static_cast<i64>(Rows::bytes(most, at_most(O, kOutputsRounded))), 64);
  const size_t own = GradientProduct<Kind>::scratch_bytes();
  char* first = static_cast<char*>(pool.scratch(0, shared + own));
  for (int thread = 1; thread < pool.threads(); ++thread) pool.scratch(thread, own);
  std::memset(dx, 0, static_cast<size_t>(M * I) * 4);
  for (i64 m0 = 0; m0 < M; m0 += kGradientRows)
    for (i64 o0 = 0; o0 < O; o0 += kOutputsRounded) {
      const i64 rows = at_most(kGradientRows, M - m0), n = at_most(kOutputsRounded, O - o0);
      const Rows rounded(first, rows, n);
      parallel(pool, [&](int thread) {
        const Range range = split(rounded.M, pool.threads(), thread);
        Kind::round(rounded, dy + m0 * O + o0, O, n, rows, range.begin, range.end);
      });
      const OutputPanels panels{w, I, o0, o0 + n};
      const GradientProduct<Kind> product{dx + m0 * I, I, rounded.groups, panels, rounded};
      const Grid grid = choose_grid(rows, I, pool.threads());
      const auto rectangle = [&](int thread, Range some, Range inputs) {
        product.rectangle(some, inputs, thread == 0 ? first + shared : pool.scratch(thread, own));
      };
      each_rectangle(pool, grid, rows, Kind::kTile, I, kStrip,
                     block == kSuperBlock ? kSuperBlock : 2 * kCols, rectangle);
    }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
