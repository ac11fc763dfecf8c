"""Attention: y = softmax(scale · q kᵀ + mask) v, for each head.

    a_ts = scale Σ_d q_td k_sd                    scores
    p_ts = exp(a_ts - ℓ_t)                        probabilities, 0 where the mask hides s from t
    ℓ_t  = log Σ_s exp(a_ts)                      log-sum-exp, over the s that t sees
    y_td = Σ_s p_ts v_sd                          weighted sum

The gradient, from the end to the start:

    dv_sd = Σ_t p_ts dy_td                        dp_ts = Σ_d dy_td v_sd

The softmax's Jacobian is ∂p_ts/∂a_tu = p_ts (δ_su - p_tu), so

    da_tu = Σ_s dp_ts p_ts (δ_su - p_tu) = p_tu (dp_tu - D_t),      D_t = Σ_s p_ts dp_ts

and D_t needs no probabilities:  Σ_s p_ts Σ_d dy_td v_sd = Σ_d dy_td Σ_s p_ts v_sd = Σ_d dy_td y_td.
Last, the scores are a product like any other:

    dq_td = scale Σ_s da_ts k_sd                  dk_sd = scale Σ_t da_ts q_td

Hidden places have p = 0, hence da = 0: the mask needs no gradient of its own. A causal mask hides
the keys after a query's own place, a window of W also those W and more before it.

Saved: q, k, v, y and ℓ, which is T numbers a head. The T × S probabilities are not saved but
made again from the scores and ℓ: one product more, and memory that grows with T and not with
T². The tiled kernel does the same; it needs ℓ and D because a tile sees only part of a row.

Grouped-query heads: G = H/K query heads share a key/value head (h uses h // G), and the
gradients of k and v are the sums over the G heads that used them. H = K is ordinary attention,
K = 1 multi-query. Sources: Vaswani et al., "Attention is all you need" (2017); Dao et al.,
"FlashAttention" (2022); Ainslie et al., "GQA" (2023); Beltagy et al., "Longformer" (2020), for
the window.
"""

import math

import numpy as np

from .common import Array, Saved, place


def _by_head(x: Array, K: int) -> Array:
    """(B, T, heads, D) → (B, K, G, T, D): the heads that share a key/value head, together."""
    B, T, heads, D = x.shape
    return x.reshape(B, T, K, heads // K, D).transpose(0, 2, 3, 1, 4)


def _by_time(x: Array) -> Array:
    """(B, K, G, T, D) → (B, T, K·G, D): back again."""
    B, K, G, T, D = x.shape
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2, 4)).reshape(B, T, K * G, D)


def _masked_scores(q: Array, k: Array, scale: float, causal: bool, window: int | None) -> Array:
    """scale · q kᵀ, with -inf where a query may not look. q (..., T, D), k (..., S, D)."""
    scores = scale * (q @ k.swapaxes(-1, -2))  # (..., T, S)
    if not causal:
        return scores
    T, S = scores.shape[-2:]
    last = np.arange(T)[:, None] + S - T  # (T, 1): the key at a query's own place
    visible = np.arange(S) <= last  # (T, S)
    if window is not None:
        visible &= np.arange(S) > last - window
    return np.where(visible, scores, -np.inf)


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """y = softmax(scale q kᵀ + mask) v. q, y (B, T, H, D), k, v (B, S, K, D); scale 1/√D.

    With `causal`, query t sees the keys s ≤ t + S - T, with a window W only the last W of them.
    Raises ValueError when H is not a multiple of K, when a causal query would see no key (T > S),
    for a window below 1 or without `causal`.
    """
    (B, T, H, D), (S, K) = q.shape, k.shape[1:3]
    if H % K:
        raise ValueError(f"attention: {H} query heads are not a multiple of {K} key/value heads")
    if S < 1 or (causal and T > S):
        raise ValueError(f"attention: {T} queries, {S} keys: the first queries would see no key")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"attention: window = {window}: expected 1 or more, and a causal mask")
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    q_h, k_h, v_h = (_by_head(x, K) for x in (q, k, v))  # (B, K, G, T, D), (B, K, 1, S, D) twice

    scores = _masked_scores(q_h, k_h, scale, causal, window)  # (B, K, G, T, S)
    top = scores.real.max(axis=-1, keepdims=True)  # (B, K, G, T, 1); real: a shift, no branch
    weights = np.exp(scores - top)  # (B, K, G, T, S)
    total = weights.sum(axis=-1, keepdims=True)  # (B, K, G, T, 1)
    p = weights / total  # (B, K, G, T, S)
    y = place(_by_time(p @ v_h), out)  # (B, T, H, D)

    lse = (top + np.log(total)).reshape(B, H, T)  # (B, H, T)
    return y, (q, k, v, y, lse, scale, causal, window)


def attention_backward(
    dy: Array, saved: Saved, *, out: tuple[Array, Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """(dq, dk, dv) as derived above. dy, dq (B, T, H, D), dk, dv (B, S, K, D)."""
    q, k, v, y, lse, scale, causal, window = saved
    (B, T, H, _), K = q.shape, k.shape[2]
    q_h, k_h, v_h = (_by_head(x, K) for x in (q, k, v))  # (B, K, G, T, D), (B, K, 1, S, D) twice
    dy_h, y_h = _by_head(dy, K), _by_head(y, K)  # (B, K, G, T, D)

    scores = _masked_scores(q_h, k_h, scale, causal, window)  # (B, K, G, T, S), recomputed
    p = np.exp(scores - lse.reshape(B, K, H // K, T, 1))  # (B, K, G, T, S), recomputed
    dv = p.swapaxes(-1, -2) @ dy_h  # (B, K, G, S, D)
    dp = dy_h @ v_h.swapaxes(-1, -2)  # (B, K, G, T, S)
    delta = (dy_h * y_h).sum(axis=-1, keepdims=True)  # (B, K, G, T, 1)
    dscores = p * (dp - delta)  # (B, K, G, T, S)
    dq = scale * (dscores @ k_h)  # (B, K, G, T, D)
    dk = scale * (dscores.swapaxes(-1, -2) @ q_h)  # (B, K, G, S, D)

    dk, dv = dk.sum(axis=2, keepdims=True), dv.sum(axis=2, keepdims=True)  # (B, K, 1, S, D)
    dq_out, dk_out, dv_out = (None, None, None) if out is None else out
    return place(_by_time(dq), dq_out), place(_by_time(dk), dk_out), place(_by_time(dv), dv_out)
