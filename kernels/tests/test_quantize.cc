// Weights into blocks and back, and embeddings that are stored in them.
#include <cstring>
#include <string>

#include "test.h"
#include "test_blocks.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;
size_t at(int64_t i) { return static_cast<size_t>(i); }

void expect_expanded(const Kernels& k, Pool& pool, Blocks& w, const char* name) {
  Array y(w.O * w.I);
  k.dequantize(pool, y.data(), w.data(), w.format, w.O, w.I, w.row_bytes);
  // Rounded to float32 once.
  expect_near(k.isa, (std::string("dequantize ") + name).c_str(), y, w.wide(), 6e-8);
}

void test_embedding(const Kernels& k, Pool& pool, const BlockCase& c, int64_t C) {
  const int64_t V = 5, B = 2, T = 3, start = 2;
  Blocks wte(c.format, V, C);
  wte.fill(c.halves);
  Array x(B * T * C), wpe((start + T) * C);
  const int32_t tokens[] = {4, 0, 3, 3, 1, 2}, positions[] = {0, 4, 2, 1, 1, 3};
  for (const int form : {0, 1, 2}) {  // no wpe; places from `start` on; places named
    Doubles want;
    for (int64_t i = 0; i < B * T * C; ++i) {
      const int64_t place = i / C, row = form == 1 ? start + place % T : positions[place];
      want.push_back(wte.at(tokens[place], i % C) + (form ? double{wpe[row * C + i % C]} : 0));
    }
    k.quant_embedding_forward(pool, x.data(), tokens, wte.data(), c.format,
                              form ? wpe.data() : nullptr, form == 2 ? positions : nullptr, B, T, C,
                              wte.row_bytes, form == 1 ? start : 0);
    expect_near(k.isa, (std::string("quant_embedding_forward ") + c.name).c_str(), x, want, 2e-7);
  }
}

double loss(Blocks& w, Array& x, Array* importance) {
  double lost = 0, all = 0;
  for (int64_t i = 0; i < x.size(); ++i) {
    const double error = w.at(i / w.I, i % w.I) - x[i], c = importance ? (*importance)[i % w.I] : 1;
    lost += c * error * error, all += c * x[i] * x[i];
  }
  return std::sqrt(lost / all);
}

void test_quantize(const Kernels& k, Pool& pool, const BlockCase& c) {
  const int64_t O = 3, I = 512;
  random_state = 1;
  Array x(O * I), importance(I);
  for (int64_t i = 0; i < I; ++i) importance[i] = i % 4 ? 1 : 30;
  Blocks plain(c.format, O, I), alone(c.format, O, I), weighted(c.format, O, I);
  Pool one(1);
  k.quantize(pool, plain.data(), x.data(), c.format, nullptr, O, I, plain.row_bytes);
  k.quantize(one, alone.data(), x.data(), c.format, nullptr, O, I, plain.row_bytes);
  k.quantize(pool, weighted.data(), x.data(), c.format, importance.data(), O, I, plain.row_bytes);
  const auto what = [&](const char* which) { return std::string(which) + c.name; };
  expect(std::memcmp(plain.data(), alone.data(), at(O * plain.row_bytes)) == 0, k.isa,
         what("quantize: bytes on one thread ").c_str(), 0, 0);
  expect(plain.guards_hold() && weighted.guards_hold(), k.isa, what("quantize: outside ").c_str(),
         0, 0);
  const double lost = loss(plain, x, nullptr), most = loss(plain, x, &importance);
  expect(lost <= c.lost, k.isa, what("quantize: lost by ").c_str(), lost, c.lost);
  expect(loss(weighted, x, &importance) <= most, k.isa, what("quantize: importance to ").c_str(),
         loss(weighted, x, &importance), most);
  expect_expanded(k, pool, plain, c.name);
}

}  // namespace

void test_quantize(const Kernels& k, Pool& pool) {
  for (const BlockCase& c : kBlockCases) {
    const int weights = block_size(c.format).weights;
    test_quantize(k, pool, c);
    for (const int64_t I : {weights, 3 * weights}) {
      Blocks w(c.format, 5, I);
      w.fill(c.halves);
      expect_expanded(k, pool, w, c.name);
      test_embedding(k, pool, c, I);
    }
    Blocks w(c.format, 67, 512);  // enough for several threads
    w.fill(c.halves);
    expect_expanded(k, pool, w, c.name);
  }
  test_quantize(k, pool, {"Q8_K", QuantFormat::q8_k, {-1, -1}, 4e-3});
}

}  // namespace tenarai::test
