// Norms, activations, embedding, RoPE and dropout against plain loops in double; bfloat16.
#include <cstring>
#include <string>

#include "test.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;
size_t at(int64_t i) { return static_cast<size_t>(i); }
Doubles doubles(Array& a) { return Doubles(a.data(), a.data() + a.size()); }

// w·x̂ + b and its gradients; RMS norm without mean and b.
void test_norm(const Kernels& k, Pool& pool, int64_t M, int64_t C, bool centered) {
  const float eps = 1e-2f;  // rows of one or two channels would else divide by next to nothing
  Array x(M * C), w(C), b(C), dy(M * C), residual(M * C), y(M * C), mean(M), rstd(M), dx(M * C);
  Array dw(C), db(C);
  Doubles want_y(at(M * C)), want_dx(at(M * C)), want_dw = doubles(dw), want_db = doubles(db);
  Doubles want_mean(at(M)), want_rstd(at(M));
  for (int64_t m = 0; m < M; ++m) {
    double mu = 0, var = 0, g_mean = 0, gx_mean = 0;
    for (int64_t c = 0; centered && c < C; ++c) mu += static_cast<double>(x[m * C + c]) / C;
    for (int64_t c = 0; c < C; ++c) var += (x[m * C + c] - mu) * (x[m * C + c] - mu) / C;
    const double r = 1 / std::sqrt(var + eps);
    want_mean[at(m)] = mu, want_rstd[at(m)] = r;
    for (int64_t c = 0; c < C; ++c) {
      const double xhat = (x[m * C + c] - mu) * r, d = dy[m * C + c];
      want_y[at(m * C + c)] = xhat * w[c] + (centered ? b[c] : 0);
      want_dw[at(c)] += d * xhat;
      want_db[at(c)] += centered ? d : 0;
      g_mean += centered ? d * w[c] / C : 0;
      gx_mean += d * w[c] * xhat / C;
    }
    for (int64_t c = 0; c < C; ++c) {
      const double xhat = (x[m * C + c] - mu) * r, g = static_cast<double>(dy[m * C + c]) * w[c];
      want_dx[at(m * C + c)] = r * (g - g_mean - xhat * gx_mean) + residual[m * C + c];
    }
  }
  std::memcpy(dx.data(), residual.data(), at(M * C) * 4);  // dresidual may be dx
  if (centered) {
    k.layer_norm_forward(pool, y.data(), mean.data(), rstd.data(), x.data(), w.data(), b.data(), M,
                         C, eps);
    k.layer_norm_backward(pool, dx.data(), dw.data(), db.data(), dy.data(), dx.data(), x.data(),
                          w.data(), mean.data(), rstd.data(), M, C);
    expect_near(k.isa, "layer_norm: mean", mean, want_mean, 1e-6);
    expect_near(k.isa, "layer_norm: db", db, want_db, 5e-6);
  } else {
    k.rms_norm_forward(pool, y.data(), rstd.data(), x.data(), w.data(), M, C, eps);
    k.rms_norm_backward(pool, dx.data(), dw.data(), dy.data(), dx.data(), x.data(), w.data(),
                        rstd.data(), M, C);
  }
  const std::string name = centered ? "layer_norm: " : "rms_norm: ";
  expect_near(k.isa, (name + "y").c_str(), y, want_y, 2e-6);
  expect_near(k.isa, (name + "rstd").c_str(), rstd, want_rstd, 2e-6);
  expect_near(k.isa, (name + "dx").c_str(), dx, want_dx, 1e-5);  // up to rstd = 10 times 1e-6
  expect_near(k.isa, (name + "dw").c_str(), dw, want_dw, 5e-6);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }
double gelu(double x, Gelu f) {
  if (f == Gelu::none) return x;
  if (f == Gelu::erf) return x / 2 * std::erfc(-x / std::sqrt(2.0));
  return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
template <class F>
double slope(F f, double x) {
  return (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;  // good to 1e-10
}

void test_activations(const Kernels& k, Pool& pool, int64_t n) {
  Array x(n), up(n), dy(n), y(n), dx(n), dup(n);
  for (int64_t i = 0; i < n; ++i) x[i] *= 6;
  const auto each = [&](auto f) {
    Doubles want(at(n));
    for (int64_t i = 0; i < n; ++i) want[at(i)] = f(i);
    return want;
  };
  for (const Gelu form : {Gelu::none, Gelu::tanh, Gelu::erf}) {
    const auto f = [&](double v) { return gelu(v, form); };
    k.gelu_forward(pool, y.data(), x.data(), n, form);
    expect_near(k.isa, "gelu: y", y, each([&](int64_t i) { return f(x[i]); }), 1e-6);
    std::memcpy(dx.data(), dy.data(), at(n) * 4);  // dx may be dy
    k.gelu_backward(pool, dx.data(), dx.data(), x.data(), n, form);
    expect_near(k.isa, "gelu: dx", dx, each([&](int64_t i) { return dy[i] * slope(f, x[i]); }),
                1e-6);
  }
  k.silu_forward(pool, y.data(), x.data(), n);
  expect_near(k.isa, "silu: y", y, each([&](int64_t i) { return silu(x[i]); }), 1e-6);
  k.silu_backward(pool, dx.data(), dy.data(), x.data(), n);
  expect_near(k.isa, "silu: dx", dx, each([&](int64_t i) { return dy[i] * slope(silu, x[i]); }),
              1e-6);
  k.swiglu_forward(pool, y.data(), x.data(), up.data(), n);
  expect_near(k.isa, "swiglu: y", y, each([&](int64_t i) { return silu(x[i]) * up[i]; }), 1e-6);
  k.swiglu_backward(pool, dx.data(), dup.data(), dy.data(), x.data(), up.data(), n);
  expect_near(k.isa, "swiglu: dgate", dx,
              each([&](int64_t i) { return dy[i] * up[i] * slope(silu, x[i]); }), 1e-6);
  expect_near(k.isa, "swiglu: dup", dup, each([&](int64_t i) { return dy[i] * silu(x[i]); }), 1e-6);
  const auto gelu_tanh = [](double v) { return gelu(v, Gelu::tanh); };
  k.geglu_forward(pool, y.data(), x.data(), up.data(), n);
  expect_near(k.isa, "geglu: y", y, each([&](int64_t i) { return gelu_tanh(x[i]) * up[i]; }), 1e-6);
  k.geglu_backward(pool, dx.data(), dup.data(), dy.data(), x.data(), up.data(), n);
  expect_near(k.isa, "geglu: dgate", dx,
              each([&](int64_t i) { return dy[i] * up[i] * slope(gelu_tanh, x[i]); }), 1e-6);
  expect_near(k.isa, "geglu: dup", dup, each([&](int64_t i) { return dy[i] * gelu_tanh(x[i]); }),
              1e-6);
  k.scale(pool, y.data(), x.data(), 2.5f, n);
  expect_near(k.isa, "scale", y, each([&](int64_t i) { return 2.5 * x[i]; }), 1e-6);
  k.add(pool, y.data(), x.data(), up.data(), n);
  expect_near(k.isa, "add", y, each([&](int64_t i) { return double(x[i]) + up[i]; }), 1e-6);
}

// Far from zero the functions and slopes end in 0, x and 1, not in infinity times 0.
void test_far(const Kernels& k, Pool& pool) {
  Array x(4), one(4, 1), y(4), dx(4);
  x[0] = -200, x[1] = 200, x[2] = -3e38f, x[3] = 3e38f;
  const Doubles want_y = {0, 200, 0, 3e38}, want_dx = {0, 1, 0, 1};
  k.silu_forward(pool, y.data(), x.data(), 4);
  expect_near(k.isa, "silu far from 0", y, want_y, 1e-6);
  x[2] = -INFINITY, x[3] = INFINITY;
  k.silu_backward(pool, dx.data(), one.data(), x.data(), 4);
  expect_near(k.isa, "silu's slope far from 0", dx, want_dx, 1e-6);
  for (const Gelu form : {Gelu::tanh, Gelu::erf}) {
    k.gelu_backward(pool, dx.data(), one.data(), x.data(), 4, form);
    expect_near(k.isa, "gelu's slope far from 0", dx, want_dx, 1e-6);
  }
}

void test_embedding(const Kernels& k, Pool& pool, int64_t B, int64_t T, int64_t C, bool wpe_too) {
  const int64_t V = 5, start = 2;  // so few tokens that many places share one
  Array wte(V * C), wpe((start + T) * C), x(B * T * C), dwte(V * C), dwpe((start + T) * C);
  Doubles want_x(at(B * T * C)), want_dwte = doubles(dwte), want_dwpe = doubles(dwpe);
  std::vector<int32_t> tokens(at(B * T));
  for (int64_t i = 0; i < B * T; ++i) tokens[at(i)] = static_cast<int32_t>(i * i % V);
  Array dx(B * T * C);
  for (int64_t i = 0; i < B * T; ++i)
    for (int64_t c = 0; c < C; ++c) {
      const int64_t from = tokens[at(i)] * C + c, where = (start + i % T) * C + c;
      want_x[at(i * C + c)] = wte[from] + (wpe_too ? double(wpe[where]) : 0);
      want_dwte[at(from)] += dx[i * C + c];
      want_dwpe[at(where)] += wpe_too ? dx[i * C + c] : 0;
    }
  k.embedding_forward(pool, x.data(), tokens.data(), wte.data(), wpe_too ? wpe.data() : nullptr,
                      nullptr, B, T, C, start);
  k.embedding_backward(pool, dwte.data(), wpe_too ? dwpe.data() : nullptr, dx.data(), tokens.data(),
                       B, T, C, start);
  expect_near(k.isa, "embedding: x", x, want_x, 1e-6);
  if (wpe_too) {  // places named: the last first
    std::vector<int32_t> positions(at(B * T));
    for (int64_t i = 0; i < B * T; ++i) {
      positions[at(i)] = static_cast<int32_t>(start + T - 1 - i % T);
      for (int64_t c = 0; c < C; ++c)
        want_x[at(i * C + c)] = double{wte[tokens[at(i)] * C + c]} + wpe[positions[at(i)] * C + c];
    }
    k.embedding_forward(pool, x.data(), tokens.data(), wte.data(), wpe.data(), positions.data(), B,
                        T, C, 0);
    expect_near(k.isa, "embedding: x at positions", x, want_x, 1e-6);
  }
  expect_near(k.isa, "embedding: dwte", dwte, want_dwte, 5e-6);
  expect_near(k.isa, "embedding: dwpe", dwpe, want_dwpe, 5e-6);
}

void test_rope(const Kernels& k, Pool& pool, int64_t n, bool adjacent, bool backward, bool placed) {
  const int64_t B = 2, T = 5, H = 3, D = 2 * n, row = D + 1;  // heads a float apart
  Array x(B * T * H * row), y(B * T * H * row), cos(T * n), sin(T * n);
  Doubles want = doubles(y);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < B * T; ++i) positions.push_back(static_cast<int32_t>((7 * i + 3) % T));
  for (int64_t i = 0; i < B * T * H; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t p = i * row + (adjacent ? 2 * j : j), q = adjacent ? p + 1 : p + n;
      const int64_t t = placed ? positions[at(i / H)] : i / H % T;
      const double c = cos[t * n + j], s = backward ? -sin[t * n + j] : sin[t * n + j];
      want[at(p)] = x[p] * c - x[q] * s;
      want[at(q)] = x[q] * c + x[p] * s;
    }
  const Strides strides{T * H * row, H * row, row};
  const int32_t* const named = placed ? positions.data() : nullptr;
  k.rope(pool, y.data(), x.data(), cos.data(), sin.data(), named, B, T, H, D, strides, strides,
         adjacent, backward);
  expect_near(k.isa, "rope", y, want, 1e-6);
  for (int64_t i = 0; i < B * T * H; ++i) want[at(i * row + D)] = x[i * row + D];
  k.rope(pool, x.data(), x.data(), cos.data(), sin.data(), named, B, T, H, D, strides, strides,
         adjacent, backward);
  expect_near(k.isa, "rope in place", x, want, 1e-6);
}

// The values that src/tenarai/ops/reference/dropout.py gives as its example.
void test_dropout(const Kernels& k, Pool& pool, int64_t n) {
  const uint32_t random[4] = {0x1e8e9635u, 0xbc90d38fu, 0x0edefcadu, 0xe2918a8fu};
  for (int64_t i = 0; i < 4; ++i)
    for (const uint32_t above : {0u, 1u}) {
      Array x(n, 1), y(n);  // element i of n draws the known number; kept up to its own value
      const uint64_t first = (uint64_t{1} << 32) - 2 + static_cast<uint64_t>(i);
      k.dropout(pool, y.data(), x.data(), n, random[i] + above, 2, 1234,
                first - static_cast<uint64_t>(n - 1));
      expect(y[n - 1] == (above ? 0 : 2), k.isa, "dropout: last element", y[n - 1], above ? 0 : 2);
      expect(y.guards_hold(), k.isa, "dropout: guards", 0, 0);
    }
}

// The values at which rounding to bfloat16 turns, in every place of a vector.
void test_bfloat16(const Kernels& k, Pool& pool, int64_t n) {
  const uint32_t bits[][2] = {{0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80},
                              {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82}, {0x7f7fffff, 0x7f80},
                              {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0xffffffff, 0xffff},
                              {0x00008000, 0x0000}, {0x00018000, 0x0002}, {0x80000000, 0x8000}};
  Array x(n), back(n);
  std::vector<uint16_t> h(at(n + 1), 0xabcd);
  for (size_t shift = 0; shift < 12; ++shift) {
    const auto pair = [&](int64_t i) { return bits[(at(i) + shift) % 12]; };
    for (int64_t i = 0; i < n; ++i) std::memcpy(&x[i], pair(i), 4);
    k.to_bfloat16(pool, h.data(), x.data(), n);
    k.from_bfloat16(pool, back.data(), h.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      expect(h[at(i)] == pair(i)[1], k.isa, "to_bfloat16", h[at(i)], pair(i)[1]);
      uint32_t u;
      std::memcpy(&u, &back[i], 4);
      expect(u == pair(i)[1] << 16, k.isa, "from_bfloat16", u, pair(i)[1] << 16);
    }
    expect(h[at(n)] == 0xabcd && back.guards_hold(), k.isa, "bfloat16: guards", h[at(n)], 0xabcd);
  }
}

}  // namespace

void test_rows(const Kernels& k, Pool& pool) {
  const int64_t two = 2 * k.vector_bytes / 4 + 1;
  for (int64_t n = 1; n <= two; ++n) {
    for (const bool flag : {false, true}) {
      test_norm(k, pool, 3, n, flag);
      test_embedding(k, pool, 2, 3, n, flag);
      for (const bool other : {false, true}) {
        test_rope(k, pool, n, flag, other, false);
        test_rope(k, pool, n, flag, other, true);
      }
    }
    test_activations(k, pool, n);
    test_bfloat16(k, pool, n);
    test_dropout(k, pool, n);
  }
  for (const bool flag : {false, true}) test_norm(k, pool, 40, 768, flag);  // on several threads
  test_embedding(k, pool, 4, 50, 200, true);
  test_activations(k, pool, 20003);
  test_bfloat16(k, pool, 20003);
  test_dropout(k, pool, 20003);
  test_far(k, pool);
}

}  // namespace tenarai::test
