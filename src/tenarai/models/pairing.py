"""Rows of q and k for one pairing of RoPE, put in the order for the other.

Within a head of D channels, RoPE's pair i is channels i and i + D/2 ("half", Hugging Face's files)
or 2i and 2i + 1 ("adjacent", GGUF files of arch llama). Attention sums over a head's channels, so
their order is free as long as q and k share it: the two are the same model.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def to_adjacent(w: Array, heads: int) -> Array:
    """Rows of `heads` heads, from halves to neighbours. w (heads · D, ...)."""
    return _swapped(w, heads, (2, -1))


def to_half(w: Array, heads: int) -> Array:
    """Rows of `heads` heads, from neighbours to halves. w (heads · D, ...)."""
    return _swapped(w, heads, (-1, 2))


def _swapped(w: Array, heads: int, inner: tuple[int, int]) -> Array:
    by_pair = w.reshape(heads, *inner, *w.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(by_pair).reshape(w.shape)
