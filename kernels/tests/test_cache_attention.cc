// Attention to a KV cache: rows put into it, rings gone round, against plain loops in double over
// what it then holds. Every type of cache and option, few columns and many, one thread and several.
#include <algorithm>
#include <string>

#include "test.h"
#include "test_blocks.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;
size_t at(int64_t i) { return static_cast<size_t>(i); }

enum : unsigned { kSoftCap = 1, kAlibi = 2, kSinks = 4 };

// Two sequences, in slots 2 and 0 of three; the last N tokens of each ask.
struct Case {
  CacheType type;
  int64_t N, length, K, G, D;
  unsigned options = 0;
  int64_t window = kNoWindow;
  int64_t capacity() const { return window == kNoWindow ? length + 3 : window + N + 2; }
};
constexpr int64_t kSlots = 3;

// Keys or values: what was asked to be stored (slots, length, K, D + 1), and the cache's memory,
// which starts an item behind a vector's boundary and has nothing else in it at first.
struct Half {
  const Case& c;
  const int64_t item, rows;
  Array asked, scales;
  std::vector<uint8_t> bytes;
  Doubles values;  // what is stored, after read()

  explicit Half(const Case& a)
      : c(a),
        item(a.type == CacheType::f16   ? 2
             : a.type == CacheType::f32 ? 4
                                        : 1),
        rows(kSlots * a.K * a.capacity()),
        asked(kSlots * a.length * a.K * (a.D + 1)),
        scales(rows, 7),
        bytes(at((rows * a.D + 2) * item), 0x5a) {}
  uint8_t* data() { return bytes.data() + item; }
  float* token(int64_t slot, int64_t s) {
    return asked.data() + (slot * c.length + s) * c.K * (c.D + 1);
  }
  int64_t row(int64_t slot, int64_t s, int64_t head) const {
    return (slot * c.K + head) * c.capacity() + s % c.capacity();
  }
  double& held(int64_t slot, int64_t s, int64_t head, int64_t d) {
    return values[at(row(slot, s, head) * c.D + d)];
  }
  void read() {
    for (int64_t i = 0; i < rows * c.D; ++i) {
      const uint8_t* p = data() + i * item;
      values.push_back(c.type == CacheType::f16 ? half_at(p)
                       : c.type == CacheType::f32
                           ? float_at(p)
                           : static_cast<int8_t>(*p) * double{scales[i / c.D]});
    }
  }
  // Half a step of the type: of float16, of 127 steps to the row's largest.
  double rounding(int64_t slot, int64_t s, int64_t head, int64_t d) {
    const float* x = token(slot, s) + head * (c.D + 1);
    double most = 0;
    for (int64_t i = 0; i < c.D; ++i) most = std::fmax(most, std::fabs(x[i]));
    if (c.type == CacheType::i8) return most / 254 * (1 + 1e-4);
    return c.type == CacheType::f16 ? std::fabs(x[d]) / 2048 + 3e-8 : 0;
  }
};

int64_t length_of(const Case& c, int64_t slot) { return slot == 0 ? c.length : c.length - 1; }

// Tokens [from, to) of both sequences.
void append(const Kernels& k, Pool& pool, const CacheStore& store, Half& key, Half& value,
            int64_t from, int64_t to) {
  const Case& c = key.c;
  const Strides strides{0, c.K * (c.D + 1), c.D + 1};
  for (const int64_t slot : {2, 0}) {
    std::vector<int32_t> slots, positions;
    for (int64_t s = from; s < to && s < length_of(c, slot); ++s) {
      slots.push_back(static_cast<int32_t>(slot));
      positions.push_back(static_cast<int32_t>(s));
    }
    k.cache_append(pool, store, key.token(slot, from), value.token(slot, from), strides, strides,
                   {slots.data(), positions.data(), static_cast<int64_t>(slots.size())});
  }
}

void expect_stored(const Kernels& k, Half& half) {
  half.read();
  const Case& c = half.c;
  std::vector<bool> written(at(half.rows));
  for (const int64_t slot : {2, 0})
    for (int64_t s = std::max<int64_t>(0, length_of(c, slot) - c.capacity());
         s < length_of(c, slot); ++s)
      for (int64_t h = 0; h < c.K; ++h) {
        written[at(half.row(slot, s, h))] = true;
        for (int64_t d = 0; d < c.D; ++d) {
          const double got = half.held(slot, s, h, d),
                       want = half.token(slot, s)[h * (c.D + 1) + d];
          if (!(std::fabs(got - want) <= half.rounding(slot, s, h, d)))
            return expect(false, k.isa, "cache_append", got, want);
        }
      }
  bool kept = half.scales.guards_hold();
  for (int64_t i = 0; i < static_cast<int64_t>(half.bytes.size()); ++i) {
    const int64_t r = i / half.item - 1;
    const bool outside = r < 0 || r >= half.rows * c.D;
    if (outside || !written[at(r / c.D)]) kept &= half.bytes[at(i)] == 0x5a;
  }
  expect(kept, k.isa, "cache_append: outside the rows", 0, 0);
}

void test_case(const Kernels& k, Pool& pool, const Case& c) {
  Half key(c), value(c);
  const bool scaled = c.type == CacheType::i8;
  const CacheStore store{key.data(),
                         value.data(),
                         scaled ? key.scales.data() : nullptr,
                         scaled ? value.scales.data() : nullptr,
                         c.type,
                         kSlots,
                         c.K,
                         c.capacity(),
                         c.D};
  for (int64_t s = 0; s < c.length; s += c.capacity())
    append(k, pool, store, key, value, s, std::min(s + c.capacity(), c.length));
  expect_stored(k, key);
  expect_stored(k, value);

  const int64_t H = c.K * c.G, gap = 3;
  std::vector<int32_t> slots, positions;
  for (const int64_t slot : {2, 0})
    for (int64_t s = std::max<int64_t>(0, length_of(c, slot) - c.N); s < length_of(c, slot); ++s) {
      slots.push_back(static_cast<int32_t>(slot));
      positions.push_back(static_cast<int32_t>(s));
    }
  const int64_t rows = static_cast<int64_t>(slots.size());
  Array q(rows * H * (c.D + gap)), y(rows * H * c.D), sinks(H), alibi(H);
  for (int64_t h = 0; h < H; ++h) alibi[h] = 0.1f + 0.05f * alibi[h];
  const float scale = 3 / std::sqrt(static_cast<float>(c.D));
  const double cap = c.options & kSoftCap ? 1.5 : 0;
  Doubles want(at(y.size()));
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t h = 0; h < H; ++h) {
      const int64_t slot = slots[at(n)], x = positions[at(n)];
      double total = c.options & kSinks ? std::exp(double{sinks[h]}) : 0;
      double* const to = want.data() + (n * H + h) * c.D;
      for (int64_t s = std::max<int64_t>(0, x - c.window + 1); s <= x; ++s) {
        double a = 0;
        for (int64_t d = 0; d < c.D; ++d)
          a += q[(n * H + h) * (c.D + gap) + d] * key.held(slot, s, h / c.G, d);
        a *= scale;
        if (cap > 0) a = cap * std::tanh(a / cap);
        if (c.options & kAlibi) a -= alibi[h] * static_cast<double>(x - s);
        const double p = std::exp(a);
        total += p;
        for (int64_t d = 0; d < c.D; ++d) to[d] += p * value.held(slot, s, h / c.G, d);
      }
      for (int64_t d = 0; d < c.D; ++d) to[d] /= total;
    }
  k.cache_attention(
      pool, store, y.data(), q.data(), {0, H * (c.D + gap), c.D + gap},
      {slots.data(), positions.data(), rows}, H,
      {c.window, scale, static_cast<float>(cap), c.options & kAlibi ? alibi.data() : nullptr,
       c.options & kSinks ? sinks.data() : nullptr});
  const std::string what = "cache_attention type=" + std::to_string(static_cast<int>(c.type)) +
                           " N=" + std::to_string(c.N) + " length=" + std::to_string(c.length) +
                           " G=" + std::to_string(c.G) + " D=" + std::to_string(c.D) +
                           " window=" + std::to_string(c.window) +
                           " options=" + std::to_string(c.options) +
                           " threads=" + std::to_string(pool.threads());
  expect_near(k.isa, what.c_str(), y, want, 5e-6);  // as test_attention.cc's
}

}  // namespace

void test_cache_attention(const Kernels& k, Pool& pool) {
  for (const CacheType type : {CacheType::f16, CacheType::f32, CacheType::i8}) {
    for (int64_t D = 1; D <= 2 * k.vector_bytes / 4 + 1; ++D) {
      test_case(k, pool, {type, 1, 18, 2, 1, D});  // few columns
      test_case(k, pool, {type, 9, 18, 1, 2, D});  // many
    }
    for (unsigned options = 1; options < 8; ++options)
      for (const int64_t N : {2, 11}) {
        test_case(k, pool, {type, N, 90, 2, 3, 12, options});
        test_case(k, pool, {type, N, 90, 1, 3, 12, options, 30});  // a ring
      }
    test_case(k, pool, {type, 1, 1100, 1, 4, 64});  // its keys among the threads
    test_case(k, pool, {type, 3, 300, 2, 2, 33, 0, 65});
    test_case(k, pool, {type, 70, 150, 1, 1, 80, kSoftCap | kAlibi | kSinks});
  }
}

}  // namespace tenarai::test
