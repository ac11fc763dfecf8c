// What the files of bindings share: how arrays come from Python, and what is checked of them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tenarai {
namespace {  // each file of bindings has its own

using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using OutView = nb::ndarray<float, nb::ndim<4>, nb::device::cpu>;
using InView = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;
using MaybeOut = std::optional<Out>;
using MaybeIn = std::optional<In>;
using Release = nb::call_guard<nb::gil_scoped_release>;

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

inline void expect(int64_t got, int64_t wanted, const char* what) {
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
using MaybeIds = std::optional<Ids>;
inline void positions_below(const MaybeIds& positions, int64_t end) {
  const int32_t* p = pointer(positions);
  for (int64_t i = 0; p && i < size(*positions); ++i)
    if (p[i] < 0 || p[i] >= end)
      fail("position " + std::to_string(p[i]) + " at place " + std::to_string(i) +
           " is outside the context of " + std::to_string(end));
}
template <class A>
void positions(const std::optional<A>& wpe, int64_t start, int64_t T, int64_t C) {
  if (!wpe) return;
  matrix(*wpe, wpe->shape(0), C, "wpe (Tmax, C)");
  if (start < 0 || start + T > static_cast<int64_t>(wpe->shape(0)))
    fail("positions " + std::to_string(start) + " to " + std::to_string(start + T) +
         " are outside the context of " + std::to_string(wpe->shape(0)));
}
inline void tokens_below(const Ids& tokens, int64_t V) {
  const int32_t* t = tokens.data();
  for (int64_t i = 0; i < size(tokens); ++i)
    if (t[i] < 0 || t[i] >= V)
      fail("token " + std::to_string(t[i]) + " at place " + std::to_string(i) +
           " is outside the vocabulary of " + std::to_string(V));
}

inline Products products_of(const std::string& name) {
  if (name == "plain") return Products::plain;
  if (name == "fast") return Products::fast;
  if (name == "words") return Products::words;
  fail("products: '" + name + "', expected 'plain', 'fast' or 'words'");
}

}  // namespace

// Kernel calls in the order in which they were made, with the arrays they use.
using Tape = std::vector<std::function<void()>>;

// The kernels of one instruction set and the threads they run on.
struct Machine {
  const Kernels& k;
  Pool pool;
  Tape* tape = nullptr;  // where calls are written down, while one is recorded

  Machine(const Kernels& kernels, int threads) : k(kernels), pool(threads) {}

  // Makes a kernel call, and writes it down. `call` must capture arrays by value (`[=, &self]`),
  // which keeps them alive, and check in itself what it reads of their values: those may differ
  // when it is made again.
  template <class F>
  void run(const F& call) {
    call();
    if (tape) tape->push_back(call);
  }
};

using MachineClass = nb::class_<Machine>;
void bind_inference(MachineClass&);         // bindings_infer.cc
void bind_quant(MachineClass&);             // bindings_quant.cc
void bind_attention(MachineClass&);         // bindings_attention.cc
void bind_cache(MachineClass&);             // bindings_cache.cc
void bind_linear_attention(MachineClass&);  // bindings_linear_attention.cc
void bind_replay(MachineClass&);            // bindings_replay.cc
// noconvert: an array of another dtype is refused, not copied behind the caller's back.
inline auto given(const char* name) { return nb::arg(name).noconvert(); }
inline auto maybe(const char* name) { return nb::arg(name).noconvert().none(); }

}  // namespace tenarai
