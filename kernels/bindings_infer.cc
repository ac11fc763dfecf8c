// The kernels of inference as Python sees them: products with quantised weights. The Python side is
// src/tenarai/ops/fast.py.
#include "python_quant.h"

namespace tenarai {
namespace {

Activations kind_of(const std::string& activations) {
  if (activations == "bytes") return Activations::bytes;
  if (activations == "words") return Activations::words;
  if (activations == "float32") return Activations::float32;
  fail("activations: '" + activations + "', expected 'bytes', 'words' or 'float32'");
}
void quant_linear_forward(Machine& self, Out y, In x, Bytes w, int format, MaybeIn b,
                          MaybeIn residual, std::string activations) {
  const int64_t I = last(x, "x"), O = last(y, "y"), M = I ? size(x) / I : 0;
  const QuantMatrix m = quant_matrix(w, format, I);
  expect(m.O, O, "rows of w");
  expect(size(y), M * O, "size of y");
  vector(b, O, "b");
  vector(residual, M * O, "size of residual");
  const Activations kind = kind_of(activations);
  self.run([=, &self] {
    self.k.quant_linear_forward(self.pool, y.data(), x.data(), w.data(), m.format, pointer(b),
                                pointer(residual), M, I, O, m.row_bytes, kind);
  });
}
void quant_linear_backward(Machine& self, Out dx, Out expanded, In dy, Bytes w, int format,
                           std::string products, std::string activations) {
  const int64_t I = last(dx, "dx"), O = last(dy, "dy"), M = O ? size(dy) / O : 0;
  const QuantMatrix m = quant_matrix(w, format, I);
  expect(m.O, O, "rows of w");
  expect(size(dx), M * I, "size of dx");
  expect(size(expanded), kExpandedRows * I, "size of expanded");
  self.k.quant_linear_backward(self.pool, dx.data(), expanded.data(), dy.data(), m.data, m.format,
                               M, I, O, m.row_bytes, products_of(products), kind_of(activations));
}

}  // namespace

void bind_inference(MachineClass& machine) {
  const auto a = given;
  machine
      .def("quant_linear_forward", &quant_linear_forward, a("y"), a("x"), a("w"), "format"_a,
           maybe("b"), maybe("residual"), "activations"_a, Release())
      .def("quant_linear_backward", &quant_linear_backward, a("dx"), a("expanded"), a("dy"), a("w"),
           "format"_a, "products"_a, "activations"_a, Release());
  machine.attr("EXPANDED_ROWS") = kExpandedRows;
}

}  // namespace tenarai
