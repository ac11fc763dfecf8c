"""How well a model foretells a text, and how far it is from another one that foretells it.

    perplexity = exp(mean of −ln p(x_i | what stands before x_i in its window))
    KL divergence at x_i = Σ_v p(v) ln(p(v) / q(v)),   p the base's distribution, q the model's

The text is cut into windows, since a model sees only so much before a token:

    strided   windows of `context` tokens, each `stride` further on; of each window the tokens that
              were in none before count. So each token of the text but the first counts once, and,
              beyond the first window, after at least context − stride others.
    halves    windows side by side; the second half of each counts, but for its first token.
              That is what llama.cpp's program of this name does: its figures compare with these.

Where a tokenizer puts a token before every text, it stands at the start of every window: as one of
its `context` tokens; with halves in the place of the window's first token, as llama.cpp has it.
Logits are looked at a window at a time and a block of rows at a time, whoever makes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tenarai.errors import TenaraiError

Array = NDArray[Any]
Logits = Callable[[Array], Array]  # ids (T,) int32 → logits (T, V)
Base = Callable[[Array, int], Any]  # ids, first → its rows for the counted tokens, sliceable
ROWS = 64  # of logits that are turned into probabilities at once


@dataclass(frozen=True)
class Window:
    """Tokens start ≤ i < end of the text; those from `first` on count."""

    start: int
    end: int
    first: int


@dataclass
class Figures:
    """Sums over the tokens that counted; an array an entry each: float64 (n,)."""

    nll: list[Array] = field(default_factory=list)
    base_nll: list[Array] = field(default_factory=list)
    kl: list[Array] = field(default_factory=list)
    same_top: list[Array] = field(default_factory=list)
    tokens: int = 0  # that went through the model
    seconds: float = 0.0  # the model's own

    @property
    def counted(self) -> int:
        return sum(map(len, self.nll))

    def perplexity(self) -> tuple[float, float]:
        """The value and its standard error: exp(m) and exp(m) · s / √n of the n numbers −ln p."""
        mean, error = _mean_and_error(np.concatenate(self.nll))
        value = float(np.exp(mean))
        return value, value * error

    def as_json(self) -> dict[str, Any]:
        value, error = self.perplexity()
        found: dict[str, Any] = {
            "perplexity": value,
            "standard_error": error,
            "nll": float(np.log(value)),
            "tokens_counted": self.counted,
            "tokens_evaluated": self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds if self.seconds else None,
        }
        if self.kl:
            kl, same = np.concatenate(self.kl), np.concatenate(self.same_top)
            mean, error = _mean_and_error(kl)
            base = float(np.exp(np.concatenate(self.base_nll).mean()))
            found["kl"] = {
                "mean": mean,
                "standard_error": error,
                "median": float(np.median(kl)),
                "p99": float(np.quantile(kl, 0.99)),
                "max": float(kl.max()),
                "same_most_probable": float(same.mean()),
                "base_perplexity": base,
                "perplexity_ratio": value / base,
            }
        return found


def strided(n: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of a text of n tokens; see above. context ≥ 2, 1 ≤ stride < context."""
    if not 1 <= stride < context:
        raise TenaraiError(
            f"stride is {stride}, it must be at least 1 and less than the context, {context}"
        )
    done = 1  # the first token has nothing before it
    start = 0
    while done < n:
        end = min(n, start + context)
        yield Window(start, end, done)
        done, start = end, start + stride


def halves(n: int, context: int) -> Iterator[Window]:
    """Whole windows side by side, of which the second half counts but for its first token."""
    if n < context:
        raise TenaraiError(
            f"the text has {n} tokens, fewer than one window of {context}: "
            "take a longer text, a smaller context (-c), or strided windows"
        )
    for start in range(0, n - context + 1, context):
        yield Window(start, start + context, start + context // 2 + 1)


def measure(
    logits: Logits,
    tokens: Array,
    windows: Sequence[Window],
    *,
    bos: int | None = None,
    bos_replaces: bool = False,
    base: Base | None = None,
    save: Callable[[Array], None] | None = None,
    progress: bool = False,
) -> Figures:
    """Figures of a model over a text's tokens (n,) int32.

    `logits` gives (T, V) of ids (T,). `bos` stands before each window, or with `bos_replaces` in
    the place of its first token. `base(ids, first)` gives what another model makes of the counted
    tokens: log-probabilities or logits, rows × V, by slices. `save` is given the model's own
    log-probabilities, float32, block by block. Raises TenaraiError: the text has no token to count.
    """
    if not windows:
        raise TenaraiError("the text has fewer than 2 tokens: take a longer one")
    figures = Figures()
    # disable=None: tqdm is silent where stderr is no terminal
    bar = tqdm(windows, desc="perplexity", unit="window", disable=None if progress else True)
    for w in bar:
        ids, first = _ids(tokens, w, bos, bos_replaces)
        start = time.perf_counter()
        rows = logits(ids)  # (T, V)
        figures.seconds += time.perf_counter() - start
        figures.tokens += len(ids)
        against = None if base is None else base(ids, first)
        _window(figures, rows[first - 1 : -1], ids[first:], against, save)
        del rows, against
        bar.set_postfix_str(f"{figures.perplexity()[0]:.4f}", refresh=False)
    return figures


def _ids(tokens: Array, w: Window, bos: int | None, replaces: bool) -> tuple[Array, int]:
    ids, first = np.asarray(tokens[w.start : w.end], np.int32), w.first - w.start
    if bos is None:
        return ids, first
    if replaces:
        return np.concatenate([np.array([bos], np.int32), ids[1:]]), first
    return np.concatenate([np.array([bos], np.int32), ids]), first + 1


def _window(
    figures: Figures, rows: Array, targets: Array, against: Any, save: Callable | None
) -> None:
    """Rows (n, V) foretell targets (n,)."""
    for a in range(0, len(targets), ROWS):
        q = log_softmax(rows[a : a + ROWS])  # (r, V)
        r = np.arange(len(q))
        wanted = targets[a : a + ROWS]
        figures.nll.append(-q[r, wanted].astype(np.float64))
        if save is not None:
            save(q)
        if against is not None:
            p = log_softmax(np.asarray(against[a : a + ROWS], np.float32))
            figures.base_nll.append(-p[r, wanted].astype(np.float64))
            figures.kl.append(kl_divergence(p, q))
            figures.same_top.append(p.argmax(axis=1) == q.argmax(axis=1))


def log_softmax(logits: Array) -> Array:
    """ln softmax of each row of (n, V) float32; the sum of exponentials in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(shifted.dtype)


def kl_divergence(p: Array, q: Array) -> Array:
    """Σ_v p(v) ln(p(v) / q(v)) of each row, of log-probabilities (n, V); float64 (n,), in nats."""
    with np.errstate(invalid="ignore"):  # -inf - -inf, where p is 0
        terms = np.exp(p) * (p - q)
    return np.where(np.isneginf(p), 0, terms).sum(axis=1, dtype=np.float64)


def _mean_and_error(x: Array) -> tuple[float, float]:
    error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
    return float(x.mean()), error
