"""The rows that go through a model together: one or more new tokens of one or more sequences.

This is the `batch` of a model's `decode` (docs/design.md): it knows whose each row is, so that the
model need not. All its numbers lie in int32 arrays that stay where they are, so a recorded decode
can be replayed for other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tenarai.infer.kv_cache import KVCache

Array = np.ndarray


class Batch:
    """`parts`: (slot of the cache, number of new tokens), rows in this order.

    slots, positions (N,) int32: each row's sequence and its place there. outputs (n,): the rows
    whose logits are wanted, by default the last of each part.
    """

    def __init__(
        self,
        cache: KVCache,
        parts: Sequence[tuple[int, int]],
        outputs: Sequence[int] | None = None,
    ):
        N = sum(n for _, n in parts)
        self.cache = cache
        self.slots, self.positions = np.zeros(N, np.int32), np.zeros(N, np.int32)
        self.outputs = np.zeros(len(parts) if outputs is None else len(outputs), np.int32)
        self.set(parts, outputs)

    def set(self, parts: Sequence[tuple[int, int]], outputs: Sequence[int] | None = None) -> None:
        """Other rows, as many as before, that follow what the cache holds. Raises ValueError: more
        rows than the cache takes at once, or a sequence past the context."""
        counts = [n for _, n in parts]
        if sum(counts) != len(self.slots) or sum(counts) > self.cache.rows:
            raise ValueError(
                f"{sum(counts)} rows: this batch is of {len(self.slots)}, "
                f"the cache takes {self.cache.rows} at once"
            )
        self.parts = tuple(parts)
        self.outputs[:] = np.cumsum(counts) - 1 if outputs is None else outputs
        self.begin()

    def begin(self) -> None:
        """The next tokens of the same sequences. Raises ValueError past the context."""
        end = 0
        for slot, n in self.parts:
            length = int(self.cache.lengths[slot])
            if length + n > self.cache.context:
                raise ValueError(f"{length + n} tokens exceed a context of {self.cache.context}")
            self.slots[end : end + n] = slot
            self.positions[end : end + n] = np.arange(length, length + n)
            end += n

    def attention(
        self,
        ops: Any,
        i: int,
        q: Array,
        k: Array,
        v: Array,
        sinks: Array | None = None,
        **options: Any,
    ) -> Array:
        """y (N, H, D): rows of q (N, H, D) attend to their own sequences in layer i, to which
        k and v (N, K, D) are added first. sinks and options: those of ops.cache_attention."""
        store = self.cache.layers[i]
        at = (store, self.slots, self.positions)
        return ops.cache_attention(q, k, v, *at, sinks, **options)

    def wanted(self, ops: Any, x: Array) -> Array:
        """The rows (n, C) of x (N, C) whose logits are wanted."""
        if len(self.outputs) == len(x):
            return x
        return ops.embedding_forward(self.outputs, x)[0]

    def finish(self) -> None:
        """The rows are read: the cache counts them."""
        for slot, n in self.parts:
            self.cache.advance(slot, n)
