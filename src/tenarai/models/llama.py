"""The Llama family (Llama, Mistral, Phi-3, Qwen 2 and 3, Gemma 3), forward and backward.

    x = wte[tokens] · embedding_scale
    x = x + o(attention(rope(q(a)), rope(k(a)), v(a))),  a = norm(x)     L times: the attention half
    x = x + down(act(gate(m)) · up(m)),                  m = norm(x)     and the MLP half of a block
    logits = norm(x) · headᵀ, or · wteᵀ where the output is tied

What differs within the family is the config's: biases, norms of q and k for each head (Qwen 3,
Gemma 3), norms of what a half adds to x (Gemma 3), the gate's activation, windows, RoPE. Norms are
RMS norms. Each backward is its forward read upside down. Weights are the unfused ones; how they lie
in files is models/exchange.py's and models/gguf_exchange.py's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tenarai.ops.saved import expand_saved, round_saved

from . import llama_experts
from .cache_layer import CacheLayer
from .llama_config import LlamaConfig
from .llama_table import table_of
from .rope import Rope
from .table import Param

__all__ = ["Llama", "LlamaConfig"]

Array = np.ndarray
Block = dict[str, Array]  # the weights, or the gradients, of one block
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
Turn = Callable[[Array], Any]  # turns (..., H, D) in place and gives what turning back needs


@dataclass
class Llama:
    """The model: a configuration, and what to trade. It holds no weights, only tables of angles.

    With `recompute`, a block keeps only its input and runs forward again in the backward; with
    `saved_bfloat16` what is kept is rounded (ops/saved.py).
    `z_loss` is the weight of (log Z)² in a step of training (ops/reference/cross_entropy.py),
    `balance` that of the mean of the layers' balance losses (ops/reference/experts.py).
    """

    config: LlamaConfig
    recompute: bool = False
    z_loss: float = 0.0
    balance: float = 0.0
    saved_bfloat16: bool = False
    _tables: dict[Rope, tuple[Array, Array]] = field(default_factory=dict, repr=False)

    def table(self) -> tuple[Param, ...]:
        return table_of(self.config)

    # Training

    def forward(
        self,
        ops: Any,
        params: Any,
        tokens: Array,
        targets: Array,
        grads: Any = None,
        dropout: Any = None,
    ) -> tuple[float, Any]:
        """Mean cross-entropy of targets (B, T) after tokens (B, T), and what backward needs.

        With `grads` this is a step of training: activations are kept, and the gradient of the
        output projection is taken at once, because the logits are too large to keep.
        Without, nothing is kept. `dropout` is what GPT-2 takes; nothing is dropped here.
        """
        x, saved, balance = self._hidden_forward(ops, params, tokens, grads is not None)
        dhead = None if grads is None else grads[self._head]
        z = 0.0 if grads is None else self.z_loss
        loss, head = ops.linear_cross_entropy_forward(
            x, params[self._head], targets, dhead, z_loss=z
        )
        return loss + balance, (saved, head)

    def backward(self, ops: Any, params: Any, saved: Any, grads: Any) -> None:
        """Adds the loss's gradients to `grads`. Uses up `saved`."""
        hidden, head = saved
        dx = ops.linear_cross_entropy_backward(head)
        self._hidden_backward(ops, params, dx, hidden, grads)

    @property
    def _head(self) -> str:
        return "wte.weight" if self.config.tied else "head.weight"

    def _hidden_forward(
        self, ops: Any, params: Any, tokens: Array, keep: bool
    ) -> tuple[Array, list, Any]:
        """x (B, T, C) before the output, what backward needs, and the sum of balance losses."""
        x, embedding = self._embed(ops, params, tokens)  # (B, T, C)
        saved: list = [embedding]
        balance: Any = 0.0
        for i in range(self.config.layers):
            before = x
            x, block = self._train_block(ops, params, i, x)
            if keep:
                if self.config.experts:
                    balance = balance + llama_experts.balance_loss(block[-1])
                kept = before if self.recompute else block
                saved.append(round_saved(ops, kept) if self.saved_bfloat16 else kept)
                del kept
            del block, before
        x, norm = ops.rms_norm_forward(x, params["norm.weight"], eps=self.config.norm_eps)
        saved.append(norm)
        return x, saved, balance

    def _hidden_backward(self, ops: Any, params: Any, dx: Array, saved: list, grads: Any) -> None:
        dx = ops.rms_norm_backward(dx, saved.pop(), grads["norm.weight"])
        for i in reversed(range(self.config.layers)):
            block = saved.pop()
            if self.saved_bfloat16:
                block = expand_saved(ops, block)
            if self.recompute:
                _, block = self._train_block(ops, params, i, block)
            dx = self._block_backward(ops, dx, block, grads.scope(f"h.{i}."))
            del block
        embedding, scaled = saved.pop()
        if scaled is not None:
            dx = ops.scale_backward(dx, scaled)
        ops.embedding_backward(dx, embedding, grads["wte.weight"])

    def _embed(self, ops: Any, params: Any, tokens: Array) -> tuple[Array, tuple]:
        x, embedding = ops.embedding_forward(tokens, params["wte.weight"])
        scaled = None
        if self.config.embedding_scale != 1:
            x, scaled = ops.scale_forward(x, self.config.embedding_scale, out=x)
        return x, (embedding, scaled)

    def _train_block(self, ops: Any, params: Any, i: int, x: Array) -> tuple[Array, tuple]:
        """Block i over whole sequences: position t is place t."""
        c, T = self.config, x.shape[1]
        rope = c.rope_of(i)
        cos, sin = (table[:T] for table in self._angles(rope, T))

        def turn(heads: Array) -> Any:
            turned = heads[..., : rope.size]  # a view
            _, saved = ops.rope_forward(turned, cos, sin, pairing=c.pairing, out=turned)
            return rope.size, saved

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            how = {"scale": c.attention_scale, "window": c.window_of(i)}
            return ops.attention_forward(q, k, v, **how)

        return self._block_forward(ops, params.scope(f"h.{i}."), x, turn, attend)

    # A block

    def _block_forward(
        self, ops: Any, w: Block, x: Array, turn: Turn, attend: Attend, keep: Any = None
    ) -> tuple[Array, tuple]:
        """Block's output, and what backward needs. `keep` picks the rows that go on."""
        a, norm1 = ops.rms_norm_forward(x, w["attn_norm.weight"], eps=self.config.norm_eps)
        q, to_q = self._heads_forward(ops, w, "q", a)  # (..., H, D)
        k, to_k = self._heads_forward(ops, w, "k", a)  # (..., K, D)
        v, to_v = self._heads_forward(ops, w, "v", a)  # (..., K, D)
        turned = turn(q), turn(k)
        y, attention = attend(q, k, v)  # (..., H, D)
        y_shape, y = y.shape, y.reshape(*x.shape[:-1], -1)
        if keep is not None:
            x, y = keep(x), keep(y)
        x, from_y = self._add_forward(ops, w, "attn", "attn.o", y, x)
        m, norm2 = ops.rms_norm_forward(x, w["mlp_norm.weight"], eps=self.config.norm_eps)
        x, mlp = self._mlp_forward(ops, w, m, x)
        return x, (norm1, to_q, to_k, to_v, turned, y_shape, attention, from_y, norm2, mlp)

    def _mlp_forward(self, ops: Any, w: Block, m: Array, x: Array) -> tuple[Array, tuple]:
        """x and what the MLP, or the experts, make of m."""
        if self.config.experts:
            balance = self.balance / self.config.layers
            return llama_experts.forward(ops, self.config, w, m, x, balance)
        gate, to_gate = ops.linear_forward(m, w["mlp.gate.weight"], w.get("mlp.gate.bias"))
        up, to_up = ops.linear_forward(m, w["mlp.up.weight"], w.get("mlp.up.bias"))
        f, gated = self._gate(ops, "forward")(gate, up)  # (..., F)
        x, from_f = self._add_forward(ops, w, "mlp", "mlp.down", f, x)
        return x, (to_gate, to_up, gated, from_f)

    def _block_backward(self, ops: Any, dx: Array, saved: tuple, dw: Block) -> Array:
        norm1, to_q, to_k, to_v, turned, y_shape, attention, from_y, norm2, mlp = saved
        dm = self._mlp_backward(ops, dx, mlp, dw)
        dx = ops.rms_norm_backward(dm, norm2, dw["mlp_norm.weight"], dx)
        dy = self._add_backward(ops, dw, "attn", "attn.o", dx, from_y).reshape(y_shape)
        dq, dk, dv = ops.attention_backward(dy, attention)
        for d, (size, angles) in zip((dq, dk), turned, strict=True):
            ops.rope_backward(d[..., :size], angles, out=d[..., :size])
        da = self._heads_backward(ops, dw, "v", dv, to_v)
        da = self._sum(ops, da, self._heads_backward(ops, dw, "k", dk, to_k))
        da = self._sum(ops, da, self._heads_backward(ops, dw, "q", dq, to_q))
        return ops.rms_norm_backward(da, norm1, dw["attn_norm.weight"], dx)

    def _mlp_backward(self, ops: Any, dx: Array, saved: tuple, dw: Block) -> Array:
        if self.config.experts:
            return llama_experts.backward(ops, self.config, dx, saved, dw)
        to_gate, to_up, gated, from_f = saved
        df = self._add_backward(ops, dw, "mlp", "mlp.down", dx, from_f)
        dgate, dup = self._gate(ops, "backward")(df, gated)
        del df
        dm = ops.linear_backward(dup, to_up, dw["mlp.up.weight"], dw.get("mlp.up.bias"))
        return self._sum(ops, dm, ops.linear_backward(
            dgate, to_gate, dw["mlp.gate.weight"], dw.get("mlp.gate.bias"),
        ))  # fmt: skip

    def _heads_forward(self, ops: Any, w: Block, name: str, a: Array) -> tuple[Array, tuple]:
        """Queries, keys or values (..., heads, D) of a (..., C), normed where the model does so."""
        y, linear = ops.linear_forward(a, w[f"attn.{name}.weight"], w.get(f"attn.{name}.bias"))
        y, norm = y.reshape(*a.shape[:-1], -1, self.config.head_size), None
        if f"attn.{name}_norm.weight" in w:
            weight = w[f"attn.{name}_norm.weight"]
            y, norm = ops.rms_norm_forward(y, weight, eps=self.config.norm_eps)
        return y, (linear, norm)

    def _heads_backward(self, ops: Any, dw: Block, name: str, dy: Array, saved: tuple) -> Array:
        linear, norm = saved
        if norm is not None:
            dy = ops.rms_norm_backward(dy, norm, dw[f"attn.{name}_norm.weight"])
        dy = dy.reshape(*dy.shape[:-2], -1)
        return ops.linear_backward(
            dy, linear, dw[f"attn.{name}.weight"], dw.get(f"attn.{name}.bias")
        )

    def _add_forward(
        self, ops: Any, w: Block, half: str, name: str, y: Array, x: Array
    ) -> tuple[Array, tuple]:
        """x + linear(y), or x + norm(linear(y)) in Gemma."""
        weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
        if not self.config.norms_after:
            x, linear = ops.linear_forward(y, weight, bias, x)
            return x, (linear, None)
        y, linear = ops.linear_forward(y, weight, bias)
        y, norm = ops.rms_norm_forward(y, w[f"{half}_post_norm.weight"], eps=self.config.norm_eps)
        return ops.residual_forward(x, y)[0], (linear, norm)

    def _add_backward(
        self, ops: Any, dw: Block, half: str, name: str, dx: Array, saved: tuple
    ) -> Array:
        """dy; the gradient of the x that was added to is dx itself."""
        linear, norm = saved
        if norm is not None:
            dx = ops.rms_norm_backward(dx, norm, dw[f"{half}_post_norm.weight"])
        return ops.linear_backward(dx, linear, dw[f"{name}.weight"], dw.get(f"{name}.bias"))

    def _gate(self, ops: Any, direction: str) -> Callable:
        return getattr(ops, f"{'swiglu' if self.config.gate == 'silu' else 'geglu'}_{direction}")

    @staticmethod
    def _sum(ops: Any, a: Array, b: Array) -> Array:
        return ops.residual_forward(a, b, out=a)[0]

    def _angles(self, rope: Rope, length: int) -> tuple[Array, Array]:
        """cos, sin of at least `length` positions, made when first needed and kept."""
        held = self._tables.get(rope)
        if held is None or len(held[0]) < length:
            length = max(length, min(2 * length, self.config.context))
            held = self._tables[rope] = rope.tables(length, self.config.context)
        return held

    # Inference

    def logits(self, ops: Any, params: Any, tokens: Array) -> Array:
        """Logits (B, T, V) after each of tokens (B, T)."""
        x, _, _ = self._hidden_forward(ops, params, tokens, False)
        return ops.linear_forward(x, params[self._head])[0]

    @property
    def recordable(self) -> bool:
        """Whether `decode` makes the same kernel calls for every token: not where they choose."""
        return not self.config.experts

    def cache_layers(self) -> tuple[CacheLayer, ...]:
        """What is to be kept of each layer's past tokens."""
        c = self.config
        return tuple(CacheLayer(c.kv_heads, c.head_size, c.window_of(i)) for i in range(c.layers))

    def decode(self, ops: Any, params: Any, tokens: Array, batch: Any) -> Array:
        """Logits (n, V) after the rows that `batch.outputs` names. tokens (N,) int32: rows of any
        number of sequences, at `batch.positions`. docs/design.md has the contract."""
        c = self.config
        x, _ = self._embed(ops, params, tokens)  # (N, C)
        for i in range(c.layers):
            x = self._decode_block(ops, params.scope(f"h.{i}."), i, x, batch)  # at last (n, C)
        x, _ = ops.rms_norm_forward(x, params["norm.weight"], eps=c.norm_eps)
        return ops.linear_forward(x, params[self._head])[0]

    def _decode_block(self, ops: Any, w: Block, i: int, x: Array, batch: Any) -> Array:
        c, rope = self.config, self.config.rope_of(i)
        cos, sin = self._angles(rope, c.context)  # of all positions: a recorded call keeps them

        def turn(heads: Array) -> None:
            part = heads[..., : rope.size]
            how = {"pairing": c.pairing, "positions": batch.positions}
            ops.rope_forward(part, cos, sin, **how, out=part)

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            return batch.attention(ops, i, q, k, v, scale=c.attention_scale), None

        # Nothing reads the last layer's other rows: after attention they go.
        keep = partial(batch.wanted, ops) if i == c.layers - 1 else None
        return self._block_forward(ops, w, x, turn, attend, keep)[0]

    # Costs

    def flops_per_token(self, T: int) -> int:
        """Floating-point operations of a training step, a token: as GPT2.flops_per_token counts
        them. A layer with a window W counts min(T, W) keys, untied embeddings count nothing."""
        c = self.config
        weights = sum(p.size for p in self.table() if c.tied or p.name != "wte.weight")
        idle = c.experts - c.experts_per_token if c.experts else 0
        weights -= c.layers * idle * 3 * c.width * c.hidden
        keys = sum(min(T, c.window_of(i) or T) for i in range(c.layers))
        return 6 * weights + 12 * c.heads * c.head_size * keys
