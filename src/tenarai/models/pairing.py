"""Rows of q and k for one pairing of RoPE, put in the order for the other.

Within a head of D channels, RoPE's pair i is channels i and i + D/2 ("half", Hugging Face's files)
or 2i and 2i + 1 ("adjacent", GGUF files of arch llama). Attention sums over a head's channels, so
their order is free as long as q and k share it: the two are the same model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tenarai.quant import QuantTensor

Array = np.ndarray


def in_pairing(w: Any, heads: int, have: str, want: str) -> Any:
    """The rows of `heads` heads, which lie for pairing `have`, in the order for `want`. With no
    heads, or where the two are the same, w itself."""
    if not heads or have == want:
        return w
    turn = to_adjacent if want == "adjacent" else to_half
    if isinstance(w, QuantTensor):  # whole rows move, whatever their format
        return QuantTensor(w.format, w.shape, turn(w.data, heads))
    return turn(w, heads)


def to_adjacent(w: Array, heads: int) -> Array:
    """Rows of `heads` heads, from halves to neighbours. w (heads · D, ...)."""
    return _swapped(w, heads, (2, -1))


def to_half(w: Array, heads: int) -> Array:
    """Rows of `heads` heads, from neighbours to halves. w (heads · D, ...)."""
    return _swapped(w, heads, (-1, 2))


def _swapped(w: Array, heads: int, inner: tuple[int, int]) -> Array:
    by_pair = w.reshape(heads, *inner, *w.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(by_pair).reshape(w.shape)
