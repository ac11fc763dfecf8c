// Attention against plain loops in double: views with gaps between their rows, grouped heads, more
// keys than queries, odd sizes, few queries and many, every option with every other, one thread and
// several; in float32, in words and, with AMX, in digits.
#include <algorithm>
#include <cstring>
#include <string>

#include "test.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;

// A (B, T, H, D) view: each head's row is followed by `gap` floats that nobody may write.
struct View {
  int64_t T, H, D, gap;
  Array array;
  View(int64_t B, int64_t t, int64_t h, int64_t d, int64_t g)
      : T(t), H(h), D(d), gap(g), array(B * t * h * (d + g)) {}
  Strides strides() const { return {T * H * (D + gap), H * (D + gap), D + gap}; }
  int64_t place(int64_t b, int64_t t, int64_t h) const { return ((b * T + t) * H + h) * (D + gap); }
  float at(int64_t b, int64_t t, int64_t h, int64_t d) { return array[place(b, t, h) + d]; }
  Doubles want() { return Doubles(array.data(), array.data() + array.size()); }
  void clear(Doubles* want) {
    for (size_t i = 0; i < want->size(); ++i)
      if (static_cast<int64_t>(i) % (D + gap) < D) (*want)[i] = 0;
  }
};

enum : unsigned {
  kPrefix = 1,
  kDocuments = 2,
  kLengths = 4,
  kSoftCap = 8,
  kAlibi = 16,
  kSinks = 32
};
constexpr unsigned kAllOptions = 63;

struct Case {
  int64_t B, T, S, H, K, D;
  bool causal;
  int64_t window = kNoWindow;
  unsigned options = 0;
  Products products = Products::plain;
  bool has(unsigned option) const { return options & option; }
};

// What a case's options point to.
struct Options {
  const Case& c;
  std::vector<int32_t> documents, lengths, prefix;
  Array alibi, sinks;
  const double soft_cap;

  explicit Options(const Case& a)
      : c(a), alibi(a.H), sinks(a.H), soft_cap(a.has(kSoftCap) ? 1.5 : 0) {
    for (int64_t h = 0; h < c.H; ++h) alibi[h] = 0.1f + 0.05f * alibi[h];
    for (int64_t b = 0; b < c.B; ++b) {
      lengths.push_back(static_cast<int32_t>(c.S * 3 / (4 + b)));  // the last queries see nothing
      prefix.push_back(static_cast<int32_t>(9 * b + 4));
      for (int64_t s = 0; s < c.S; ++s)  // documents of 11, 24, ... keys, the first one shorter
        documents.push_back(s == 0 || s % (13 * b + 11) == 3 ? static_cast<int32_t>(s)
                                                             : documents.back());
    }
  }
  AttentionShape shape(float scale) {
    const auto if_ = [&](unsigned option, auto& a) { return c.has(option) ? a.data() : nullptr; };
    return {c.B,
            c.T,
            c.S,
            c.H,
            c.K,
            c.D,
            scale,
            c.causal,
            c.window,
            if_(kDocuments, documents),
            if_(kLengths, lengths),
            if_(kPrefix, prefix),
            static_cast<float>(soft_cap),
            if_(kAlibi, alibi),
            if_(kSinks, sinks),
            c.products};
  }
  bool sees(int64_t b, int64_t t, int64_t s) const {
    const int64_t x = t + c.S - c.T;
    const auto start = [&](int64_t key) { return documents[static_cast<size_t>(b * c.S + key)]; };
    const size_t row = static_cast<size_t>(b);
    if (c.has(kLengths) && s >= lengths[row]) return false;
    if (c.has(kDocuments) && start(s) != start(x)) return false;
    if (c.has(kPrefix) && s < (c.has(kDocuments) ? start(s) : 0) + prefix[row]) return true;
    return (!c.causal || s <= x) && std::abs(x - s) < c.window;
  }
};

// Words lose 3e-4 to 6e-4 of the norm of what is wanted, more where numbers cancel. The norm hides
// a single wrong element, so elements are looked at too.
void expect_close(const Kernels& k, const std::string& what, Array& got, const Doubles& want) {
  const double lost = is(k, "amx") ? 3e-5 : 1e-3;  // of the norm
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = got[static_cast<int64_t>(i)] - want[i];
    error += difference * difference, norm += want[i] * want[i];
  }
  expect(error <= lost * lost * (norm + 0.01 * static_cast<double>(want.size())), k.isa,
         (what + ", norm").c_str(), std::sqrt(error), std::sqrt(norm));
  expect_near(k.isa, what.c_str(), got, want, 10 * lost);
}

void test_attention(const Kernels& k, Pool& pool, const Case& c) {
  View q(c.B, c.T, c.H, c.D, 3), key(c.B, c.S, c.K, c.D, 5), v(c.B, c.S, c.K, c.D, 1);
  View y(c.B, c.T, c.H, c.D, 2), dy(c.B, c.T, c.H, c.D, 4);
  View dq(c.B, c.T, c.H, c.D, 1), dk(c.B, c.S, c.K, c.D, 2), dv(c.B, c.S, c.K, c.D, 3);
  Array lse(c.B * c.H * c.T), dsinks(c.H);
  Options o(c);
  Doubles want_dsinks(dsinks.data(), dsinks.data() + c.H), want_y = y.want(), want_dq = dq.want(),
                                                           want_dk = dk.want(), want_dv = dv.want();
  Doubles want_lse(static_cast<size_t>(lse.size()));
  for (View* view : {&y, &dq, &dk, &dv})
    view->clear(view == &y ? &want_y : view == &dq ? &want_dq : view == &dk ? &want_dk : &want_dv);
  const float scale = 3 / std::sqrt(static_cast<float>(c.D));  // sharp enough to have an order

  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t h = 0; h < c.H; ++h)
      for (int64_t t = 0; t < c.T; ++t) {
        const int64_t kh = h / (c.H / c.K);
        Doubles p(static_cast<size_t>(c.S)), dp(p), slope(p);
        const double sink = c.has(kSinks) ? std::exp(double{o.sinks[h]}) : 0;
        double total = sink, delta = 0;
        for (int64_t s = 0; s < c.S; ++s) {
          if (!o.sees(b, t, s)) continue;
          const size_t i = static_cast<size_t>(s);
          double a = 0;
          for (int64_t d = 0; d < c.D; ++d) {
            a += static_cast<double>(q.at(b, t, h, d)) * key.at(b, s, kh, d);
            dp[i] += static_cast<double>(dy.at(b, t, h, d)) * v.at(b, s, kh, d);
          }
          a *= scale;
          const double u = o.soft_cap > 0 ? std::tanh(a / o.soft_cap) : 0;
          if (o.soft_cap > 0) a = o.soft_cap * u;
          if (c.has(kAlibi)) a -= o.alibi[h] * static_cast<double>(std::abs(t + c.S - c.T - s));
          p[i] = std::exp(a), slope[i] = 1 - u * u;
          total += p[i];
        }
        if (total == 0) total = 1;  // no key and no sink
        want_lse[static_cast<size_t>((b * c.H + h) * c.T + t)] = std::log(total);
        for (double& x : p) x /= total;
        for (size_t s = 0; s < p.size(); ++s) delta += p[s] * dp[s];
        want_dsinks[static_cast<size_t>(h)] -= sink / total * delta;
        for (int64_t s = 0; s < c.S; ++s) {
          const size_t i = static_cast<size_t>(s);
          const double w = p[i], ds = w * (dp[i] - delta) * slope[i];
          for (int64_t d = 0; d < c.D && w > 0; ++d) {
            const auto add = [&](Doubles& x, int64_t place, double more) {
              x[static_cast<size_t>(place + d)] += more;
            };
            add(want_y, y.place(b, t, h), w * v.at(b, s, kh, d));
            add(want_dv, dv.place(b, s, kh), w * dy.at(b, t, h, d));
            add(want_dk, dk.place(b, s, kh), scale * ds * q.at(b, t, h, d));
            add(want_dq, dq.place(b, t, h), scale * ds * key.at(b, s, kh, d));
          }
        }
      }

  const AttentionShape shape = o.shape(scale);
  k.attention_forward(pool,
                      {y.array.data(), lse.data(), q.array.data(), key.array.data(), v.array.data(),
                       y.strides(), q.strides(), key.strides(), v.strides()},
                      shape);
  k.attention_backward(
      pool,
      {dq.array.data(), dk.array.data(), dv.array.data(), dy.array.data(), q.array.data(),
       key.array.data(), v.array.data(), y.array.data(), lse.data(), dq.strides(), dk.strides(),
       dv.strides(), dy.strides(), q.strides(), key.strides(), v.strides(), y.strides(),
       c.has(kSinks) ? dsinks.data() : nullptr},
      shape);
  const std::string sizes =
      " B=" + std::to_string(c.B) + " T=" + std::to_string(c.T) + " S=" + std::to_string(c.S) +
      " H=" + std::to_string(c.H) + " K=" + std::to_string(c.K) + " D=" + std::to_string(c.D) +
      (c.causal ? " causal" : " full") + " window=" + std::to_string(c.window) +
      " options=" + std::to_string(c.options) +
      " products=" + std::to_string(static_cast<int>(c.products)) +
      " threads=" + std::to_string(pool.threads());
  const auto check = [&](const char* name, Array& got, const Doubles& want) {
    const std::string what = "attention " + std::string(name) + sizes;
    if (c.products == Products::words)  // few sinks: differences of numbers
      return &got == &dsinks ? expect_near(k.isa, what.c_str(), got, want, 1e-2)
                             : expect_close(k, what, got, want);
    // Scores of a few units, each good to 2^-23 of the largest; dk and dv sum T of their products.
    expect_near(k.isa, what.c_str(), got, want, 5e-6);
  };
  check("y", y.array, want_y);
  check("lse", lse, want_lse);
  check("dq", dq.array, want_dq);
  check("dk", dk.array, want_dk);
  check("dv", dv.array, want_dv);
  check("dsinks", dsinks, want_dsinks);
}

// The same bits twice on the same number of threads.
void test_same_bits(const Kernels& k, Pool& pool, Products products) {
  const int64_t T = 130, D = 24;
  View q(1, T, 1, D, 0), key(1, T, 1, D, 0), v(1, T, 1, D, 0), y1(1, T, 1, D, 0), y2(1, T, 1, D, 0);
  Array lse(T);
  AttentionShape shape{1, T, T, 1, 1, D, 0.2f, true};
  shape.products = products;
  for (View* y : {&y1, &y2})
    k.attention_forward(pool,
                        {y->array.data(), lse.data(), q.array.data(), key.array.data(),
                         v.array.data(), y->strides(), q.strides(), key.strides(), v.strides()},
                        shape);
  expect(std::memcmp(y1.array.data(), y2.array.data(), static_cast<size_t>(T * D) * 4) == 0, k.isa,
         "attention: bits of two runs", y1.array[0], y2.array[0]);
}

// A NaN in a key is seen by the queries that see the key, and by no other; in words and digits,
// which share scales, by others of their panel too.
void test_nan(const Kernels& k, Pool& pool, int64_t T, Products products) {
  const int64_t S = 70, D = 8, bad = S - 2;
  View q(1, T, 1, D, 0), key(1, S, 1, D, 0), v(1, S, 1, D, 0), y(1, T, 1, D, 0);
  Array lse(T);
  key.array[key.place(0, bad, 0)] = NAN;
  AttentionShape shape{1, T, S, 1, 1, D, 0.2f, true};
  shape.products = products;
  k.attention_forward(pool,
                      {y.array.data(), lse.data(), q.array.data(), key.array.data(), v.array.data(),
                       y.strides(), q.strides(), key.strides(), v.strides()},
                      shape);
  for (int64_t t = 0; t < T; ++t) {
    const bool sees = t + S - T >= bad;
    const bool shares =
        is(k, "amx") ? products != Products::plain : products == Products::words && has_vnni(k);
    if (shares && !sees && t / 64 == (T - 1) / 64) continue;
    expect(std::isnan(y.at(0, t, 0, 0)) == sees, k.isa, "attention: NaN in a key", y.at(0, t, 0, 0),
           static_cast<double>(t));
  }
}

}  // namespace

void test_attention(const Kernels& k, Pool& pool) {
  for (const bool causal : {true, false}) {
    for (int64_t D = 1; D <= 2 * k.vector_bytes / 4 + 1; ++D) {
      test_attention(k, pool, {1, 20, 20, 2, 1, D, causal});  // panels of queries
      test_attention(k, pool, {1, 2, 21, 2, 1, D, causal});   // few queries
    }
    for (int64_t T = 1; T <= 2 * k.vector_bytes / 4 + 1; ++T)
      test_attention(k, pool, {1, T, T + T % 3, 1, 1, 5, causal});
    test_attention(k, pool, {2, 127, 127, 2, 2, 17, causal});  // panels, tiles and their ends
    test_attention(k, pool, {1, 65, 200, 6, 2, 32, causal});
    test_attention(k, pool, {1, 150, 150, 1, 1, 80, causal});  // one head among the threads
    test_attention(k, pool, {1, 1, 1100, 2, 1, 64, causal});   // its keys among them
    test_attention(k, pool, {1, 9, 70, 1, 1, 256, causal});
  }
  test_attention(k, pool, {1, 70, 9, 1, 1, 16, false});
  for (const int64_t window : {1, 3, 40, 64, 65, 130, 1000}) {
    test_attention(k, pool, {1, 150, 150, 2, 1, 17, true, window});
    test_attention(k, pool, {1, 100, 230, 1, 1, 33, true, window});  // begins amid a tile
    test_attention(k, pool, {1, 2, 300, 2, 1, 20, true, window});    // few queries
    test_attention(k, pool, {1, 1, 1100, 1, 1, 16, true, window});
  }
  for (unsigned options = 0; options <= kAllOptions; ++options)
    for (const bool causal : {true, false})
      test_attention(k, pool, {2, 66, 75, 2, 1, 7, causal, options % 2 ? 20 : kNoWindow, options});
  test_attention(k, pool, {3, 2, 150, 4, 2, 20, true, kNoWindow, kAllOptions});  // few queries
  test_attention(k, pool, {1, 200, 200, 1, 1, 33, true, 70, kAllOptions});  // one head, threads
  const auto words = [&](Case c) {
    if (!has_vnni(k)) return;  // float32, as above
    c.products = Products::words;
    test_attention(k, pool, c);
    if (!is(k, "amx")) return;
    c.products = Products::fast;
    test_attention(k, pool, c);
  };
  for (const bool causal : {true, false}) {
    for (int64_t D : {1, 2, 7, 16, 17, 31, 33, 48, 64, 80, 96, 127, 128, 129, 200, 256, 261})
      words({1, 66, 71, 2, 1, D, causal});
    for (int64_t T = 31; T <= 67; ++T) words({1, T, T + T % 5, 2, 2, 20, causal});
    words({2, 190, 200, 6, 2, 32, causal});
    words({1, 150, 150, 1, 1, 80, causal});
    for (unsigned options = 0; options <= kAllOptions; ++options)
      words({2, 70, 131, 2, 1, 14, causal, options % 2 ? 20 : kNoWindow, options});
  }
  words({1, 70, 9, 1, 1, 16, false});
  for (const int64_t window : {1, 3, 40, 64, 65, 130, 1000}) {
    words({1, 150, 150, 2, 1, 17, true, window});
    words({1, 100, 230, 1, 1, 33, true, window});
  }
  for (const Products products : {Products::plain, Products::fast, Products::words}) {
    test_same_bits(k, pool, products);
    test_nan(k, pool, 1, products);
    test_nan(k, pool, 70, products);
  }
}

}  // namespace tenarai::test
