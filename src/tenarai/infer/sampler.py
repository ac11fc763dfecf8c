"""From logits to the next token: temperature, top-k and top-p, as pure functions.

    p = softmax(logits / temperature)
    top-k   keep the k most probable tokens
    top-p   keep the fewest of the most probable whose sum reaches p (nucleus sampling)
    then scale what is kept to a sum of 1, and draw

Sources: Fan and others, "Hierarchical neural story generation" (2018), top-k; Holtzman and
others, "The curious case of neural text degeneration" (2020), top-p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenarai.errors import TenaraiError

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults draw from the model's own distribution."""

    temperature: float = 1.0  # below 1: surer; 0: always the most probable token
    top_k: int = 0  # 0: all
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise TenaraiError(f"temperature is {self.temperature}, it must be at least 0")
        if self.top_k < 0:
            raise TenaraiError(f"top_k is {self.top_k}, it must be at least 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise TenaraiError(f"top_p is {self.top_p}, it must be above 0 and at most 1")

    def __str__(self) -> str:
        if self.temperature == 0:
            return "the most probable token"
        parts = [f"temperature {self.temperature:g}"]
        parts += [f"top-k {self.top_k}"] if self.top_k else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        return " → ".join(parts)


def probabilities(logits: Array, sampling: Sampling) -> NDArray[np.float64]:
    """The distribution (V,) that the next token is drawn from. logits (V,)."""
    z = np.asarray(logits, np.float64)
    if sampling.temperature == 0:
        p = np.zeros(z.shape)
        p[int(z.argmax())] = 1
        return p
    z = (z - z.max()) / sampling.temperature
    p = np.exp(z)
    p /= p.sum()
    if sampling.top_k or sampling.top_p < 1:
        p = _keep_most_probable(p, sampling.top_k or len(p), sampling.top_p)
    return p


def _keep_most_probable(p: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.float64]:
    order = np.argsort(-p, kind="stable")  # (V,), the most probable first
    k = min(top_k, len(p))
    before = np.cumsum(p[order]) - p[order]  # the sum of those that are more probable
    keep = order[:k][before[:k] < top_p * p[order[:k]].sum()]
    kept = np.zeros_like(p)
    kept[keep] = p[keep] / p[keep].sum()
    return kept


def sample(logits: Array, sampling: Sampling, random: np.random.Generator) -> int:
    """A token drawn from `probabilities`; takes one number from `random`."""
    u = random.random()
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    c = np.cumsum(probabilities(logits, sampling))
    return int(np.searchsorted(c, u * c[-1], side="right"))
