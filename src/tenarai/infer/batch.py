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
        starts = [int(cache.lengths[slot]) for slot, _ in self.parts]
        places = [
            np.arange(s, s + n, dtype=np.int32)
            for s, (_, n) in zip(starts, self.parts, strict=True)
        ]
        self.positions = np.concatenate(places)
        ends = np.cumsum([n for _, n in self.parts])
        self._rows = [slice(e - n, e) for e, (_, n) in zip(ends, self.parts, strict=True)]
        self.outputs = np.asarray(ends - 1 if outputs is None else outputs, np.int32)

    def attention(
        self, ops: Any, i: int, q: Array, k: Array, v: Array, *, scale: float | None = None
    ) -> Array:
        """y (N, H, D): rows of q (N, H, D) attend to their own sequences in layer i, to which
        k and v (N, K, D) are added first."""
        y = ops.empty_like(q)
        for (slot, _), rows in zip(self.parts, self._rows, strict=True):
            keys, values = self.cache.append(i, slot, k[rows], v[rows])
            window = self.cache.layers[i].window
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
