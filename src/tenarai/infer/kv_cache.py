"""Keys and values of the tokens so far, so that a new token attends to them without computing
them again. Which rows of a batch belong to which sequence is left to batch.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tenarai.models.cache_layer import CacheLayer

Array = np.ndarray


class KVCache:
    """Room for `slots` sequences of up to `context` tokens, of which at most `rows` come at once.

    A layer's keys and values lie as (slots, K, capacity, D), so that a head's rows are side by
    side. A layer with a window W keeps 2W + rows of them: when they are full, the last W - 1 move
    to the front, which costs a row less than one copy of itself. Memory is taken when it is
    written, not before.
    """

    def __init__(
        self,
        layers: Sequence[CacheLayer],
        slots: int,
        context: int,
        rows: int = 512,
        dtype: np.dtype | type = np.float32,
    ):
        self.layers = tuple(layers)
        self.context, self.rows = context, rows
        self.lengths = np.zeros(slots, np.int32)  # tokens of each sequence so far
        self.windows = tuple(dict.fromkeys(c.window for c in self.layers))
        self.kinds = [self.windows.index(c.window) for c in self.layers]  # of each layer
        self.held = np.zeros((len(self.windows), slots), np.int32)  # rows of it that are kept
        shapes = [(slots, c.heads, self._capacity(c.window), c.head_size) for c in self.layers]
        self.keys = [np.zeros(shape, dtype) for shape in shapes]
        self.values = [np.zeros(shape, dtype) for shape in shapes]

    def _capacity(self, window: int | None) -> int:
        if window is None:
            return self.context
        return min(self.context, 2 * window + self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes when every sequence is as long as it may be."""
        return sum(a.nbytes for a in self.keys + self.values)

    def make_room(self, slot: int, T: int) -> None:
        """Before T tokens are appended to a sequence, in every layer. Raises ValueError past the
        context, or for more rows at once than the cache was made for."""
        if self.rows < T:
            raise ValueError(f"{T} rows at once, the cache was made for {self.rows}")
        if self.lengths[slot] + T > self.context:
            raise ValueError(f"{self.lengths[slot] + T} tokens exceed a context of {self.context}")
        for kind, window in enumerate(self.windows):
            held = int(self.held[kind, slot])
            if window is None or held + T <= self._capacity(window):
                continue
            keep = min(held, window - 1)
            for i, other in enumerate(self.kinds):
                if other == kind:
                    for array in (self.keys[i][slot], self.values[i][slot]):
                        array[:, :keep] = array[:, held - keep : held].copy()
            self.held[kind, slot] = keep

    def append(self, i: int, slot: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Adds k and v (T, K, D) to layer i of a sequence and returns, as views (1, S, K, D), the
        keys and values that the newest T tokens may see."""
        window, held = self.layers[i].window, int(self.held[self.kinds[i], slot])
        keys, values = self.keys[i][slot], self.values[i][slot]  # (K, capacity, D)
        end = held + len(k)
        keys[:, held:end] = k.swapaxes(0, 1)
        values[:, held:end] = v.swapaxes(0, 1)
        start = 0 if window is None else max(0, end - (window - 1 + len(k)))
        return keys[None, :, start:end].swapaxes(1, 2), values[None, :, start:end].swapaxes(1, 2)

    def advance(self, slot: int, T: int) -> None:
        """Counts T tokens as held, once every layer has appended them."""
        self.lengths[slot] += T
        self.held[:, slot] += T

    def clear(self, slot: int) -> None:
        """Forgets a sequence."""
        self.lengths[slot] = 0
        self.held[:, slot] = 0
