// The matrix product: C (M, N) = Σ_k A(i, k) B(k, j), whatever the operands' layout (pack.h) and
// whatever happens to a tile of C when it is done (the epilogue).
//
//   each thread has a rectangle of C
//     for rows of it, kRowBlock at a time
//       for k, kDepthBlock at a time
//         pack A: kRowBlock × kDepthBlock                    stays in L2, 768 KB; shared by the
//                                                            threads that have these rows
//         for columns, kCols at a time                       then those that others have not begun
//           pack B: kDepthBlock × kCols                      L1 and L2, 72 KB
//           for rows of the block, kRows at a time           A panel in L1, 12 KB
//             micro-kernel: kRows × kCols of C in registers  (micro.h)
//             epilogue
//
// The k blocks depend on K alone, and an element of C is the sum of its blocks in their order: its
// bits are the same for every thread count and every place in the matrix. (Not those of a forward
// of four rows or fewer, which linear.cc computes as dot products.)
#pragma once

#include "micro.h"
#include "pack.h"
#include "threads.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kDepthBlock = 384;
constexpr i64 kRowBlock = 512;  // where k is a whole block; more where it is shorter

TENARAI_INLINE i64 at_most(i64 a, i64 b) { return a < b ? a : b; }
TENARAI_INLINE i64 round_up(i64 n, i64 grain) { return (n + grain - 1) / grain * grain; }
// The size of blocks of at most `most` that share n evenly.
TENARAI_INLINE i64 even_block(i64 n, i64 most, i64 grain) {
  const i64 blocks = (n + most - 1) / most;
  return blocks == 0 ? grain : round_up((n + blocks - 1) / blocks, grain);
}

TENARAI_INLINE vf load_upto(const float* p, i64 n) { return n == kLanes ? load(p) : load_n(p, n); }

// How the threads share C: rows × columns of rectangles.
struct Grid {
  i64 rows, columns;
};

// In units of one micro-kernel step over one row: the largest rectangle's tiles (those of the
// edge count whole) and its packing, in blocks of at most `lines` rows.
static i64 grid_cost(Grid g, i64 M, i64 N, i64 lines) {
  const i64 m = round_up((M + g.rows - 1) / g.rows, kRows);
  const i64 n = round_up((N + g.columns - 1) / g.columns, kLanes);
  return m * n * 4 + (m + n * ((m + lines - 1) / lines)) * 24;
}
static Grid choose_grid(i64 M, i64 N, i64 threads, i64 lines = kRowBlock) {
  Grid best{threads, 1};
  for (i64 rows = threads; rows >= 1; --rows)
    if (threads % rows == 0) {
      const Grid g{rows, threads / rows};
      if (grid_cost(g, M, N, lines) < grid_cost(best, M, N, lines)) best = g;
    }
  return best;
}

// In what multiples N columns are shared out: panels of B, or a thread's whole share where it has
// fewer than four, which panels would divide unevenly.
static inline i64 share_grain(Grid grid, i64 N, i64 panel, i64 grain) {
  const i64 even = round_up((N + grid.columns - 1) / grid.columns, grain);
  return even > 0 && even < 4 * panel ? even : panel;
}

// f(thread, rows, columns) for pieces of all rectangles: rows in multiples of row_grain, columns in
// those of grain, and in panels where there are many.
template <class F>
static void each_rectangle(Pool& pool, Grid grid, i64 M, i64 row_grain, i64 N, i64 panel, i64 grain,
                           F&& f) {
  const i64 multiple = share_grain(grid, N, panel, grain);
  parallel_pieces(pool, N, grid.columns, multiple, [&](int thread, Pool::Piece piece) {
    f(thread, split(M, grid.rows, piece.owner / grid.columns, row_grain), piece.range);
  });
}

// sums (m) += Σ_k of the rows in panels.
static void add_row_sums(float* sums, const float* panels, i64 m, i64 K) {
  for (i64 i = 0; i < m; i += kRows) {
    float total[kRows] = {};
    for (i64 k = 0; k < K; ++k)
      for (i64 row = 0; row < kRows; ++row) total[row] += panels[i * K + k * kRows + row];
    for (i64 row = 0; row < at_most(kRows, m - i); ++row) sums[i + row] += total[row];
  }
}

// Where a panel of B lies, and its size.
struct PlaceOfB {
  i64 j, columns, k, depth;
};

// The one of `width` columns after column j0 and k0, in one block of rows.
static inline PlaceOfB next_panel(Range columns, i64 j0, i64 width, i64 k0, i64 depth, i64 K) {
  i64 j = j0 + width, k = k0;
  if (j >= columns.end) {
    j = columns.begin;
    k = k0 + depth < K ? k0 + depth : 0;
  }
  return {j, at_most(width, columns.end - j), k, at_most(depth, K - k)};
}

// Computes a product block by block. P has M, N, K and
//   kRowGrain, kColumnGrain    its rows and columns are shared out in multiples of these
//   kPanel                     columns of a panel of B
//   kLineGrain, kPackGrain     a block's rows are such a multiple, and what a thread packs of them
//   kBlock                     rows times ks of a block, at most
//   block_depth()              the ks of a block
//   a_floats(lines, k), b_floats(k)   the sizes of panels of A and of B
//   pack_rows(panels, i0, m, part, k0, k, sums)   fills A's panels for a part of the m rows from i0
//                                                 on; `sums`: adds up these rows too
//   times_columns(panels, own, i0, m, columns, share, k0, k)
//       multiplies them by columns of B, which are packed into memory of the thread's own; where
//       the share is its own the next of it follow
template <class P>
static void compute_blocks(Pool& pool, const P& product) {
  constexpr i64 kWorthSharing = 1 << 14;  // floats of A that pay for waiting twice
  const i64 depth = product.block_depth();
  const Grid grid = choose_grid(product.M, product.N, pool.threads(), P::kBlock / depth);
  const i64 most = round_up((product.M + grid.rows - 1) / grid.rows, P::kRowGrain);
  const i64 lines = even_block(most, P::kBlock / depth, P::kLineGrain);
  const i64 grain = share_grain(grid, product.N, P::kPanel, P::kColumnGrain);
  const bool together = pool.threads() > 1 && lines * depth >= kWorthSharing &&
                        (grid.columns > 1 || grain < product.N);
  const i64 a_floats = product.a_floats(lines, depth);
  const size_t bytes = static_cast<size_t>(a_floats + product.b_floats(depth)) * sizeof(float);
  const auto memory = [&](i64 thread) {
    return static_cast<float*>(pool.scratch(static_cast<int>(thread), bytes));
  };
  for (int thread = 0; thread < pool.threads(); ++thread) memory(thread);  // now, so it stays

  // Line i of the thread's rectangle, and k0, are where the block begins.
  struct Block {
    i64 i0, m, k0, k, column;
    float* panels;
  };
  const auto block_of = [&](int thread, i64 i, i64 k0) {
    const i64 column = thread % grid.columns;
    const Range rows = split(product.M, grid.rows, thread / grid.columns, P::kRowGrain);
    const i64 i0 = rows.begin + i;
    return Block{i0,     at_most(lines, rows.end - i0),
                 k0,     at_most(depth, product.K - k0),
                 column, memory(together ? thread - column : thread)};
  };
  const auto pack = [&](const Block& block, Range part, bool sums) {
    if (block.m > 0)
      product.pack_rows(block.panels, block.i0, block.m, part, block.k0, block.k, sums);
  };
  const auto multiply = [&](const Block& block, int thread, Range columns, Range share) {
    if (block.m > 0)
      product.times_columns(block.panels, memory(thread) + a_floats, block.i0, block.m, columns,
                            share, block.k0, block.k);
  };
  const auto share_of = [&](const Block& block) {
    return split(product.N, grid.columns, block.column, grain);
  };
  const auto each_block = [&](auto visit) {
    for (i64 i = 0; i < most; i += lines)
      for (i64 k0 = 0; k0 < product.K; k0 += depth) visit(i, k0);
  };
  if (together)
    each_block([&](i64 i, i64 k0) {
      parallel(pool, [&](int thread) {
        const Block block = block_of(thread, i, k0);
        pack(block, split(block.m, grid.columns, block.column, P::kPackGrain), true);
      });
      parallel_pieces(pool, product.N, grid.columns, grain, [&](int thread, Pool::Piece piece) {
        const Block block = block_of(piece.owner, i, k0);
        multiply(block, thread, piece.range, share_of(block));
      });
    });
  else
    parallel(pool, [&](int thread) {
      each_block([&](i64 i, i64 k0) {
        const Block block = block_of(thread, i, k0);
        pack(block, {0, block.m}, block.column == 0);
        multiply(block, thread, share_of(block), share_of(block));
      });
    });
}

// A finished tile's way into C. The epilogue has
//   vf start(i, j, n)           what the sum over k is added to: n elements of row i from column j
//   vf finish(vf, i, j, n)      the element that is stored, from the sum
//   float* c; i64 stride;       where C is
//   bool streams()              C is written once and not read soon: past the caches, if that goes
template <class Epilogue, i64 kHeight = kRows, i64 kWidth = kCols>
struct Tiles {
  const Epilogue& epilogue;
  bool first, last;  // is this block of k the first, the last?

  // Do those of n columns go past the caches?
  bool stream(i64 n) const {
    return epilogue.streams() && first && last && n == kWidth &&
           reinterpret_cast<uintptr_t>(epilogue.c) % kVectorBytes == 0 &&
           epilogue.stride % kLanes == 0;
  }

  // The tile's `rows` and n columns are C's from row i and column j on; `streams` is stream(n).
  void put(const float* tile, i64 i, i64 rows, i64 j, i64 n, bool streams) const {
    const auto sum = [&](i64 row, i64 column) __attribute__((always_inline)) {
      return load(tile + row * kWidth + column);
    };
    if (rows < kHeight || n < kWidth)
      add<false>(sum, i, rows, j, n);
    else
      put_whole(sum, i, j, streams);
  }
  // A whole one, of vectors sum(row, column).
  template <class Sum>
  TENARAI_ALWAYS void put_whole(Sum sum, i64 i, i64 j, bool streams) const {
    if (streams)
      stream_tile(sum, i, j);
    else
      add<true>(sum, i, kHeight, j, kWidth);
  }

 private:
  template <bool kFull, class Sum>
  TENARAI_ALWAYS void add(Sum sum, i64 i, i64 rows, i64 j, i64 n) const {
    if (first)
      add_rows<kFull>(sum, i, rows, j, n, true);
    else
      add_rows<kFull>(sum, i, rows, j, n, false);
  }
  template <bool kFull, class Sum>
  TENARAI_ALWAYS void add_rows(Sum sum, i64 i0, i64 rows, i64 j0, i64 columns, bool start) const {
    const Epilogue& e = epilogue;
    for (i64 row = 0; row < (kFull ? kHeight : rows); ++row)
#pragma GCC unroll 3
      for (i64 j = 0; j < (kFull ? kWidth : columns); j += kLanes) {
        const i64 n = kFull ? kLanes : at_most(kLanes, columns - j);
        float* c = e.c + (i0 + row) * e.stride + j0 + j;
        vf v = sum(row, j) + (start ? e.start(i0 + row, j0 + j, n) : load_upto(c, n));
        if (last) v = e.finish(v, i0 + row, j0 + j, n);
        n == kLanes ? store(c, v) : store_n(c, v, n);
      }
  }

  // A whole tile, the only one for its place.
  template <class Sum>
  TENARAI_ALWAYS void stream_tile(Sum sum, i64 i, i64 j) const {
    const Epilogue& e = epilogue;
    for (i64 row = 0; row < kHeight; ++row)
      for (i64 column = 0; column < kWidth; column += kLanes) {
        const vf v = sum(row, column) + e.start(i + row, j + column, kLanes);
        TENARAI_ISA::stream(e.c + (i + row) * e.stride + j + column,
                            e.finish(v, i + row, j + column, kLanes));
      }
  }
};

// What one product needs to know.
// row_sums (M) or null += Σ_k A(i, k).
template <class A, class B, class Epilogue>
struct Product {
  A a;
  B b;
  Epilogue epilogue;
  float* row_sums;
  i64 M, N, K;

  static constexpr i64 kRowGrain = kRows, kColumnGrain = kLanes, kPanel = kCols;
  static constexpr i64 kPackGrain = 2 * kLanes;
  static constexpr i64 kLineGrain = kRows > kLanes ? kRows : kLanes;
  static constexpr i64 kBlock = kRowBlock * kDepthBlock;

  void run(Pool& pool) const { compute_blocks(pool, *this); }

  i64 block_depth() const {
    return even_block(K, kDepthBlock,
                      A::kDepthGrain > B::kDepthGrain ? A::kDepthGrain : B::kDepthGrain);
  }
  i64 a_floats(i64 lines, i64 k) const { return lines * k; }
  i64 b_floats(i64 k) const { return kCols * k; }

  void pack_rows(float* panels, i64 i0, i64, Range part, i64 k0, i64 k, bool sums) const {
    const i64 i = i0 + part.begin, m = part.end - part.begin;
    float* to = panels + part.begin * k;
    a.template pack<kRows>(to, i, m, k0, k);
    if (sums && row_sums) add_row_sums(row_sums + i, to, m, k);
  }

  void times_columns(const float* a_panels, float* b_panel, i64 i0, i64 m, Range columns,
                     Range share, i64 k0, i64 k) const {
    const i64 depth = block_depth();
    for (i64 j0 = columns.begin; j0 < columns.end; j0 += kCols) {
      const i64 n = at_most(kCols, columns.end - j0);
      b.template pack<kCols>(b_panel, j0, n, k0, k);
      const PlaceOfB next = next_panel(share, j0, kCols, k0, depth, K);
      strip(a_panels, b_panel, i0, m, j0, n, k, k0 == 0, k0 + k == K, next);
    }
    if (epilogue.streams()) stream_end();
  }

 private:
  // All rows of the block times one panel of B.
  void strip(const float* a_panels, const float* b_panel, i64 i0, i64 m, i64 j0, i64 n, i64 k,
             bool first, bool last, PlaceOfB next) const {
    const i64 tiles = (m + kRows - 1) / kRows;
    const Tiles<Epilogue> way{epilogue, first, last};
    const bool streams = way.stream(n);
    Ahead ahead(b.reads(next.j, next.columns, next.k, next.depth), tiles * k);
    alignas(64) float tile[kRows * kCols];
    for (i64 t = 0; t < tiles; ++t) {
      const i64 i = t * kRows, rows = at_most(kRows, m - i);
      ahead.c = Lines::of(epilogue.c + (i0 + i) * epilogue.stride + j0, epilogue.stride,
                          streams ? 0 : rows, n);
      if (rows == kRows && n == kCols)
        micro_kernel<kRows, kVectors>(tile, a_panels + i * k, b_panel, k, &ahead);
      else
        choose_micro_kernel(rows, n)(tile, a_panels + i * k, b_panel, k, &ahead);
      way.put(tile, i0 + i, rows, j0, n, streams);
    }
  }
};

template <class A, class B, class Epilogue>
static void multiply(Pool& pool, A a, B b, Epilogue epilogue, i64 M, i64 N, i64 K,
                     float* row_sums = nullptr) {
  Product<A, B, Epilogue>{a, b, epilogue, row_sums, M, N, K}.run(pool);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
