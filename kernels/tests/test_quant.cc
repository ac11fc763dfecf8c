// Products with quantised weights, forward and backward, against plain loops in double.
#include <algorithm>
#include <string>

#include "test.h"
#include "test_blocks.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;
size_t at(int64_t i) { return static_cast<size_t>(i); }

// For each of n numbers, `step` apart, the largest size among its `block` of them, over `levels`.
template <class Number>
Doubles steps(const Number* x, int64_t n, int64_t block, double levels, int64_t step = 1) {
  Doubles sizes;
  for (int64_t from = 0; from < n; from += block) {
    const int64_t end = std::min(from + block, n);
    double most = 0;
    for (int64_t i = from; i < end; ++i) most = std::fmax(most, std::fabs(x[i * step]));
    for (int64_t i = from; i < end; ++i) sizes.push_back(most / levels);
  }
  return sizes;
}

// A sum of products a b, and how far off it may be: half a step for what is rounded, and what
// float32 sums are.
struct Wanted {
  double sum = 0, bound = 1e-6;
  void add(double a, double b, double a_step, double b_step) {
    sum += a * b;
    bound += std::fabs(b) * (a_step / 2 + 2e-6 * std::fabs(a)) +
             b_step / 2 * (std::fabs(a) + a_step / 2);
  }
};

void expect_within(const Kernels& k, const std::string& what, Array& got,
                   const std::vector<Wanted>& want) {
  for (int64_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(got[i] - want[at(i)].sum) <= want[at(i)].bound))
      return expect(false, k.isa, what.c_str(), got[i], want[at(i)].sum);
  expect(got.guards_hold(), k.isa, what.c_str(), 0, 12345);
}

std::string name_of(const char* what, const BlockCase& c, Activations kind, int64_t M, int64_t I,
                    int64_t O, Pool& pool) {
  static const char* const kinds[] = {" float32", " words", " bytes"};
  return std::string(what) + c.name + kinds[static_cast<int>(kind)] + " M=" + std::to_string(M) +
         " I=" + std::to_string(I) + " O=" + std::to_string(O) +
         " threads=" + std::to_string(pool.threads());
}
constexpr Activations kKinds[] = {Activations::float32, Activations::words, Activations::bytes};

// Of each number, the step of rounding to bfloat16 at its size or below: 8 bits.
template <class Number>
Doubles bfloat_steps(const Number* x, int64_t n) {
  return steps(x, n, 1, 128);
}

// Activations are rounded to at most 1 / 2047 of the largest of 256, or 1 / 127 of that of 32, and
// then a K format's weights to 1 / 127 of the largest of 128. With AMX the many rows that would be
// bytes are bfloat16, as the weights are.
void test_forward(const Kernels& k, Pool& pool, const BlockCase& c, int64_t M, int64_t I,
                  int64_t O) {
  Blocks w(c.format, O, I);
  w.fill(c.halves);
  const Doubles wide = w.wide();
  Array x(M * I), b(O), residual(M * O), y(M * O);
  for (const Activations kind : kKinds) {
    if (w.size.weights == 1 && kind != Activations::float32) break;
    const bool bfloats = kind == Activations::bytes && is(k, "amx") && M > 8;
    const bool bytes = kind == Activations::bytes && !bfloats;
    const bool rounded = kind != Activations::float32;
    std::vector<Wanted> want(at(M * O));
    Doubles w_step(at(O * I));
    for (int64_t o = 0; o < O && bytes && w.size.weights == 256; ++o) {
      const Doubles near = steps(wide.data() + o * I, I, 128, 126);
      const Doubles all = steps(wide.data() + o * I, I, 256, 2000);
      for (int64_t i = 0; i < I; ++i) w_step[at(o * I + i)] = near[at(i)] + all[at(i)];
    }
    if (bfloats) w_step = bfloat_steps(wide.data(), O * I);
    for (int64_t m = 0; m < M; ++m) {
      const float* row = x.data() + m * I;
      const Doubles step = bfloats   ? bfloat_steps(row, I)
                           : rounded ? steps(row, I, bytes ? 32 : 256, bytes ? 127 : 2047)
                                     : Doubles(at(I));
      for (int64_t o = 0; o < O; ++o) {
        Wanted to;
        to.sum = double{b[o]} + residual[m * O + o];
        for (int64_t i = 0; i < I; ++i)
          to.add(x[m * I + i], wide[at(o * I + i)], step[at(i)], w_step[at(o * I + i)]);
        want[at(m * O + o)] = to;
      }
    }
    k.quant_linear_forward(pool, y.data(), x.data(), w.data(), c.format, b.data(), residual.data(),
                           M, I, O, w.row_bytes, kind);
    expect_within(k, name_of("quant_linear_forward ", c, kind, M, I, O, pool), y, want);
  }
}

// Where the CPU has VNNI dy is rounded to 1 / 8191 or 1 / 127 of the largest of 32 outputs, w to
// that of 128 outputs. With AMX both are rounded to 1 / 32639 of the largest of 512, and products
// of their lower digits, 128 steps each, are left out.
void test_backward(const Kernels& k, Pool& pool, const BlockCase& c, int64_t M, int64_t I,
                   int64_t O, Products products = Products::plain) {
  Blocks w(c.format, O, I);
  w.fill(c.halves);
  const Doubles wide = w.wide();
  Array dy(M * O), dx(M * I), expanded(kExpandedRows * I);
  for (const Activations kind : kKinds) {
    const bool rounded = kind != Activations::float32 && w.size.weights > 1 && has_vnni(k);
    const bool amx = is(k, "amx");
    const double levels = amx ? 32639 : kind == Activations::bytes ? 127 : 8191;
    std::vector<Wanted> want(at(M * I));
    Doubles w_step(at(O * I));
    for (int64_t i = 0; i < I && rounded; ++i) {
      const Doubles column = steps(wide.data() + i, O, amx ? 512 : 128, levels, I);
      for (int64_t o = 0; o < O; ++o) w_step[at(o * I + i)] = column[at(o)];
    }
    for (int64_t m = 0; m < M; ++m) {
      const Doubles step =
          rounded ? steps(dy.data() + m * O, O, amx ? 512 : 32, levels) : Doubles(at(O));
      for (int64_t o = 0; o < O; ++o)
        for (int64_t i = 0; i < I; ++i) {
          Wanted& to = want[at(m * I + i)];
          to.add(dy[m * O + o], wide[at(o * I + i)], step[at(o)], w_step[at(o * I + i)]);
          if (amx) to.bound += 128 * 128 * step[at(o)] * w_step[at(o * I + i)];
        }
    }
    k.quant_linear_backward(pool, dx.data(), expanded.data(), dy.data(), w.data(), c.format, M, I,
                            O, w.row_bytes, products, kind);
    expect_within(k, name_of("quant_linear_backward ", c, kind, M, I, O, pool), dx, want);
  }
  expect(expanded.guards_hold(), k.isa, "quant_linear_backward: outside expanded", 0, 12345);
}

}  // namespace

void test_quant(const Kernels& k, Pool& pool) {
  for (const BlockCase& c : kBlockCases) {
    const int weights = block_size(c.format).weights;
    const int64_t odd = weights == 1 ? 259 : weights == 32 ? 352 : 768;
    for (const int64_t M : {1, 2, 3, 5, 8, 13})
      for (const int64_t O : {1, 35}) test_forward(k, pool, c, M, M % 2 ? odd : 256, O);
    test_forward(k, pool, c, 26, odd, 50);  // several tiles and panels, and their ends
    test_backward(k, pool, c, 1, odd, 1);
    test_backward(k, pool, c, 13, odd, 37);
  }
  const BlockCase &q4_0 = kBlockCases[3], &q4_1 = kBlockCases[4];
  // More than are expanded and summed at a time; a block of 256 weights among them.
  test_forward(k, pool, q4_1, 530, 1184, 230);
  test_forward(k, pool, q4_1, 26, 576, 50);
  for (const BlockCase& c : kBlockCases)
    if (block_size(c.format).weights == 256) test_forward(k, pool, c, 530, 1280, 40);
  test_backward(k, pool, q4_0, 9, 256, kExpandedRows + 38);  // more than are expanded at a time
  test_backward(k, pool, q4_0, 128, 256, 300, Products::fast);
}

}  // namespace tenarai::test
