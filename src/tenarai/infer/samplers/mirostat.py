"""Mirostat: hold the surprise of the text, −log₂ p a token, at a level τ.

Before a token, those more surprising than μ are cut off; after it, μ ← μ − η (surprise − τ), with
the surprise among those that were left. μ begins at 2τ.

Basu, Ramachandran, Keskar and Varshney, "Mirostat: a neural text decoding algorithm that directly
controls perplexity" (2021).
"""

from __future__ import annotations

import math

import numpy as np

from .candidates import Candidates, largest, probabilities
from .truncation import top_k

SLOPE_TOKENS = 100  # m of the paper: the tokens that Zipf's exponent is estimated from


def mirostat_v2(c: Candidates, mu: float) -> Candidates:
    """Those with −log₂ p_i ≤ μ, which is p_i ≥ 2^−μ; the most probable where there is none."""
    p = probabilities(c.logits)
    keep = p >= 2.0 ** -max(mu, 0.0)
    return c.take(keep if keep.any() else np.array([int(p.argmax())]))


def mirostat_v1(c: Candidates, mu: float, vocab_size: int) -> Candidates:
    """top-k with the k at which a Zipf distribution of exponent s has the surprise μ:

    s = Σ t_i b_i / Σ t_i²,  t_i = ln((i + 1) / i),  b_i = ln(p_i / p_{i+1}),  i < 100
    ε = s − 1,  k = (ε 2^μ / (1 − V^−ε))^(1/s)
    """
    l = c.logits[largest(c.logits, SLOPE_TOKENS)].astype(np.float64)
    l = l[np.isfinite(l)]
    if len(l) < 2:
        return top_k(c, 1)
    i = np.arange(1, len(l))
    t, b = np.log((i + 1) / i), l[:-1] - l[1:]
    s = float((t * b).sum() / (t * t).sum())
    return top_k(c, _k(s, mu, vocab_size))


def _k(s: float, mu: float, V: int) -> int:
    epsilon = s - 1
    if s <= 0:  # all are equally probable: Zipf's exponent says nothing
        return V
    if abs(epsilon) < 1e-9:  # the limit: ε / (1 − V^−ε) → 1 / ln V
        log2_k = mu - math.log2(math.log(max(V, 2)))
    else:
        log2_k = mu + math.log2(epsilon / (1 - float(V) ** -epsilon))
    return int(min(max(1.0, round(2 ** min(log2_k / s, 60.0))), V))


def updated(mu: float, p: float, tau: float, eta: float) -> float:
    """μ after a token that had the probability p among those that were left."""
    surprise = -math.log2(max(p, 1e-30))
    return mu - eta * (surprise - tau)
