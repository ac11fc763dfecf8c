"""From logits to the next token: a chain of links, in an order that can be printed and changed.

    sampler = Sampler(Sampling.usual(), seed=1)
    sampler.begin(prompt)                # what stands before counts for the penalties
    token = sampler.sample(logits)       # logits (V,) float32
    sampler.accept(token)

The settings stand in sampling.py, each link's formula and source in samplers/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.ops.counted_random import counted_random

from .samplers import mirostat, repetition, temperature, truncation
from .samplers.candidates import Array, Candidates, probabilities
from .sampling import Sampling

if TYPE_CHECKING:
    from tenarai.tokenizers import Tokenizer

    from .samplers.grammar import Grammar, Vocabulary

__all__ = ["Sampler", "Sampling"]

Link = Callable[[Candidates], Candidates]
DRAWS = 4  # counted random numbers a token: two for the draw, two for XTC


class Sampler:
    """The chain for one text. `str(sampler)` prints it.

    `sample` is a function of the settings, the seed, the logits and the tokens accepted so far:
    asked twice, it answers the same, and it does not matter how many were drawn in between.
    `tokenizer` is needed for a grammar and for DRY's sequence breakers; `vocabulary` saves making
    the grammar's table again. Raises TenaraiError: a grammar that is not valid.
    """

    def __init__(
        self,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        vocabulary: Vocabulary | None = None,
    ):
        self.sampling = sampling or Sampling()
        self.seed = seed
        self.history: list[int] = []  # prompt and text
        self.position = 0  # tokens accepted
        self.grammar = self._make_grammar(tokenizer, vocabulary)
        self._breakers = _breakers(self.sampling, tokenizer)
        self._mu = 2 * self.sampling.mirostat_tau
        self._drawn_from: tuple[Array | None, Array] | None = None  # for Mirostat: ids, p
        links = ((name, self._link(name)) for name in self.sampling.links())
        self._links: list[Link] = [link for _, link in links if link is not None]

    def __str__(self) -> str:
        return str(self.sampling)

    def begin(self, prompt: Iterable[int] = ()) -> None:
        """Forget the text so far; `prompt` stands before the next one."""
        self.history = list(prompt)
        self.position = 0
        self._mu = 2 * self.sampling.mirostat_tau
        self._drawn_from = None
        if self.grammar is not None:
            self.grammar.reset()

    def sample(self, logits: Array) -> int:
        """The next token, of logits (V,). Raises TenaraiError: NaN, or every token excluded."""
        c = self.candidates(logits)
        if self.sampling.greedy:
            return c.token(int(c.logits.argmax()))
        p = probabilities(c.logits)
        sums = np.cumsum(p, dtype=np.float64)
        place = int(np.searchsorted(sums, self._uniform(0) * sums[-1], side="right"))
        if self.sampling.mirostat:
            self._drawn_from = c.ids, p
        return c.token(min(place, len(p) - 1))

    def accept(self, token: int) -> None:
        """`token` is the next one of the text, usually what `sample` gave."""
        self.history.append(token)
        self.position += 1
        if self.grammar is not None:
            self.grammar.accept(token)
        if self._drawn_from is not None:
            ids, p = self._drawn_from
            place = np.flatnonzero(ids == token) if ids is not None else np.array([token])
            if len(place):
                tau, eta = self.sampling.mirostat_tau, self.sampling.mirostat_eta
                self._mu = mirostat.updated(self._mu, float(p[place[0]]), tau, eta)
            self._drawn_from = None

    def candidates(self, logits: Array) -> Candidates:
        """What is left of logits (V,) at the end of the chain, to be drawn by softmax."""
        logits = np.asarray(logits)
        if not np.isfinite(logits.max()):
            raise TenaraiError(
                "the model's logits hold NaN or infinity: its weights are damaged, or overflowed"
            )
        c = Candidates(logits)
        for link in self._links:
            c = link(c)
        if not len(c.logits) or not np.isfinite(c.logits.max()):
            raise TenaraiError(
                "no token is left to choose from: the grammar and the logit bias exclude all "
                "(--ignore-eos forbids the end that a finished grammar asks for)"
            )
        return c

    def distribution(self, logits: Array) -> Array:
        """The probabilities (V,), float64, that the next token is drawn from."""
        c = self.candidates(logits)
        full = np.zeros(len(logits))
        if self.sampling.greedy:
            full[c.token(int(c.logits.argmax()))] = 1
        else:
            p = probabilities(c.logits.astype(np.float64))
            full[slice(None) if c.ids is None else c.ids] = p
        return full

    def _uniform(self, stream: int) -> float:
        """A number in [0, 1) for this place in the text: the same whoever asks how often."""
        high, low = counted_random(self.seed, DRAWS * self.position + 2 * stream, 2).tolist()
        return ((high << 21) | (low >> 11)) / 2.0**53

    def _make_grammar(
        self, tokenizer: Tokenizer | None, known: Vocabulary | None
    ) -> Grammar | None:
        s = self.sampling
        if not s.constrained:
            return None
        from .samplers.grammar import Grammar, Vocabulary

        text = s.grammar if s.grammar is not None else s.json_schema
        assert text is not None
        if known is None:
            if tokenizer is None:
                raise TenaraiError("a grammar needs the model's tokenizer, and there is none")
            known = Vocabulary(tokenizer)
        return Grammar(known, text, "grammar" if s.grammar is not None else "json_schema")

    def _link(self, name: str) -> Link | None:
        """The link as a function of candidates alone; None where its settings change nothing."""
        s = self.sampling
        links: dict[str, Link | None] = {
            "grammar": self.grammar.mask if self.grammar else None,
            "logit_bias": partial(repetition.logit_bias, biases=s.logit_bias),
            "penalties": self._penalties if _penalises(s) else None,
            "dry": self._dry if s.dry_penalty_last_n else None,
            "top_k": partial(truncation.top_k, k=s.top_k) if s.top_k else None,
            "tfs_z": partial(truncation.tail_free, z=s.tfs_z) if s.tfs_z < 1 else None,
            "typical_p": partial(truncation.typical, p=s.typical_p) if s.typical_p < 1 else None,
            "top_p": partial(truncation.top_p, p=s.top_p) if s.top_p < 1 else None,
            "min_p": partial(truncation.min_p, p=s.min_p) if s.min_p else None,
            "xtc": self._xtc,
            "temperature": self._temperature if s.temperature != 1 or s.dynatemp_range else None,
            "greedy": None,
            "mirostat": self._mirostat_v1,
            "mirostat_v2": self._mirostat_v2,
        }
        return links[name]

    def _penalties(self, c: Candidates) -> Candidates:
        s = self.sampling
        recent = repetition.last(self.history, s.repeat_last_n)
        return repetition.penalties(
            c, recent, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        )

    def _dry(self, c: Candidates) -> Candidates:
        s = self.sampling
        recent = repetition.last(self.history, s.dry_penalty_last_n)
        return repetition.dry(
            c, recent, s.dry_multiplier, s.dry_base, s.dry_allowed_length, self._breakers
        )

    def _xtc(self, c: Candidates) -> Candidates:
        s = self.sampling
        return truncation.xtc(c, s.xtc_probability, s.xtc_threshold, self._uniform(1))

    def _temperature(self, c: Candidates) -> Candidates:
        s = self.sampling
        if s.dynatemp_range:
            return temperature.dynamic_temperature(
                c, s.temperature, s.dynatemp_range, s.dynatemp_exponent
            )
        return temperature.temperature(c, s.temperature)

    def _mirostat_v1(self, c: Candidates) -> Candidates:
        return mirostat.mirostat_v1(c, self._mu, len(c.logits))

    def _mirostat_v2(self, c: Candidates) -> Candidates:
        return mirostat.mirostat_v2(c, self._mu)


def _penalises(s: Sampling) -> bool:
    changes = s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0
    return changes and s.repeat_last_n != 0


def _breakers(s: Sampling, tokenizer: Tokenizer | None) -> frozenset[int]:
    """The tokens that hold one of DRY's sequence breakers. One that is spread over several tokens
    breaks nothing."""
    if not s.dry_multiplier or not s.dry_sequence_breakers or tokenizer is None:
        return frozenset()
    breakers = [text.encode() for text in s.dry_sequence_breakers]
    tokens = ((i, tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
    return frozenset(i for i, piece in tokens if any(b in piece for b in breakers))
