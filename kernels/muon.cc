// Muon, a step for all matrices of a model: momentum made orthogonal by five products of three
// (src/tenarai/ops/reference/muon.py derives it).
//
//   m = μ m + (1 − μ) g       u = μ m + (1 − μ) g       X = u / ‖u‖, the long side along the rows
//   A = X Xᵀ,   B = b A + c A Aᵀ,   X ← a X + B X        five times
//   p ← (1 − lr · weight_decay) p − lr √max(1, O/I) X
//
// Small matrices are shared out among the threads, one each at a time, which then meet once a step
// and not with every product. Large ones are taken one after the other by all threads. A product's
// bits do not depend on the threads, so it makes no difference to the result.
#include "linear.h"
#include "tile.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr int kSteps = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
constexpr i64 kSmall = 1 << 18;  // numbers of a matrix: each product of it is soon made
constexpr double kEps = 1e-7;

// c = sum · of_sum + from · of_from; from as c.
struct Combination {
  float* c;
  i64 stride;
  const float* from;
  float of_sum, of_from;
  static constexpr bool streams() { return false; }

  vf start(i64, i64, i64) const { return vf{}; }
  vf finish(vf sum, i64 i, i64 j, i64 n) const {
    return sum * of_sum + load_upto(from + i * stride + j, n) * of_from;
  }
};

// f(begin, end) for pieces of n numbers.
template <class F>
void each(Pool& pool, i64 n, F&& f) {
  parallel_pieces(pool, n, pool.threads(), 1 << 14,
                  [&](int, Pool::Piece piece) { f(piece.range.begin, piece.range.end); });
}

// to (N, M) = from (M, N)ᵀ
void turn(Pool& pool, float* to, const float* from, i64 M, i64 N) {
  parallel_pieces(pool, M, pool.threads(), kLanes, [&](int, Pool::Piece piece) {
    const Range r = piece.range;
    transpose(to + r.begin, M, from + r.begin * N, N, r.end - r.begin, N, 1.0f, false);
  });
}

struct Sizes {
  i64 all, rows, columns;  // of X: rows <= columns

  explicit Sizes(const MuonMatrix& w)
      : all(w.O * w.I), rows(w.O < w.I ? w.O : w.I), columns(w.O < w.I ? w.I : w.O) {}
  i64 floats() const { return 2 * round_up(all, 16) + 2 * round_up(rows * rows, 16); }
  bool small() const { return all <= kSmall; }
};

void step(Pool& pool, const MuonMatrix& w, const Muon& s, float* memory) {
  const Sizes n(w);
  float *x = memory, *y = x + round_up(n.all, 16), *square = y + round_up(n.all, 16),
        *sum = square + round_up(n.rows * n.rows, 16);
  const bool turned = w.O > w.I;
  float* u = turned ? y : x;
  each(pool, n.all, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const float g = (1.0f - s.momentum) * (w.g[i] * s.grad_scale);
      w.m[i] = s.momentum * w.m[i] + g;
      u[i] = s.momentum * w.m[i] + g;
    }
  });
  const float unit = static_cast<float>(1 / (__builtin_sqrt(square_sum(pool, u, n.all)) + kEps));
  each(pool, n.all, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) u[i] *= unit;
  });
  if (turned) turn(pool, x, u, w.O, w.I);
  for (int i = 0; i < kSteps; ++i) {
    const Along<Same> rows{x, n.columns}, squares{square, n.rows};
    multiply(s.products, pool, rows, rows, Forward{square, n.rows, nullptr, nullptr}, n.rows,
             n.rows, n.columns);
    multiply(s.products, pool, squares, squares, Combination{sum, n.rows, square, kC, kB}, n.rows,
             n.rows, n.rows);
    multiply(s.products, pool, Along<Same>{sum, n.rows}, Across<Same>{x, n.columns},
             Combination{y, n.columns, x, 1.0f, kA}, n.rows, n.columns, n.rows);
    float* before = x;
    x = y, y = before;
  }
  if (turned) turn(pool, y, x, n.rows, n.columns);
  const float* direction = turned ? y : x;
  const float keep = 1.0f - s.lr * s.weight_decay;
  const float aspect = static_cast<float>(w.O) / static_cast<float>(w.I);
  const float rate = s.lr * __builtin_sqrtf(aspect > 1 ? aspect : 1.0f);
  each(pool, n.all, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) w.p[i] = keep * w.p[i] - rate * direction[i];
  });
}

}  // namespace

void muon_step(Pool& pool, const MuonMatrix* matrices, i64 count, const Muon& s) {
  const auto each_of = [&](bool small, Range some, auto f) {
    for (i64 i = some.begin; i < some.end; ++i)
      if (Sizes(matrices[i]).small() == small && Sizes(matrices[i]).all > 0) f(matrices[i]);
  };
  const auto memory_for = [&](bool small) {
    i64 most = 0;
    each_of(small, {0, count}, [&](const MuonMatrix& w) {
      if (Sizes(w).floats() > most) most = Sizes(w).floats();
    });
    return static_cast<size_t>(most) * sizeof(float);
  };
  const size_t of_small = memory_for(true), of_large = memory_for(false);
  // A product has its panels in the memory of the pool that it runs on: the matrices are in the
  // other pool's. All of it is taken before the job.
  constexpr size_t kPanels = 4 << 20;  // more than a small product's
  const auto memory = [&](int thread) {
    return static_cast<float*>(pool.scratch(thread, of_small));
  };
  for (int thread = 0; of_small && thread < pool.threads(); ++thread)
    memory(thread), pool.alone(thread).scratch(0, kPanels);
  parallel_pieces(pool, count, pool.threads(), 1, [&](int thread, Pool::Piece piece) {
    each_of(true, piece.range,
            [&](const MuonMatrix& w) { step(pool.alone(thread), w, s, memory(thread)); });
  });
  each_of(false, {0, count}, [&](const MuonMatrix& w) {
    step(pool, w, s, static_cast<float*>(pool.alone(0).scratch(0, of_large)));
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
