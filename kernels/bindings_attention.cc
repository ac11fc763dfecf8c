// Attention as Python sees it. The Python side is src/tenarai/ops/fast.py; what an option means,
// src/tenarai/ops/attention_options.py.
#include "python.h"

namespace tenarai {
namespace {

// The options as they come from Python, in this order behind the arrays of a kernel.
struct Options {
  MaybeIn sinks;
  float scale;
  bool causal;
  std::optional<int64_t> window;
  MaybeIds documents, lengths, prefix;
  float soft_cap;
  MaybeIn alibi;
  const std::string& products;
};

void within(const MaybeIds& a, int64_t n, const char* name, int64_t most) {
  vector(a, n, name);
  for (int64_t i = 0; a && i < n; ++i)
    if (a->data()[i] < 0 || a->data()[i] > most)
      fail(std::string("attention: ") + name + " holds " + std::to_string(a->data()[i]) +
           ", expected 0 to " + std::to_string(most));
}

AttentionShape attention_shape(const InView& q, const InView& key, const Options& o) {
  AttentionShape s{(int64_t)q.shape(0),
                   (int64_t)q.shape(1),
                   (int64_t)key.shape(1),
                   (int64_t)q.shape(2),
                   (int64_t)key.shape(2),
                   (int64_t)q.shape(3),
                   o.scale,
                   o.causal,
                   kNoWindow,
                   pointer(o.documents),
                   pointer(o.lengths),
                   pointer(o.prefix),
                   o.soft_cap,
                   pointer(o.alibi),
                   pointer(o.sinks),
                   products_of(o.products)};
  if (o.window && *o.window < 1)
    fail("attention: window is " + std::to_string(*o.window) + ", expected 1 or more");
  if (o.window && *o.window < kNoWindow) s.window = *o.window;
  if (s.K < 1 || s.H % s.K)
    fail("attention: " + std::to_string(s.H) + " query heads over " + std::to_string(s.K) +
         " key heads: not a multiple");
  if ((s.causal || o.window || o.documents) && s.S < s.T)
    fail("attention: " + std::to_string(s.T) + " queries see only " + std::to_string(s.S) +
         " keys, this mask needs as many or more");
  if (s.S > INT32_MAX - 64) fail("attention: more keys than are counted");
  within(o.documents, s.B * s.S, "documents", s.S);
  within(o.lengths, s.B, "lengths", s.S);
  within(o.prefix, s.B, "prefix", INT32_MAX);
  vector(o.alibi, s.H, "slopes of alibi (H)");
  vector(o.sinks, s.H, "sinks (H)");
  for (int64_t i = 0; s.documents && i < s.B * s.S; ++i)
    if (s.documents[i] > i % s.S)
      fail("attention: the document of key " + std::to_string(i % s.S) + " begins after it, at " +
           std::to_string(s.documents[i]));
  return s;
}

void attention_forward(Machine& self, OutView y, Out lse, InView q, InView key, InView v,
                       MaybeIn sinks, float scale, bool causal, std::optional<int64_t> window,
                       MaybeIds documents, MaybeIds lengths, MaybeIds prefix, float soft_cap,
                       MaybeIn alibi, std::string products) {
  const AttentionShape s = attention_shape(
      q, key,
      {sinks, scale, causal, window, documents, lengths, prefix, soft_cap, alibi, products});
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
  self.k.attention_forward(self.pool, a, s);
}

void attention_backward(Machine& self, OutView dq, OutView dk, OutView dv, MaybeOut dsinks,
                        InView dy, InView q, InView key, InView v, InView y, In lse, MaybeIn sinks,
                        float scale, bool causal, std::optional<int64_t> window, MaybeIds documents,
                        MaybeIds lengths, MaybeIds prefix, float soft_cap, MaybeIn alibi,
                        std::string products) {
  const AttentionShape s = attention_shape(
      q, key,
      {sinks, scale, causal, window, documents, lengths, prefix, soft_cap, alibi, products});
  expect(size(lse), s.B * s.H * s.T, "size of lse (B, H, T)");
  vector(dsinks, s.H, "dsinks (H)");
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
                            strides(y, s.B, s.T, s.H, s.D, "y"),
                            pointer(dsinks)};
  self.k.attention_backward(self.pool, a, s);
}

}  // namespace

void bind_attention(MachineClass& machine) {
  const auto a = given;
  machine
      .def("attention_forward", &attention_forward, a("y"), a("lse"), a("q"), a("k"), a("v"),
           maybe("sinks"), "scale"_a, "causal"_a, "window"_a.none(), maybe("documents"),
           maybe("lengths"), maybe("prefix"), "soft_cap"_a, maybe("alibi"), "products"_a, Release())
      .def("attention_backward", &attention_backward, a("dq"), a("dk"), a("dv"), maybe("dsinks"),
           a("dy"), a("q"), a("k"), a("v"), a("y"), a("lse"), maybe("sinks"), "scale"_a, "causal"_a,
           "window"_a.none(), maybe("documents"), maybe("lengths"), maybe("prefix"), "soft_cap"_a,
           maybe("alibi"), "products"_a, Release());
}

}  // namespace tenarai
