// Linear layers with quantised weights: y = x wᵀ + b + residual, w (O, I) in blocks as a GGUF file
// holds them, at any address.
//
// Words: x as whole numbers of 12 bits and more (quant_activations.h), products in integers; with
// AMX both of 16 (digit_gemm.h). Bytes: of 8 bits (quant_bytes.h), with AMX bfloat16
// (quant_bfloats.h), and words for few rows. Float32: w in float32, a piece at a time
// (quant_rows.h). For few rows of x a weight is read once.
#include "ops.h"
#include "parts.h"
#include "quant_bfloats.h"
#include "quant_bytes.h"
#include "quant_gemm.h"
#include "quant_gradient.h"
#include "quant_rows.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// M <= kMostRows. Each thread rounds x for itself: that is less than a barrier.
void forward_few(Pool& pool, const Forward& forward, const float* x, const QuantRows& w, i64 M) {
  const i64 computed = rows_computed(M);
  const Tile tile = w.tile(computed);
  parallel(pool, [&](int thread) {
    const Range range = split(w.O, pool.threads(), thread, kLanes);
    if (range.begin == range.end) return;
    void* memory = pool.scratch(thread, WordRows::bytes(computed, w.I));
    const WordRows activations(memory, computed, w.I);
    round_few(activations, x, w.I, M, w.reader.layout == Layout::paired, w.reader.min_terms);
    dot_rows(forward, range, M,
             [&](auto totals, i64 o, i64 n) { tile(totals, w, o, n, activations); });
  });
}

// Where integers beat floats: x86 multiplies and adds pairs of words in one instruction.
#if defined(__SSE2__)
constexpr bool kIntegersPay = true;
#else
constexpr bool kIntegersPay = false;
#endif

// Many rows, at most kRowsRounded of them rounded at a time, for all threads.
constexpr i64 kRowsRounded = 1024;
void forward_many(Pool& pool, const Forward& forward, const float* x, const PanelSource& w, i64 M) {
  const size_t shared = WordRows::bytes(at_most(M, kRowsRounded), w.I) + 64;
  char* first = static_cast<char*>(pool.scratch(0, shared / 64 * 64 + sizeof(Panel)));
  for (int thread = 1; thread < pool.threads(); ++thread) pool.scratch(thread, sizeof(Panel));
  const int32_t limit =
      limit_of(w.reader.most_word, w.reader.layout == Layout::super ? kSuperBlock : kBlock);
  for (i64 m0 = 0; m0 < M; m0 += kRowsRounded) {
    const i64 rows = at_most(kRowsRounded, M - m0);
    const WordRows activations(first, rows, w.I);
    parallel(pool, [&](int thread) {
      const Range range = split(rows, pool.threads(), thread);
      round_activations(activations, x + m0 * w.I, w.I, range.begin, range.end, limit,
                        w.reader.min_terms);
    });
    const Forward part = forward.from(m0);
    const Grid grid = choose_grid(rows, w.O, pool.threads());
    const auto rectangle = [&](int thread, Range some, Range outputs) {
      void* panel = thread == 0 ? first + shared / 64 * 64 : pool.scratch(thread, sizeof(Panel));
      QuantProduct{part, w, activations}.rectangle(some, outputs, static_cast<Panel*>(panel));
    };
    each_rectangle(pool, grid, rows, kRows, w.O, kCols, kCols, rectangle);
  }
}

#if defined(TENARAI_AMX)
// Many rows in bfloat16, rounded for all threads.
void forward_bfloats(Pool& pool, const Forward& forward, const float* x, const BfloatSource& w,
                     i64 M) {
  static_assert(kRowsRounded * kBfloatOutputs <= kBfloatSums, "there is room for a panel's sums");
  const size_t shared = BfloatRows::bytes(at_most(M, kRowsRounded), w.I);
  const size_t own = BfloatProduct::bytes(at_most(M, kRowsRounded));
  char* first = static_cast<char*>(pool.scratch(0, shared + own));
  for (int thread = 1; thread < pool.threads(); ++thread) pool.scratch(thread, own);
  for (i64 m0 = 0; m0 < M; m0 += kRowsRounded) {
    const i64 rows = at_most(kRowsRounded, M - m0);
    const BfloatRows activations(first, rows, w.I);
    parallel(pool, [&](int thread) {
      const Range tiles = split(activations.panels() * activations.steps, pool.threads(), thread);
      activations.round(x + m0 * w.I, w.I, tiles.begin, tiles.end);
    });
    const Forward part = forward.from(m0);
    // A panel is expanded by one thread, where there are panels for all.
    const Grid grid = w.O >= pool.threads() * 4 * kBfloatOutputs
                          ? Grid{1, pool.threads()}
                          : choose_grid(rows, w.O, pool.threads());
    const auto rectangle = [&](int thread, Range some, Range outputs) {
      void* memory = thread == 0 ? first + shared : pool.scratch(thread, own);
      BfloatProduct{part, w, activations}.rectangle(some, outputs,
                                                    static_cast<BfloatProduct::Memory*>(memory));
    };
    // Rows that exceed L2 are read again for each piece: then it is a large one.
    const bool large = w.O / grid.columns >= 4 * kBfloatMostOutputs;
    each_rectangle(pool, grid, rows, kBfloatRows, w.O, large ? kBfloatMostOutputs : kBfloatOutputs,
                   kBfloatOutputs, rectangle);
  }
}
#elif defined(__AVX512VNNI__)
// Many rows in bytes; the activations are rounded for all threads.
void forward_bytes(Pool& pool, const Forward& forward, const float* x, const ByteSource& w, i64 M) {
  const size_t shared = ByteRows::bytes(at_most(M, kRowsRounded), w.I);
  const size_t own = ByteProduct::bytes(at_most(M, kRowsRounded));
  char* first = static_cast<char*>(pool.scratch(0, shared + own));
  for (int thread = 1; thread < pool.threads(); ++thread) pool.scratch(thread, own);
  for (i64 m0 = 0; m0 < M; m0 += kRowsRounded) {
    const i64 rows = at_most(kRowsRounded, M - m0);
    const ByteRows activations(first, rows, w.I);
    parallel(pool, [&](int thread) {
      const Range range = split(activations.M, pool.threads(), thread);
      activations.round(x + m0 * w.I, w.I, w.I, rows, range.begin, range.end);
    });
    const Forward part = forward.from(m0);
    // A panel is expanded by one thread, where there are panels for all.
    const Grid grid = w.O >= pool.threads() * 4 * kCols ? Grid{1, pool.threads()}
                                                        : choose_grid(rows, w.O, pool.threads());
    const auto rectangle = [&](int thread, Range some, Range outputs) {
      void* memory = thread == 0 ? first + shared : pool.scratch(thread, own);
      ByteProduct{part, w, activations}.rectangle(some, outputs,
                                                  static_cast<ByteProduct::Memory*>(memory));
    };
    each_rectangle(pool, grid, rows, kTileRows, w.O, kCols, kCols, rectangle);
  }
}
#endif

void forward_exact(Pool& pool, const Forward& forward, const float* x, const PieceRows& rows, i64 M,
                   i64 I, i64 O) {
  if (M > kMostRows) return multiply(pool, Along<Same>{x, I}, Expanded{rows}, forward, M, O, I);
  const FloatTile tile = choose_float_tile(M);
  parallel(pool, [&](int thread) {
    dot_rows(forward, split(O, pool.threads(), thread, kLanes), M,
             [&](auto totals, i64 o, i64 n) { tile(totals, rows, o, n, x, I); });
  });
}

// dx = or += dy w over some of the rows of w.
struct Gather {
  float* c;
  i64 stride;
  bool add;
  static constexpr bool streams() { return false; }

  vf start(i64 i, i64 j, i64 n) const { return add ? load_upto(c + i * stride + j, n) : vf{}; }
  vf finish(vf sum, i64, i64, i64) const { return sum; }
};

}  // namespace

void quant_linear_forward(Pool& pool, float* y, const float* x, const uint8_t* w,
                          QuantFormat format, const float* b, const float* residual, i64 M, i64 I,
                          i64 O, i64 row_bytes, Activations activations) {
  if (M == 0 || O == 0) return;
  const Forward forward{y, O, b, residual};
  const auto integers = [&](auto sample) {
    const Reader reader = reader_of<decltype(sample)>();
    const QuantRows rows{reader, w, O, I, row_bytes};
#if defined(TENARAI_AMX)
    if (activations == Activations::bytes && M > kMostRows)
      return forward_bfloats(
          pool, forward, x,
          BfloatSource{&put_blocks<decltype(sample)>, block_size(format), w, O, I, row_bytes}, M);
    using Words = DigitProduct<Along<Same>, Expanded, Forward, 2>;
    if (M > kMostRows && Words::worthwhile(kAmxRows, O, I))
      return Words{{x, I}, {{expander(format), w, row_bytes}}, forward, nullptr, M, O, I}.run(pool);
#elif defined(__AVX512VNNI__)
    if (activations == Activations::bytes && M > kMostRows)
      return forward_bytes(pool, forward, x, ByteSource(rows, format), M);
#endif
    M <= kMostRows ? forward_few(pool, forward, x, rows, M)
                   : forward_many(pool, forward, x, PanelSource{rows}, M);
  };
  if (activations != Activations::float32 && (M <= kMostRows || kIntegersPay) &&
      with_block(format, integers))
    return;
  forward_exact(pool, forward, x, PieceRows{expander(format), w, row_bytes}, M, I, O);
}

void quant_linear_backward(Pool& pool, float* dx, float* expanded, const float* dy,
                           const uint8_t* w, QuantFormat format, i64 M, i64 I, i64 O, i64 row_bytes,
                           Products products, Activations activations) {
  const PieceRows rows{expander(format), w, row_bytes};
#if defined(TENARAI_AMX)
  if (activations != Activations::float32 && block_size(format).weights > 1)
    products = Products::words;
#elif defined(__AVX512VNNI__)
  const i64 block = block_size(format).weights;
  if (activations == Activations::bytes && block > 1)
    return backward_rounded<GradientBytes>(pool, dx, dy, rows, block, M, I, O);
  if (activations == Activations::words && block > 1)
    return backward_rounded<GradientWords>(pool, dx, dy, rows, block, M, I, O);
#else
  (void)activations;
#endif
  for (i64 o = 0; o < O; o += kExpandedRows) {
    const i64 n = at_most(kExpandedRows, O - o);
    for_parts(pool, n, I, 1, [&](int, i64 begin, i64 end) {
      for (i64 r = begin; r < end; ++r) rows.expand(expanded + r * I, o + r, 0, I);
    });
    multiply(products, pool, Along<Same>{dy + o, O}, Across<Same>{expanded, I},
             Gather{dx, I, o > 0}, M, I, n);
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
