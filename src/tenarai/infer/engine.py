"""Several texts at once from one model, step by step (continuous batching).

    engine = Engine(ops, model, params, slots=4)
    first, second = engine.submit(ids, 100, sampler), engine.submit(other_ids, 50, other_sampler)
    while engine.step():
        ...                             # first.tokens and second.tokens have grown
    for token in engine.follow(engine.submit(ids, 10)):
        ...                             # one text, its tokens as they come

A step takes one row of every text that is being written (and of what is guessed to follow it), and
fills up with parts of the prompts that wait; texts join and leave between steps. Texts that begin
alike share what was read of them (slots.py).
"""

from __future__ import annotations

import time
from collections import abc, deque
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.infer.batch import Batch
from tenarai.infer.decoder import Decoder, for_writing
from tenarai.infer.kv_cache import KVCache
from tenarai.infer.sequence import Chooses, Guesses, Sequence, kept
from tenarai.infer.slots import Slots
from tenarai.infer.timings import Timings

REPLAYED = 16  # rows; calls of larger steps cost little beside their work


class Engine:
    """At most `slots` texts are written at once, others wait in order.

    context: the longest text, the model's own at most. rows: of a step, and so the part of a
    prompt that is read at once. dtype: of the cache. The same requests in the same order give the
    same tokens for the same thread count. Not for two Python threads at once, but for `cancel`.
    """

    def __init__(
        self,
        ops: Any,
        model: Any,
        params: Any,
        *,
        slots: int = 1,
        context: int | None = None,
        rows: int = 512,
        dtype: str = "float16",
    ):
        self.ops, self.model, self.params = ops, model, params
        self._writing = for_writing(ops)  # ops of the rows being written
        self.context = min(context or model.config.context, model.config.context)
        self.rows = max(slots, min(rows, slots * self.context))
        layers = model.cache_layers()
        self.cache = KVCache(layers, slots, self.context, self.rows, dtype)
        self.slots = Slots(self.cache)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._decoders: dict[int, Decoder] = {}  # by their number of rows

    def submit(
        self,
        prompt: abc.Sequence[int],
        max_tokens: int,
        sampler: Chooses | None = None,
        stop: abc.Collection[int] = (),
        *,
        shift: bool = False,
        keep: int = 0,
        guesser: Guesses | None = None,
        guesses: int = 4,
        timings: Timings | None = None,
    ) -> Sequence:
        """Asks for at most `max_tokens` after `prompt`. Without a sampler, the most probable ones.

        Where prompt and text outgrow the context, the text ends ("context"), or with `shift` its
        first `keep` tokens and the newer half of the rest stay and are read again. Raises
        TenaraiError: an empty prompt, an id outside the vocabulary, a prompt longer than the
        context where nothing may shift.
        """
        ids = checked(prompt, self.model.config.vocab_size)
        if len(ids) > self.context:
            if not shift:
                raise TenaraiError(
                    f"the prompt has {len(ids)} tokens, the context holds {self.context}: "
                    "shorten it, or ask for a longer context or for one that shifts"
                )
            ids = kept(ids, self.context, keep)
        sequence = Sequence(
            ids, max_tokens, sampler or Greedy(), frozenset(stop), keep, shift, guesser, guesses,
            timings or Timings(),
        )  # fmt: skip
        if max_tokens < 1:
            sequence.finish("length")
        else:
            self.waiting.append(sequence)
        return sequence

    def follow(self, sequence: Sequence) -> abc.Iterator[int]:
        """Its tokens as they come; the others go on too. Leaving the loop cancels it. Raises its
        error where it ends with one."""
        given = 0
        try:
            while True:
                while given < len(sequence.tokens):
                    given += 1
                    yield sequence.tokens[given - 1]
                if sequence.finished or not self.step():
                    break
        finally:
            if not sequence.finished:
                sequence.cancel()
                self._leave()
        yield from sequence.tokens[given:]
        if sequence.error is not None:
            raise sequence.error

    def step(self) -> bool:
        """One pass through the model. False where there is nothing left to do."""
        self._leave()
        self._join()
        plan = self._plan()
        if plan:
            if self._writing is self.ops:
                self._run(self.ops, plan)
            else:  # whatever else the step has, a row is computed as rows of its kind are
                self._run(self._writing, [p for p in plan if not _is_read(*p)])
                self._run(self.ops, [p for p in plan if _is_read(*p)])
            self._leave()
        return bool(self.running or self.waiting)

    def forget(self) -> None:
        """What finished texts left in the cache is not used again: for weights that changed."""
        self.slots.forget()

    # What a step is made of

    def _leave(self) -> None:
        """Finished and cancelled texts give up their slots."""
        for sequence in [*self.running, *self.waiting]:
            if sequence.cancelled:
                sequence.finish("cancelled")
        self.waiting = deque(s for s in self.waiting if not s.finished)
        for sequence in [s for s in self.running if s.finished]:
            self.running.remove(sequence)
            assert sequence.slot is not None
            self.slots.release(sequence.slot)
            sequence.slot = None

    def _join(self) -> None:
        while self.waiting and self.slots.free:
            sequence = self.waiting.popleft()
            sequence.slot = self.slots.take(sequence.ids)
            self.running.append(sequence)

    def _plan(self) -> list[tuple[Sequence, list[int], list[int]]]:
        """Whose tokens go through the model: (text, tokens not yet read, guesses after them).
        Those being written come first, each with a row of its own before anybody's guesses."""
        for sequence in self.running:
            self._make_room(sequence)
        going = [s for s in self.running if not s.finished]
        pending = {s: s.ids[int(self.cache.lengths[s.slot]) :] for s in going}
        going.sort(key=lambda s: len(pending[s]) > 1)  # stable
        room = self.rows - sum(len(pending[s]) == 1 for s in going)
        plan = []
        for sequence in going:
            fresh, guesses = pending[sequence], []
            if len(fresh) == 1:
                left = self.context - int(self.cache.lengths[sequence.slot]) - 1
                guesses = sequence.next_guesses(min(room, left))
                room -= len(guesses)
            else:
                fresh = fresh[:room]
                room -= len(fresh)
            if fresh:
                plan.append((sequence, fresh, guesses))
        return plan

    def _make_room(self, sequence: Sequence) -> None:
        """For the next token of a text whose context is full: the end, or a shift."""
        if len(sequence.ids) <= self.context:
            return
        if not sequence.shift:
            sequence.finish("context")
            return
        assert sequence.slot is not None
        sequence.ids = kept(sequence.ids, max(1, self.context // 2), sequence.keep)
        self.slots.replace(sequence.slot, sequence.ids)

    def _run(self, ops: Any, plan: list[tuple[Sequence, list[int], list[int]]]) -> None:
        if not plan:
            return
        start = time.perf_counter()
        parts, wants = [], []
        tokens: list[int] = []
        outputs: list[int] = []
        for sequence, fresh, guesses in plan:
            assert sequence.slot is not None
            first = len(tokens) + len(fresh) - 1  # the row whose logits choose the next token
            parts.append((sequence.slot, len(fresh) + len(guesses)))
            tokens += fresh + guesses
            done = int(self.cache.lengths[sequence.slot]) + len(fresh) == len(sequence.ids)
            wants.append(slice(len(outputs), len(outputs) + done * (1 + len(guesses))))
            outputs += range(first, len(tokens)) if done else []
        logits = self._decode(ops, tokens, parts, outputs)  # (n, V)
        each = (time.perf_counter() - start) / len(tokens)
        for (sequence, fresh, guesses), rows in zip(plan, wants, strict=True):
            prompt = len(fresh) if _is_read(sequence, fresh, guesses) else 0
            _count(sequence.timings, prompt, each * (len(fresh) + len(guesses)))
            if rows.start < rows.stop:
                self._choose(sequence, logits[rows], guesses, first=bool(prompt))

    def _decode(
        self, ops: Any, tokens: list[int], parts: list[tuple[int, int]], outputs: list[int]
    ) -> np.ndarray:
        N = len(tokens)
        if ops is self._writing and N == len(outputs) <= REPLAYED:
            if N not in self._decoders:
                how = (ops, self.model, self.params, self.cache)
                self._decoders[N] = Decoder(*how, [0] * N)
            return self._decoders[N](tokens, parts)
        batch = Batch(self.cache, parts, outputs or [N - 1])  # a row, though nobody asks for it
        ids = np.asarray(tokens, np.int32)
        logits = self.model.decode(ops, self.params, ids, batch)
        batch.finish()
        return logits

    def _choose(
        self, sequence: Sequence, logits: np.ndarray, guesses: list[int], first: bool
    ) -> None:
        """Takes tokens from logits (1 + len(guesses), V), and what was guessed wrong out of the
        cache."""
        start = time.perf_counter()
        try:
            taken = sequence.choose(logits, guesses)
        except TenaraiError as error:
            sequence.finish("error", error)
            taken = 1
        timings = sequence.timings
        timings.sample_s += time.perf_counter() - start
        timings.samples += taken
        timings.evaluations += taken - first
        timings.guessed += len(guesses)
        timings.accepted += taken - 1
        wrong = len(guesses) - (taken - 1)
        if wrong:
            assert sequence.slot is not None
            self.cache.cut(sequence.slot, int(self.cache.lengths[sequence.slot]) - wrong)


class Greedy:
    """The most probable token."""

    def sample(self, logits: np.ndarray) -> int:
        return int(logits.argmax())

    def accept(self, token: int) -> None:
        pass


def _is_read(sequence: Sequence, fresh: list[int], guesses: list[int]) -> bool:
    """Are these tokens a prompt's, or of a text that is read again, and not being written?"""
    return len(fresh) > 1 or not sequence.tokens


def _count(timings: Timings, prompt: int, seconds: float) -> None:
    """A text's share of a step, by its rows."""
    if prompt:
        timings.prompt_tokens += prompt
        timings.prompt_s += seconds
    else:
        timings.evaluation_s += seconds


def checked(prompt: abc.Sequence[int], vocab_size: int) -> list[int]:
    """The prompt's ids. Raises TenaraiError: none, or outside the vocabulary."""
    ids = [int(i) for i in prompt]
    if not ids:
        raise TenaraiError("the prompt is empty: give at least one token")
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        raise TenaraiError(
            f"the prompt holds token {wrong[0]}, the vocabulary ends at {vocab_size - 1}: "
            "is the tokenizer from another model?"
        )
    return ids
