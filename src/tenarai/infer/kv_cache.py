"""Keys and values of the tokens so far, so that a new token attends to them without
computing them again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


class KVCache:
    """Room for `context` tokens of B sequences that go forward together.

    keys, values: a float32 array (B, context, K, D) a layer.
    """

    def __init__(self, layers: int, batch: int, context: int, heads: int, head_size: int):
        shape = (batch, context, heads, head_size)
        self.keys = [np.zeros(shape, np.float32) for _ in range(layers)]
        self.values = [np.zeros(shape, np.float32) for _ in range(layers)]
        self.context = context
        self.length = 0  # tokens held

    def layer(self, i: int) -> Callable[[Array, Array], tuple[Array, Array]]:
        """Appends k and v (B, T, K, D) to layer i and returns all of its (B, S, K, D)."""

        def append(k: Array, v: Array) -> tuple[Array, Array]:
            start, end = self.length, self.length + k.shape[1]
            if end > self.context:
                raise ValueError(f"{end} tokens do not fit a context of {self.context}")
            self.keys[i][:, start:end] = k
            self.values[i][:, start:end] = v
            return self.keys[i][:, :end], self.values[i][:, :end]

        return append

    def advance(self, T: int) -> None:
        """Counts T tokens as held, once every layer has appended them."""
        self.length += T
