"""What kinds of attention there are: which keys a query sees, and what is done to its scores.

One set of options for the reference, the kernels and the models that use them; they compose. What
they compute, with the derivation of each gradient, stands in ops/reference/attention.py; worked
numbers and who uses what in docs/attention-variants.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """Query t stands at the place x = t + S − T among the keys: the last one beside the last key.

    Which keys s it sees (all conditions together):

    causal      s ≤ x
    window      x − W < s, without `causal` also s < x + W
    prefix      and whatever these two say, the first P keys: one number, or one a row (B,)
    documents   only s of its own document. (B, S) int32: where the document of each key begins
                (`document_starts`). The first P keys are then those of its document
    lengths     s < lengths[b]: keys past a row's end are padding. (B,) int32

    What its scores a_s are: scale · q·k_s, 1/√D by default, and then, in this order,

    soft_cap    c tanh(a / c)
    alibi       a − slope_h |x − s|; slopes (H,), see `alibi_slopes`
    off_by_one  softmax with 1 more in its sum: exp(a_s) / (1 + Σ exp(a_u)). A learned sink logit a
                head is a weight, so it is an argument of the op

    A query that sees no key gives y = 0 and no gradient. Raises ValueError for what cannot be.
    """

    scale: float | None = None
    causal: bool = True
    window: int | None = None
    prefix: int | Array = 0
    documents: Array | None = None
    lengths: Array | None = None
    soft_cap: float | None = None
    alibi: Array | None = None
    off_by_one: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention: window is {self.window}, expected 1 or more")
        if np.min(self.prefix, initial=0) < 0:
            raise ValueError(f"attention: prefix is {self.prefix}, expected 0 or more keys")
        if self.soft_cap is not None and not 0 < self.soft_cap < math.inf:
            raise ValueError(f"attention: soft_cap is {self.soft_cap}, expected more than 0")
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"attention: scale is {self.scale}, expected a number")

    @staticmethod
    def of(options: AttentionOptions | None, named: dict[str, Any]) -> AttentionOptions:
        """`options`, with the ones that are named in place of its own."""
        options = options or AttentionOptions()
        unknown = set(named) - {field.name for field in fields(AttentionOptions)}
        if unknown:
            raise TypeError(f"attention has no option {', '.join(sorted(unknown))}")
        return replace(options, **named) if named else options

    def scale_for(self, D: int) -> float:
        return 1 / math.sqrt(D) if self.scale is None else float(self.scale)

    def check(self, q: Array, k: Array, sinks: Array | None) -> None:
        """Raises ValueError where they do not fit q (B, T, H, D), k (B, S, K, D), sinks (H,)."""
        (B, T, H, _), (S, K) = q.shape, k.shape[1:3]
        if K < 1 or H % K:
            raise ValueError(
                f"attention: {H} query heads are not a multiple of {K} key/value heads"
            )
        placed = self.causal or self.window is not None or self.documents is not None
        if S < 1 or (placed and T > S):
            raise ValueError(
                f"attention: {T} queries, {S} keys: the first queries would see no key"
            )
        if sinks is not None and self.off_by_one:
            raise ValueError("attention: off_by_one is a sink fixed at 0, beside learned sinks")
        wanted = {"alibi": (H,), "documents": (B, S), "lengths": (B,), "sinks": (H,)}
        wanted |= {"prefix": (B,)} if np.ndim(self.prefix) else {}
        for name, shape in wanted.items():
            a = sinks if name == "sinks" else getattr(self, name)
            if a is not None and np.shape(a) != shape:
                raise ValueError(f"attention: {name} has shape {np.shape(a)}, expected {shape}")
        if self.documents is not None:
            _check_documents(self.documents)
        if self.lengths is not None and (self.lengths.min() < 0 or self.lengths.max() > S):
            raise ValueError(f"attention: lengths {self.lengths} are not all from 0 to {S}")

    def check_cached(self, q: Array, sinks: Array | None) -> None:
        """Raises ValueError where they do not fit attention to a KV cache, q (N, H, D): what a
        row sees there is its own sequence, in the window of the cache's layer."""
        masks = (self.documents, self.lengths, self.window)
        if not self.causal or np.any(self.prefix) or any(mask is not None for mask in masks):
            raise ValueError("attention to a KV cache is causal, its window is that of the layer")
        self.check(q[None], q[None], sinks)


def _check_documents(starts: Array) -> None:
    """Every start is a place that starts itself, and no later than any that follow it."""
    places = np.arange(starts.shape[1])
    fresh = starts == places
    if (np.maximum.accumulate(np.where(fresh, places, 0), axis=1) != starts).any():
        raise ValueError(
            "attention: documents must hold, for each key, the place where its document begins: "
            "0 0 0 3 3 for one of three and one of two (see document_starts)"
        )


def document_starts(ids: Array) -> Array:
    """Where the document of each place begins: (B, S) int32, of ids (B, S) that differ from one
    document to the next. [[7, 7, 7, 2, 2, 5]] gives [[0, 0, 0, 3, 3, 5]]."""
    fresh = np.ones(ids.shape, bool)
    fresh[:, 1:] = ids[:, 1:] != ids[:, :-1]
    places = np.where(fresh, np.arange(ids.shape[1]), 0)
    return np.maximum.accumulate(places, axis=1).astype(np.int32)


def alibi_slopes(H: int) -> Array:
    """The slopes (H,) float32 of ALiBi: 2^(−8 i / n), i = 1 to n, n the power of two up to H; the
    heads past n take every other one of those for 2n. Source: Press et al., "Train short, test
    long" (2022), and its code."""
    n = 1 << (H.bit_length() - 1)
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)]
    slopes += [2 ** (-4 * i / n) for i in range(1, 2 * (H - n), 2)]
    return np.array(slopes, np.float32)
