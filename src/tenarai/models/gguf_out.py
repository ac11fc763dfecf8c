"""Models written as GGUF files, which tenarai and llama.cpp open: gguf_exchange.py backwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import gguf_write
from tenarai.models.exchange import value_or_zeros, with_biases
from tenarai.models.families import AnyModel
from tenarai.models.gguf_config import (
    ARCH,
    FREQUENCIES,
    GEMMA_27B_LAYERS,
    GEMMA_EVERY,
    LONG,
    SHORT,
)
from tenarai.models.gguf_exchange import by_file_name, file_shape
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.pairing import to_adjacent, to_half
from tenarai.models.rope import Rope
from tenarai.models.table import Param, Weight
from tenarai.quant import FORMATS, Format, QuantTensor

Array = np.ndarray
FORMAT_OF = {"float32": "F32", "float16": "F16"}
OWN_KEYS = ("general.architecture", "general.file_type", "general.alignment")
FILE_TYPE = {"float32": 0, "float16": 1}  # general.file_type


def write_gguf(
    path: str | PathLike[str],
    model: AnyModel,
    params: Mapping[str, Weight],
    dtype: str = "float32",
    more: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
) -> None:
    """Write the model; float matrices as `dtype` ("float32" or "float16"), quantised ones as they
    are, vectors as float32.

    `more` are further keys, such as the tokenizer's, `types` their types where a value alone does
    not tell. q and k of arch llama are put in the order for neighbouring pairs, a GPT-2's missing
    biases are zeros. Raises TenaraiError for a model that GGUF has no words for; WriteError.
    """
    _check(path, model)
    try:
        keys = metadata_of(model)
    except ValueError as error:
        raise TenaraiError(f"{path}: {error}: write a Hugging Face folder instead") from error
    keys["general.file_type"] = FILE_TYPE[dtype]
    table = with_biases(model).table() if isinstance(model, GPT2) else model.table()

    def value(p: Param) -> Weight:
        w = params[p.name] if p.name in params else value_or_zeros({}, p.name, p.shape)
        return _for_file(model, p, w)

    def tensor(name: str, group: list[Param]) -> gguf_write.Tensor:
        format = _format_of([params.get(p.name) for p in group], len(file_shape(group)), dtype)

        def make() -> Iterator[Array]:
            return (_as(format, value(p)) for p in group)

        return gguf_write.Tensor(name, file_shape(group), format, make)

    tensors = [tensor(name, group) for name, group in by_file_name(table).items()]
    own_types = {key: types[key] for key in more or {} if types and key in types}
    gguf_write.write(path, keys | dict(more or {}), [*_factors(model), *tensors], own_types)


def _check(path: Any, model: AnyModel) -> None:
    """Raise for what a file of this architecture would not say and its readers would not do."""
    c: Any = model.config
    if isinstance(model, GPT2):
        reason = "" if c.gelu == "tanh" else "GPT-2's GELU in GGUF is the tanh form"
    elif c.shared_hidden or (c.experts and not c.normalise_experts):
        reason = "it has a shared expert, or experts' weights that do not sum to 1"
    else:
        reason = "" if len(set(c.windows) - {None}) < 2 else "its windows differ in width"
    if reason:
        raise TenaraiError(f"{path}: {reason}, so this model would be another there")


def _format_of(weights: list[Weight | None], dims: int, dtype: str) -> Format:
    quantised = {w.format for w in weights if isinstance(w, QuantTensor)}
    if len(quantised) > 1:
        raise TenaraiError(
            f"parts of one tensor are quantised as {', '.join(f.name for f in quantised)}: "
            "quantise them alike"
        )
    return quantised.pop() if quantised else FORMATS[FORMAT_OF[dtype] if dims > 1 else "F32"]


def _for_file(model: AnyModel, p: Param, w: Weight) -> Weight:
    """The weight with its rows in the order of a GGUF file of the model's architecture."""
    if not p.rope_heads or not isinstance(model, Llama):
        return w
    theirs = "adjacent" if arch_of(model) == "llama" else "half"
    if model.config.pairing == theirs:
        return w
    turn: Callable[[Array, int], Array] = to_adjacent if theirs == "adjacent" else to_half
    if isinstance(w, QuantTensor):
        return QuantTensor(w.format, w.shape, turn(w.data, p.rope_heads))
    return turn(w, p.rope_heads)


def _as(format: Format, w: Weight) -> Array:
    if isinstance(w, QuantTensor):
        return w.data
    return np.ascontiguousarray(w, "<f2" if format.name == "F16" else "<f4")


def _factors(model: AnyModel) -> list[gguf_write.Tensor]:
    """RoPE's factors, which are tensors there."""
    rope = model.config.rope if isinstance(model, Llama) else Rope(2)
    held: dict[str, Any] = {}
    if rope.scaling == "longrope":
        held = {LONG: rope.long, SHORT: rope.short}
    elif rope.scaling == "factors":
        held = {FREQUENCIES: rope.short}
    elif rope.scaling == "llama3":
        plain = Rope(rope.size, rope.base)
        held = {FREQUENCIES: plain.angles(1)[0] / rope.angles(1)[0]}

    def tensor(name: str, numbers: Any) -> gguf_write.Tensor:
        array = np.asarray(numbers, "<f4")
        return gguf_write.Tensor(name, array.shape, FORMATS["F32"], lambda: array)

    return [tensor(name, numbers) for name, numbers in held.items()]


# Metadata


def arch_of(model: AnyModel) -> str:
    """`general.architecture` of the model's file: Mistral and Mixtral are llamas there."""
    if isinstance(model, GPT2):
        return "gpt2"
    return "llama" if model.config.arch in ("mistral", "mixtral") else model.config.arch


def metadata_of(model: AnyModel) -> dict[str, Any]:
    """The keys that describe the model. Raises ValueError for a RoPE that GGUF has no words for."""
    keys = _gpt2_keys(model.config) if isinstance(model, GPT2) else _llama_keys(model.config)
    arch = arch_of(model)
    return {ARCH: arch} | {f"{arch}.{key}": value for key, value in keys.items()}


def _gpt2_keys(c: GPT2Config) -> dict[str, Any]:
    return {
        "context_length": c.context,
        "embedding_length": c.width,
        "feed_forward_length": 4 * c.width,
        "block_count": c.layers,
        "attention.head_count": c.heads,
        "attention.layer_norm_epsilon": c.norm_eps,
    }


def _llama_keys(c: LlamaConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": c.context,
        "embedding_length": c.width,
        "feed_forward_length": c.hidden,
        "block_count": c.layers,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_size,
        "attention.value_length": c.head_size,
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "rope.dimension_count": c.rope.size,
        "rope.freq_base": c.rope.base,
    } | _rope_keys(c.rope)
    if c.experts:
        keys |= {"expert_count": c.experts, "expert_used_count": c.experts_per_token}
    if c.arch == "qwen3moe":
        keys["expert_feed_forward_length"] = c.hidden
    local = [w is not None for w in c.windows]
    if any(local):
        keys["attention.sliding_window"] = next(w for w in c.windows if w is not None)
        if local != [c.arch != "gemma3" or (i + 1) % GEMMA_EVERY > 0 for i in range(c.layers)]:
            keys["attention.sliding_window_pattern"] = np.array(local, np.bool_)
    if c.arch == "gemma3":
        keys["rope.freq_base_swa"] = (c.local_rope or c.rope).base
        scalar = c.width / c.heads if c.layers == GEMMA_27B_LAYERS else c.head_size
        if c.attention_scale and not math.isclose(c.attention_scale, scalar**-0.5, rel_tol=1e-6):
            keys["attention.scale"] = c.attention_scale
    return keys


def _rope_keys(r: Rope) -> dict[str, Any]:
    if r.scaling in ("none", "factors", "llama3"):
        return {}  # llama3's frequencies go into a tensor
    if r.scaling == "dynamic" or (r.scaling == "yarn" and not r.truncate):
        raise ValueError(f"GGUF has no words for RoPE scaling {r.scaling} as this model has it")
    keys: dict[str, Any] = {"rope.scaling.type": r.scaling, "rope.scaling.factor": r.factor}
    if r.original_context:
        keys["rope.scaling.original_context_length"] = r.original_context
    if r.scaling == "longrope":
        keys["rope.scaling.attn_factor"] = r.attention_scale()
    if r.scaling == "yarn":  # there the key multiplies what follows from the factor
        plain = replace(r, attention_factor=None).attention_scale()
        keys["rope.scaling.yarn_attn_factor"] = r.attention_scale() / plain
        keys["rope.scaling.yarn_beta_fast"] = r.beta_fast
        keys["rope.scaling.yarn_beta_slow"] = r.beta_slow
    return keys
