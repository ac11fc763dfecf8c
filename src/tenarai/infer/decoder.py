"""A few rows through a model again and again: the inner loop of writing.

The kernel calls of the first step are recorded and made again without Python for every later one,
where the ops can do that: whose the rows are and where they stand lies in arrays that are read
anew. Only their number is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tenarai.infer.batch import Batch
from tenarai.infer.kv_cache import KVCache
from tenarai.ops.replay import Program

Array = np.ndarray


def for_writing(ops: Any) -> Any:
    """The ops that tokens being written go through, where they differ from those of prompts."""
    return ops.for_writing() if hasattr(ops, "for_writing") else ops


class Decoder:
    """`decoder(tokens)`: logits (N, V) after one more token of each of the sequences in `slots`;
    `decoder(tokens, parts)`: after each of as many rows, (slot, number of new tokens) a part.

    The array is the same one at every step: take from it what is wanted before the next.
    """

    def __init__(self, ops: Any, model: Any, params: Any, cache: KVCache, slots: Sequence[int]):
        self._ops, self._model, self._params = for_writing(ops), model, params
        self._cache, self._parts = cache, [(slot, 1) for slot in slots]
        self._tokens = np.zeros(len(slots), np.int32)
        self._batch: Batch | None = None
        self._program: Program | None = None
        self._logits: Array | None = None

    def __call__(
        self, tokens: Sequence[int], parts: Sequence[tuple[int, int]] | None = None
    ) -> Array:
        """Raises ValueError past the context."""
        self._tokens[:] = tokens
        rows, parts = range(len(self._tokens)), parts or self._parts
        if self._batch is None:
            self._batch = Batch(self._cache, parts, rows)
        else:
            self._batch.set(parts, rows)
        if self._program is not None:
            self._program.replay()
        elif hasattr(self._ops, "machine") and getattr(self._model, "recordable", True):
            self._program = Program(self._ops)
            self._logits = self._program.record(self._decode)
        else:
            self._logits = self._decode()
        self._batch.finish()
        assert self._logits is not None
        return self._logits

    def _decode(self) -> Array:
        return self._model.decode(self._ops, self._params, self._tokens, self._batch)
