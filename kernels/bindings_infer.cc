// The kernels of inference as Python sees them: products with quantised weights. The Python side is
// src/tenarai/ops/fast.py.
#include <cstring>

#include "python_quant.h"

namespace tenarai {
namespace {

bool rounded(const std::string& activations) {
  if (activations == "int8") return true;
  if (activations == "float32") return false;
  fail("activations: '" + activations + "', expected 'int8' or 'float32'");
}
void quant_linear_forward(Machine& self, Out y, In x, Bytes w, int format, MaybeIn b,
                          MaybeIn residual, std::string activations) {
  const int64_t I = last(x, "x"), O = last(y, "y"), M = I ? size(x) / I : 0;
  const QuantMatrix m = quant_matrix(w, format, I);
  expect(m.O, O, "rows of w");
  expect(size(y), M * O, "size of y");
  vector(b, O, "b");
  vector(residual, M * O, "size of residual");
  const bool r = rounded(activations);
  self.run([=, &self] {
    self.k.quant_linear_forward(self.pool, y.data(), x.data(), w.data(), m.format, pointer(b),
                                pointer(residual), M, I, O, m.row_bytes, r);
  });
}
void quant_linear_backward(Machine& self, Out dx, Out expanded, In dy, Bytes w, int format) {
  const int64_t I = last(dx, "dx"), O = last(dy, "dy"), M = O ? size(dy) / O : 0;
  const QuantMatrix m = quant_matrix(w, format, I);
  expect(m.O, O, "rows of w");
  expect(size(dx), M * I, "size of dx");
  expect(size(expanded), kExpandedRows * I, "size of expanded");
  self.k.quant_linear_backward(self.pool, dx.data(), expanded.data(), dy.data(), m.data, m.format,
                               M, I, O, m.row_bytes);
}

using CacheOut = nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

// Rows of q (N, H, D) over caches of keys and values (slots, K, capacity, D): row n belongs to
// slots[n], its k and v (N, K, D) are written to places[n], and it sees firsts[n] .. places[n].
// The arrays of places are read when the call is made, so a recorded call goes on with new ones.
void cache_attention(Machine& self, OutView y, Out lse, InView q, InView key, InView value,
                     CacheOut keys, CacheOut values, Ids slots, Ids places, Ids firsts,
                     float scale) {
  const int64_t N = q.shape(1), H = q.shape(2), D = q.shape(3), K = keys.shape(1);
  const int64_t capacity = keys.shape(2), count = keys.shape(0);
  if (K < 1 || H % K)
    fail("cache_attention: " + std::to_string(H) + " query heads over " + std::to_string(K));
  for (int i = 0; i < 4; ++i) expect(values.shape(i), keys.shape(i), "shape of values");
  expect(keys.shape(3), D, "head size of keys");
  expect(size(lse), H, "size of lse");
  for (const Ids* ids : {&slots, &places, &firsts}) expect(size(*ids), N, "size of slots, places");
  const Strides ys = strides(y, 1, N, H, D, "y"), qs = strides(q, 1, N, H, D, "q");
  const Strides ks = strides(key, 1, N, K, D, "k"), vs = strides(value, 1, N, K, D, "v");
  const Strides cache{K * capacity * D, D, capacity * D};
  self.run([=, &self] {
    for (int64_t n = 0; n < N; ++n) {
      const int64_t slot = slots.data()[n], place = places.data()[n], first = firsts.data()[n];
      if (slot < 0 || slot >= count || first < 0 || first > place || place >= capacity)
        fail("cache_attention: row " + std::to_string(n) + " is outside the cache");
      float* to_keys = keys.data() + slot * cache.b;
      float* to_values = values.data() + slot * cache.b;
      const size_t bytes = static_cast<size_t>(D) * sizeof(float);
      for (int64_t h = 0; h < K; ++h) {
        const int64_t at = h * cache.h + place * cache.t;
        std::memcpy(to_keys + at, key.data() + n * ks.t + h * ks.h, bytes);
        std::memcpy(to_values + at, value.data() + n * vs.t + h * vs.h, bytes);
      }
      const AttentionForward a{y.data() + n * ys.t,
                               lse.data(),
                               q.data() + n * qs.t,
                               to_keys + first * cache.t,
                               to_values + first * cache.t,
                               ys,
                               qs,
                               cache,
                               cache};
      AttentionShape shape{};
      shape.B = shape.T = 1;
      shape.S = place - first + 1;
      shape.H = H, shape.K = K, shape.D = D;
      shape.scale = scale;
      shape.causal = true;
      self.k.attention_forward(self.pool, a, shape);
    }
  });
}

}  // namespace

void bind_inference(MachineClass& machine) {
  const auto a = given;
  machine
      .def("quant_linear_forward", &quant_linear_forward, a("y"), a("x"), a("w"), "format"_a,
           maybe("b"), maybe("residual"), "activations"_a, Release())
      .def("quant_linear_backward", &quant_linear_backward, a("dx"), a("expanded"), a("dy"), a("w"),
           "format"_a, Release());
  machine.def("cache_attention", &cache_attention, a("y"), a("lse"), a("q"), a("k"), a("v"),
              a("keys"), a("values"), a("slots"), a("places"), a("firsts"), "scale"_a, Release());
  machine.attr("EXPANDED_ROWS") = kExpandedRows;
}

}  // namespace tenarai
