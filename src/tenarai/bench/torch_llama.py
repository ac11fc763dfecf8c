"""A plain Llama in PyTorch, for `torch_peer.py`: RMS norms, RoPE, grouped heads, SwiGLU.

Its parameters have our table's names, so weights are loaded as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x (B, H, T, D) by cos, sin (T, D/2), channel i paired with i + D/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        width, size = c["width"], c["head_size"]
        sizes = {
            "attn": {
                "q": (width, c["heads"] * size),
                "k": (width, c["kv_heads"] * size),
                "v": (width, c["kv_heads"] * size),
                "o": (c["heads"] * size, width),
            },
            "mlp": {
                "gate": (width, c["hidden"]),
                "up": (width, c["hidden"]),
                "down": (c["hidden"], width),
            },
        }
        self.size = size
        self.attn, self.mlp = (
            nn.ModuleDict({name: nn.Linear(*s, bias=False) for name, s in sizes[half].items()})
            for half in ("attn", "mlp")
        )
        self.attn_norm, self.mlp_norm = (nn.RMSNorm(width, c["norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a = self.attn_norm(x)
        q, k, v = (
            self.attn[name](a).unflatten(-1, (-1, self.size)).transpose(1, 2) for name in "qkv"
        )
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        grouped = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.attn["o"](y.transpose(1, 2).flatten(2))
        m = self.mlp_norm(x)
        return x + self.mlp["down"](F.silu(self.mlp["gate"](m)) * self.mlp["up"](m))


class TorchLlama(nn.Module):
    """config: LlamaConfig's fields, those of a plain Llama."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.wte = nn.Embedding(config["vocab_size"], config["width"])
        self.h = nn.ModuleList(Block(config) for _ in range(config["layers"]))
        self.norm = nn.RMSNorm(config["width"], config["norm_eps"])
        if not config["tied"]:
            self.head = nn.Linear(config["width"], config["vocab_size"], bias=False)
        self.tied = config["tied"]
        R = config["head_size"]
        theta = config["rope"]["base"] ** (-torch.arange(0, R, 2, dtype=torch.float64) / R)
        angles = torch.arange(config["context"], dtype=torch.float64)[:, None] * theta
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        T = tokens.shape[1]
        x = self.wte(tokens)
        for block in self.h:
            x = block(x, self.cos[:T], self.sin[:T])
        head = self.wte.weight if self.tied else self.head.weight
        logits = F.linear(self.norm(x), head)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
