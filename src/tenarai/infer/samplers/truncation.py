"""Links that drop improbable candidates: top-k, tail-free, locally typical, top-p, min-p; and XTC,
which drops probable ones.

p_1 ≥ p_2 ≥ ... are the candidates' probabilities, softmax of their logits as they come in. What is
kept is scaled to a sum of 1 again by whoever takes the softmax next. At least one is always kept.
"""

from __future__ import annotations

import math

import numpy as np

from .candidates import Array, Candidates, largest, most_probable_first, probabilities

NUCLEUS = 1024  # tokens in which top-p's are looked for before all are sorted


def top_k(c: Candidates, k: int) -> Candidates:
    """The k most probable, sorted. Fan, Lewis and Dauphin, "Hierarchical neural story generation"
    (2018)."""
    if k >= len(c.logits):
        return most_probable_first(c)
    return c.take(largest(c.logits, k))


def top_p(c: Candidates, p: float) -> Candidates:
    """Nucleus sampling: the fewest of the most probable whose sum reaches p, sorted.

        keep i  iff  p_1 + ... + p_{i−1} < p

    Holtzman, Buys, Du, Forbes and Choi, "The curious case of neural text degeneration" (2020).
    """
    if len(c.logits) > 2 * NUCLEUS:  # most often they are few: then no sorting of all
        logits = c.logits
        best = c.take(largest(logits, NUCLEUS))
        share = np.exp(best.logits - best.logits[0]) / _total(logits)
        if share.sum(dtype=np.float64) >= p:
            return best.take(np.arange(_reach(share, p)))
    c = most_probable_first(c)
    return c.take(np.arange(_reach(probabilities(c.logits), p)))


def _total(logits: Array) -> float:
    return float(np.exp(logits - logits.max()).sum(dtype=np.float64))


def _reach(p: Array, total: float) -> int:
    """How many of the first it takes for their sum to reach `total`; at least 1."""
    sums = np.cumsum(p, dtype=np.float64)
    return min(len(p), int(np.searchsorted(sums, total * (1 - 1e-12), side="left")) + 1)


def min_p(c: Candidates, p: float) -> Candidates:
    """Those at least p times as probable as the most probable one:

        keep i  iff  p_i ≥ p · p_1,  which is  l_i ≥ l_1 + ln p

    Nguyen and others, "Turning up the heat: min-p sampling" (2024).
    """
    return c.take(c.logits >= c.logits.max() + math.log(p)) if p > 0 else c


def tail_free(c: Candidates, z: float) -> Candidates:
    """Cut where the sorted probabilities stop bending:

        d_i = |p_i − 2 p_{i+1} + p_{i+2}| / Σ |...|,   keep i  iff  d_1 + ... + d_i ≤ z

    and the first in any case; where all is flat, everything is kept.
    Phoenix and Egan, "Tail free sampling" (2019), trentbrick.github.io/Tail-Free-Sampling.
    """
    c = most_probable_first(c)
    bend = np.abs(np.diff(probabilities(c.logits).astype(np.float64), 2))  # (n − 2,)
    total = bend.sum()
    if z >= 1 or not total > 0:
        return c
    beyond = np.flatnonzero(np.cumsum(bend) > z * total * (1 + 1e-12))
    return c.take(np.arange(max(1, beyond[0]))) if len(beyond) else c


def typical(c: Candidates, p: float) -> Candidates:
    """Locally typical sampling: those whose surprise is nearest to the expected one.

        H = −Σ p_i ln p_i;  sort by |−ln p_i − H|;  keep the first whose sum of p reaches p

    Meister, Pimentel, Wiher and Cotterell, "Locally typical sampling" (2023). Sorted by
    probability again, as links after it expect.
    """
    c = most_probable_first(c)
    q = probabilities(c.logits).astype(np.float64)
    surprise = -np.log(np.maximum(q, np.finfo(np.float64).tiny))
    odd = np.abs(surprise - (q * surprise).sum())
    order = np.argsort(odd, kind="stable")
    return c.take(np.sort(order[: _reach(q[order], p)]))


def xtc(c: Candidates, probability: float, threshold: float, u: float) -> Candidates:
    """Exclude top choices: where u < probability, drop all but the least probable of those that
    are at least `threshold` probable.

    u is a uniform number in [0, 1) that the caller draws. Fewer than two such tokens: no change.
    From p-e-w, "Exclude Top Choices (XTC)", text-generation-webui #6335 (2024).
    """
    if u >= probability:
        return c
    c = most_probable_first(c)
    good = int(np.count_nonzero(probabilities(c.logits) >= threshold))
    return c.take(np.arange(good - 1, len(c.logits))) if good > 1 else c
