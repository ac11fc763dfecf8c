// Attention to a KV cache as Python sees it. The Python side is src/tenarai/ops/fast.py.
#include <tuple>

#include "python.h"

namespace tenarai {
namespace {

using View = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;
using Store = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;

CacheType cache_type(const Store& a) {
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return a.dtype().code == static_cast<uint8_t>(code) && a.dtype().bits == bits;
  };
  if (is(nb::dlpack::dtype_code::Float, 16)) return CacheType::f16;
  if (is(nb::dlpack::dtype_code::Float, 32)) return CacheType::f32;
  if (is(nb::dlpack::dtype_code::Int, 8)) return CacheType::i8;
  fail("a cache holds float16, float32 or int8");
}

CacheStore cache_store(const Store& keys, const Store& values, const MaybeOut& key_scales,
                       const MaybeOut& value_scales) {
  const CacheStore c{
      keys.data(),           values.data(),          pointer(key_scales),    pointer(value_scales),
      cache_type(keys),      (int64_t)keys.shape(0), (int64_t)keys.shape(1), (int64_t)keys.shape(2),
      (int64_t)keys.shape(3)};
  if (cache_type(values) != c.type) fail("keys and values of one cache have two dtypes");
  for (size_t i = 0; i < 4; ++i) expect(values.shape(i), keys.shape(i), "shape of values");
  if (c.slots < 1 || c.K < 1 || c.capacity < 1 || c.D < 1) fail("the cache is empty");
  vector(key_scales, c.slots * c.K * c.capacity, "size of key_scales");
  vector(value_scales, c.slots * c.K * c.capacity, "size of value_scales");
  if ((c.type == CacheType::i8) != (key_scales && value_scales))
    fail("an int8 cache has scales, another has none");
  return c;
}

Strides rows_of(const View& a, int64_t N, int64_t heads, int64_t D, const char* name) {
  expect(a.shape(0), N, name);
  expect(a.shape(1), heads, name);
  expect(a.shape(2), D, name);
  if (D > 1) expect(a.stride(2), 1, name);
  return {0, a.stride(0), a.stride(1)};
}

void rows_within(const CacheStore& c, const CacheRows& rows, int64_t window) {
  const bool ring = c.capacity >= window + rows.N - 1;
  for (int64_t i = 0; i < rows.N; ++i) {
    const int64_t slot = rows.slots[i], position = rows.positions[i];
    if (slot < 0 || slot >= c.slots)
      fail("sequence " + std::to_string(slot) + " of row " + std::to_string(i) +
           " is outside the cache of " + std::to_string(c.slots));
    if (position < 0 || (position >= c.capacity && !ring))
      fail("position " + std::to_string(position) + " of row " + std::to_string(i) +
           " is outside the cache of " + std::to_string(c.capacity));
  }
}

void cache_attention(Machine& self, Out y, View q, View key, View v, Store keys, Store values,
                     MaybeOut key_scales, MaybeOut value_scales, Ids slots, Ids positions,
                     std::optional<int64_t> window, MaybeIn sinks, float scale, float soft_cap,
                     MaybeIn alibi) {
  const CacheStore c = cache_store(keys, values, key_scales, value_scales);
  const int64_t N = q.shape(0), H = q.shape(1), W = window.value_or(kNoWindow);
  if (H < 1 || H % c.K)
    fail("cache_attention: " + std::to_string(H) + " query heads over " + std::to_string(c.K) +
         " key heads: not a multiple");
  if (W < 1 || W > kNoWindow) fail("cache_attention: a window of " + std::to_string(W));
  vector(sinks, H, "sinks (H)");
  vector(alibi, H, "slopes of alibi (H)");
  expect(size(y), N * H * c.D, "size of y");
  expect(size(slots), N, "size of slots");
  expect(size(positions), N, "size of positions");
  const Strides qs = rows_of(q, N, H, c.D, "q"), ks = rows_of(key, N, c.K, c.D, "k"),
                vs = rows_of(v, N, c.K, c.D, "v");
  const auto held = std::make_tuple(keys, values, key_scales, value_scales);

  self.run([=, &self, alive = held] {  // the store has only their addresses
    const CacheRows rows{slots.data(), positions.data(), N};
    (void)keys.data(), (void)values.data();  // held: the store has only their addresses
    rows_within(c, rows, W);
    self.k.cache_append(self.pool, c, key.data(), v.data(), ks, vs, rows);
    const CacheScores how{W, scale, soft_cap, pointer(alibi), pointer(sinks)};
    self.k.cache_attention(self.pool, c, y.data(), q.data(), qs, rows, H, how);
  });
}

}  // namespace

void bind_cache(MachineClass& machine) {
  const auto a = given;
  machine.def("cache_attention", &cache_attention, a("y"), a("q"), a("k"), a("v"), a("keys"),
              a("values"), maybe("key_scales"), maybe("value_scales"), a("slots"), a("positions"),
              "window"_a.none(), maybe("sinks"), "scale"_a, "soft_cap"_a, maybe("alibi"),
              Release());
}

}  // namespace tenarai
