"""Keys and values of the tokens so far, so that a new token attends to them without computing
them again. Which rows of a batch belong to which sequence is left to batch.py, how rows are written
and read to ops.cache_attention."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.models.cache_layer import CacheLayer

Array = np.ndarray
DTYPES = ("float16", "float32", "int8")


@dataclass(frozen=True)
class LayerStore:
    """What is kept of one layer. keys, values (slots, K, capacity, D), so that a head's rows are
    side by side; scales (slots, K, capacity) where they are int8. Position s lies at row
    s % capacity."""

    keys: Array
    values: Array
    key_scales: Array | None
    value_scales: Array | None
    window: int | None

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def arrays(self) -> tuple[Array, ...]:
        both = (self.keys, self.values, self.key_scales, self.value_scales)
        return tuple(a for a in both if a is not None)


class KVCache:
    """Room for `slots` sequences of up to `context` tokens, of which at most `rows` come at once.

    dtype "float16", "int8" (a scale a row and head; half the memory) or "float32". A layer with a
    window keeps W + rows tokens, the others all. Memory is taken when it is first written: see
    `cache_bytes` before.
    """

    def __init__(
        self,
        layers: Sequence[CacheLayer],
        slots: int,
        context: int,
        rows: int = 512,
        dtype: str = "float16",
    ):
        if dtype not in DTYPES:
            raise TenaraiError(f"the cache's dtype is {dtype!r}, expected one of {DTYPES}")
        self.context, self.rows, self.dtype = context, rows, dtype
        self.layers = tuple(_store(layer, slots, context, rows, dtype) for layer in layers)
        self.lengths = np.zeros(slots, np.int32)  # tokens of each sequence so far
        self._written = np.zeros(slots, np.int64)  # as long as it was since it was last cleared

    @property
    def nbytes(self) -> int:
        """Bytes when every sequence is as long as it may be."""
        return sum(array.nbytes for layer in self.layers for array in layer.arrays())

    def advance(self, slot: int, T: int) -> None:
        """Counts T tokens as held, once every layer has them."""
        self.lengths[slot] += T
        self._written[slot] = max(self._written[slot], self.lengths[slot])

    def clear(self, slot: int) -> None:
        """Forgets a sequence."""
        self.lengths[slot] = self._written[slot] = 0

    def cut(self, slot: int, length: int) -> int:
        """Forgets a sequence but for its first `length` tokens, or all of it where a window has
        lost what the next token must see. Returns how many are left."""
        if length > self.lengths[slot]:
            raise ValueError(f"sequence {slot} has {self.lengths[slot]} tokens, not {length}")
        for layer in self.layers:
            lost = self._written[slot] - layer.capacity  # tokens whose rows were used again
            if layer.window is not None and max(0, length - layer.window + 1) < lost:
                length = 0
        if length == 0:
            self.clear(slot)
        self.lengths[slot] = length
        return length

    def copy(self, source: int, to: int) -> None:
        """Makes sequence `to` the same as `source`."""
        end = int(self._written[source])
        for layer in self.layers:
            for array in layer.arrays():
                array[to, :, :end] = array[source, :, :end]
        self.lengths[to] = self.lengths[source]
        self._written[to] = end


def cache_bytes(
    layers: Sequence[CacheLayer], slots: int, context: int, rows: int = 512, dtype: str = "float16"
) -> int:
    """What a KVCache of these arguments takes when every sequence is as long as it may be."""
    item = np.dtype(dtype).itemsize
    sizes = [
        _capacity(layer, context, rows)
        * layer.heads
        * (layer.head_size * item + (4 if dtype == "int8" else 0))
        for layer in layers
    ]
    return 2 * slots * sum(sizes)


def _capacity(layer: CacheLayer, context: int, rows: int) -> int:
    """A window's oldest row must outlive the newest `rows`, which are written before they look."""
    return context if layer.window is None else min(context, layer.window + rows)


def _store(layer: CacheLayer, slots: int, context: int, rows: int, dtype: str) -> LayerStore:
    shape = (slots, layer.heads, _capacity(layer, context, rows), layer.head_size)
    keys, values = _zeros(shape, dtype), _zeros(shape, dtype)
    if dtype != "int8":
        return LayerStore(keys, values, None, None, layer.window)
    scales = [_zeros(shape[:3], "float32") for _ in range(2)]
    return LayerStore(keys, values, scales[0], scales[1], layer.window)


def _zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """np.zeros in small pages. A few tokens write a few rows of each head; in the huge pages that
    NumPy asks for they would take a cache's whole memory, and its time to be cleared. Raises
    MemoryError."""
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows has neither
            return np.zeros(shape, dtype)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError, MemoryError) as error:
        raise MemoryError(f"{size:,} bytes of keys or values") from error
    with contextlib.suppress(AttributeError, OSError):  # not on every system
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)
