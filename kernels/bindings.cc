// The only file that knows Python. Checks dtype, contiguity, shape and the aliases that matter,
// then calls a kernel without the GIL. The Python side is src/tenarai/ops/fast.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tenarai {
namespace {

using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using OutView = nb::ndarray<float, nb::ndim<4>, nb::device::cpu>;
using InView = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;
using MaybeOut = std::optional<Out>;
using MaybeIn = std::optional<In>;
using Release = nb::call_guard<nb::gil_scoped_release>;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void expect(int64_t got, int64_t wanted, const char* what) {
  if (got != wanted)
    fail(std::string(what) + ": " + std::to_string(got) + ", expected " + std::to_string(wanted));
}

template <class A>
int64_t size(const A& a) {
  return static_cast<int64_t>(a.size());
}
template <class A>
int64_t last(const A& a, const char* name) {
  if (a.ndim() == 0) fail(std::string(name) + ": a scalar, expected an array");
  return static_cast<int64_t>(a.shape(a.ndim() - 1));
}
template <class A>
void matrix(const A& a, int64_t rows, int64_t columns, const char* name) {
  if (a.ndim() != 2) fail(std::string(name) + ": expected two dims");
  expect(a.shape(0), rows, name);
  expect(a.shape(1), columns, name);
}
template <class A>
void vector(const std::optional<A>& a, int64_t n, const char* name) {
  if (a) expect(size(*a), n, name);
}
template <class A>
auto pointer(const std::optional<A>& a) {
  return a ? a->data() : nullptr;
}
template <class A>
Strides strides(const A& a, int64_t B, int64_t T, int64_t H, int64_t D, const char* name) {
  expect(a.shape(0), B, name);
  expect(a.shape(1), T, name);
  expect(a.shape(2), H, name);
  expect(a.shape(3), D, name);
  if (D > 1) expect(a.stride(3), 1, name);
  return {a.stride(0), a.stride(1), a.stride(2)};
}
Gelu gelu(const std::string& name) {
  if (name == "tanh") return Gelu::tanh;
  if (name == "none") return Gelu::erf;  // PyTorch's name for the exact form
  if (name == "off") return Gelu::none;
  fail("approximate: '" + name + "', expected 'tanh' or 'none'");
}
void tokens_below(const Ids& tokens, int64_t V) {
  const int32_t* t = tokens.data();
  for (int64_t i = 0; i < size(tokens); ++i)
    if (t[i] < 0 || t[i] >= V)
      fail("token " + std::to_string(t[i]) + " at place " + std::to_string(i) +
           " is outside the vocabulary of " + std::to_string(V));
}

// The kernels of one instruction set and the threads they run on.
struct Machine {
  const Kernels& k;
  Pool pool;

  Machine(const Kernels& kernels, int threads) : k(kernels), pool(threads) {}

  void linear_forward(Out y, In x, In w, MaybeIn b, MaybeIn residual, std::string f) {
    const int64_t I = last(x, "x"), O = last(y, "y"), M = I ? size(x) / I : 0;
    matrix(w, O, I, "w (O, I)");
    expect(size(y), M * O, "size of y");
    vector(b, O, "b");
    vector(residual, M * O, "size of residual");
    k.linear_forward(pool, y.data(), x.data(), w.data(), pointer(b), pointer(residual), M, I, O,
                     gelu(f));
  }
  void linear_backward(MaybeOut dx, MaybeOut dw, MaybeOut db, In dy, In x, In w, std::string f) {
    const int64_t I = last(x, "x"), O = last(dy, "dy"), M = I ? size(x) / I : 0;
    matrix(w, O, I, "w (O, I)");
    expect(size(dy), M * O, "size of dy");
    vector(dx, M * I, "size of dx");
    if (dw) matrix(*dw, O, I, "dw (O, I)");
    vector(db, O, "db");
    k.linear_backward(pool, pointer(dx), pointer(dw), pointer(db), dy.data(), x.data(), w.data(), M,
                      I, O, gelu(f));
  }

  void layer_norm_forward(Out y, Out mean, Out rstd, In x, In w, In b, float eps) {
    const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
    expect(size(y), M * C, "size of y");
    expect(size(mean), M, "mean");
    expect(size(rstd), M, "rstd");
    expect(size(w), C, "w");
    expect(size(b), C, "b");
    k.layer_norm_forward(pool, y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), M,
                         C, eps);
  }
  void layer_norm_backward(Out dx, Out dw, Out db, In dy, MaybeIn dresidual, In x, In w, In mean,
                           In rstd) {
    const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
    expect(size(dx), M * C, "size of dx");
    expect(size(dy), M * C, "size of dy");
    vector(dresidual, M * C, "size of dresidual");
    expect(size(w), C, "w");
    expect(size(dw), C, "dw");
    expect(size(db), C, "db");
    expect(size(mean), M, "mean");
    expect(size(rstd), M, "rstd");
    k.layer_norm_backward(pool, dx.data(), dw.data(), db.data(), dy.data(), pointer(dresidual),
                          x.data(), w.data(), mean.data(), rstd.data(), M, C);
  }
  void rms_norm_forward(Out y, Out rstd, In x, In w, float eps) {
    const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
    expect(size(y), M * C, "size of y");
    expect(size(rstd), M, "rstd");
    expect(size(w), C, "w");
    k.rms_norm_forward(pool, y.data(), rstd.data(), x.data(), w.data(), M, C, eps);
  }
  void rms_norm_backward(Out dx, Out dw, In dy, MaybeIn dresidual, In x, In w, In rstd) {
    const int64_t C = last(x, "x"), M = C ? size(x) / C : 0;
    expect(size(dx), M * C, "size of dx");
    expect(size(dy), M * C, "size of dy");
    vector(dresidual, M * C, "size of dresidual");
    expect(size(w), C, "w");
    expect(size(dw), C, "dw");
    expect(size(rstd), M, "rstd");
    k.rms_norm_backward(pool, dx.data(), dw.data(), dy.data(), pointer(dresidual), x.data(),
                        w.data(), rstd.data(), M, C);
  }

  void gelu_forward(Out y, In x, std::string f) {
    expect(size(y), size(x), "size of y");
    k.gelu_forward(pool, y.data(), x.data(), size(x), gelu(f));
  }
  void gelu_backward(Out dx, In dy, In x, std::string f) {
    expect(size(dx), size(x), "size of dx");
    expect(size(dy), size(x), "size of dy");
    k.gelu_backward(pool, dx.data(), dy.data(), x.data(), size(x), gelu(f));
  }
  void silu_forward(Out y, In x) {
    expect(size(y), size(x), "size of y");
    k.silu_forward(pool, y.data(), x.data(), size(x));
  }
  void silu_backward(Out dx, In dy, In x) {
    expect(size(dx), size(x), "size of dx");
    expect(size(dy), size(x), "size of dy");
    k.silu_backward(pool, dx.data(), dy.data(), x.data(), size(x));
  }
  void swiglu_forward(Out y, In gate, In up) {
    expect(size(y), size(gate), "size of y");
    expect(size(up), size(gate), "size of up");
    k.swiglu_forward(pool, y.data(), gate.data(), up.data(), size(gate));
  }
  void swiglu_backward(Out dgate, Out dup, In dy, In gate, In up) {
    for (const int64_t n : {size(dgate), size(dup), size(dy), size(up)})
      expect(n, size(gate), "size of every array");
    k.swiglu_backward(pool, dgate.data(), dup.data(), dy.data(), gate.data(), up.data(),
                      size(gate));
  }
  void add(Out y, In a, In b) {
    expect(size(y), size(a), "size of y");
    expect(size(b), size(a), "size of b");
    k.add(pool, y.data(), a.data(), b.data(), size(a));
  }

  void embedding_forward(Out x, Ids tokens, In wte, MaybeIn wpe, int64_t start) {
    const int64_t C = last(x, "x"), T = last(tokens, "tokens"), B = T ? size(tokens) / T : 0;
    matrix(wte, wte.shape(0), C, "wte (V, C)");
    expect(size(x), B * T * C, "size of x");
    positions(wpe, start, T, C);
    tokens_below(tokens, wte.shape(0));
    k.embedding_forward(pool, x.data(), tokens.data(), wte.data(), pointer(wpe), B, T, C, start);
  }
  void embedding_backward(Out dwte, MaybeOut dwpe, In dx, Ids tokens, int64_t start) {
    const int64_t C = last(dx, "dx"), T = last(tokens, "tokens"), B = T ? size(tokens) / T : 0;
    matrix(dwte, dwte.shape(0), C, "dwte (V, C)");
    expect(size(dx), B * T * C, "size of dx");
    positions(dwpe, start, T, C);
    tokens_below(tokens, dwte.shape(0));
    k.embedding_backward(pool, dwte.data(), pointer(dwpe), dx.data(), tokens.data(), B, T, C,
                         start);
  }
  template <class A>
  static void positions(const std::optional<A>& wpe, int64_t start, int64_t T, int64_t C) {
    if (!wpe) return;
    matrix(*wpe, wpe->shape(0), C, "wpe (Tmax, C)");
    if (start < 0 || start + T > static_cast<int64_t>(wpe->shape(0)))
      fail("positions " + std::to_string(start) + " to " + std::to_string(start + T) +
           " are outside the context of " + std::to_string(wpe->shape(0)));
  }

  void rope(OutView y, InView x, In cos, In sin, bool adjacent, bool backward) {
    const int64_t B = x.shape(0), T = x.shape(1), H = x.shape(2), D = x.shape(3);
    if (D % 2) fail("rope: a head size of " + std::to_string(D) + " is odd");
    matrix(cos, T, D / 2, "cos (T, D/2)");
    matrix(sin, T, D / 2, "sin (T, D/2)");
    k.rope(pool, y.data(), x.data(), cos.data(), sin.data(), B, T, H, D,
           strides(y, B, T, H, D, "y"), strides(x, B, T, H, D, "x"), adjacent, backward);
  }

  static AttentionShape attention_shape(const InView& q, const InView& key, float scale,
                                        bool causal) {
    const AttentionShape s{(int64_t)q.shape(0),
                           (int64_t)q.shape(1),
                           (int64_t)key.shape(1),
                           (int64_t)q.shape(2),
                           (int64_t)key.shape(2),
                           (int64_t)q.shape(3),
                           scale,
                           causal};
    if (s.K < 1 || s.H % s.K)
      fail("attention: " + std::to_string(s.H) + " query heads over " + std::to_string(s.K) +
           " key heads: not a multiple");
    if (causal && s.S < s.T)
      fail("attention: " + std::to_string(s.T) + " queries see only " + std::to_string(s.S) +
           " keys, a causal mask needs as many or more");
    return s;
  }
  void attention_forward(OutView y, Out lse, InView q, InView key, InView v, float scale,
                         bool causal) {
    const AttentionShape s = attention_shape(q, key, scale, causal);
    expect(size(lse), s.B * s.H * s.T, "size of lse (B, H, T)");
    const AttentionForward a{y.data(),
                             lse.data(),
                             q.data(),
                             key.data(),
                             v.data(),
                             strides(y, s.B, s.T, s.H, s.D, "y"),
                             strides(q, s.B, s.T, s.H, s.D, "q"),
                             strides(key, s.B, s.S, s.K, s.D, "k"),
                             strides(v, s.B, s.S, s.K, s.D, "v")};
    k.attention_forward(pool, a, s);
  }
  void attention_backward(OutView dq, OutView dk, OutView dv, InView dy, InView q, InView key,
                          InView v, InView y, In lse, float scale, bool causal) {
    const AttentionShape s = attention_shape(q, key, scale, causal);
    expect(size(lse), s.B * s.H * s.T, "size of lse (B, H, T)");
    const AttentionBackward a{dq.data(),
                              dk.data(),
                              dv.data(),
                              dy.data(),
                              q.data(),
                              key.data(),
                              v.data(),
                              y.data(),
                              lse.data(),
                              strides(dq, s.B, s.T, s.H, s.D, "dq"),
                              strides(dk, s.B, s.S, s.K, s.D, "dk"),
                              strides(dv, s.B, s.S, s.K, s.D, "dv"),
                              strides(dy, s.B, s.T, s.H, s.D, "dy"),
                              strides(q, s.B, s.T, s.H, s.D, "q"),
                              strides(key, s.B, s.S, s.K, s.D, "k"),
                              strides(v, s.B, s.S, s.K, s.D, "v"),
                              strides(y, s.B, s.T, s.H, s.D, "y")};
    k.attention_backward(pool, a, s);
  }

  double cross_entropy(Out logits, Ids targets, float scale) {
    const int64_t V = last(logits, "logits"), M = V ? size(logits) / V : 0;
    expect(size(targets), M, "size of targets");
    const int32_t* t = targets.data();
    for (int64_t i = 0; i < M; ++i)
      if (t[i] < -1 || t[i] >= V)  // -1 is ignored
        fail("target " + std::to_string(t[i]) + " at place " + std::to_string(i) +
             " is outside the vocabulary of " + std::to_string(V));
    return k.cross_entropy(pool, logits.data(), t, M, V, scale);
  }
  void dropout(Out y, In x, uint32_t threshold, float scale, uint64_t seed, uint64_t counter) {
    expect(size(y), size(x), "size of y");
    k.dropout(pool, y.data(), x.data(), size(x), threshold, scale, seed, counter);
  }
  void adamw_step(Out p, In g, Out m, Out v, float lr, float beta1, float beta2, float eps,
                  float weight_decay, int64_t step, float grad_scale) {
    for (const int64_t n : {size(g), size(m), size(v)}) expect(n, size(p), "size of g, m, v");
    if (step < 1) fail("adamw_step: steps count from 1");
    const double n = static_cast<double>(step);
    k.adamw_step(pool, p.data(), g.data(), m.data(), v.data(), size(p),
                 {lr, beta1, beta2, eps, weight_decay,
                  static_cast<float>(1 - std::pow(static_cast<double>(beta1), n)),
                  static_cast<float>(1 - std::pow(static_cast<double>(beta2), n)), grad_scale});
  }
  double square_sum(In x) { return k.square_sum(pool, x.data(), size(x)); }
};

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

  // noconvert: an array of another dtype is refused, not copied behind the caller's back.
  const auto a = [](const char* name) { return nb::arg(name).noconvert(); };
  const auto maybe = [](const char* name) { return nb::arg(name).noconvert().none(); };

  nb::class_<Machine>(m, "Machine", "The kernels of one instruction set, and their threads.")
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
      .def("linear_forward", &Machine::linear_forward, a("y"), a("x"), a("w"), maybe("b"),
           maybe("residual"), "gelu"_a, Release())
      .def("linear_backward", &Machine::linear_backward, maybe("dx"), maybe("dw"), maybe("db"),
           a("dy"), a("x"), a("w"), "gelu"_a, Release())
      .def("layer_norm_forward", &Machine::layer_norm_forward, a("y"), a("mean"), a("rstd"), a("x"),
           a("w"), a("b"), "eps"_a, Release())
      .def("layer_norm_backward", &Machine::layer_norm_backward, a("dx"), a("dw"), a("db"), a("dy"),
           maybe("dresidual"), a("x"), a("w"), a("mean"), a("rstd"), Release())
      .def("rms_norm_forward", &Machine::rms_norm_forward, a("y"), a("rstd"), a("x"), a("w"),
           "eps"_a, Release())
      .def("rms_norm_backward", &Machine::rms_norm_backward, a("dx"), a("dw"), a("dy"),
           maybe("dresidual"), a("x"), a("w"), a("rstd"), Release())
      .def("gelu_forward", &Machine::gelu_forward, a("y"), a("x"), "approximate"_a, Release())
      .def("gelu_backward", &Machine::gelu_backward, a("dx"), a("dy"), a("x"), "approximate"_a,
           Release())
      .def("silu_forward", &Machine::silu_forward, a("y"), a("x"), Release())
      .def("silu_backward", &Machine::silu_backward, a("dx"), a("dy"), a("x"), Release())
      .def("swiglu_forward", &Machine::swiglu_forward, a("y"), a("gate"), a("up"), Release())
      .def("swiglu_backward", &Machine::swiglu_backward, a("dgate"), a("dup"), a("dy"), a("gate"),
           a("up"), Release())
      .def("add", &Machine::add, a("y"), a("a"), a("b"), Release())
      .def("embedding_forward", &Machine::embedding_forward, a("x"), a("tokens"), a("wte"),
           maybe("wpe"), "start"_a, Release())
      .def("embedding_backward", &Machine::embedding_backward, a("dwte"), maybe("dwpe"), a("dx"),
           a("tokens"), "start"_a, Release())
      .def("rope", &Machine::rope, a("y"), a("x"), a("cos"), a("sin"), "adjacent"_a, "backward"_a,
           Release())
      .def("attention_forward", &Machine::attention_forward, a("y"), a("lse"), a("q"), a("k"),
           a("v"), "scale"_a, "causal"_a, Release())
      .def("attention_backward", &Machine::attention_backward, a("dq"), a("dk"), a("dv"), a("dy"),
           a("q"), a("k"), a("v"), a("y"), a("lse"), "scale"_a, "causal"_a, Release())
      .def("cross_entropy", &Machine::cross_entropy, a("logits"), a("targets"), "scale"_a,
           Release())
      .def("dropout", &Machine::dropout, a("y"), a("x"), "threshold"_a, "scale"_a, "seed"_a,
           "counter"_a, Release())
      .def("adamw_step", &Machine::adamw_step, a("p"), a("g"), a("m"), a("v"), "lr"_a, "beta1"_a,
           "beta2"_a, "eps"_a, "weight_decay"_a, "step"_a, "grad_scale"_a, Release())
      .def("square_sum", &Machine::square_sum, a("x"), Release());
}
