"""Attention of new tokens to a KV cache.

    a_s = scale Σ_d q_d k_sd      p_s = exp(a_s) / Σ_u exp(a_u)      y_d = Σ_s p_s v_sd

or with soft-cap, ALiBi, sinks as in attention.py.

Each of the N rows belongs to a sequence of its own (`slots`) and a place in it (`positions`), sees
the positions s of that sequence with position − window < s ≤ position, and is itself kept first.
Position s lies at row s % capacity: a layer with a window keeps little more than that. Keys and
values are kept as float32, as float16, or as int8 with a scale a row and head,

    scale = max_d |x_d| / 127      kept_d = round(x_d / scale)      x_d ≈ scale kept_d

so a row's numbers are off by at most half a scale. There is no backward: what is kept is not
trained through.
"""

from typing import Any

import numpy as np

from ..attention_options import AttentionOptions
from .common import Array, place


def cache_attention(
    q: Array,
    k: Array,
    v: Array,
    store: Any,
    slots: Array,
    positions: Array,
    sinks: Array | None = None,
    *,
    options: AttentionOptions | None = None,
    out: Array | None = None,
    **named: Any,
) -> Array:
    """y (N, H, D) of q (N, H, D), after k and v (N, K, D) are kept. slots, positions (N,) int32.

    `store` has keys, values (slots, K, capacity, D), key_scales, value_scales (slots, K, capacity)
    or None, and window or None. sinks (H,) and `options`, or their fields by name, are those of
    attention_forward but for masks. Raises ValueError: a row outside the cache.
    """
    o = AttentionOptions.of(options, named)
    o.check_cached(q, sinks)
    heads, capacity = store.keys.shape[1:3]
    H = q.shape[1]
    sinks = np.full(H, 0.0 if o.off_by_one else -np.inf) if sinks is None else sinks
    b = sinks.reshape(heads, H // heads, 1)  # (K, G, 1)
    window = store.window or int(positions.max(initial=0)) + 1
    if len(q) and (positions.max() >= capacity and window + len(q) - 1 > capacity):
        raise ValueError(f"position {positions.max()} is outside the cache of {capacity}")
    _keep(store.keys, store.key_scales, k, slots, positions % capacity)
    _keep(store.values, store.value_scales, v, slots, positions % capacity)
    y = np.empty(q.shape, np.float64)
    for n, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        seen = np.arange(max(0, position - window + 1), position + 1)  # (S,)
        keys = _kept(store.keys, store.key_scales, slot, seen % capacity)  # (K, S, D)
        values = _kept(store.values, store.value_scales, slot, seen % capacity)  # (K, S, D)
        grouped = q[n].reshape(heads, -1, q.shape[-1])  # (K, G, D)
        scores = o.scale_for(q.shape[-1]) * (grouped @ keys.swapaxes(1, 2))  # (K, G, S)
        if o.soft_cap is not None:
            scores = o.soft_cap * np.tanh(scores / o.soft_cap)
        if o.alibi is not None:
            scores = scores - o.alibi.reshape(b.shape) * (position - seen)
        top = np.maximum(scores.max(axis=-1, keepdims=True), b)  # (K, G, 1)
        weights = np.exp(scores - top)  # (K, G, S)
        p = weights / (weights.sum(axis=-1, keepdims=True) + np.exp(b - top))  # (K, G, S)
        y[n] = (p @ values).reshape(q.shape[1:])  # (H, D)
    return place(y.astype(q.dtype), out)


def _keep(kept: Array, scales: Array | None, x: Array, slots: Array, rows: Array) -> None:
    """x (N, K, D) to `rows` of `slots`, rounded to the cache's dtype."""
    if scales is None:
        kept[slots, :, rows] = x
        return
    scale = np.abs(x).max(axis=-1) / np.float32(127)  # (N, K)
    scales[slots, :, rows] = scale
    kept[slots, :, rows] = np.rint(x / np.where(scale > 0, scale, 1)[..., None])


def _kept(kept: Array, scales: Array | None, slot: int, rows: Array) -> Array:
    """Those rows (K, S, D) of a sequence, in float64."""
    x = kept[slot][:, rows].astype(np.float64)
    return x if scales is None else x * scales[slot][:, rows, None]
