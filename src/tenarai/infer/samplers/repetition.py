"""Links that make tokens less probable because of what stands before: penalties and DRY; and the
bias, which is given for tokens by number."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from .candidates import Candidates

FORBIDDING = 1e6  # a penalty that no logit makes up for


def logit_bias(c: Candidates, biases: Sequence[tuple[int, float]]) -> Candidates:
    """l_i + b_i for each (i, b_i); −inf forbids a token. Several of one token add up."""
    sums: dict[int, float] = {}
    for token, bias in biases:
        sums[token] = sums.get(token, 0.0) + bias
    places, which = c.places(np.array(list(sums), np.int64))
    added = np.array(list(sums.values()))[which]
    return c.with_logits(places, c.logits[places] + added)


def last(history: Sequence[int], n: int) -> Sequence[int]:
    """The last n tokens; −1 means all."""
    return history if n < 0 else history[len(history) - min(n, len(history)) :]


def penalties(
    c: Candidates, recent: Sequence[int], repeat: float, frequency: float, presence: float
) -> Candidates:
    """Less for each token i that stands in `recent`, c_i times:

        l_i ← l_i / repeat  where l_i > 0,  l_i · repeat  elsewhere
        l_i ← l_i − c_i · frequency − presence

    The first from Keskar and others, "CTRL" (2019), which treats negative logits right since
    Transformers does; the others as OpenAI's API describes them.
    """
    if not len(recent):
        return c
    tokens, counts = np.unique(np.asarray(recent, np.int64), return_counts=True)
    places, which = c.places(tokens)
    l = c.logits[places]
    l = np.where(l > 0, l / repeat, l * repeat) - counts[which] * frequency - presence
    return c.with_logits(places, l)


def dry(
    c: Candidates,
    recent: Sequence[int],
    multiplier: float,
    base: float,
    allowed: int,
    breakers: Collection[int] = (),
) -> Candidates:
    """ "Don't repeat yourself": less for a token that would prolong a repetition.

        n_i = the longest end of `recent` that stands somewhere in `recent` before a token i
        l_i ← l_i − multiplier · base^(n_i − allowed)   where n_i ≥ allowed

    A repetition does not reach across a token in `breakers`. From p-e-w, "DRY: a modern repetition
    penalty", text-generation-webui #5677 (2024).
    """
    lengths = repetitions(recent, breakers, _longest(multiplier, base, allowed, len(recent)))
    found = {token: n for token, n in lengths.items() if n >= allowed}
    if not found:
        return c
    places, which = c.places(np.array(list(found), np.int64))
    exponents = np.array(list(found.values()), np.float64)[which] - allowed
    return c.with_logits(places, c.logits[places] - multiplier * base**exponents)


def _longest(multiplier: float, base: float, allowed: int, all_tokens: int) -> int:
    """The length at which the penalty forbids: longer repetitions need not be measured."""
    if base <= 1 or multiplier <= 0:
        return all_tokens
    grown = math.log(max(FORBIDDING / multiplier, 1.0)) / math.log(base)
    return int(min(allowed + math.ceil(grown), all_tokens))


def repetitions(
    recent: Sequence[int], breakers: Collection[int] = (), longest: int = 1 << 30
) -> dict[int, int]:
    """For each token that followed some earlier copy of the end of `recent`, how long the longest
    such copy is (at most `longest`).

    >>> repetitions([1, 2, 3, 9, 1, 2])
    {3: 2}
    """
    h = np.asarray(recent, np.int64)
    if len(h) < 2 or h[-1] in breakers:
        return {}
    ends = np.flatnonzero(h[:-1] == h[-1])  # where a copy of the end ends
    lengths: dict[int, int] = {}
    n = 1
    while len(ends):  # copies of n tokens end here
        for token in np.unique(h[ends + 1]).tolist():
            if token not in breakers:
                lengths[token] = n
        if n >= longest or n >= len(h) or h[-1 - n] in breakers:
            break
        ends = ends[ends >= n]
        ends = ends[h[ends - n] == h[-1 - n]]
        n += 1
    return lengths
