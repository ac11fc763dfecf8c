"""From settings to the model: the family's own numbers, and what follows from its architecture."""

from __future__ import annotations

import math
from typing import Any

from tenarai.config import Model, Optimiser
from tenarai.models.families import AnyModel
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope

GEMMA_EVERY = 6  # every sixth layer of a Gemma 3 sees all
GEMMA_LOCAL_THETA = 10000.0


def model_of(m: Model, o: Optimiser, vocab_size: int) -> AnyModel:
    """The model that the settings describe, for a vocabulary of that size."""
    how: dict[str, Any] = {"recompute": m.recompute, "z_loss": o.z_loss}
    how["saved_bfloat16"] = m.saved_activations == "bfloat16"
    if m.family == "llama":
        return Llama(_llama(m, vocab_size), **how, balance=o.balance)
    config = GPT2Config(
        vocab_size=vocab_size,
        context=m.context,
        layers=m.layers,
        heads=m.heads,
        width=m.width,
        bias=m.bias,
        gelu="none" if m.gelu == "exact" else m.gelu,
        dropout=m.dropout,
    )
    return GPT2(config, **how)


def _llama(m: Model, vocab_size: int) -> LlamaConfig:
    gemma, size = m.arch == "gemma3", m.head_size or m.width // m.heads
    return LlamaConfig(
        vocab_size=vocab_size,
        context=m.context,
        layers=m.layers,
        heads=m.heads,
        kv_heads=m.kv_heads or m.heads,
        head_size=size,
        width=m.width,
        hidden=m.hidden or -(-(8 * m.width // 3) // 32) * 32,
        rope=Rope(size, m.rope_theta),
        local_rope=Rope(size, GEMMA_LOCAL_THETA) if gemma else None,
        arch=m.arch,
        qkv_bias=m.arch == "qwen2",
        qk_norm=m.arch in ("qwen3", "qwen3moe", "gemma3"),
        norms_after=gemma,
        gate="gelu" if gemma else "silu",
        embedding_scale=math.sqrt(m.width) if gemma else 1.0,
        attention_scale=size**-0.5 if gemma else None,
        windows=_windows(m),
        tied=m.tied,
        norm_eps=m.norm_eps,
        experts=m.experts,
        experts_per_token=m.experts_per_token,
        shared_hidden=m.shared_hidden,
    )


def _windows(m: Model) -> tuple[int | None, ...]:
    if not m.window:
        return ()
    local = [m.arch != "gemma3" or (i + 1) % GEMMA_EVERY > 0 for i in range(m.layers)]
    return tuple(m.window if is_local else None for is_local in local)
