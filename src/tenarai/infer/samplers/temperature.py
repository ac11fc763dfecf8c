"""Links that make the distribution sharper or flatter."""

from __future__ import annotations

import math

import numpy as np

from .candidates import Candidates, probabilities


def temperature(c: Candidates, t: float) -> Candidates:
    """l_i / t, so p_i^(1/t) up to scale: below 1 surer, above 1 wilder. t > 0.

    Ackley, Hinton and Sejnowski, "A learning algorithm for Boltzmann machines" (1985).
    """
    if t == 1:
        return c
    # the largest becomes 0 first: dividing by a tiny t cannot overflow upwards then
    shifted = c.logits - c.logits.max()
    with np.errstate(over="ignore"):  # downwards it may: -inf is a probability of 0
        return Candidates(shifted / np.asarray(t, shifted.dtype), c.ids)


def dynamic_temperature(c: Candidates, t: float, spread: float, exponent: float) -> Candidates:
    """A temperature between max(0, t − spread) and t + spread by how undecided the model is:

        H = −Σ p_i ln p_i;   T = T_min + (T_max − T_min) · (H / ln n)^exponent

    with n candidates. From kalomaze, "Dynamic temperature sampling" (2023).
    """
    n = len(c.logits)
    if n < 2:
        return c
    p = probabilities(c.logits).astype(np.float64)
    entropy = -float((p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum())
    low, high = max(0.0, t - spread), t + spread
    share = min(1.0, max(0.0, entropy / math.log(n)))
    return temperature(c, max(low + (high - low) * share**exponent, 1e-4))
