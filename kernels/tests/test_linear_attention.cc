// Linear attention against the recurrence in double, forward and backward a token at a time: blocks
// and chunks begun and whole, widths around a vector, every gate, one thread and several; decoding.
#include <algorithm>
#include <string>

#include "test.h"

namespace tenarai::test {
namespace {

using Doubles = std::vector<double>;
enum class Gate { none, head, channel };

struct Case {
  int64_t B, T, H, D, V;
  Gate gate;
  bool delta, initial;
};

// One case's arrays, and what they should come to.
struct Run {
  const Case c;
  const int64_t keys, values, tokens, state, gates;
  const float scale = 0.4f;
  Array q, key, v, dy, beta, g, first, dlast;
  Array y, last, states, u, dq, dk, dv, dbeta, dg, dfirst;
  Doubles want_y, want_last, want_dq, want_dk, want_dv, want_dbeta, want_dg, want_dfirst;

  explicit Run(const Case& a)
      : c(a),
        keys(a.B * a.T * a.H * a.D),
        values(a.B * a.T * a.H * a.V),
        tokens(a.B * a.T * a.H),
        state(a.B * a.H * a.D * a.V),
        gates(a.gate == Gate::channel ? a.D : 1),
        q(keys),
        key(keys),
        v(values),
        dy(values),
        beta(tokens),
        g(tokens * gates),
        first(state),
        dlast(state),
        y(values),
        last(state),
        states(state * ((a.T + 63) / 64)),
        u(values),
        dq(keys),
        dk(keys),
        dv(values),
        dbeta(tokens),
        dg(tokens * gates),
        dfirst(state) {
    for (int64_t i = 0; i < keys; ++i) key[i] /= std::sqrt(static_cast<float>(c.D) / 3);
    for (int64_t i = 0; i < tokens; ++i) beta[i] = 0.5f + 0.4f * beta[i];
    for (int64_t i = 0; i < g.size(); ++i) g[i] = -std::exp(3 * g[i] - 2);  // weak and strong
    const auto zeros = [](int64_t n) { return Doubles(static_cast<size_t>(n)); };
    want_y = zeros(values), want_last = zeros(state), want_dq = zeros(keys);
    want_dk = zeros(keys), want_dv = zeros(values), want_dbeta = zeros(tokens);
    want_dg = zeros(g.size()), want_dfirst = zeros(state);
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t h = 0; h < c.H; ++h) head(b, h);
  }

  LinearAttentionShape shape() const {
    return {c.B, c.T, c.H, c.D, c.V, scale, c.gate == Gate::channel};
  }
  double alpha(int64_t token, int64_t d) {
    if (c.gate == Gate::none) return 1;
    return std::exp(static_cast<double>(g[token * gates + (c.gate == Gate::channel ? d : 0)]));
  }

  void head(int64_t b, int64_t h) {
    const int64_t D = c.D, V = c.V, at = (b * c.H + h) * D * V;
    const auto token = [&](int64_t t) { return (b * c.T + t) * c.H + h; };
    const auto z = [](int64_t i) { return static_cast<size_t>(i); };
    std::vector<Doubles> S(z(c.T + 1), Doubles(z(D * V))), faded(z(c.T), Doubles(z(D * V)));
    std::vector<Doubles> wrote(z(c.T), Doubles(z(V)));
    for (int64_t i = 0; i < D * V && c.initial; ++i) S[0][z(i)] = first[at + i];
    for (int64_t t = 0; t < c.T; ++t) {
      const int64_t k0 = token(t) * D, v0 = token(t) * V;
      for (int64_t i = 0; i < D * V; ++i)
        faded[z(t)][z(i)] = alpha(token(t), i / V) * S[z(t)][z(i)];
      for (int64_t j = 0; j < V; ++j) {
        double of_k = 0, of_q = 0;
        for (int64_t d = 0; d < D; ++d) of_k += faded[z(t)][z(d * V + j)] * key[k0 + d];
        const double w = c.delta ? beta[token(t)] * (v[v0 + j] - of_k) : v[v0 + j];
        wrote[z(t)][z(j)] = w;
        for (int64_t d = 0; d < D; ++d) {
          S[z(t + 1)][z(d * V + j)] = faded[z(t)][z(d * V + j)] + key[k0 + d] * w;
          of_q += S[z(t + 1)][z(d * V + j)] * q[k0 + d];
        }
        want_y[z(v0 + j)] = scale * of_q;
      }
    }
    Doubles dS(z(D * V));
    for (int64_t i = 0; i < D * V; ++i) want_last[z(at + i)] = S.back()[z(i)];
    for (int64_t i = 0; i < D * V; ++i) dS[z(i)] = dlast[at + i];
    for (int64_t t = c.T - 1; t >= 0; --t) {
      const int64_t k0 = token(t) * D, v0 = token(t) * V;
      for (int64_t j = 0; j < V; ++j) {
        double dw = 0, of_k = 0;
        for (int64_t d = 0; d < D; ++d) {
          double& ds = dS[z(d * V + j)];
          ds += scale * q[k0 + d] * static_cast<double>(dy[v0 + j]);
          want_dq[z(k0 + d)] += scale * S[z(t + 1)][z(d * V + j)] * dy[v0 + j];
          want_dk[z(k0 + d)] += ds * wrote[z(t)][z(j)];
          dw += ds * key[k0 + d];
          of_k += faded[z(t)][z(d * V + j)] * key[k0 + d];
        }
        const double b_t = c.delta ? beta[token(t)] : 0;
        want_dv[z(v0 + j)] = c.delta ? b_t * dw : dw;
        want_dbeta[z(token(t))] += dw * (v[v0 + j] - of_k);
        for (int64_t d = 0; d < D; ++d) {
          double& ds = dS[z(d * V + j)];
          want_dk[z(k0 + d)] -= b_t * dw * faded[z(t)][z(d * V + j)];
          ds -= b_t * dw * key[k0 + d];
          if (c.gate != Gate::none)
            want_dg[z(token(t) * gates + (gates > 1 ? d : 0))] += ds * faded[z(t)][z(d * V + j)];
          ds *= alpha(token(t), d);
        }
      }
    }
    for (int64_t i = 0; i < D * V; ++i) want_dfirst[z(at + i)] = dS[z(i)];
  }
};

void test_case(const Kernels& k, Pool& pool, const Case& c) {
  Run r(c);
  const auto if_ = [](bool there, Array& a) { return there ? a.data() : nullptr; };
  const bool gated = c.gate != Gate::none;
  k.linear_attention_forward(
      pool,
      {r.y.data(), r.last.data(), r.states.data(), if_(c.delta, r.u), r.q.data(), r.key.data(),
       r.v.data(), if_(c.delta, r.beta), if_(gated, r.g), if_(c.initial, r.first)},
      r.shape());
  k.linear_attention_backward(
      pool,
      {r.dq.data(), r.dk.data(), r.dv.data(), if_(c.delta, r.dbeta), if_(gated, r.dg),
       if_(c.initial, r.dfirst), r.dy.data(), r.dlast.data(), r.q.data(), r.key.data(), r.v.data(),
       if_(c.delta, r.beta), if_(gated, r.g), r.states.data(), r.last.data(),
       (c.delta ? r.u : r.v).data()},
      r.shape());
  const std::string sizes = " T=" + std::to_string(c.T) + " H=" + std::to_string(c.H) +
                            " D=" + std::to_string(c.D) + " V=" + std::to_string(c.V) + " gate " +
                            std::to_string(static_cast<int>(c.gate)) + (c.delta ? " delta" : "") +
                            " threads=" + std::to_string(pool.threads());
  const auto check = [&](const char* name, Array& got, const Doubles& want) {
    double size = 0;  // sums of D·V products, each good to 2^-23 of itself, cancel in dg
    for (const double x : want) size = std::max(size, std::fabs(x));
    expect_near(k.isa, ("linear attention " + std::string(name) + sizes).c_str(), got, want,
                1e-5 * (1 + size));
  };
  check("y", r.y, r.want_y);
  check("last", r.last, r.want_last);
  check("dq", r.dq, r.want_dq);
  check("dk", r.dk, r.want_dk);
  check("dv", r.dv, r.want_dv);
  if (c.delta) check("dbeta", r.dbeta, r.want_dbeta);
  if (gated) check("dg", r.dg, r.want_dg);
  if (c.initial) check("dfirst", r.dfirst, r.want_dfirst);
  if (c.T != 1) return;
  // One token from the first states, which move on to the last; slots the other way round.
  const int64_t each = c.H * c.D * c.V;
  std::vector<int32_t> slots;
  Array moved(r.state);
  Doubles want(r.want_last);
  for (int64_t b = 0; b < c.B; ++b) {
    slots.push_back(static_cast<int32_t>(c.B - 1 - b));
    std::copy_n(r.first.data() + b * each, each, moved.data() + slots.back() * each);
    std::copy_n(r.want_last.begin() + b * each, each, want.begin() + slots.back() * each);
  }
  k.linear_attention_decode(pool,
                            {r.y.data(), moved.data(), slots.data(), r.q.data(), r.key.data(),
                             r.v.data(), if_(c.delta, r.beta), if_(gated, r.g)},
                            r.shape());
  check("y of a step", r.y, r.want_y);
  check("state after a step", moved, want);
}

}  // namespace

void test_linear_attention(const Kernels& k, Pool& pool) {
  for (const bool delta : {false, true})
    for (const Gate gate : {Gate::none, Gate::head, Gate::channel}) {
      for (int64_t D = 1; D < 36; D += 3)
        test_case(k, pool, {1, 20, 1, D, 36 - D, gate, delta, true});
      for (const int64_t V : {1, 16, 33, 70, 150})
        test_case(k, pool, {2, 1, 3, 19, V, gate, delta, true});
      for (const int64_t T : {15, 16, 64, 65, 150})
        test_case(k, pool, {2, T, 2, 12, 20, gate, delta, T != 64});
    }
}

}  // namespace tenarai::test
