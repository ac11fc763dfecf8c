"""The weights of the Llama family, and where each lies in Hugging Face's and in GGUF files."""

from __future__ import annotations

from typing import Any

from .llama_config import LlamaConfig
from .table import Fused, Param, Stacked

# Our name of a norm: Hugging Face's, GGUF's. In Gemma 3, "post_attention_layernorm" norms what the
# attention adds; elsewhere the same name is the norm before the MLP.
NORMS = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
}
NORMS_OF_GEMMA = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "attn_post_norm": ("post_attention_layernorm", "post_attention_norm"),
    "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
    "mlp_post_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
}
MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
STD = 0.02


def table_of(c: LlamaConfig) -> tuple[Param, ...]:
    """Projections into the residual stream begin smaller, by √(2L), so that the stream's variance
    does not grow with depth."""
    shift = 1.0 if c.arch == "gemma3" else 0.0  # Gemma's files hold w where y = x̂ (1 + w)
    params = [
        Param("wte.weight", (c.vocab_size, c.width), STD, decay=True,
              hf="model.embed_tokens.weight", gguf="token_embd.weight"),
    ]  # fmt: skip
    for i in range(c.layers):
        params += _block(c, i, shift)
    params.append(_norm("norm", c.width, "model.norm", "output_norm", shift))
    if not c.tied:
        params.append(
            Param("head.weight", (c.vocab_size, c.width), STD, decay=True,
                  hf="lm_head.weight", gguf="output.weight")
        )  # fmt: skip
    return tuple(params)


def _norm(name: str, size: int, hf: str, gguf: str, shift: float) -> Param:
    return Param(
        f"{name}.weight", (size,), 0.0, mean=1.0,
        hf=f"{hf}.weight", gguf=f"{gguf}.weight", hf_shift=shift,
    )  # fmt: skip


def _block(c: LlamaConfig, i: int, shift: float) -> list[Param]:
    hf, gguf = f"model.layers.{i}", f"blk.{i}"
    q, kv, small = c.heads * c.head_size, c.kv_heads * c.head_size, STD / (2 * c.layers) ** 0.5
    params: list[Param] = []

    def linear(name: str, I: int, O: int, theirs: tuple[str, str], bias: bool, **more: Any) -> None:
        std = small if name == "attn.o" or name.endswith(".down") else STD
        for kind, shape in (("weight", (O, I)), ("bias", (O,))):
            if kind == "weight" or bias:
                params.append(
                    Param(f"h.{i}.{name}.{kind}", shape, std if len(shape) > 1 else 0.0,
                          decay=len(shape) > 1, hf=f"{hf}.{theirs[0]}.{kind}",
                          gguf=f"{gguf}.{theirs[1]}.{kind}", **more)
                )  # fmt: skip

    fused = c.arch == "phi3"
    whole = q + 2 * kv
    for name, O, begin, heads in (
        ("q", q, 0, c.heads), ("k", kv, q, c.kv_heads), ("v", kv, q + kv, 0),
    ):  # fmt: skip
        theirs = ("self_attn.qkv_proj", "attn_qkv") if fused else (
            f"self_attn.{name}_proj", f"attn_{name}",
        )  # fmt: skip
        part = Fused(begin, whole) if fused else None
        linear(f"attn.{name}", c.width, O, theirs, c.qkv_bias, fused=part, rope_heads=heads)
    linear("attn.o", q, c.width, ("self_attn.o_proj", "attn_output"), c.output_bias)
    if c.experts:
        _experts(c, linear)
    for name, begin in (("gate", 0), ("up", c.hidden)) if not c.experts else ():
        theirs = ("mlp.gate_up_proj", "ffn_up") if fused else (f"mlp.{name}_proj", f"ffn_{name}")
        part = Fused(begin, 2 * c.hidden) if fused else None
        linear(f"mlp.{name}", c.width, c.hidden, theirs, c.mlp_bias, fused=part)
    if not c.experts:
        linear("mlp.down", c.hidden, c.width, ("mlp.down_proj", "ffn_down"), c.mlp_bias)
    if c.qk_norm:
        for name in ("q", "k"):
            theirs = (f"{hf}.self_attn.{name}_norm", f"{gguf}.attn_{name}_norm")
            params.append(_norm(f"h.{i}.attn.{name}_norm", c.head_size, *theirs, shift))
    for name, (a, b) in (NORMS_OF_GEMMA if c.norms_after else NORMS).items():
        params.append(_norm(f"h.{i}.{name}", c.width, f"{hf}.{a}", f"{gguf}.{b}", shift))
    return params


def _experts(c: LlamaConfig, linear: Any) -> None:
    """Router, experts and the shared expert. GGUF files hold an expert's matrices one above the
    other in a tensor of three dims."""
    mixtral = c.arch == "mixtral"
    block = "block_sparse_moe" if mixtral else "mlp"
    linear("mlp.router", c.width, c.experts, (f"{block}.gate", "ffn_gate_inp"), False)
    for part in ("gate", "up", "down"):
        sizes = (c.hidden, c.width) if part == "down" else (c.width, c.hidden)
        theirs = MIXTRAL[part] if mixtral else f"{part}_proj"
        for e in range(c.experts):
            names = f"{block}.experts.{e}.{theirs}", f"ffn_{part}_exps"
            place = Stacked(e, c.experts)
            linear(f"mlp.experts.{e}.{part}", *sizes, names, False, stacked=place)
        if c.shared_hidden:
            sizes = (sizes[0], c.shared_hidden) if part != "down" else (c.shared_hidden, c.width)
            names = f"{block}.shared_expert.{part}_proj", f"ffn_{part}_shexp"
            linear(f"mlp.shared.{part}", *sizes, names, False)
