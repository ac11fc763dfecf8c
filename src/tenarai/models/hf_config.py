"""GPT-2's config.json of Hugging Face, to and from GPT2Config (hf_llama.py has the others').

A setting that changes the result and cannot be followed is refused by name; one that does not
(names of classes, cache, generation) is passed over. Settings that the file leaves out have
transformers' own defaults. The file is untrusted: every number has bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.models.gpt2 import GPT2Config
from tenarai.models.hf_values import integer, number

GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "none"}

# name: the only values that can be followed, transformers' default first
FIXED: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def from_hugging_face(config: Mapping[str, Any], where: Path) -> GPT2Config:
    """GPT2Config of a config.json; `where` is its path, for the messages.

    The file has three dropouts; its `resid_pdrop` is taken for ours, after the embedding and
    after each half of a block. Raises TenaraiError: a setting that cannot be followed, a number of
    the wrong kind or out of bounds.
    """
    for name, values in FIXED.items():
        if config.get(name, values[0]) not in values:
            raise TenaraiError(
                f"{where}: {name} = {config[name]!r} is not supported, only {values[0]}"
            )
    width = integer(config, "n_embd", 768, 1 << 20, where)
    inner = config.get("n_inner")
    if inner is not None and inner != 4 * width:
        raise TenaraiError(
            f"{where}: n_inner = {inner!r} is not supported, only four times n_embd = {4 * width}"
        )
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in GELU:
        raise TenaraiError(
            f"{where}: activation_function = {activation!r} is not supported, only "
            f"{', '.join(GELU)}"
        )
    context = "n_positions" if "n_positions" in config else "n_ctx"  # its name in old files
    heads = integer(config, "n_head", 12, 1 << 20, where)
    if width % heads:
        raise TenaraiError(f"{where}: n_head = {heads} does not divide n_embd = {width}")
    return GPT2Config(
        vocab_size=integer(config, "vocab_size", 50257, 2**31 - 1, where),
        context=integer(config, context, 1024, 2**31 - 1, where),
        layers=integer(config, "n_layer", 12, 10_000, where),
        heads=heads,
        width=width,
        gelu=GELU[activation],
        norm_eps=number(config, "layer_norm_epsilon", 1e-5, 1.0, where),
        dropout=number(config, "resid_pdrop", 0.1, math.nextafter(1, 0), where),
    )


def to_hugging_face(config: GPT2Config) -> dict[str, Any]:
    """config.json for GPT2LMHeadModel. Attention has no dropout here, hence attn_pdrop = 0."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None,
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        "dtype": "float32",
    }
