// Products with quantised weights against the weights that `dequantize` expands, in double.
#include <string>

#include "test.h"

namespace tenarai::test {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

struct Case {
  const char* name;
  QuantFormat format;
  int halves[2];  // where float16 numbers stand in a block, -1 for none
};
constexpr Case kCases[] = {
    {"Q4_0", QuantFormat::q4_0, {0, -1}},     {"Q4_1", QuantFormat::q4_1, {0, 2}},
    {"Q5_0", QuantFormat::q5_0, {0, -1}},     {"Q5_1", QuantFormat::q5_1, {0, 2}},
    {"Q8_0", QuantFormat::q8_0, {0, -1}},     {"Q2_K", QuantFormat::q2_k, {80, 82}},
    {"Q3_K", QuantFormat::q3_k, {108, -1}},   {"Q4_K", QuantFormat::q4_k, {0, 2}},
    {"Q5_K", QuantFormat::q5_k, {0, 2}},      {"Q6_K", QuantFormat::q6_k, {208, -1}},
    {"IQ4_NL", QuantFormat::iq4_nl, {0, -1}}, {"IQ4_XS", QuantFormat::iq4_xs, {0, -1}},
};

// Random blocks, at an odd address; their float16 numbers are some of +-2^-6 to 2^-5.
std::vector<uint8_t> blocks(const Case& c, int64_t count, int bytes) {
  std::vector<uint8_t> data(at(count * bytes + 1));
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(random_number() * 128 + 128);
  for (int64_t i = 0; i < count; ++i)
    for (const int half : c.halves)
      if (half >= 0) {
        uint8_t& high = data[at(1 + i * bytes + half + 1)];
        high = static_cast<uint8_t>((high & 0x83) | 0x24);
      }
  return data;
}

// The largest size of `count` numbers from the i-th on, of n.
double largest(const float* x, int64_t i, int64_t count, int64_t n) {
  double most = 0;
  for (int64_t j = i; j < i + count && j < n; ++j) most = std::fmax(most, std::fabs(x[j]));
  return most;
}

// Within rounding: of float32 sums; of activations to at most 1 / 2047 of the largest of 256, or
// 1 / 127 of that of 32, and then of a K format's weights to 1 / 127 of the largest of 128.
void test_product(const Kernels& k, Pool& pool, const Case& c, int64_t M, int64_t I, int64_t O) {
  const BlockSize size = block_size(c.format);
  const int64_t row = I / size.weights * size.bytes;
  const std::vector<uint8_t> data = blocks(c, O * I / size.weights, size.bytes);
  const uint8_t* w = data.data() + 1;
  Array x(M * I), b(O), residual(M * O), wide(O * I), y(M * O);
  k.dequantize(pool, wide.data(), w, c.format, O, I, row);
  for (const Activations kind : {Activations::float32, Activations::words, Activations::bytes}) {
    const bool bytes = kind == Activations::bytes;
    k.quant_linear_forward(pool, y.data(), x.data(), w, c.format, b.data(), residual.data(), M, I,
                           O, row, kind);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t o = 0; o < O; ++o) {
        double want = static_cast<double>(b[o]) + residual[m * O + o], bound = 1e-6, step = 0,
               w_step = 0;
        for (int64_t i = 0; i < I; ++i) {
          if (kind != Activations::float32 && i % (bytes ? 32 : 256) == 0)
            step = largest(&x[m * I], i, bytes ? 32 : 256, I) / (bytes ? 127 : 2047);
          if (bytes && size.weights == 256 && i % 128 == 0)
            w_step =
                largest(&wide[o * I], i, 128, I) / 126 + largest(&wide[o * I], i, 256, I) / 2000;
          want += static_cast<double>(x[m * I + i]) * wide[o * I + i];
          bound += std::fabs(wide[o * I + i]) * (step / 2 + 2e-6 * std::fabs(x[m * I + i])) +
                   w_step / 2 * (std::fabs(x[m * I + i]) + step / 2);
        }
        const double got = y[m * O + o];
        if (!(std::fabs(got - want) <= bound)) {
          expect(false, k.isa, (std::string("quant_linear ") + c.name).c_str(), got, want);
          return;
        }
      }
    expect(y.guards_hold(), k.isa, "quant_linear: outside y", 0, 12345);
  }
}

}  // namespace

void test_quant(const Kernels& k, Pool& pool) {
  for (const Case& c : kCases)
    for (const int64_t M : {1, 2, 3, 5, 8, 13})
      for (const int64_t I : {256, block_size(c.format).weights == 32 ? 352 : 768})
        for (const int64_t O : {1, 35}) test_product(k, pool, c, M, I, O);
}

}  // namespace tenarai::test
