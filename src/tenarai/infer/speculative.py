"""Guesses how a text goes on, which the engine checks in one step instead of writing token by
token. The text is the same as without: a guess counts only where the sampler draws it from the
model's own logits (Leviathan et al., "Fast inference from Transformers via speculative decoding",
2023, with draws that do not depend on who guesses).

Logits of several rows at once are those of single rows but for rounding; only where two tokens are
as probable to the last bits of a float could a text differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.infer.batch import Batch
from tenarai.infer.decoder import Decoder
from tenarai.infer.kv_cache import KVCache
from tenarai.infer.sequence import common


class PromptLookup:
    """What followed the last `longest` tokens (or fewer, down to `shortest`) where they stood in
    the text before: summaries, code and answers about a text repeat it (Saxena, "Prompt lookup
    decoding", 2023). One object a text."""

    def __init__(self, longest: int = 3, shortest: int = 2):
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens")
        self._sizes = range(longest, shortest - 1, -1)
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → where it last ended

    def guess(self, ids: Sequence[int], n: int) -> list[int]:
        if list(ids[: len(self._ids)]) != self._ids:  # the context shifted
            self._ids, self._ends = [], {}
        for end in range(len(self._ids), len(ids)):  # n-grams that end before the newest token
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(ids[end - size : end])] = end
        self._ids = list(ids)
        for size in self._sizes:
            found = self._ends.get(tuple(ids[len(ids) - size :]))
            if found is not None:
                return list(ids[found : found + n])
        return []


class DraftModel:
    """What a smaller model of the same vocabulary thinks most probable. One object a text."""

    def __init__(
        self, ops: Any, model: Any, params: Any, vocab_size: int, context: int | None = None
    ):
        """`vocab_size` and `context` are those of the model that checks. Raises TenaraiError where
        the vocabularies differ in size."""
        if model.config.vocab_size != vocab_size:
            raise TenaraiError(
                f"the draft model has {model.config.vocab_size} tokens, the model {vocab_size}: "
                "take one with the same tokenizer"
            )
        self._ops, self._model, self._params = ops, model, params
        longest = min(context or model.config.context, model.config.context)
        self._cache = KVCache(model.cache_layers(), 1, longest, min(512, longest))
        self._decoder = Decoder(ops, model, params, self._cache, [0])
        self._ids: list[int] = []  # what the cache holds

    def guess(self, ids: Sequence[int], n: int) -> list[int]:
        n = min(n, self._cache.context - len(ids))
        if n < 1:
            return []
        known = self._cache.cut(0, common(self._ids, ids[:-1]))
        token = int(self._read(list(ids[known:])).argmax())
        guesses = [token]
        while len(guesses) < n:
            token = int(self._decoder([token])[0].argmax())
            guesses.append(token)
        self._ids = [*ids, *guesses[:-1]]
        return guesses

    def _read(self, tokens: list[int]) -> np.ndarray:
        """Logits (V,) after `tokens`."""
        if len(tokens) == 1:
            return self._decoder(tokens)[0]
        for start in range(0, len(tokens), self._cache.rows):
            part = tokens[start : start + self._cache.rows]
            batch = Batch(self._cache, [(0, len(part))])
            ids = np.asarray(part, np.int32)
            logits = self._model.decode(self._ops, self._params, ids, batch)
            batch.finish()
        return logits[0]
