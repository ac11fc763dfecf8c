// Quantised weights as Python sees them: expanded, gathered, and made. The Python side is
// src/tenarai/ops/fast.py.
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

}  // namespace

void bind_quant(MachineClass& machine) {
  const auto a = given;
  machine.def("dequantize", &dequantize, a("y"), a("w"), "format"_a, Release())
      .def("quant_embedding_forward", &quant_embedding_forward, a("x"), a("tokens"), a("wte"),
           "format"_a, maybe("wpe"), maybe("positions"), "start"_a, Release());
}

}  // namespace tenarai
