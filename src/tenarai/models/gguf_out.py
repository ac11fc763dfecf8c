"""Models written as GGUF files, which tenarai and llama.cpp open: gguf_exchange.py backwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import prod
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
from tenarai.models.pairing import in_pairing
from tenarai.models.rope import Rope
from tenarai.models.table import Param, Weight
from tenarai.quant import FORMATS, Format, QuantTensor, mixes

Array = np.ndarray
VERSION = 2  # of the formats of blocks
OWN_KEYS = ("general.architecture", "general.alignment")
FILE_TYPE, VERSION_KEY = "general.file_type", "general.quantization_version"


def write_gguf(
    path: str | PathLike[str],
    model: AnyModel,
    params: Mapping[str, Weight],
    type: str | None = None,
    more: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    keep: bool = False,
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write the model, its matrices in a mix of quant/mixes.py; vectors as float32. Quantised
    ones stay as they are where `keep` is set, or `type` is None, which is F32 for others.

    `more` are further keys, such as the tokenizer's, `types` their types where a value alone does
    not tell. q and k of arch llama are put in the order for neighbouring pairs, a GPT-2's missing
    biases are zeros. Raises TenaraiError for a model that GGUF has no words for; WriteError.
    """
    _check(path, model)
    try:
        keys = metadata_of(model)
    except ValueError as error:
        raise TenaraiError(f"{path}: {error}: write a Hugging Face folder instead") from error
    keys |= _type_keys(params, type, more or {})
    table = with_biases(model).table() if isinstance(model, GPT2) else model.table()

    mix = mixes.mix_of(type) if type else None
    place, ops = _place(model), cache(_fast)

    def value(p: Param) -> Weight:
        w = params[p.name] if p.name in params else value_or_zeros({}, p.name, p.shape)
        return _for_file(model, p, w)

    def tensor(name: str, group: list[Param]) -> gguf_write.Tensor:
        shape = file_shape(group)
        format = _format_of(name, shape, [params.get(p.name) for p in group], mix, place, keep)

        def make() -> Iterator[Array]:
            yield from (_as(name, format, value(p), ops) for p in group)
            progress(prod(shape))

        return gguf_write.Tensor(name, shape, format, make)

    tensors = [tensor(name, group) for name, group in by_file_name(table).items()]
    others = {key: value for key, value in (more or {}).items() if key not in keys}
    own_types = {key: types[key] for key in more or {} if types and key in types}
    gguf_write.write(path, keys | others, [*_factors(model), *tensors], own_types)


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


def unheeded(model: AnyModel) -> list[str]:
    """What tenarai reads in such a file and llama.cpp passes over."""
    windows = [w for w in model.config.windows if w] if isinstance(model, Llama) else []
    if arch_of(model) not in ("llama", "phi3", "qwen2", "qwen3") or not windows:
        return []
    if min(windows) >= model.config.context:
        return []
    return [
        f"the window for llama.cpp, which gives {arch_of(model)} none: it computes otherwise where "
        f"a text is longer than {min(windows)} tokens"
    ]


def _fast() -> Any:
    """Only quantising needs the compiled core."""
    from tenarai.ops.fast import Fast

    return Fast()


def _place(model: AnyModel) -> mixes.Place:
    if isinstance(model, GPT2):
        return mixes.Place(model.config.layers, tied=True)
    c = model.config
    return mixes.Place(c.layers, c.heads // c.kv_heads, c.tied)


def _type_keys(params: Mapping[str, Weight], type: str | None, more: Mapping[str, Any]) -> Any:
    """What a file says about its types; of quantised weights that stay, what theirs said."""
    if type is None:
        quantised = any(isinstance(w, QuantTensor) for w in params.values())
        return {FILE_TYPE: more.get(FILE_TYPE, 0) if quantised else 0}
    mix = mixes.mix_of(type)
    return {FILE_TYPE: mix.number} | ({} if mix.is_float else {VERSION_KEY: VERSION})


def _format_of(
    name: str,
    shape: tuple[int, ...],
    weights: list[Weight | None],
    mix: mixes.Mix | None,
    place: mixes.Place,
    keep: bool,
) -> Format:
    quantised = {w.format for w in weights if isinstance(w, QuantTensor)}
    if mix is not None and not (keep and quantised):
        wanted = mixes.format_of(mix, name, shape, place)
        if quantised - {wanted} and not (wanted.block == 1 or _are_floats(quantised)):
            raise TenaraiError(
                f"{name} is {quantised.pop().name} already, and rounding twice adds up: keep its "
                "types (leave out --type), or `tenarai quantize --requantize` a GGUF file"
            )
        return wanted
    if len(quantised) > 1:
        raise TenaraiError(
            f"parts of one tensor are quantised as {', '.join(f.name for f in quantised)}: "
            "quantise them alike"
        )
    return quantised.pop() if quantised else FORMATS["F32"]


def _are_floats(formats: set[Format]) -> bool:
    return all(f.block == 1 for f in formats)


def _for_file(model: AnyModel, p: Param, w: Weight) -> Weight:
    """The weight with its rows in the order of a GGUF file of the model's architecture."""
    if not isinstance(model, Llama):
        return w
    theirs = "adjacent" if arch_of(model) == "llama" else "half"
    return in_pairing(w, p.rope_heads, model.config.pairing, theirs)


def _as(name: str, format: Format, w: Weight, ops: Callable[[], Any]) -> Array:
    if isinstance(w, QuantTensor):
        if w.format == format:
            return w.data
        w = w.dequantize()
    if format.name in ("F32", "F16"):
        return np.ascontiguousarray(w, "<f2" if format.name == "F16" else "<f4")
    try:
        return ops().quantize(np.ascontiguousarray(w, np.float32), format).data
    except ValueError as error:
        raise TenaraiError(f"{name}: {error}") from error


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
    keys: dict[str, Any] = {}
    if r.original_context:
        keys["rope.scaling.original_context_length"] = r.original_context
    if r.scaling == "longrope":  # its factors are tensors; a key beside them would stretch again
        return keys | {"rope.scaling.attn_factor": r.attention_scale()}
    keys |= {"rope.scaling.type": r.scaling, "rope.scaling.factor": r.factor}
    if r.scaling == "yarn":  # there the key multiplies what follows from the factor
        plain = replace(r, attention_factor=None).attention_scale()
        keys["rope.scaling.yarn_attn_factor"] = r.attention_scale() / plain
        keys["rope.scaling.yarn_beta_fast"] = r.beta_fast
        keys["rope.scaling.yarn_beta_slow"] = r.beta_slow
    return keys
