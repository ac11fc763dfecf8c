// Gated linear attention and the delta rule as Python sees them. The Python side is
// src/tenarai/ops/fast.py.
#include "python.h"

namespace tenarai {
namespace {

// The shape that q and v have, and the checks of all that comes with them.
LinearAttentionShape linear_shape(const In& q, const In& key, const In& v, const MaybeIn& beta,
                                  const MaybeIn& g, size_t dims, float scale) {
  if (q.ndim() != dims || key.ndim() != dims || v.ndim() != dims)
    fail("linear attention: q, k, v have " + std::to_string(q.ndim()) + ", " +
         std::to_string(key.ndim()) + ", " + std::to_string(v.ndim()) + " dims, expected " +
         std::to_string(dims));
  const auto dim = [&](const In& a, size_t i) { return static_cast<int64_t>(a.shape(i)); };
  LinearAttentionShape s{dim(q, 0),
                         dims == 4 ? dim(q, 1) : 1,
                         dim(q, dims - 2),
                         dim(q, dims - 1),
                         dim(v, dims - 1),
                         scale,
                         false};
  for (size_t i = 0; i < dims; ++i) expect(dim(key, i), dim(q, i), "shape of k");
  for (size_t i = 0; i + 1 < dims; ++i) expect(dim(v, i), dim(q, i), "shape of v");
  if (s.D < 1 || s.V < 1) fail("linear attention: heads of no channels");
  vector(beta, s.B * s.T * s.H, "size of beta");
  if (g) {
    s.channel = g->ndim() == dims;
    expect(static_cast<int64_t>(g->ndim()), static_cast<int64_t>(s.channel ? dims : dims - 1),
           "dims of g");
    for (size_t i = 0; i < g->ndim(); ++i) expect(dim(*g, i), dim(q, i), "shape of g");
  }
  return s;
}
int64_t state_size(const LinearAttentionShape& s) { return s.B * s.H * s.D * s.V; }
int64_t chunks(const LinearAttentionShape& s) { return (s.T + 63) / 64; }
// What is there exactly where the forward had its counterpart.
template <class A, class B>
void together(const std::optional<A>& a, const std::optional<B>& b, const char* name) {
  if (a.has_value() != b.has_value()) fail(std::string(name) + " goes with its own input");
}

void linear_attention_forward(Machine& self, Out y, Out end, Out states, MaybeOut u, In q, In key,
                              In v, MaybeIn beta, MaybeIn g, MaybeIn initial, float scale) {
  const LinearAttentionShape s = linear_shape(q, key, v, beta, g, 4, scale);
  expect(size(y), size(v), "size of y");
  expect(size(end), state_size(s), "size of the last state");
  expect(size(states), state_size(s) * chunks(s), "size of states");
  vector(initial, state_size(s), "size of the first state");
  vector(u, size(v), "size of u");
  together(u, beta, "u");
  const LinearAttentionForward f{y.data(),   end.data(),      states.data(), pointer(u),
                                 q.data(),   key.data(),      v.data(),      pointer(beta),
                                 pointer(g), pointer(initial)};
  self.k.linear_attention_forward(self.pool, f, s);
}

void linear_attention_backward(Machine& self, Out dq, Out dk, Out dv, MaybeOut dbeta, MaybeOut dg,
                               MaybeOut dinitial, In dy, MaybeIn dlast, In q, In key, In v,
                               MaybeIn beta, MaybeIn g, In states, In end, In u, float scale) {
  const LinearAttentionShape s = linear_shape(q, key, v, beta, g, 4, scale);
  expect(size(dq), size(q), "size of dq");
  expect(size(dk), size(q), "size of dk");
  for (const int64_t n : {size(dv), size(dy), size(u)}) expect(n, size(v), "size of dv, dy, u");
  together(dbeta, beta, "dbeta");
  together(dg, g, "dg");
  vector(dbeta, s.B * s.T * s.H, "size of dbeta");
  if (g) vector(dg, size(*g), "size of dg");
  vector(dinitial, state_size(s), "size of dinitial");
  vector(dlast, state_size(s), "size of the last state's gradient");
  expect(size(states), state_size(s) * chunks(s), "size of states");
  expect(size(end), state_size(s), "size of the last state");
  const LinearAttentionBackward f{dq.data(),   dk.data(),         dv.data(),  pointer(dbeta),
                                  pointer(dg), pointer(dinitial), dy.data(),  pointer(dlast),
                                  q.data(),    key.data(),        v.data(),   pointer(beta),
                                  pointer(g),  states.data(),     end.data(), u.data()};
  self.k.linear_attention_backward(self.pool, f, s);
}

void linear_attention_decode(Machine& self, Out y, Out states, Ids slots, In q, In key, In v,
                             MaybeIn beta, MaybeIn g, float scale) {
  const LinearAttentionShape s = linear_shape(q, key, v, beta, g, 3, scale);
  expect(size(y), size(v), "size of y");
  expect(size(slots), s.B, "size of slots");
  if (states.ndim() != 4) fail("states: expected (slots, H, D, Dv)");
  expect(states.shape(1), s.H, "heads of states");
  expect(states.shape(2), s.D, "rows of states");
  expect(states.shape(3), s.V, "columns of states");
  self.run([=, &self] {
    for (int64_t i = 0; i < s.B; ++i)
      if (slots.data()[i] < 0 || slots.data()[i] >= static_cast<int64_t>(states.shape(0)))
        fail("sequence " + std::to_string(slots.data()[i]) + " of row " + std::to_string(i) +
             " is outside the states of " + std::to_string(states.shape(0)));
    const LinearAttentionStep f{y.data(),   states.data(), slots.data(),  q.data(),
                                key.data(), v.data(),      pointer(beta), pointer(g)};
    self.k.linear_attention_decode(self.pool, f, s);
  });
}

}  // namespace

void bind_linear_attention(MachineClass& machine) {
  const auto a = given;
  machine
      .def("linear_attention_forward", &linear_attention_forward, a("y"), a("last"), a("states"),
           maybe("u"), a("q"), a("k"), a("v"), maybe("beta"), maybe("g"), maybe("initial"),
           "scale"_a, Release())
      .def("linear_attention_backward", &linear_attention_backward, a("dq"), a("dk"), a("dv"),
           maybe("dbeta"), maybe("dg"), maybe("dinitial"), a("dy"), maybe("dlast"), a("q"), a("k"),
           a("v"), maybe("beta"), maybe("g"), a("states"), a("last"), a("u"), "scale"_a, Release())
      .def("linear_attention_decode", &linear_attention_decode, a("y"), a("states"), a("slots"),
           a("q"), a("k"), a("v"), maybe("beta"), maybe("g"), "scale"_a, Release());
}

}  // namespace tenarai
