"""What a text cost: tokens and seconds of its prompt, of its writing, and of choosing tokens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Timings:
    """Seconds and counts of one text; whoever generates adds to them.

    The prompt is read in one go and gives the first token's logits; each later token is an
    evaluation. So n tokens take n samples and n − 1 evaluations.
    """

    load_s: float = 0.0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    evaluations: int = 0
    evaluation_s: float = 0.0
    samples: int = 0
    sample_s: float = 0.0
    guessed: int = 0  # tokens guessed ahead (infer/speculative.py)
    accepted: int = 0  # of these, how many were right

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.prompt_s += time.perf_counter() - start
        self.prompt_tokens += tokens

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.evaluation_s += time.perf_counter() - start
        self.evaluations += 1

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.sample_s += time.perf_counter() - start
        self.samples += 1

    @property
    def total_s(self) -> float:
        return self.load_s + self.prompt_s + self.evaluation_s + self.sample_s

    def table(self) -> str:
        """Aligned lines: what each part took, a token and tokens a second; guesses, if any."""
        rows = [
            ("load", self.load_s, 0, ""),
            ("sample", self.sample_s, self.samples, "runs  "),
            ("prompt eval", self.prompt_s, self.prompt_tokens, "tokens"),
            ("eval", self.evaluation_s, self.evaluations, "runs  "),
            ("total", self.total_s, 0, f"{self.prompt_tokens + self.evaluations:>5} tokens"),
        ]
        lines = [_line(*row) for row in rows]
        if self.guessed:
            lines.append(f"{'guesses':>16} = {self.guessed:10} , {self.accepted} right")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return {
            "load_s": self.load_s,
            "prompt_tokens": self.prompt_tokens,
            "prompt_s": self.prompt_s,
            "prompt_tokens_per_s": _rate(self.prompt_tokens, self.prompt_s),
            "evaluations": self.evaluations,
            "evaluation_s": self.evaluation_s,
            "decode_tokens_per_s": _rate(self.evaluations, self.evaluation_s),
            "samples": self.samples,
            "sample_s": self.sample_s,
            "guessed": self.guessed,
            "accepted": self.accepted,
            "total_s": self.total_s,
        }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def _line(name: str, seconds: float, count: int, unit: str) -> str:
    line = f"{name + ' time':>16} = {1e3 * seconds:10.2f} ms"
    if not count:
        return f"{line} / {unit}" if unit else line
    each, rate = 1e3 * seconds / count, _rate(count, seconds) or 0.0
    return f"{line} / {count:>5} {unit} ({each:8.2f} ms per token, {rate:10.2f} tokens per second)"
