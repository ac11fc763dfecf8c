"""The families of models, and which of them a file's description asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig

AnyModel = GPT2 | Llama
AnyConfig = GPT2Config | LlamaConfig
NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "phi3": "Phi-3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3moe": "Qwen3 MoE",
    "gemma3": "Gemma 3",
}


def name_of(model: AnyModel) -> str:
    """What people call the model's architecture."""
    return NAMES[model.config.arch] if isinstance(model, Llama) else "GPT-2"


def model_of(config: AnyConfig) -> AnyModel:
    return Llama(config) if isinstance(config, LlamaConfig) else GPT2(config)


def from_hugging_face(config: Mapping[str, Any], where: Path) -> AnyModel:
    """The model of a config.json, `where` its path. Raises TenaraiError: one that is not known, a
    setting that cannot be followed, a number of the wrong kind or out of bounds."""
    from tenarai.models import hf_config, hf_llama

    kind = config.get("model_type", "gpt2" if "n_embd" in config else None)  # old ones say none
    if kind == "gpt2":
        return GPT2(hf_config.from_hugging_face(config, where))
    if isinstance(kind, str) and kind in hf_llama.MODEL_TYPES:
        return Llama(hf_llama.from_hugging_face(config, where))
    known = ", ".join(("gpt2", *hf_llama.MODEL_TYPES))
    raise TenaraiError(f"{where}: model_type is {kind!r}: the models known are {known}")


def to_hugging_face(model: AnyModel) -> dict[str, Any]:
    """config.json for `transformers`."""
    from tenarai.models import hf_config, hf_llama

    if isinstance(model, Llama):
        return hf_llama.to_hugging_face(model.config)
    return hf_config.to_hugging_face(model.config)
