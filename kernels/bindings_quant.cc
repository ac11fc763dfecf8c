// Quantised weights as Python sees them: expanded, gathered, and made. The Python side is
// src/tenarai/ops/fast.py.
#include <cmath>

#include "python_quant.h"

namespace tenarai {
namespace {

void dequantize(Machine& self, Out y, Bytes w, int format) {
  const QuantMatrix m = quant_matrix(w, format, last(y, "y"));
  matrix(y, m.O, m.I, "y (O, I)");
  self.k.dequantize(self.pool, y.data(), m.data, m.format, m.O, m.I, m.row_bytes);
}

void quant_embedding_forward(Machine& self, Out x, Ids tokens, Bytes wte, int format, MaybeIn wpe,
                             MaybeIds places, int64_t start) {
  const int64_t C = last(x, "x"), T = last(tokens, "tokens"), B = T ? size(tokens) / T : 0;
  const QuantMatrix m = quant_matrix(wte, format, C);
  expect(size(x), B * T * C, "size of x");
  vector(places, B * T, "size of positions");
  positions(wpe, places ? 0 : start, places ? 0 : T, C);
  self.run([=, &self] {
    tokens_below(tokens, m.O);
    if (wpe) positions_below(places, wpe->shape(0));
    self.k.quant_embedding_forward(self.pool, x.data(), tokens.data(), wte.data(), m.format,
                                   pointer(wpe), pointer(places), B, T, C, m.row_bytes, start);
  });
}

// Every weight finite and no larger than a float16 holds, which scales and F16 are.
void expect_storable(const In& x, int64_t I, bool halves) {
  const float most = halves ? 65504.0f : 3.4028235e38f;
  const float* p = x.data();
  for (int64_t i = 0; i < size(x); ++i)
    if (!(std::fabs(p[i]) <= most))
      fail("weight " + std::to_string(i % I) + " of row " + std::to_string(i / I) + " is " +
           std::to_string(p[i]) + ", expected finite numbers up to " + std::to_string(most));
}

void quantize(Machine& self, OutBytes y, In x, int format, MaybeIn importance) {
  if (x.ndim() != 2) fail("x: expected two dims");
  const int64_t O = x.shape(0), I = x.shape(1), bytes = row_bytes(format, I);
  if (y.ndim() != 2) fail("y: expected two dims of bytes");
  expect(y.shape(0), O, "rows of y");
  expect(y.shape(1), bytes, "bytes of a row of y");
  vector(importance, I, "importance");
  for (int64_t i = 0; importance && i < I; ++i)
    if (const float c = importance->data()[i]; !(c >= 0 && c <= 3.4028235e38f))
      fail("importance of column " + std::to_string(i) + " is " + std::to_string(c) +
           ", expected a finite number from 0 on");
  const auto f = static_cast<QuantFormat>(format);
  expect_storable(x, I, f != QuantFormat::f32 && f != QuantFormat::bf16);
  self.k.quantize(self.pool, y.data(), x.data(), f, pointer(importance), O, I, bytes);
}

}  // namespace

void bind_quant(MachineClass& machine) {
  const auto a = given;
  machine.def("dequantize", &dequantize, a("y"), a("w"), "format"_a, Release())
      .def("quant_embedding_forward", &quant_embedding_forward, a("x"), a("tokens"), a("wte"),
           "format"_a, maybe("wpe"), maybe("positions"), "start"_a, Release())
      .def("quantize", &quantize, a("y"), a("x"), "format"_a, maybe("importance"), Release());
}

}  // namespace tenarai
