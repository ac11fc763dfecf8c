"""The tokens that may come next, and how they are sorted, found and thinned out.

Every link takes candidates and gives candidates. It changes no array that it was given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
COLUMNS = 512  # of the table in which the k largest are looked for


class Candidates(NamedTuple):
    """Tokens and their logits.

    logits: (n,) float. ids: (n,) integers, all different; None stands for 0, 1, ..., n − 1,
    the whole vocabulary, so that no table of it is made for every token.
    """

    logits: Array
    ids: Array | None = None

    def take(self, which: Array) -> Candidates:
        """Those at `which`: places in the order wanted, or a mask (n,)."""
        if self.ids is not None:
            return Candidates(self.logits[which], self.ids[which])
        ids = np.flatnonzero(which) if which.dtype == bool else which
        return Candidates(self.logits[ids], ids)

    def token(self, place: int) -> int:
        return place if self.ids is None else int(self.ids[place])

    def places(self, tokens: Array) -> tuple[Array, Array]:
        """(places, which): candidate places[j] is token tokens[which[j]]; others are left out.

        tokens (m,), all different.
        """
        if self.ids is None:
            which = np.flatnonzero((tokens >= 0) & (tokens < len(self.logits)))
            return tokens[which], which
        _, places, which = np.intersect1d(self.ids, tokens, assume_unique=True, return_indices=True)
        return places, which

    def with_logits(self, places: Array, values: Array) -> Candidates:
        """A copy in which those at `places` have the logits `values`."""
        logits = self.logits.copy()
        logits[places] = values
        return Candidates(logits, self.ids)


def probabilities(logits: Array) -> Array:
    """softmax: p = exp(l − max l) / Σ exp(l − max l), (n,), of the logits' type, sum in float64."""
    p = np.exp(logits - logits.max())
    p /= p.sum(dtype=np.float64)
    return p


def most_probable_first(c: Candidates) -> Candidates:
    """Sorted by logit, descending; of equals the one that stood first comes first."""
    if (c.logits[1:] <= c.logits[:-1]).all():
        return c if c.ids is not None else c.take(np.arange(len(c.logits)))
    return c.take(descending(c.logits))


def descending(logits: Array) -> Array:
    """Places of the logits (n,) by size, the largest first; of equals the first comes first.

    A float32 becomes an integer of the same order, and its place the low half of a 64-bit word:
    sorting words is several times faster than a stable sort of places.
    """
    if logits.dtype != np.float32 or len(logits) < COLUMNS:
        return np.argsort(-logits, kind="stable")
    bits = (np.float32(0) - logits).view(np.uint32)  # ascending now, and 0 has one form
    flipped = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    words = (flipped << np.uint64(32)) | np.arange(len(logits), dtype=np.uint64)
    words.sort()
    return (words & np.uint64(0xFFFFFFFF)).astype(np.int64)


def largest(logits: Array, k: int) -> Array:
    """Places of the k largest logits (n,), the largest first; of equals the first comes first.

    The logits are looked at as a table. The k-th largest of the columns' maxima is a bound that
    the k largest reach, because k columns reach it; few others do. So one pass finds the bound,
    one pass those that reach it, and only they are sorted.
    """
    n = len(logits)
    columns = max(COLUMNS, 4 * k)
    if n < 2 * columns:
        return descending(logits)[:k]
    rows = n // columns
    maxima = logits[: rows * columns].reshape(rows, columns).max(axis=0)
    bound = np.partition(maxima, columns - k)[columns - k]
    reach = np.flatnonzero(logits >= bound)
    return reach[descending(logits[reach])[:k]]
