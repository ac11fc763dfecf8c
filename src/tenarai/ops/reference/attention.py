"""Attention: y = softmax(scale · q kᵀ + mask) v, for each head, with the options in use.

    r_ts = scale Σ_d q_td k_sd                    products
    a_ts = r_ts                                   scores; c tanh(r_ts / c) with a soft-cap c,
                                                  less m |x_t - s| with ALiBi's slope m
    p_ts = exp(a_ts - ℓ_t)                        probabilities, 0 where the mask hides s from t
    ℓ_t  = log Σ_s exp(a_ts)                      log-sum-exp, over the s that t sees
    y_td = Σ_s p_ts v_sd                          weighted sum

The gradient, from the end to the start:

    dv_sd = Σ_t p_ts dy_td                        dp_ts = Σ_d dy_td v_sd

The softmax's Jacobian is ∂p_ts/∂a_tu = p_ts (δ_su - p_tu), so

    da_tu = Σ_s dp_ts p_ts (δ_su - p_tu) = p_tu (dp_tu - D_t),      D_t = Σ_s p_ts dp_ts

and D_t needs no probabilities:  Σ_s p_ts Σ_d dy_td v_sd = Σ_d dy_td Σ_s p_ts v_sd = Σ_d dy_td y_td.
Last, the scores are a product like any other:

    dq_td = scale Σ_s dr_ts k_sd                  dk_sd = scale Σ_t dr_ts q_td

Masks. Hidden places have p = 0, hence da = 0: a mask needs no gradient of its own, and causal,
window, prefix, documents and lengths differ in nothing but which places they hide.

Soft-cap. With u = tanh(r / c) a score is a = c u, and da/dr = 1 - u²: dr_ts = da_ts (1 - u_ts²).
Without one, dr = da. A score can no longer leave (-c, c); far out its gradient vanishes.

ALiBi. What is added depends on no input, so it has no gradient and lets da through.

Sinks. A head's sink b is one more score, of a key whose value is 0 and that every query sees:

    ℓ_t = log (exp(b) + Σ_s exp(a_ts))            the p_ts sum to 1 - exp(b - ℓ_t)

Its dp is 0, for its value is. D_t = Σ_d dy_td y_td holds as before (the sink adds 0 to y), so the
formula for da holds for every key, and for the sink itself it says

    db = Σ_t exp(b - ℓ_t) (0 - D_t)

The off-by-one softmax, exp(a_s) / (1 + Σ exp(a_u)), is a sink that stays at 0.

Saved: q, k, v, y and ℓ, which is T numbers a head. The T × S probabilities are not saved but
made again from the scores and ℓ: one product more, and memory that grows with T and not with
T². The tiled kernel does the same; it needs ℓ and D because a tile sees only part of a row.

Grouped-query heads: G = H/K query heads share a key/value head (h uses h // G), and the
gradients of k and v are the sums over the G heads that used them. H = K is ordinary attention,
K = 1 multi-query. With S ≠ T and `causal=False` it is cross-attention. Sources: Vaswani et al.,
"Attention is all you need" (2017); Dao et al., "FlashAttention" (2022); Ainslie et al., "GQA"
(2023); Beltagy et al., "Longformer" (2020), windows; Raffel et al., "T5" (2020), prefixes;
Press et al., "Train short, test long" (2022), ALiBi; Gemma team, "Gemma 2" (2024), soft-cap;
Xiao et al., "Efficient streaming language models with attention sinks" (2023), OpenAI, "gpt-oss
model card" (2025), learned sinks; Miller, "Attention is off by one" (2023).
"""

from typing import Any

import numpy as np

from ..attention_options import AttentionOptions
from .common import Array, Saved, place


def _by_head(x: Array, K: int) -> Array:
    """(B, T, heads, D) → (B, K, G, T, D): the heads that share a key/value head, together."""
    B, T, heads, D = x.shape
    return x.reshape(B, T, K, heads // K, D).transpose(0, 2, 3, 1, 4)


def _by_time(x: Array) -> Array:
    """(B, K, G, T, D) → (B, T, K·G, D): back again."""
    B, K, G, T, D = x.shape
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2, 4)).reshape(B, T, K * G, D)


def visible(o: AttentionOptions, B: int, T: int, S: int) -> Array:
    """(B, T, S) bool: which keys each query sees; AttentionOptions has the words for it."""
    s, x = np.arange(S), np.arange(T)[:, None] + S - T  # (S,), (T, 1)
    seen = (s <= x) if o.causal else np.ones((T, S), bool)  # (T, S)
    if o.window is not None:
        seen = seen & (np.abs(x - s) < o.window)
    start = np.zeros((B, S), int) if o.documents is None else o.documents  # (B, S)
    prefix = np.broadcast_to(o.prefix, B)[:, None]  # (B, 1)
    seen = seen | (s < start + prefix)[:, None]  # (B, T, S)
    if o.documents is not None:
        seen = seen & (start[:, S - T :, None] == start[:, None])
    if o.lengths is not None:
        seen = seen & (s < o.lengths[:, None])[:, None]
    return seen


def _scores(q: Array, k: Array, o: AttentionOptions) -> tuple[Array, Array | None]:
    """a, -inf where a query may not look, and ∂a/∂r where it is not 1, both (B, K, G, T, S).

    q (B, K, G, T, D), k (B, K, 1, S, D)."""
    B, K, G, T, D = q.shape
    S = k.shape[-2]
    a, slope = o.scale_for(D) * (q @ k.swapaxes(-1, -2)), None  # (B, K, G, T, S)
    if o.soft_cap is not None:
        u = np.tanh(a / float(o.soft_cap))
        a, slope = float(o.soft_cap) * u, 1 - u * u
    if o.alibi is not None:
        distance = np.abs(np.arange(T)[:, None] + S - T - np.arange(S))  # (T, S)
        a = a - o.alibi.reshape(K, G, 1, 1).astype(a.real.dtype) * distance.astype(a.real.dtype)
    return np.where(visible(o, B, T, S)[:, None, None], a, -np.inf), slope


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None = None,
    *,
    options: AttentionOptions | None = None,
    out: Array | None = None,
    **named: Any,
) -> tuple[Array, Saved]:
    """y = softmax(scale q kᵀ + mask) v. q, y (B, T, H, D), k, v (B, S, K, D), sinks (H,) or None.

    Which keys are seen and what their scores are is said by `options`, or by its fields by name:
    `attention_forward(q, k, v, window=5, soft_cap=50.0)`; by default causal, scale 1/√D.
    Raises ValueError when H is not a multiple of K, when a query would stand before all keys
    (T > S), and for options that do not fit.
    """
    o = AttentionOptions.of(options, named)
    o.check(q, k, sinks)
    B, T, H, _ = q.shape
    K = k.shape[2]
    q_h, k_h, v_h = (_by_head(x, K) for x in (q, k, v))  # (B, K, G, T, D), (B, K, 1, S, D) twice

    scores, _ = _scores(q_h, k_h, o)  # (B, K, G, T, S)
    b = _sinks(sinks, o, q, K)  # (K, G, 1, 1), -inf where there are none
    top = np.maximum(scores.real.max(axis=-1, keepdims=True), b.real)  # (B, K, G, T, 1)
    top = np.where(np.isinf(top), 0, top)  # real: a shift, no branch. 0 where no key is seen
    weights = np.exp(scores - top)  # (B, K, G, T, S)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(b - top)  # (B, K, G, T, 1)
    total = np.where(total == 0, 1, total)
    y = place(_by_time((weights / total) @ v_h), out)  # (B, T, H, D)

    lse = (top + np.log(total)).reshape(B, H, T)  # (B, H, T)
    return y, (q, k, v, y, lse, sinks, o)


def _sinks(sinks: Array | None, o: AttentionOptions, q: Array, K: int) -> Array:
    """(K, G, 1, 1) of q's dtype; -inf, which weighs nothing, where a head has no sink."""
    H = q.shape[2]
    if sinks is None:
        sinks = np.full(H, 0.0 if o.off_by_one else -np.inf)
    return sinks.astype(q.dtype).reshape(K, H // K, 1, 1)


def attention_backward(
    dy: Array,
    saved: Saved,
    dsinks: Array | None = None,
    *,
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """(dq, dk, dv) as derived above. dy, dq (B, T, H, D), dk, dv (B, S, K, D); dsinks (H,), where
    it is given, is added to."""
    q, k, v, y, lse, sinks, o = saved
    (B, T, H, D), K = q.shape, k.shape[2]
    scale = o.scale_for(D)
    q_h, k_h, v_h = (_by_head(x, K) for x in (q, k, v))  # (B, K, G, T, D), (B, K, 1, S, D) twice
    dy_h, y_h = _by_head(dy, K), _by_head(y, K)  # (B, K, G, T, D)
    lse = lse.reshape(B, K, H // K, T, 1)

    scores, slope = _scores(q_h, k_h, o)  # (B, K, G, T, S), recomputed
    p = np.exp(scores - lse)  # (B, K, G, T, S), recomputed
    dv = p.swapaxes(-1, -2) @ dy_h  # (B, K, G, S, D)
    dp = dy_h @ v_h.swapaxes(-1, -2)  # (B, K, G, T, S)
    delta = (dy_h * y_h).sum(axis=-1, keepdims=True)  # (B, K, G, T, 1)
    dscores = p * (dp - delta)  # (B, K, G, T, S)
    if slope is not None:
        dscores = dscores * slope
    dq = scale * (dscores @ k_h)  # (B, K, G, T, D)
    dk = scale * (dscores.swapaxes(-1, -2) @ q_h)  # (B, K, G, S, D)
    if dsinks is not None and sinks is not None:
        p_sink = np.exp(_sinks(sinks, o, q, K) - lse)  # (B, K, G, T, 1)
        dsinks -= (p_sink * delta).sum(axis=(0, 3, 4)).reshape(H)

    dk, dv = dk.sum(axis=2, keepdims=True), dv.sum(axis=2, keepdims=True)  # (B, K, 1, S, D)
    dq_out, dk_out, dv_out = (None, None, None) if out is None else out
    return place(_by_time(dq), dq_out), place(_by_time(dk), dk_out), place(_by_time(dv), dv_out)
