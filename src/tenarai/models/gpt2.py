"""GPT-2 (Radford et al. 2019), forward and backward, over any `ops`.

    x = wte[tokens] + wpe
    x = x + proj(attention(qkv(norm(x))))     L times: the attention half of a block,
    x = x + proj(gelu(fc(norm(x))))                    and its MLP half
    logits = norm(x) · wteᵀ

Each backward is its forward read upside down. Where the weights come from, how they are
updated and how text is made of logits is left to others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenarai.ops.saved import expand_saved, round_saved

from .cache_layer import CacheLayer
from .table import Param

Array = np.ndarray
Block = dict[str, Array]  # the weights, or the gradients, of one block


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int = 50257  # V
    context: int = 1024  # the largest T
    layers: int = 12  # L
    heads: int = 12  # H
    width: int = 768  # C
    bias: bool = True  # in linear layers and layer norms
    gelu: str = "tanh"  # "tanh", or "none" for the exact one (PyTorch's names)
    norm_eps: float = 1e-5
    dropout: float = 0.0  # after the embedding and after each half of a block

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.width % self.heads:
            near = [h for h in range(1, self.width + 1) if self.width % h == 0]
            best = min(near, key=lambda h: abs(h - self.heads))
            raise ValueError(
                f"heads = {self.heads} does not divide width = {self.width}: try heads = {best}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and less than 1")
        if self.gelu not in ("tanh", "none"):
            raise ValueError(f"gelu is {self.gelu!r}, expected 'tanh' or 'none'")


@dataclass(frozen=True)
class Dropout:
    """Where a forward pass draws its masks from. One `draw` a forward pass, never used again."""

    seed: int
    draw: int

    def counter(self, site: int) -> int:
        """Each place in the model has 2^32 numbers of its own, each draw 2^8 places."""
        return (self.draw << 40) + (site << 32)


@dataclass
class GPT2:
    """The model: a configuration, and what to trade. It holds no weights.

    With `recompute`, a block keeps only its input and runs forward again in the backward:
    about 10 numbers a channel, token and layer fewer to hold, a third more to compute.
    With `saved_bfloat16` what is kept is rounded (ops/saved.py): half the memory,
    the same loss, gradients off by some 0.2 %.
    `z_loss` is the weight of (log Z)² in a step of training (ops/reference/cross_entropy.py).
    """

    config: GPT2Config
    recompute: bool = False
    z_loss: float = 0.0
    saved_bfloat16: bool = False

    def table(self) -> tuple[Param, ...]:
        """The weights. Projections into the residual stream begin smaller, by √(2L), so that the
        stream's variance does not grow with depth."""
        c, C, V = self.config, self.config.width, self.config.vocab_size
        small = 0.02 / (2 * c.layers) ** 0.5
        params = [
            Param(
                "wte.weight",
                (V, C),
                0.02,
                decay=True,
                hf="transformer.wte.weight",
                gguf="token_embd.weight",
            ),
            Param(
                "wpe.weight",
                (c.context, C),
                0.02,
                decay=True,
                hf="transformer.wpe.weight",
                gguf="position_embd.weight",
            ),
        ]

        def norm(name: str, gguf: str) -> None:
            hf, w, b = f"transformer.{name}", f"{name}.weight", f"{name}.bias"
            params.append(Param(w, (C,), 0.0, 1.0, hf=f"{hf}.weight", gguf=f"{gguf}.weight"))
            if c.bias:
                params.append(Param(b, (C,), 0.0, hf=f"{hf}.bias", gguf=f"{gguf}.bias"))

        def linear(name: str, I: int, O: int, std: float, gguf: str) -> None:
            hf, w, b = f"transformer.{name}", f"{name}.weight", f"{name}.bias"
            params.append(Param(w, (O, I), std, 0.0, True, f"{hf}.weight", True, f"{gguf}.weight"))
            if c.bias:
                params.append(Param(b, (O,), 0.0, hf=f"{hf}.bias", gguf=f"{gguf}.bias"))

        for i in range(c.layers):
            norm(f"h.{i}.ln_1", f"blk.{i}.attn_norm")
            linear(f"h.{i}.attn.c_attn", C, 3 * C, 0.02, f"blk.{i}.attn_qkv")
            linear(f"h.{i}.attn.c_proj", C, C, small, f"blk.{i}.attn_output")
            norm(f"h.{i}.ln_2", f"blk.{i}.ffn_norm")
            linear(f"h.{i}.mlp.c_fc", C, 4 * C, 0.02, f"blk.{i}.ffn_up")
            linear(f"h.{i}.mlp.c_proj", 4 * C, C, small, f"blk.{i}.ffn_down")
        norm("ln_f", "output_norm")
        return tuple(params)

    # Training

    def forward(
        self,
        ops: Any,
        params: Any,
        tokens: Array,
        targets: Array,
        grads: Any = None,
        dropout: Dropout | None = None,
    ) -> tuple[float, Any]:
        """Mean cross-entropy of targets (B, T) after tokens (B, T), and what backward needs.

        With `grads` this is a step of training: activations are kept, and the gradient of the
        output projection is taken at once, because the logits are too large to keep.
        Without, nothing is kept. `dropout` None draws no masks.
        """
        x, saved = self._hidden_forward(ops, params, tokens, grads is not None, dropout)
        dwte = None if grads is None else grads["wte.weight"]
        loss, head = ops.linear_cross_entropy_forward(
            x, params["wte.weight"], targets, dwte, z_loss=0.0 if grads is None else self.z_loss
        )
        return loss, (saved, head)

    def backward(self, ops: Any, params: Any, saved: Any, grads: Any) -> None:
        """Adds the loss's gradients to `grads`. Uses up `saved`."""
        hidden, head = saved
        dx = ops.linear_cross_entropy_backward(head)
        self._hidden_backward(ops, params, dx, hidden, grads)

    def _hidden_forward(
        self, ops: Any, params: Any, tokens: Array, keep: bool, dropout: Dropout | None
    ) -> tuple[Array, list]:
        masks = self._masks(dropout)
        x, saved = ops.embedding_forward(tokens, params["wte.weight"], params["wpe.weight"])
        saved = [(saved, None)]  # (B, T, C)
        if dropped := masks(0):
            x, mask = ops.dropout_forward(x, *dropped)
            saved = [(saved[0][0], mask)]
        for i in range(self.config.layers):
            before = x
            x, block = self._block_forward(ops, params.scope(f"h.{i}."), x, masks, 2 * i + 1)
            if keep:
                kept = (before, masks, 2 * i + 1) if self.recompute else block
                saved.append(round_saved(ops, kept) if self.saved_bfloat16 else kept)
                del kept
            del block, before
        x, norm = ops.layer_norm_forward(
            x, params["ln_f.weight"], params.get("ln_f.bias"), eps=self.config.norm_eps
        )
        saved.append(norm)
        return x, saved

    def _hidden_backward(self, ops: Any, params: Any, dx: Array, saved: list, grads: Any) -> None:
        dx = ops.layer_norm_backward(dx, saved.pop(), grads["ln_f.weight"], grads.get("ln_f.bias"))
        for i in reversed(range(self.config.layers)):
            block = saved.pop()
            if self.saved_bfloat16:
                block = expand_saved(ops, block)
            if self.recompute:
                x, masks, site = block
                _, block = self._block_forward(ops, params.scope(f"h.{i}."), x, masks, site)
                del x
            dx = self._block_backward(ops, dx, block, grads.scope(f"h.{i}."))
            del block
        embedding, mask = saved.pop()
        if mask is not None:
            dx = ops.dropout_backward(dx, mask)
        ops.embedding_backward(dx, embedding, grads["wte.weight"], grads["wpe.weight"])

    # A block

    def _block_forward(
        self,
        ops: Any,
        w: Block,
        x: Array,
        masks: Callable[[int], tuple | None],
        site: int,
        attend: Callable[[Array, Array, Array], tuple[Array, Any]] | None = None,
    ) -> tuple[Array, tuple]:
        c = self.config
        a, norm1 = ops.layer_norm_forward(x, w["ln_1.weight"], w.get("ln_1.bias"), eps=c.norm_eps)
        qkv, to_qkv = ops.linear_forward(a, w["attn.c_attn.weight"], w.get("attn.c_attn.bias"))
        q, k, v = self._heads(qkv)  # (B, T, H, D) each
        y, attention = (attend or ops.attention_forward)(q, k, v)  # (B, T, H, D)
        y = y.reshape(x.shape)
        x, from_y = _add_branch(
            ops, ops.linear_forward, y, w["attn.c_proj.weight"], w.get("attn.c_proj.bias"), x,
            masks(site),
        )  # fmt: skip
        a, norm2 = ops.layer_norm_forward(x, w["ln_2.weight"], w.get("ln_2.bias"), eps=c.norm_eps)
        f, to_f = ops.linear_forward(a, w["mlp.c_fc.weight"], w.get("mlp.c_fc.bias"))  # (B, T, 4C)
        x, from_f = _add_branch(
            ops, self._gelu_linear(ops), f, w["mlp.c_proj.weight"], w.get("mlp.c_proj.bias"), x,
            masks(site + 1),
        )  # fmt: skip
        return x, (norm1, to_qkv, qkv, attention, from_y, norm2, to_f, from_f)

    def _block_backward(self, ops: Any, dx: Array, saved: tuple, dw: Block) -> Array:
        norm1, to_qkv, qkv, attention, from_y, norm2, to_f, from_f = saved
        df = _add_branch_backward(
            ops, ops.gelu_linear_backward, dx, from_f,
            dw["mlp.c_proj.weight"], dw.get("mlp.c_proj.bias"),
        )  # fmt: skip
        da = ops.linear_backward(df, to_f, dw["mlp.c_fc.weight"], dw.get("mlp.c_fc.bias"))
        del df
        dx = ops.layer_norm_backward(da, norm2, dw["ln_2.weight"], dw.get("ln_2.bias"), dx)
        dy = _add_branch_backward(
            ops, ops.linear_backward, dx, from_y,
            dw["attn.c_proj.weight"], dw.get("attn.c_proj.bias"),
        )  # fmt: skip
        dqkv = ops.empty_like(qkv)
        dy = dy.reshape(self._heads(qkv)[0].shape)
        ops.attention_backward(dy, attention, out=self._heads(dqkv))
        da = ops.linear_backward(dqkv, to_qkv, dw["attn.c_attn.weight"], dw.get("attn.c_attn.bias"))
        return ops.layer_norm_backward(da, norm1, dw["ln_1.weight"], dw.get("ln_1.bias"), dx)

    def _heads(self, qkv: Array) -> tuple[Array, Array, Array]:
        """Views of queries, keys and values, (B, T, H, D) each, in (B, T, 3C)."""
        B, T, C = qkv.shape[0], qkv.shape[1], self.config.width
        heads = qkv.reshape(B, T, 3, self.config.heads, C // self.config.heads)
        return heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]

    def _gelu_linear(self, ops: Any) -> Callable:
        def forward(x, w, b, residual=None):
            return ops.gelu_linear_forward(x, w, b, residual, approximate=self.config.gelu)

        return forward

    def _masks(self, dropout: Dropout | None) -> Callable[[int], tuple | None]:
        """For a place in the model, the arguments of its dropout; None where nothing is dropped."""
        if dropout is None or self.config.dropout == 0:
            return lambda site: None
        return lambda site: (self.config.dropout, dropout.seed, dropout.counter(site))

    # Inference

    def logits(self, ops: Any, params: Any, tokens: Array) -> Array:
        """Logits (B, T, V) after each of tokens (B, T)."""
        x, _ = self._hidden_forward(ops, params, tokens, False, None)
        return ops.linear_forward(x, params["wte.weight"])[0]

    def cache_layers(self) -> tuple[CacheLayer, ...]:
        """What is to be kept of each layer's past tokens."""
        c = self.config
        return (CacheLayer(c.heads, c.width // c.heads),) * c.layers

    def decode(self, ops: Any, params: Any, tokens: Array, batch: Any) -> Array:
        """Logits (n, V) after the rows that `batch.outputs` names. tokens (N,) int32: rows of any
        number of sequences, at `batch.positions`. docs/design.md has the contract."""
        x, _ = ops.embedding_forward(
            tokens, params["wte.weight"], params["wpe.weight"], positions=batch.positions
        )
        x = x[None]  # (1, N, C)
        for i in range(self.config.layers):

            def attend(q: Array, k: Array, v: Array, i: int = i) -> tuple[Array, None]:
                return batch.attention(ops, i, q[0], k[0], v[0])[None], None

            x, _ = self._block_forward(ops, params.scope(f"h.{i}."), x, lambda s: None, 0, attend)
        x, _ = ops.layer_norm_forward(
            batch.wanted(ops, x[0]),  # (n, C)
            params["ln_f.weight"],
            params.get("ln_f.bias"),
            eps=self.config.norm_eps,
        )
        return ops.linear_forward(x, params["wte.weight"])[0]

    # Costs

    def flops_per_token(self, T: int) -> int:
        """Floating-point operations of a training step, a token: 6 a weight (a multiplication
        and an addition, forward once and backward twice) and 12·L·C·T for attention, counted as
        if it had no causal mask, which is the convention (Chowdhery et al. 2022, appendix B)."""
        weights = sum(param.size for param in self.table())
        return 6 * weights + 12 * self.config.layers * self.config.width * T


def _add_branch(ops, linear, y, w, b, residual, mask) -> tuple[Array, tuple]:
    """residual + dropout(linear(y)): one fused op where nothing is dropped."""
    if mask is None:
        x, saved = linear(y, w, b, residual)
        return x, (saved, None)
    y, saved = linear(y, w, b)
    y, dropped = ops.dropout_forward(y, *mask)
    x, _ = ops.residual_forward(residual, y)
    return x, (saved, dropped)


def _add_branch_backward(ops, linear_backward, dx, saved, dw, db) -> Array:
    """dy; the residual's gradient is dx itself."""
    saved, dropped = saved
    if dropped is not None:
        dx = ops.dropout_backward(dx, dropped)
    return linear_backward(dx, saved, dw, db)
