"""How probable a model holds given continuations: the sums that evaluations compare.

    log p(continuation | context) = Σ_i ln p(x_i | everything before x_i),   i over its tokens

Texts become tokens as lm-evaluation-harness has it: spaces that end a context go to the front of
the continuation; context and continuation are encoded in one, and what is longer than the context
alone is the continuation. An empty context is the token that begins a text (or ends one). What is
longer than the model's context loses its beginning.

Sequences that begin alike are read once up to where they part (a question and its choices), and
the rest of several go through the model together, in the rows of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.infer.batch import Batch
from tenarai.infer.kv_cache import KVCache
from tenarai.infer.perplexity import log_softmax
from tenarai.infer.sequence import common
from tenarai.tokenizers import Tokenizer

Array = np.ndarray
ROWS, SLOTS = 512, 16
LOGITS = 1 << 26  # numbers in the logits of one batch


@dataclass(frozen=True)
class Request:
    """Ids that are given and ids that are scored after them."""

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class Score:
    """log p of a continuation, whether it is what greedy decoding would write, its tokens."""

    log_likelihood: float
    greedy: bool
    tokens: int


def prefix_token(tokenizer: Tokenizer) -> int:
    """What stands for an empty context. Raises TenaraiError where there is no such token."""
    found = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
    if found is None:
        raise TenaraiError(
            "this model's tokenizer has no token that begins or ends a text, so nothing can stand "
            "before the first word: give every question a context"
        )
    return found


def request_of(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Both texts as ids. Raises TenaraiError: nothing to score."""
    if not continuation:
        raise TenaraiError("a continuation is empty, so there is nothing to score")
    if not context:
        ids, first = tokenizer.encode(continuation), prefix_token(tokenizer)
        return Request([first], ids[1:] if ids[:1] == [first] else ids)
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    whole = tokenizer.with_bos(tokenizer.encode(context + continuation))
    given = tokenizer.with_bos(tokenizer.encode(context))
    return Request(given, whole[len(given) :])


def rolling(ids: Sequence[int], prefix: int, context: int) -> Iterator[Request]:
    """A whole text in parts of at most `context` tokens, each token scored once: the first part
    after `prefix`, a later one after the token before it, the last one after as many as fit."""
    for start in range(0, len(ids), context):
        part = list(ids[start : start + context])
        begin = max(0, start + len(part) - context)  # more of the past, where the part is short
        before = list(ids[begin - 1 : start]) if start else [prefix]
        yield Request(before, part)


class Scorer:
    """Scores of requests by one model; `context` is the most tokens that it may look back on."""

    def __init__(self, ops: Any, model: Any, params: Any, context: int | None = None):
        self.ops, self.model, self.params = ops, model, params
        self.context = min(context or model.config.context, model.config.context)
        self.rows = max(1, min(ROWS, LOGITS // model.config.vocab_size))
        layers = model.cache_layers()
        self.cache = KVCache(layers, SLOTS, self.context, self.rows, "float32")

    def __call__(
        self,
        groups: Sequence[Sequence[Request]],
        progress: Callable[[int], object] = lambda groups: None,
    ) -> list[list[Score]]:
        """A score for each request; the requests of a group begin alike. `progress` is told the
        groups done."""
        scores: list[list[Score]] = []
        waiting: list[Sequence[Request]] = []
        for group in groups:
            if len(group) > SLOTS:
                parts = [group[i : i + SLOTS] for i in range(0, len(group), SLOTS)]
                scores += self._several(waiting)
                scores.append([s for part in parts for s in self._several([part])[0]])
                waiting = []
            elif waiting and not self._fits([*waiting, group]):
                scores += self._several(waiting)
                waiting = [group]
            else:
                waiting.append(group)
            progress(1)
        return scores + self._several(waiting)

    def _fits(self, groups: Sequence[Sequence[Request]]) -> bool:
        tokens = sum(len(r.context) + len(r.continuation) for g in groups for r in g)
        return sum(map(len, groups)) <= SLOTS and tokens <= self.rows

    def _several(self, groups: Sequence[Sequence[Request]]) -> list[list[Score]]:
        """Groups together: first what the requests of each have in common, then their rests."""
        shared, rests, free = [], [], iter(range(SLOTS))
        for slot in range(SLOTS):
            self.cache.clear(slot)
        copies = []
        for group in groups:
            parts = [self._cut(r) for r in group]
            # all before the first row that is wanted may be shared
            n = min(_shared([ids for ids, _ in parts]), *(len(ids) - m for ids, m in parts))
            slots = [next(free) for _ in parts]
            shared.append((slots[0], parts[0][0][:n], 0))
            copies += [(slots[0], slot) for slot in slots[1:]]
            rests += [(s, ids[n:], m) for s, (ids, m) in zip(slots, parts, strict=True)]
        self._read(shared)
        for source, slot in copies:
            self.cache.copy(source, slot)
        rows = iter(self._read(rests))
        return [[_score(r, next(rows)) for r in group] for group in groups]

    def _cut(self, r: Request) -> tuple[list[int], int]:
        """The ids that go in, and how many of the last rows foretell the continuation."""
        ids = [*r.context, *r.continuation][-(self.context + 1) :][:-1]
        return ids, min(len(r.continuation), len(ids))

    def _read(self, jobs: Sequence[tuple[int, list[int], int]]) -> list[list[Array]]:
        """Each job (slot, ids, m) goes through the model; → log-probabilities of its last m rows,
        as blocks (rows, V)."""
        found: list[list[Array]] = [[] for _ in jobs]
        left = [(i, slot, ids, m) for i, (slot, ids, m) in enumerate(jobs) if ids]
        while left:
            parts: list[tuple[int, int]] = []
            tokens: list[int] = []
            outputs: list[int] = []
            owners: list[int] = []
            rows = 0
            rest = []
            for i, slot, ids, m in left:
                n = min(len(ids), self.rows - rows)
                if n:
                    first = max(0, len(ids) - m)  # of the rows that are wanted
                    outputs += range(rows + min(first, n), rows + n)
                    owners += [i] * max(0, n - first)
                    parts.append((slot, n))
                    tokens += ids[:n]
                    rows += n
                if n < len(ids):
                    rest.append((i, slot, ids[n:], m))
            logits = self._decode(parts, tokens, outputs or [rows - 1])
            for i in dict.fromkeys(owners):
                found[i].append(log_softmax(logits[[o == i for o in owners]]))
            left = rest
        return found

    def _decode(self, parts: list[tuple[int, int]], tokens: list[int], outputs: list[int]) -> Array:
        batch = Batch(self.cache, parts, outputs)
        ids = np.array(tokens, np.int32)
        logits = np.asarray(self.model.decode(self.ops, self.params, ids, batch))
        batch.finish()
        return logits


def _shared(texts: Sequence[list[int]]) -> int:
    return min(common(texts[0], text) for text in texts)


def _score(r: Request, blocks: list[Array]) -> Score:
    if not blocks:  # the continuation adds no token to its context
        return Score(0.0, True, 0)
    rows = np.concatenate(blocks)  # (m, V)
    targets = np.array(r.continuation[-len(rows) :])
    chosen = rows[np.arange(len(rows)), targets]
    greedy = bool((rows.argmax(axis=1) == targets).all())
    return Score(float(chosen.sum(dtype=np.float64)), greedy, len(rows))
