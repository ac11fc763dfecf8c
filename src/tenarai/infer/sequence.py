"""One text being written: what was asked for, what came of it, why it ended. Which rows of it go
through the model when is the engine's business."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tenarai.infer.timings import Timings


class Chooses(Protocol):
    """Gives a token of logits (V,), and is told which tokens the text got (infer/sampler.py)."""

    def sample(self, logits: np.ndarray) -> int: ...
    def accept(self, token: int) -> None: ...


class Guesses(Protocol):
    """Says how a text might go on (infer/speculative.py)."""

    def guess(self, ids: abc.Sequence[int], n: int) -> list[int]:
        """At most n tokens after `ids`."""
        ...


@dataclass(eq=False)
class Sequence:
    """ids: the text as the model sees it, prompt and all. tokens: what was written, without stops.

    finish_reason: None while it is written; "stop" (a stop token), "length" (as many tokens as
    were asked for), "context" (no room for more), "cancelled", or "error" (`error` has it).
    """

    ids: list[int]
    max_tokens: int
    sampler: Chooses
    stop: frozenset[int] = frozenset()
    keep: int = 0  # of the first tokens, when the context shifts
    shift: bool = False
    guesser: Guesses | None = None
    guesses: int = 0  # at most, a step
    timings: Timings = field(default_factory=Timings)
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: Exception | None = None
    slot: int | None = None  # of the cache, while it is written
    cancelled: bool = False  # asked for; the engine ends it at its next step

    def cancel(self) -> None:
        """It gets no more tokens. May be called from another thread."""
        self.cancelled = True

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        if self.finish_reason is None:
            self.finish_reason, self.error = reason, error

    def next_guesses(self, room: int) -> list[int]:
        """How it might go on: no more than there is `room` for, or than it may still write."""
        n = min(self.guesses, room, self.max_tokens - len(self.tokens) - 1)
        if self.guesser is None or n < 1:
            return []
        return self.guesser.guess(self.ids, n)[:n]

    def choose(self, logits: np.ndarray, guesses: abc.Sequence[int]) -> int:
        """Takes tokens from logits (1 + len(guesses), V), the first row those after `ids`, for as
        long as they are the ones guessed. Returns how many were taken, the stop token included.

        The sampler sees each row once and in order, as if nothing had been guessed.
        """
        for taken, row in enumerate(logits):
            token = int(self.sampler.sample(row))
            if token in self.stop:
                self.finish("stop")
                return taken + 1
            self.sampler.accept(token)
            self.ids.append(token)
            self.tokens.append(token)
            if len(self.tokens) >= self.max_tokens:
                self.finish("length")
            if self.finished or taken == len(guesses) or token != guesses[taken]:
                return taken + 1
        return len(logits)


def kept(ids: list[int], room: int, keep: int) -> list[int]:
    """The first `keep` of `ids` and as many of the last as there is room for."""
    first = ids[: max(0, min(keep, room - 1))]
    return first + ids[len(ids) - (room - len(first)) :]


def common(a: abc.Sequence[int], b: abc.Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
