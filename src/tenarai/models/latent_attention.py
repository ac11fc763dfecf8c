"""Multi-head latent attention (DeepSeek V2 and V3): forward, backward, and decoding from latents.

    q_h       = [q_h^C ; rope(q_h^R)]          (q^C, q^R) = W_q x, or W_qb norm(W_qa x)
    c         = norm(W_kva x)                  the latent: R numbers a token, for all heads
    (k_h^C, v_h) = W_kvb,h c                   keys and values of each head, made of the latent
    k_h       = [k_h^C ; rope(k^R)]            k^R = W_kr x: Dr numbers a token, for all heads
    y         = W_o [softmax(scale q_h k_hᵀ) v_h for all h]

Low-rank keys and values make the cache small: c and rope(k^R), R + Dr numbers a token, whatever
the number of heads. RoPE stands apart from them (decoupled): turned keys W_k,h c would have to be
made for each position anew.

Backward: each op's own, upside down. Three places are not an op. k^R is used by all heads, so dk^R
is the sum of theirs. c is used by keys and values, but by one product. x is used by the three
products that begin: dx is the sum.

Decoding, absorbed. A score is q_h^C · (W_k,h c) = (W_k,hᵀ q_h^C) · c, and an output W_v,h (Σ p c).
So with q'_h = [W_k,hᵀ q_h^C ; rope(q_h^R)] each head attends to the same keys [c ; rope(k^R)] and
values c: multi-query attention to what is kept, one key a token, and W_k, W_v are applied to the
new token alone. A past token costs H·(2R + Dr) products in place of H·(Dn + Dr + Dv), and its
bytes are read once for all heads. Keys and values are one array: what is read of a value's last Dr
numbers is thrown away.

Attention ops want values as wide as keys: values are filled up with zeros (or keys, where values
are wider), and outputs cut. Source: DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1 and appendix C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .table import Fused, Param

Array = np.ndarray
Weights = Any  # arrays by the names of the table
HF = "self_attn."


@dataclass
class LatentCache:
    """Latents and turned keys of past tokens, `width` = R + Dr numbers each, for cache_attention.

    keys (slots, 1, capacity, width) are the values too.
    """

    keys: Array
    window: None = None
    key_scales: None = None
    value_scales: None = None

    @property
    def values(self) -> Array:
        return self.keys


@dataclass(frozen=True)
class LatentAttention:
    """The layer's shape: it holds no weights. q_rank None: queries straight from x.

    nope, rope, value: numbers of a head's key without position (Dn), with (Dr), and value (Dv).
    scale: 1/√(Dn + Dr) by default.
    """

    width: int  # C
    heads: int  # H
    q_rank: int | None
    kv_rank: int  # R
    nope: int
    rope: int
    value: int
    eps: float = 1e-6
    scale: float | None = None
    pairing: str = "adjacent"

    def table(self, std: float = 0.02) -> tuple[Param, ...]:
        """Its weights: names, shapes, and Hugging Face's names."""
        C, H, R = self.width, self.heads, self.kv_rank
        rows = H * (self.nope + self.rope)
        kv_a = HF + "kv_a_proj_with_mqa.weight"

        def matrix(name: str, O: int, I: int, hf: str, fused: Fused | None = None) -> Param:
            return Param(name, (O, I), std, decay=True, hf=hf, fused=fused)

        if self.q_rank is None:
            queries: tuple[Param, ...] = (matrix("q.weight", rows, C, HF + "q_proj.weight"),)
        else:
            queries = (
                matrix("q_a.weight", self.q_rank, C, HF + "q_a_proj.weight"),
                Param("q_norm.weight", (self.q_rank,), 0, 1, hf=HF + "q_a_layernorm.weight"),
                matrix("q_b.weight", rows, self.q_rank, HF + "q_b_proj.weight"),
            )
        return (
            *queries,
            matrix("kv_a.weight", R, C, kv_a, Fused(0, R + self.rope)),
            matrix("k_rope.weight", self.rope, C, kv_a, Fused(R, R + self.rope)),
            Param("kv_norm.weight", (R,), 0, 1, hf=HF + "kv_a_layernorm.weight"),
            matrix("kv_b.weight", H * (self.nope + self.value), R, HF + "kv_b_proj.weight"),
            matrix("o.weight", C, H * self.value, HF + "o_proj.weight"),
        )

    # Training

    def forward(self, ops: Any, w: Weights, x: Array, cos: Array, sin: Array) -> tuple[Array, Any]:
        """y (B, T, C) of x (B, T, C), causal. cos, sin (T, Dr/2)."""
        B, T, _ = x.shape
        q, to_q = self._queries_forward(ops, w, x)  # (B, T, H, Dn + Dr)
        c, k_rope, to_c = self._latent_forward(ops, w, x)  # (B, T, R), (B, T, 1, Dr)
        kv, to_kv = ops.linear_forward(c, w["kv_b.weight"])
        kv = kv.reshape(B, T, self.heads, -1)  # (B, T, H, Dn + Dv)
        turned = self._turn(ops, q, k_rope, cos, sin)
        k = self._joined(ops, self._wide, kv[..., : self.nope], k_rope)  # (B, T, H, D)
        v = self._joined(ops, self._wide, kv[..., self.nope :])  # (B, T, H, D)
        q = self._joined(ops, self._wide, q)  # (B, T, H, D)
        y, attention = ops.attention_forward(q, k, v, scale=self._scale)
        heads = self._joined(ops, self.value, y[..., : self.value]).reshape(B, T, -1)
        y, to_y = ops.linear_forward(heads, w["o.weight"])
        return y, (to_q, to_c, to_kv, turned, attention, to_y)

    def backward(self, ops: Any, dy: Array, saved: Any, dw: Weights) -> Array:
        """dx (B, T, C); the weights' gradients are added to `dw`."""
        to_q, to_c, to_kv, turned, attention, to_y = saved
        (B, T, _), Dn, key = dy.shape, self.nope, self.nope + self.rope
        dheads = ops.linear_backward(dy, to_y, dw["o.weight"]).reshape(B, T, self.heads, -1)
        dq, dk, dv = ops.attention_backward(self._joined(ops, self._wide, dheads), attention)
        dq = self._joined(ops, key, dq[..., :key])  # (B, T, H, Dn + Dr)
        dkv = self._joined(ops, Dn + self.value, dk[..., :Dn], dv[..., : self.value])
        dk_rope = dk[..., Dn:key].sum(axis=2, keepdims=True)  # (B, T, 1, Dr): all heads' together
        for d, saved_turn in zip((dq[..., Dn:], dk_rope), turned, strict=True):
            ops.rope_backward(d, saved_turn, out=d)
        dc = ops.linear_backward(dkv.reshape(B, T, -1), to_kv, dw["kv_b.weight"])
        dx = self._latent_backward(ops, dc, dk_rope.reshape(B, T, -1), to_c, dw)
        return self._queries_backward(ops, dq.reshape(B, T, -1), to_q, dw, dx)

    def _queries_forward(self, ops: Any, w: Weights, x: Array) -> tuple[Array, Any]:
        """(..., H, Dn + Dr), not turned yet."""
        if self.q_rank is None:
            q, saved = ops.linear_forward(x, w["q.weight"])
        else:
            a, to_a = ops.linear_forward(x, w["q_a.weight"])
            a, norm = ops.rms_norm_forward(a, w["q_norm.weight"], eps=self.eps)
            q, to_b = ops.linear_forward(a, w["q_b.weight"])
            saved = (to_a, norm, to_b)
        return q.reshape(*x.shape[:-1], self.heads, -1), saved

    def _queries_backward(self, ops: Any, dq: Array, saved: Any, dw: Weights, dx: Array) -> Array:
        """dx and what reaches x by the queries."""
        if self.q_rank is None:
            of_q = ops.linear_backward(dq, saved, dw["q.weight"])
        else:
            to_a, norm, to_b = saved
            da = ops.linear_backward(dq, to_b, dw["q_b.weight"])
            da = ops.rms_norm_backward(da, norm, dw["q_norm.weight"])
            of_q = ops.linear_backward(da, to_a, dw["q_a.weight"])
        return ops.residual_forward(dx, of_q, out=dx)[0]

    def _latent_forward(self, ops: Any, w: Weights, x: Array) -> tuple[Array, Array, Any]:
        """c (..., R) and k^R (..., 1, Dr), not turned yet."""
        c, to_c = ops.linear_forward(x, w["kv_a.weight"])
        c, norm = ops.rms_norm_forward(c, w["kv_norm.weight"], eps=self.eps)
        k_rope, to_k = ops.linear_forward(x, w["k_rope.weight"])
        return c, k_rope.reshape(*x.shape[:-1], 1, -1), (to_c, norm, to_k)

    def _latent_backward(
        self, ops: Any, dc: Array, dk_rope: Array, saved: Any, dw: Weights
    ) -> Array:
        to_c, norm, to_k = saved
        of_k = ops.linear_backward(dk_rope, to_k, dw["k_rope.weight"])
        dc = ops.rms_norm_backward(dc, norm, dw["kv_norm.weight"])
        dx = ops.linear_backward(dc, to_c, dw["kv_a.weight"])
        return ops.residual_forward(dx, of_k, out=dx)[0]

    # Decoding

    def new_cache(self, slots: int, capacity: int, dtype: Any = np.float32) -> LatentCache:
        """Room for `capacity` tokens of `slots` sequences, float32 or float16."""
        return LatentCache(np.zeros((slots, 1, capacity, self.kv_rank + self.rope), dtype))

    def absorbed(self, w: Weights) -> tuple[Array, Array]:
        """W_k,hᵀ (H, R, Dn) and W_v,h (H, Dv, R) of all heads: made once, for `decode`."""
        kv_b = w["kv_b.weight"].reshape(self.heads, self.nope + self.value, self.kv_rank)
        keys = np.ascontiguousarray(kv_b[:, : self.nope].swapaxes(1, 2))
        return keys, np.ascontiguousarray(kv_b[:, self.nope :])

    def decode(
        self,
        ops: Any,
        w: Weights,
        absorbed: tuple[Array, Array],
        x: Array,
        cos: Array,
        sin: Array,
        cache: LatentCache,
        slots: Array,
        positions: Array,
    ) -> Array:
        """y (N, C) of x (N, C): rows of any sequences, kept in `cache` first, at `positions`.

        cos, sin have a row for every position; slots, positions (N,) int32. The same y as
        `forward`, but for rounding.
        """
        w_k, w_v = absorbed
        q, _ = self._queries_forward(ops, w, x)  # (N, H, Dn + Dr)
        c, k_rope, _ = self._latent_forward(ops, w, x)  # (N, R), (N, 1, Dr)
        self._turn(ops, q, k_rope, cos, sin, positions=positions)
        key = self._joined(ops, self.kv_rank + self.rope, c[:, None], k_rope)  # (N, 1, R + Dr)
        into = self._by_head(ops, q[..., : self.nope], w_k)  # (N, H, R)
        q = self._joined(ops, self.kv_rank + self.rope, into, q[..., self.nope :])
        y = ops.cache_attention(q, key, key, cache, slots, positions, scale=self._scale)
        heads = self._by_head(ops, y[..., : self.kv_rank], w_v)  # (N, H, Dv)
        return ops.linear_forward(heads.reshape(len(x), -1), w["o.weight"])[0]

    @staticmethod
    def _by_head(ops: Any, x: Array, w: Array) -> Array:
        """Head h of x (N, H, I) times w[h]ᵀ: (N, H, O) of w (H, O, I)."""
        y = _new(ops, (*x.shape[:2], w.shape[1]), x)
        for h, weight in enumerate(w):
            y[:, h] = ops.linear_forward(np.ascontiguousarray(x[:, h]), weight)[0]
        return y

    # Both

    @property
    def _scale(self) -> float:
        return (self.nope + self.rope) ** -0.5 if self.scale is None else self.scale

    @property
    def _wide(self) -> int:
        """D: how wide the heads are that attention sees."""
        return max(self.nope + self.rope, self.value)

    def _turn(self, ops: Any, q: Array, k_rope: Array, cos: Array, sin: Array, **at: Any) -> Any:
        """Turns q^R and k^R in place."""
        return [
            ops.rope_forward(x, cos, sin, pairing=self.pairing, out=x, **at)[1]
            for x in (q[..., self.nope :], k_rope)
        ]

    @staticmethod
    def _joined(ops: Any, width: int, *parts: Array) -> Array:
        """The parts side by side, one head repeated for all where it stands alone, then zeros."""
        first = parts[0]
        if len(parts) == 1 and first.shape[-1] == width and first.flags.c_contiguous:
            return first
        joined, end = _new(ops, (*first.shape[:-1], width), first), 0
        for part in parts:
            joined[..., end : end + part.shape[-1]] = part
            end += part.shape[-1]
        joined[..., end:] = 0
        return joined


def _new(ops: Any, shape: tuple[int, ...], like: Array) -> Array:
    """An array of the step's, of that shape and `like`'s dtype."""
    return ops.empty_like(np.broadcast_to(like.dtype.type(0), shape))
