// The kernels of training as Python sees them. Checks dtype, contiguity, shape and the aliases that
// matter, then calls a kernel without the GIL. The Python side is src/tenarai/ops/fast.py.
#include <cmath>
#include <thread>

#include "python.h"

namespace tenarai {
namespace {

using Halves = nb::ndarray<uint16_t, nb::c_contig, nb::device::cpu>;  // bfloat16
using HalvesIn = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;

Gelu gelu(const std::string& name) {
  if (name == "tanh") return Gelu::tanh;
  if (name == "none") return Gelu::erf;  // PyTorch's name for the exact form
  if (name == "off") return Gelu::none;
  fail("approximate: '" + name + "', expected 'tanh' or 'none'");
}
void linear_forward(Machine& self, Out y, In x, In w, MaybeIn b, MaybeIn residual, std::string f,
                    std::string products) {
  const int64_t I = last(x, "x"), O = last(y, "y"), M = I ? size(x) / I : 0;
  matrix(w, O, I, "w (O, I)");
  expect(size(y), M * O, "size of y");
  vector(b, O, "b");
  vector(residual, M * O, "size of residual");
  const Gelu g = gelu(f);
  const Products how = products_of(products);
  self.run([=, &self] {
    self.k.linear_forward(self.pool, y.data(), x.data(), w.data(), pointer(b), pointer(residual), M,
                          I, O, g, how);
  });
}
void linear_backward(Machine& self, MaybeOut dx, MaybeOut dw, MaybeOut db, In dy, In x, In w,
                     std::string f, bool add, std::string products) {
  const int64_t I = last(x, "x"), O = last(dy, "dy"), M = I ? size(x) / I : 0;
  matrix(w, O, I, "w (O, I)");
  expect(size(dy), M * O, "size of dy");
  vector(dx, M * I, "size of dx");
  if (dw) matrix(*dw, O, I, "dw (O, I)");
  vector(db, O, "db");
  self.k.linear_backward(self.pool, pointer(dx), pointer(dw), pointer(db), dy.data(), x.data(),
                         w.data(), M, I, O, gelu(f), add, products_of(products));
}

void layer_norm_forward(Machine& self, Out y, Out mean, Out rstd, In x, In w, In b, float eps) {
  const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
  expect(size(y), M * C, "size of y");
  expect(size(mean), M, "mean");
  expect(size(rstd), M, "rstd");
  expect(size(w), C, "w");
  expect(size(b), C, "b");
  self.run([=, &self] {
    self.k.layer_norm_forward(self.pool, y.data(), mean.data(), rstd.data(), x.data(), w.data(),
                              b.data(), M, C, eps);
  });
}
void layer_norm_backward(Machine& self, Out dx, Out dw, Out db, In dy, MaybeIn dresidual, In x,
                         In w, In mean, In rstd) {
  const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
  expect(size(dx), M * C, "size of dx");
  expect(size(dy), M * C, "size of dy");
  vector(dresidual, M * C, "size of dresidual");
  expect(size(w), C, "w");
  expect(size(dw), C, "dw");
  expect(size(db), C, "db");
  expect(size(mean), M, "mean");
  expect(size(rstd), M, "rstd");
  self.k.layer_norm_backward(self.pool, dx.data(), dw.data(), db.data(), dy.data(),
                             pointer(dresidual), x.data(), w.data(), mean.data(), rstd.data(), M,
                             C);
}
void rms_norm_forward(Machine& self, Out y, Out rstd, In x, In w, float eps) {
  const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
  expect(size(y), M * C, "size of y");
  expect(size(rstd), M, "rstd");
  expect(size(w), C, "w");
  self.run([=, &self] {
    self.k.rms_norm_forward(self.pool, y.data(), rstd.data(), x.data(), w.data(), M, C, eps);
  });
}
void rms_norm_backward(Machine& self, Out dx, Out dw, In dy, MaybeIn dresidual, In x, In w,
                       In rstd) {
  const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
  expect(size(dx), M * C, "size of dx");
  expect(size(dy), M * C, "size of dy");
  vector(dresidual, M * C, "size of dresidual");
  expect(size(w), C, "w");
  expect(size(dw), C, "dw");
  expect(size(rstd), M, "rstd");
  self.k.rms_norm_backward(self.pool, dx.data(), dw.data(), dy.data(), pointer(dresidual), x.data(),
                           w.data(), rstd.data(), M, C);
}

void gelu_forward(Machine& self, Out y, In x, std::string f) {
  expect(size(y), size(x), "size of y");
  const Gelu g = gelu(f);
  self.run([=, &self] { self.k.gelu_forward(self.pool, y.data(), x.data(), size(x), g); });
}
void gelu_backward(Machine& self, Out dx, In dy, In x, std::string f) {
  expect(size(dx), size(x), "size of dx");
  expect(size(dy), size(x), "size of dy");
  self.k.gelu_backward(self.pool, dx.data(), dy.data(), x.data(), size(x), gelu(f));
}
void silu_forward(Machine& self, Out y, In x) {
  expect(size(y), size(x), "size of y");
  self.run([=, &self] { self.k.silu_forward(self.pool, y.data(), x.data(), size(x)); });
}
void silu_backward(Machine& self, Out dx, In dy, In x) {
  expect(size(dx), size(x), "size of dx");
  expect(size(dy), size(x), "size of dy");
  self.k.silu_backward(self.pool, dx.data(), dy.data(), x.data(), size(x));
}
void swiglu_forward(Machine& self, Out y, In gate, In up) {
  expect(size(y), size(gate), "size of y");
  expect(size(up), size(gate), "size of up");
  self.run([=, &self] {
    self.k.swiglu_forward(self.pool, y.data(), gate.data(), up.data(), size(gate));
  });
}
void swiglu_backward(Machine& self, Out dgate, Out dup, In dy, In gate, In up) {
  for (const int64_t n : {size(dgate), size(dup), size(dy), size(up)})
    expect(n, size(gate), "size of every array");
  self.k.swiglu_backward(self.pool, dgate.data(), dup.data(), dy.data(), gate.data(), up.data(),
                         size(gate));
}
void geglu_forward(Machine& self, Out y, In gate, In up) {
  expect(size(y), size(gate), "size of y");
  expect(size(up), size(gate), "size of up");
  self.run([=, &self] {
    self.k.geglu_forward(self.pool, y.data(), gate.data(), up.data(), size(gate));
  });
}
void geglu_backward(Machine& self, Out dgate, Out dup, In dy, In gate, In up) {
  for (const int64_t n : {size(dgate), size(dup), size(dy), size(up)})
    expect(n, size(gate), "size of every array");
  self.k.geglu_backward(self.pool, dgate.data(), dup.data(), dy.data(), gate.data(), up.data(),
                        size(gate));
}
void scale(Machine& self, Out y, In x, float factor) {
  expect(size(y), size(x), "size of y");
  self.run([=, &self] { self.k.scale(self.pool, y.data(), x.data(), factor, size(x)); });
}
void add(Machine& self, Out y, In a, In b) {
  expect(size(y), size(a), "size of y");
  expect(size(b), size(a), "size of b");
  self.run([=, &self] { self.k.add(self.pool, y.data(), a.data(), b.data(), size(a)); });
}

// Not written down for replay (Machine::run): what is kept for a backward has no part in decoding.
void to_bfloat16(Machine& self, Halves y, In x) {
  expect(size(y), size(x), "size of y");
  self.k.to_bfloat16(self.pool, y.data(), x.data(), size(x));
}
void from_bfloat16(Machine& self, Out y, HalvesIn x) {
  expect(size(y), size(x), "size of y");
  self.k.from_bfloat16(self.pool, y.data(), x.data(), size(x));
}
void embedding_forward(Machine& self, Out x, Ids tokens, In wte, MaybeIn wpe, MaybeIds places,
                       int64_t start) {
  const int64_t C = last(x, "x"), T = last(tokens, "tokens"), B = T ? size(tokens) / T : 0;
  matrix(wte, wte.shape(0), C, "wte (V, C)");
  expect(size(x), B * T * C, "size of x");
  vector(places, B * T, "size of positions");
  positions(wpe, places ? 0 : start, places ? 0 : T, C);
  self.run([=, &self] {
    tokens_below(tokens, wte.shape(0));
    if (wpe) positions_below(places, wpe->shape(0));
    self.k.embedding_forward(self.pool, x.data(), tokens.data(), wte.data(), pointer(wpe),
                             pointer(places), B, T, C, start);
  });
}
void embedding_backward(Machine& self, Out dwte, MaybeOut dwpe, In dx, Ids tokens, int64_t start) {
  const int64_t C = last(dx, "dx"), T = last(tokens, "tokens"), B = T ? size(tokens) / T : 0;
  matrix(dwte, dwte.shape(0), C, "dwte (V, C)");
  expect(size(dx), B * T * C, "size of dx");
  positions(dwpe, start, T, C);
  tokens_below(tokens, dwte.shape(0));
  self.k.embedding_backward(self.pool, dwte.data(), pointer(dwpe), dx.data(), tokens.data(), B, T,
                            C, start);
}
void rope(Machine& self, OutView y, InView x, In cos, In sin, MaybeIds places, bool adjacent,
          bool backward) {
  const int64_t B = x.shape(0), T = x.shape(1), H = x.shape(2), D = x.shape(3);
  if (D % 2) fail("rope: a head size of " + std::to_string(D) + " is odd");
  vector(places, B * T, "size of positions");
  matrix(cos, places ? cos.shape(0) : T, D / 2, "cos (T, D/2)");
  matrix(sin, cos.shape(0), D / 2, "sin (T, D/2)");
  self.run([=, &self] {
    positions_below(places, cos.shape(0));
    self.k.rope(self.pool, y.data(), x.data(), cos.data(), sin.data(), pointer(places), B, T, H, D,
                strides(y, B, T, H, D, "y"), strides(x, B, T, H, D, "x"), adjacent, backward);
  });
}

double cross_entropy(Machine& self, Out logits, Ids targets, float scale, float z_loss) {
  const int64_t V = last(logits, "logits"), M = V ? size(logits) / V : 0;
  expect(size(targets), M, "size of targets");
  const int32_t* t = targets.data();
  for (int64_t i = 0; i < M; ++i)
    if (t[i] < -1 || t[i] >= V)  // -1 is ignored
      fail("target " + std::to_string(t[i]) + " at place " + std::to_string(i) +
           " is outside the vocabulary of " + std::to_string(V));
  return self.k.cross_entropy(self.pool, logits.data(), t, M, V, scale, z_loss);
}
void dropout(Machine& self, Out y, In x, uint32_t threshold, float scale, uint64_t seed,
             uint64_t counter) {
  expect(size(y), size(x), "size of y");
  self.k.dropout(self.pool, y.data(), x.data(), size(x), threshold, scale, seed, counter);
}
void adamw_step(Machine& self, Out p, In g, Out m, Out v, float lr, float beta1, float beta2,
                float eps, float weight_decay, int64_t step, float grad_scale) {
  for (const int64_t n : {size(g), size(m), size(v)}) expect(n, size(p), "size of g, m, v");
  if (step < 1) fail("adamw_step: steps count from 1");
  const double n = static_cast<double>(step);
  self.k.adamw_step(self.pool, p.data(), g.data(), m.data(), v.data(), size(p),
                    {lr, beta1, beta2, eps, weight_decay,
                     static_cast<float>(1 - std::pow(static_cast<double>(beta1), n)),
                     static_cast<float>(1 - std::pow(static_cast<double>(beta2), n)), grad_scale});
}
void muon_step(Machine& self, std::vector<Out> p, std::vector<In> g, std::vector<Out> m, float lr,
               float momentum, float weight_decay, float grad_scale, std::string products) {
  for (const size_t n : {g.size(), m.size()})
    expect(static_cast<int64_t>(n), static_cast<int64_t>(p.size()), "matrices in g, m");
  std::vector<MuonMatrix> matrices;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i].ndim() != 2) fail("p: expected two dims");
    const int64_t O = static_cast<int64_t>(p[i].shape(0)), I = last(p[i], "p");
    matrix(g[i], O, I, "g (O, I)");
    matrix(m[i], O, I, "m (O, I)");
    matrices.push_back({p[i].data(), m[i].data(), g[i].data(), O, I});
  }
  self.k.muon_step(self.pool, matrices.data(), static_cast<int64_t>(matrices.size()),
                   {lr, momentum, weight_decay, grad_scale, products_of(products)});
}
double square_sum(Machine& self, In x) { return self.k.square_sum(self.pool, x.data(), size(x)); }
std::vector<std::string> available_isas() {
  int count = 0;
  const Kernels* const* tables = available_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(tables[i]->isa);
  return names;
}

const Kernels& table(const std::optional<std::string>& isa) {
  int count = 0;
  const Kernels* const* tables = available_kernels(&count);
  std::string names;
  for (int i = count - 1; i >= 0; --i) {
    if (!isa || *isa == tables[i]->isa) return *tables[i];
    names += std::string(" ") + tables[i]->isa;
  }
  fail("instruction set '" + *isa + "' is not available here; these are:" + names);
}

}  // namespace
}  // namespace tenarai

NB_MODULE(_kernels, m) {
  using namespace tenarai;
  m.def("available_isas", &available_isas, "Instruction sets of this build and CPU, best last.");

  const auto a = given;

  MachineClass machine(m, "Machine", "The kernels of one instruction set, and their threads.");
  machine
      .def(
          "__init__",
          [](Machine* self, std::optional<std::string> isa, int threads) {
            if (threads < 1 || threads > 1024) fail("threads: expected 1 to 1024");
            new (self) Machine(table(isa), threads);
          },
          "isa"_a.none(), "threads"_a)
      .def_prop_ro("isa", [](const Machine& self) { return self.k.isa; })
      .def_prop_ro("vector_bytes", [](const Machine& self) { return self.k.vector_bytes; })
      .def_prop_ro("threads", [](const Machine& self) { return self.pool.threads(); })
      .def("linear_forward", &linear_forward, a("y"), a("x"), a("w"), maybe("b"), maybe("residual"),
           "gelu"_a, "products"_a, Release())
      .def("linear_backward", &linear_backward, maybe("dx"), maybe("dw"), maybe("db"), a("dy"),
           a("x"), a("w"), "gelu"_a, "add"_a, "products"_a, Release())
      .def("layer_norm_forward", &layer_norm_forward, a("y"), a("mean"), a("rstd"), a("x"), a("w"),
           a("b"), "eps"_a, Release())
      .def("layer_norm_backward", &layer_norm_backward, a("dx"), a("dw"), a("db"), a("dy"),
           maybe("dresidual"), a("x"), a("w"), a("mean"), a("rstd"), Release())
      .def("rms_norm_forward", &rms_norm_forward, a("y"), a("rstd"), a("x"), a("w"), "eps"_a,
           Release())
      .def("rms_norm_backward", &rms_norm_backward, a("dx"), a("dw"), a("dy"), maybe("dresidual"),
           a("x"), a("w"), a("rstd"), Release())
      .def("gelu_forward", &gelu_forward, a("y"), a("x"), "approximate"_a, Release())
      .def("gelu_backward", &gelu_backward, a("dx"), a("dy"), a("x"), "approximate"_a, Release())
      .def("silu_forward", &silu_forward, a("y"), a("x"), Release())
      .def("silu_backward", &silu_backward, a("dx"), a("dy"), a("x"), Release())
      .def("swiglu_forward", &swiglu_forward, a("y"), a("gate"), a("up"), Release())
      .def("swiglu_backward", &swiglu_backward, a("dgate"), a("dup"), a("dy"), a("gate"), a("up"),
           Release())
      .def("geglu_forward", &geglu_forward, a("y"), a("gate"), a("up"), Release())
      .def("geglu_backward", &geglu_backward, a("dgate"), a("dup"), a("dy"), a("gate"), a("up"),
           Release())
      .def("add", &add, a("y"), a("a"), a("b"), Release())
      .def("scale", &scale, a("y"), a("x"), "factor"_a, Release())
      .def("to_bfloat16", &to_bfloat16, a("y"), a("x"), Release())
      .def("from_bfloat16", &from_bfloat16, a("y"), a("x"), Release())
      .def("embedding_forward", &embedding_forward, a("x"), a("tokens"), a("wte"), maybe("wpe"),
           maybe("positions"), "start"_a, Release())
      .def("embedding_backward", &embedding_backward, a("dwte"), maybe("dwpe"), a("dx"),
           a("tokens"), "start"_a, Release())
      .def("rope", &rope, a("y"), a("x"), a("cos"), a("sin"), maybe("positions"), "adjacent"_a,
           "backward"_a, Release())
      .def("cross_entropy", &cross_entropy, a("logits"), a("targets"), "scale"_a, "z_loss"_a,
           Release())
      .def("dropout", &dropout, a("y"), a("x"), "threshold"_a, "scale"_a, "seed"_a, "counter"_a,
           Release())
      .def("adamw_step", &adamw_step, a("p"), a("g"), a("m"), a("v"), "lr"_a, "beta1"_a, "beta2"_a,
           "eps"_a, "weight_decay"_a, "step"_a, "grad_scale"_a, Release())
      .def("muon_step", &muon_step, a("p"), a("g"), a("m"), "lr"_a, "momentum"_a, "weight_decay"_a,
           "grad_scale"_a, "products"_a, Release())
      .def("square_sum", &square_sum, a("x"), Release());
  bind_inference(machine);
  bind_quant(machine);
  bind_attention(machine);
  bind_cache(machine);
  bind_linear_attention(machine);
  bind_replay(machine);
}
