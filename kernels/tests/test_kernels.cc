// Every kernel of every table that this CPU can run, against plain loops in double: at every
// length below two vectors and some beyond, misaligned, on one thread and several.
#include <cstring>
#include <string>

#include "test.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;

// GELU and its derivative, from their definitions.
double gelu(double x, Gelu f) {
  if (f == Gelu::none) return x;
  if (f == Gelu::erf) return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
  return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_derivative(double x, Gelu f) {
  if (f == Gelu::none) return 1;
  return (gelu(x + 1e-5, f) - gelu(x - 1e-5, f)) / 2e-5;  // good to 1e-10
}

// NaN in all memory where panels will be packed: what a kernel reads it must have written.
void poison(Pool& pool) {
  constexpr size_t kFloats = 1 << 19;
  for (int thread = 0; thread < pool.threads(); ++thread)
    std::fill_n(static_cast<float*>(pool.scratch(thread, kFloats * 4)), kFloats, NAN);
}

void test_linear(const Kernels& k, Pool& pool, int64_t M, int64_t I, int64_t O, Gelu f,
                 Products products = Products::plain) {
  Array x(M * I), w(O * I), b(O), residual(M * O), dy(M * O);
  Array y(M * O), alone(M * O), dx(M * I), dw(O * I), db(O), db_alone(O, 0);
  const std::vector<float> dw_before(dw.data(), dw.data() + O * I);
  Doubles want_y(static_cast<size_t>(M * O)), want_dx(static_cast<size_t>(M * I)),
      want_dw(dw.data(), dw.data() + O * I), want_db(db.data(), db.data() + O),
      want_db_alone(static_cast<size_t>(O)), want_alone(want_y);
  Doubles fx(static_cast<size_t>(M * I)), slope(fx);
  for (int64_t i = 0; i < M * I; ++i) {
    fx[static_cast<size_t>(i)] = gelu(x[i], f);
    slope[static_cast<size_t>(i)] = gelu_derivative(x[i], f);
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t o = 0; o < O; ++o) {
      double total = 0;
      for (int64_t i = 0; i < I; ++i) {
        const size_t at = static_cast<size_t>(m * I + i);
        total += fx[at] * w[o * I + i];
        want_dx[at] += static_cast<double>(dy[m * O + o]) * w[o * I + i] * slope[at];
        want_dw[static_cast<size_t>(o * I + i)] += dy[m * O + o] * fx[at];
      }
      want_alone[static_cast<size_t>(m * O + o)] = total;
      want_y[static_cast<size_t>(m * O + o)] = total + b[o] + residual[m * O + o];
      want_db[static_cast<size_t>(o)] += dy[m * O + o];
      want_db_alone[static_cast<size_t>(o)] += dy[m * O + o];
    }
  // A sum of n products of numbers below 1, each rounded to 2^-24 of the sum so far.
  // In words both factors are off by half of the 4095th part of their block's greatest.
  // With AMX words are of two digits, 32,639.
  const double lost = products != Products::words            ? 1e-6
                      : is(k, "avx2") || is(k, "avx512vnni") ? 3e-4
                      : is(k, "amx")                         ? 6e-5
                                                             : 1e-6;
  const double tolerance = lost * std::sqrt(static_cast<double>(M + I + O));
  char what[96];
  const auto name = [&](const char* part) {
    std::snprintf(what, sizeof what, "linear %s M=%d I=%d O=%d gelu=%d products=%d threads=%d",
                  part, static_cast<int>(M), static_cast<int>(I), static_cast<int>(O),
                  static_cast<int>(f), static_cast<int>(products), pool.threads());
    return what;
  };
  poison(pool);
  k.linear_forward(pool, alone.data(), x.data(), w.data(), nullptr, nullptr, M, I, O, f, products);
  expect_near(k.isa, name("y"), alone, want_alone, tolerance);
  std::memcpy(y.data(), residual.data(), static_cast<size_t>(M * O) * 4);
  k.linear_forward(pool, y.data(), x.data(), w.data(), b.data(), y.data(), M, I, O, f, products);
  expect_near(k.isa, name("y + b + itself"), y, want_y, tolerance);
  poison(pool);
  k.linear_backward(pool, dx.data(), dw.data(), db.data(), dy.data(), x.data(), w.data(), M, I, O,
                    f, true, products);
  expect_near(k.isa, name("dx"), dx, want_dx, tolerance);
  expect_near(k.isa, name("dw"), dw, want_dw, tolerance);
  expect_near(k.isa, name("db"), db, want_db, tolerance);
  // Written, not added to: what was there is gone.
  for (int64_t i = 0; i < O * I; ++i) {
    want_dw[static_cast<size_t>(i)] -= dw_before[static_cast<size_t>(i)];
    dw[i] = NAN;
  }
  k.linear_backward(pool, nullptr, dw.data(), nullptr, dy.data(), x.data(), w.data(), M, I, O, f,
                    false, products);
  expect_near(k.isa, name("dw written"), dw, want_dw, tolerance);
  k.linear_backward(pool, nullptr, nullptr, db_alone.data(), dy.data(), x.data(), w.data(), M, I, O,
                    f, true, products);
  expect_near(k.isa, name("db alone"), db_alone, want_db_alone, tolerance);
}

void test_linear(const Kernels& k, Pool& pool) {
  const int64_t two = 2 * k.vector_bytes / 4 + 1;
  int turn = 0;
  for (int64_t n = 1; n <= two; ++n)
    for (const int64_t other : {1, 3, 17}) {
      const Gelu f = static_cast<Gelu>(turn++ % 3);
      test_linear(k, pool, n, other, 5, f);
      test_linear(k, pool, 5, n, other, f);
      test_linear(k, pool, other, 6, n, f);
    }
  test_linear(k, pool, 9, 800, 50, Gelu::tanh);  // more than one block of k, in each product
  test_linear(k, pool, 9, 50, 800, Gelu::erf);
  test_linear(k, pool, 800, 9, 50, Gelu::none);
}

// The same bits for every thread count; other ones by Strassen's scheme, which so was used.
void test_linear_threads(const Kernels& k, int64_t M, int64_t I, int64_t O) {
  Array x(M * I), w(O * I), dy(M * O);
  struct Results {
    Array y, dx, dw, db;
    Results(int64_t M, int64_t I, int64_t O) : y(M * O), dx(M * I), dw(O * I), db(O) {}
  };
  const auto compute = [&](int threads, Products products, Results& r) {
    Pool pool(threads);
    std::fill(r.db.data(), r.db.data() + O, 0.0f);
    k.linear_forward(pool, r.y.data(), x.data(), w.data(), nullptr, nullptr, M, I, O, Gelu::none,
                     products);
    k.linear_backward(pool, r.dx.data(), r.dw.data(), r.db.data(), dy.data(), x.data(), w.data(), M,
                      I, O, Gelu::none, false, products);
  };
  const auto equal = [](Array& a, Array& b, int64_t n) {
    return std::memcmp(a.data(), b.data(), static_cast<size_t>(n) * 4) == 0;
  };
  Results one(M, I, O), more(M, I, O);
  for (const Products products : {Products::plain, Products::words, Products::fast}) {
    compute(1, products, one);
    for (const int threads : {2, 3, 4}) {
      compute(threads, products, more);
      expect(equal(one.y, more.y, M * O), k.isa, "linear y: bits on so many threads", threads, M);
      expect(equal(one.dx, more.dx, M * I), k.isa, "linear dx: bits on so many threads", threads,
             M);
      expect(equal(one.dw, more.dw, O * I), k.isa, "linear dw: bits on so many threads", threads,
             M);
      expect(equal(one.db, more.db, O), k.isa, "linear db: bits on so many threads", threads, M);
    }
  }
  compute(1, Products::plain, more);
  const int64_t least = is(k, "amx") ? 16 : 64;
  expect(equal(more.y, one.y, M * O) == (M < least), k.isa,
         "linear: Strassen's scheme or digits, from so many rows on", static_cast<double>(M),
         static_cast<double>(least));
}

// Whole tiles and each kind of rest: of rows, of columns in one, two and three vectors, of k.
void test_fast(const Kernels& k, Pool& pool) {
  test_linear(k, pool, 125, 190, 187, Gelu::tanh, Products::fast);
  test_linear(k, pool, 248, 222, 254, Gelu::none, Products::fast);
  test_linear(k, pool, 250, 96, 450, Gelu::erf, Products::fast);
  // A thread whose only strip has no right half.
  Pool twelve(12);
  test_linear(k, twelve, 64, 97, 484, Gelu::none, Products::fast);
}

// So too, with several blocks of k and blocks that are not whole.
void test_words(const Kernels& k, Pool& pool) {
  test_linear(k, pool, 33, 131, 65, Gelu::tanh, Products::words);
  test_linear(k, pool, 150, 67, 98, Gelu::none, Products::words);
  test_linear(k, pool, 69, 650, 83, Gelu::erf, Products::words);
}

void test_cross_entropy(const Kernels& k, Pool& pool, int64_t M, int64_t V, float scale, float z) {
  Array logits(M * V);
  for (int64_t i = 0; i < M * V; ++i) logits[i] *= 20;
  std::vector<int32_t> targets(static_cast<size_t>(M));
  for (int64_t m = 0; m < M; ++m)
    targets[static_cast<size_t>(m)] = m % 4 == 3 ? -1 : static_cast<int32_t>((m * 7 + 3) % V);
  Doubles want(logits.data(), logits.data() + M * V);
  double loss = 0;
  for (int64_t m = 0; m < M; ++m) {
    const int32_t target = targets[static_cast<size_t>(m)];
    double total = 0;
    for (int64_t v = 0; v < V; ++v) total += std::exp(static_cast<double>(logits[m * V + v]));
    const double lse = std::log(total);
    if (target >= 0) loss += lse - logits[m * V + target] + z * lse * lse;
    for (int64_t v = 0; scale != 0 && v < V; ++v)
      want[static_cast<size_t>(m * V + v)] =
          target < 0 ? 0
                     : scale * (std::exp(static_cast<double>(logits[m * V + v])) / total *
                                    (1 + 2 * z * lse) -
                                (v == target));
  }
  const double got = k.cross_entropy(pool, logits.data(), targets.data(), M, V, scale, z);
  expect(std::fabs(got - loss) <= 1e-6 * (1 + loss), k.isa, "cross_entropy: loss", got, loss);
  expect_near(k.isa, "cross_entropy: gradient", logits, want, 1e-6);
}

void test_cross_entropy(const Kernels& k, Pool& pool) {
  for (int64_t V = 1; V <= 2 * k.vector_bytes / 4 + 1; ++V)
    for (const float scale : {0.0f, 0.25f})
      for (const float z : {0.0f, 0.01f}) test_cross_entropy(k, pool, 5, V, scale, z);
  test_cross_entropy(k, pool, 7, 1003, 1.0f, 0.001f);
  Array logits(40);
  const int32_t target = 0;
  logits[39] = NAN;  // in the tail
  const double loss = k.cross_entropy(pool, logits.data(), &target, 1, 40, 0, 0);
  expect(std::isnan(loss), k.isa, "cross_entropy: loss of a row with NaN", loss, NAN);
}

void test_adamw(const Kernels& k, Pool& pool, int64_t n) {
  Array p(n), m(n), v(n);
  Doubles wp(p.data(), p.data() + n), wm(m.data(), m.data() + n), wv(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) wv[static_cast<size_t>(i)] = v[i] = std::fabs(v[i]);
  for (int step = 1; step <= 3; ++step) {
    Array g(n);
    const AdamW a{1e-2f,
                  0.9f,
                  0.95f,
                  1e-8f,
                  0.1f,
                  static_cast<float>(1 - std::pow(0.9, step)),
                  static_cast<float>(1 - std::pow(0.95, step)),
                  0.5f};
    k.adamw_step(pool, p.data(), g.data(), m.data(), v.data(), n, a);
    for (int64_t i = 0; i < n; ++i) {
      const size_t j = static_cast<size_t>(i);
      const double gi = 0.5 * g[i];
      wp[j] -= 1e-2 * 0.1 * wp[j];
      wm[j] = 0.9 * wm[j] + 0.1 * gi;
      wv[j] = 0.95 * wv[j] + 0.05 * gi * gi;
      wp[j] -= 1e-2 * (wm[j] / (1 - std::pow(0.9, step))) /
               (std::sqrt(wv[j] / (1 - std::pow(0.95, step))) + 1e-8);
    }
  }
  expect_near(k.isa, "adamw_step: p", p, wp, 2e-6);
  expect_near(k.isa, "adamw_step: m", m, wm, 1e-6);
  expect_near(k.isa, "adamw_step: v", v, wv, 1e-6);
}

void test_square_sum(const Kernels& k, Pool& pool, int64_t n) {
  Array x(n);
  double want = 0;
  for (int64_t i = 0; i < n; ++i) want += static_cast<double>(x[i]) * x[i];
  const double got = k.square_sum(pool, x.data(), n);
  // The sum one by one, which is compared with, is itself good to n/2 · 2^-53.
  expect(std::fabs(got - want) <= 1e-12 * want, k.isa, "square_sum", got, want);
}

void test_optim(const Kernels& k, Pool& pool) {
  for (int64_t n = 1; n <= 2 * k.vector_bytes / 4 + 1; ++n) {
    test_adamw(k, pool, n);
    test_square_sum(k, pool, n);
  }
  test_adamw(k, pool, 5000);
  test_square_sum(k, pool, 200001);
}

}  // namespace
}  // namespace tenarai::test

int main() {
  using namespace tenarai;
  for (const int threads : {1, 2, 3, 16}) {
    test::test_pool(threads);
    test::test_pieces(threads);
  }
  int count = 0;
  const Kernels* const* tables = available_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const Kernels& k = *tables[i];
    for (const int threads : {1, 3}) {
      Pool pool(threads);
      test::test_linear(k, pool);
      test::test_fast(k, pool);
      test::test_words(k, pool);
      test::test_cross_entropy(k, pool);
      test::test_optim(k, pool);
      test::test_attention(k, pool);
      test::test_cache_attention(k, pool);
      test::test_linear_attention(k, pool);
      test::test_rows(k, pool);
      test::test_quant(k, pool);
      test::test_quantize(k, pool);
    }
    test::test_linear_threads(k, 45, 400, 130);
    test::test_linear_threads(k, 301, 533, 478);
    test::test_linear_threads(k, 96, 533, 1201);   // threads that pack the same rows together,
    test::test_linear_threads(k, 300, 1201, 190);  // and add them up
    std::printf("%s: %d passed, %d failed so far\n", k.isa, test::passed, test::failed);
  }
  std::printf("%d passed, %d failed\n", test::passed, test::failed);
  return test::failed ? 1 : 0;
}
