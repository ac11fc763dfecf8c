"""The rows that go through a model together: one or more new tokens of one or more sequences.

This is the `batch` of a model's `decode` (docs/design.md): it knows whose each row is, so that the
model need not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tenarai.infer.kv_cache import KVCache

Array = np.ndarray


class Batch:
    """`parts`: (slot of the cache, number of new tokens), rows in this order.

    positions (N,) int32: each row's place in its sequence. outputs (n,): the rows whose logits are
    wanted, by default the last of each part.
    """

    def __init__(
        self,
        cache: KVCache,
        parts: Sequence[tuple[int, int]],
        outputs: Sequence[int] | None = None,
    ):
        self.cache, self.parts = cache, tuple(parts)
        counts = [n for _, n in self.parts]
        ends = np.cumsum(counts)
        self._rows = [slice(e - n, e) for e, n in zip(ends, counts, strict=True)]
        self.outputs = np.asarray(ends - 1 if outputs is None else outputs, np.int32)
        self.positions = np.empty(sum(counts), np.int32)
        self._singly = all(n == 1 for n in counts)
        self._slots = np.array([slot for slot, _ in self.parts], np.int32)
        shape = (len(cache.windows), len(self.parts))
        self._places, self._firsts = np.empty(shape, np.int32), np.empty(shape, np.int32)
        self.begin()

    def begin(self) -> None:
        """The next tokens of the same parts: all arrays stay where they are."""
        for (slot, n), rows in zip(self.parts, self._rows, strict=True):
            self.cache.make_room(slot, n)
            start = self.cache.lengths[slot]
            self.positions[rows] = np.arange(start, start + n)
        self._places[...] = self.cache.held[:, self._slots]
        for kind, window in enumerate(self.cache.windows):
            first = 0 if window is None else np.maximum(0, self._places[kind] - (window - 1))
            self._firsts[kind] = first

    def attention(
        self, ops: Any, i: int, q: Array, k: Array, v: Array, *, scale: float | None = None
    ) -> Array:
        """y (N, H, D): rows of q (N, H, D) attend to their own sequences in layer i, to which
        k and v (N, K, D) are added first."""
        cache = self.cache
        if self._singly:
            kind = cache.kinds[i]
            places = (self._slots, self._places[kind], self._firsts[kind])
            kept = (cache.keys[i], cache.values[i])
            return ops.cache_attention(q, k, v, *kept, *places, scale=scale)
        y = ops.empty_like(q)
        for (slot, _), rows in zip(self.parts, self._rows, strict=True):
            keys, values = cache.append(i, slot, k[rows], v[rows])
            window = cache.layers[i].window
            ops.attention_forward(
                q[rows][None], keys, values, scale=scale, window=window, out=y[rows][None]
            )
        return y

    def wanted(self, ops: Any, x: Array) -> Array:
        """The rows (n, C) of x (N, C) whose logits are wanted."""
        if len(self.outputs) == len(x):
            return x
        return np.ascontiguousarray(x[self.outputs])

    def finish(self) -> None:
        """The rows are read: the cache counts them."""
        for slot, n in self.parts:
            self.cache.advance(slot, n)
