"""GPT-2 in plain PyTorch, and `torch_llama.py`'s Llama: the opponent, given its best.

Fused AdamW, `scaled_dot_product_attention`, tied weights, no dropout, optionally `torch.compile`
and bfloat16 where autocast takes it; `peer.py` adds the malloc settings that it gains from. Run as
a program it serves training steps (see `peer.py`). Not a part of the product: nothing but
benchmarks imports it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .peer import Answer, serve
from .torch_llama import TorchLlama


class Block(nn.Module):
    def __init__(self, channels: int, heads: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.heads, self.gelu = heads, gelu
        self.ln_1 = nn.LayerNorm(channels, bias=bias)
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.projection = nn.Linear(channels, channels, bias=bias)
        self.ln_2 = nn.LayerNorm(channels, bias=bias)
        self.fc = nn.Linear(channels, 4 * channels, bias=bias)
        self.fc_projection = nn.Linear(4 * channels, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(y.transpose(1, 2).reshape(b, t, c))
        return x + self.fc_projection(F.gelu(self.fc(self.ln_2(x)), approximate=self.gelu))


class TorchGPT2(nn.Module):
    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        channels: int,
        context: int,
        vocabulary: int,
        bias: bool = True,
        gelu: str = "tanh",  # or "none", as torch names them
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, channels)
        self.wpe = nn.Embedding(context, channels)
        self.blocks = nn.ModuleList(Block(channels, heads, bias, gelu) for _ in range(layers))
        self.ln_f = nn.LayerNorm(channels, bias=bias)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("projection.weight")
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * layers) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


# Our names in Hugging Face's spelling, beside this file's.
_HUGGING_FACE = {
    "ln_1": "ln_1",
    "attn.c_attn": "qkv",
    "attn.c_proj": "projection",
    "ln_2": "ln_2",
    "mlp.c_fc": "fc",
    "mlp.c_proj": "fc_projection",
}


def load_weights(model: TorchGPT2, weights: dict[str, np.ndarray]) -> None:
    """Copies weights named as in Hugging Face's GPT-2, linear ones stored (O, I), into `model`."""
    state = {}
    for name, value in weights.items():
        if name.startswith("h."):
            _, layer, rest = name.split(".", 2)
            module, kind = rest.rsplit(".", 1)
            name = f"blocks.{layer}.{_HUGGING_FACE[module]}.{kind}"
        state[name] = torch.from_numpy(np.array(value, np.float32))
    model.load_state_dict(state)


def optimiser_of(model: nn.Module, settings: dict[str, Any]) -> torch.optim.AdamW:
    """Fused AdamW that decays matrices only, with the learning rate and betas of `settings`."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings["weight_decay"]},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings["lr"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
        fused=True,
    )


def configure(request: dict[str, Any]) -> Answer:
    """Builds model, optimiser and batches: {"threads", "config", "weights" (an .npz file or None),
    "tokens" (an .npy file (steps, B, T + 1)), "optimiser", "compile", "bfloat16"}."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    llama = "rope" in request["config"]
    model = TorchLlama(request["config"]) if llama else TorchGPT2(**request["config"])
    if request.get("weights"):
        with np.load(request["weights"]) as file:
            if isinstance(model, TorchLlama):
                model.load_state_dict({k: torch.from_numpy(v) for k, v in file.items()})
            else:
                load_weights(model, dict(file))
    optimiser = optimiser_of(model, request["optimiser"])
    batches = torch.from_numpy(np.load(request["tokens"]).astype(np.int64))
    loss_of: Any = torch.compile(model) if request.get("compile") else model

    def step(ask: dict[str, Any]) -> dict[str, Any]:
        batch = batches[ask["step"] % len(batches)]
        tokens, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=request.get("bfloat16", False)):
            loss = loss_of(tokens, targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        value = loss.item()
        return {"seconds": time.perf_counter() - start, "loss": value}

    return step


if __name__ == "__main__":
    sys.exit(serve(configure, "torch"))
