"""Dropout with a counted random stream: the mask is a function of (seed, counter), never stored.

Forward: y_i = x_i / (1 - p) where element i is kept, else 0; kept with probability 1 - p, so
the mean of y is x. Gradient: the same mask and the same factor on dy. Saved: p, seed and
counter, three numbers; the backward draws the mask again, since a hash costs less than
reading a mask from memory.

The random number of (seed, counter + i) is ops/counted_random.py's.
"""

import numpy as np

from ..counted_random import counted_random
from .common import Array, Saved, place


def _mask(shape: tuple[int, ...], p: float, seed: int, counter: int) -> Array:
    threshold = np.uint32(int(p * 2.0**32))
    count = int(np.prod(shape, dtype=np.int64))
    return (counted_random(seed, counter, count) >= threshold).reshape(shape)


def dropout_forward(
    x: Array, p: float, seed: int, counter: int, *, out: Array | None = None
) -> tuple[Array, Saved]:
    """y = x · kept / (1 - p). x (...), 0 <= p < 1; uses the counters [counter, counter + x.size).

    Raises ValueError for another p.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}, it must be at least 0 and less than 1")
    kept = _mask(x.shape, p, seed, counter)  # (...)
    y = np.where(kept, x * float(1 / (1 - p)), 0)  # (...)
    return place(y, out), (p, seed, counter)


def dropout_backward(dy: Array, saved: Saved, *, out: Array | None = None) -> Array:
    """dx = dy · kept / (1 - p). dy, dx (...)."""
    p, seed, counter = saved
    kept = _mask(dy.shape, p, seed, counter)  # (...)
    dx = np.where(kept, dy * float(1 / (1 - p)), 0)  # (...)
    return place(dx, out)
