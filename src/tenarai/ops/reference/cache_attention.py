"""Attention of single new tokens, each over the kept keys and values of its own sequence.

Row n of q (N, H, D) belongs to slots[n] of keys and values (slots, K, capacity, D). Its k and v
(N, K, D) are written to places[n]; then it sees what lies from firsts[n] to places[n]:

    keys[slots[n], :, places[n]] = k[n]
    y[n] = attention(q[n], keys[slots[n], :, firsts[n] .. places[n]], values likewise)

Forward only: a model that writes does not learn. Rows are taken in their order.
"""

from __future__ import annotations

from .attention import attention_forward
from .common import Array


def cache_attention(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    slots: Array,
    places: Array,
    firsts: Array,
    *,
    scale: float | None = None,
    out: Array | None = None,
) -> Array:
    """y (N, H, D); keys and values are added to. slots, places, firsts (N,) int32."""
    y = q.copy() if out is None else out
    for n, (slot, place, first) in enumerate(zip(slots, places, firsts, strict=True)):
        keys[slot, :, place], values[slot, :, place] = k[n], v[n]
        seen = slice(first, place + 1)
        past = (a[slot, :, seen].swapaxes(0, 1)[None] for a in (keys, values))  # (1, S, K, D)
        y[n] = attention_forward(q[n][None, None], *past, scale=scale)[0][0, 0]
    return y
