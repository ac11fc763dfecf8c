"""One new token of each of several sequences, again and again: the inner loop of writing.

The kernel calls of the first step are recorded and made again without Python for every later one,
where the ops can do that. Joining and leaving is done by making another decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tenarai.infer.batch import Batch
from tenarai.infer.kv_cache import KVCache
from tenarai.ops.replay import Program

Array = np.ndarray


class Decoder:
    """`decoder(tokens)`: logits (n, V) after one more token of each of the sequences in `slots`.

    The array is the same one at every step: take from it what is wanted before the next.
    """

    def __init__(self, ops: Any, model: Any, params: Any, cache: KVCache, slots: Sequence[int]):
        self._ops, self._model, self._params = ops, model, params
        self._cache, self._parts = cache, [(slot, 1) for slot in slots]
        self._tokens = np.zeros(len(slots), np.int32)
        self._batch: Batch | None = None
        self._program: Program | None = None
        self._logits: Array | None = None

    def __call__(self, tokens: Sequence[int]) -> Array:
        """Raises ValueError past the context."""
        self._tokens[:] = tokens
        if self._batch is None:
            self._batch = Batch(self._cache, self._parts)
        else:
            self._batch.begin()
        if self._program is not None:
            self._program.replay()
        elif hasattr(self._ops, "machine"):
            self._program = Program(self._ops)
            with self._program.recording():
                self._decode()
        else:
            self._decode()
        self._batch.finish()
        assert self._logits is not None
        return self._logits

    def _decode(self) -> None:
        self._logits = self._model.decode(self._ops, self._params, self._tokens, self._batch)
