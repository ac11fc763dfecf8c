"""RoPE and softmax attention over their kernels: methods of `Fast`.

The reference's names, arguments and order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attention_options import AttentionOptions
from .saved import Saved

Array = np.ndarray

# Queries and keys in sight from which other products than plain ones pay with AMX: what becomes
# digits anew for each tile must meet many.
PAYS_WITH_AMX = 256


class Attention:
    _run: Any
    _new: Any
    empty_like: Any
    products: str
    isa: Any

    def rope_forward(self, x, cos, sin, *, pairing="half", positions=None, out=None):
        y = self._new(*x.shape) if out is None else out
        adjacent = pairing == "adjacent"
        if positions is None:
            self._run("rope", y, x, cos, sin, None, adjacent, False)
        else:  # each row a sequence of its own
            self._run("rope", y[:, None], x[:, None], cos, sin, positions, adjacent, False)
        return y, Saved.of((), (cos, sin, pairing))

    def rope_backward(self, dy, saved, *, out=None):
        cos, sin, pairing = saved
        dx = self._new(*dy.shape) if out is None else out
        self._run("rope", dx, dy, cos, sin, None, pairing == "adjacent", True)
        return dx

    def attention_forward(self, q, k, v, sinks=None, *, options=None, out=None, **named):
        o = AttentionOptions.of(options, named)
        o.check(q, k, sinks)
        B, T, H, D = q.shape
        y = self._new(B, T, H, D) if out is None else out
        lse = self._new(B, H, T)
        saved = Saved.of((q, k, v, y), (lse, sinks, o))
        how = (*_attention(saved), self._attention_products(q, k, o))
        self._run("attention_forward", y, lse, q, k, v, *how)
        return y, saved

    def cache_attention(
        self, q, k, v, store, slots, positions, sinks=None, *, options=None, out=None, **named
    ):
        o = AttentionOptions.of(options, named)
        o.check_cached(q, sinks)
        y = self._new(*q.shape) if out is None else out  # (N, H, D)
        sinks, scale, *_, soft_cap, alibi = _attention((q[None], sinks, o))
        self._run(
            "cache_attention", y, q, k, v, store.keys, store.values, store.key_scales,
            store.value_scales, slots, positions, store.window, sinks, scale, soft_cap, alibi,
        )  # fmt: skip
        return y

    def attention_backward(self, dy, saved, dsinks=None, *, out=None):
        q, k, v, y, lse, sinks, o = saved
        if out is None:
            out = (self.empty_like(q), self.empty_like(k), self.empty_like(k))
        dsinks = None if sinks is None else dsinks
        arrays = (*out, dsinks, dy, q, k, v, y, lse)
        how = (*_attention(saved), self._attention_products(q, k, o))
        self._run("attention_backward", *arrays, *how)
        return out

    def _attention_products(self, q, k, o):
        seen = min(q.shape[1], o.window or k.shape[1])  # with a window T <= S
        return "plain" if self.isa == "amx" and seen < PAYS_WITH_AMX else self.products


def _attention(saved: tuple) -> tuple:
    """The options of attention in the kernels' order."""
    q, *_, sinks, o = saved
    B, _, H, D = q.shape

    def whole(a: Any) -> Array | None:
        return None if a is None else np.ascontiguousarray(a, np.int32)

    prefix = np.broadcast_to(o.prefix, B) if np.any(o.prefix) else None
    alibi = None if o.alibi is None else np.ascontiguousarray(o.alibi, np.float32)
    sinks = np.zeros(H, np.float32) if o.off_by_one else sinks
    masks = (o.causal, o.window, whole(o.documents), whole(o.lengths), whole(prefix))
    return (sinks, o.scale_for(D), *masks, o.soft_cap or 0.0, alibi)
