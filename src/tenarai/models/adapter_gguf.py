"""Adapters in GGUF files, as llama.cpp reads them:

    general.type = "adapter", adapter.type = "lora", general.architecture as the model's
    adapter.lora.alpha                                         one for all tensors
    NAME.lora_a (r, I), NAME.lora_b (O, r)                     NAME being the weight's in its file
    NAME.lora_a (E, r, I), NAME.lora_b (E, O, r)               of a tensor of E experts

A tensor's scale is alpha / r with its own r. Source: llama.cpp, src/llama-adapter.cpp.
"""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import gguf, gguf_write
from tenarai.quant import FORMATS

from .adapter import Adapter, Factors, need_pairs, to_files, to_ours
from .families import AnyModel
from .gguf_exchange import by_file_name
from .gguf_out import arch_of
from .llama import Llama
from .lora import LoraConfig, linear_layers
from .pairing import to_adjacent, to_half
from .table import Param

Array = np.ndarray
ALPHA = "adapter.lora.alpha"


def write(path: str | PathLike[str], adapter: Adapter, model: AnyModel, name: str = "") -> None:
    """`name` is the adapter's, for people. Raises WriteError."""
    groups = by_file_name(linear_layers(model.table()))
    found = to_files(adapter, groups, lambda p, b: _turned(model, p, b, out=True), stacked=True)
    alpha = adapter.config.alpha
    metadata = {
        "general.type": "adapter",
        "general.architecture": arch_of(model),
        "general.name": name or "adapter",
        "adapter.type": "lora",
        ALPHA: float(alpha),
    }
    tensors = []
    for key, f in found.items():
        b = f.b * np.float32(f.scale * f.rank / alpha) if f.scale != alpha / f.rank else f.b
        tensors += [_tensor(f"{key}.lora_a", f.a), _tensor(f"{key}.lora_b", b)]
    gguf_write.write(path, metadata, tensors)


def _tensor(name: str, array: Array) -> gguf_write.Tensor:
    data = np.ascontiguousarray(array, "<f4")
    return gguf_write.Tensor(name, array.shape, FORMATS["F32"], lambda: data)


def read(path: str | PathLike[str], model: AnyModel) -> Adapter:
    """The adapter in `path`, for `model`. Raises TenaraiError: no adapter, another model's."""
    file = gguf.read(path)
    meta = file.metadata
    if meta.typed("general.type", "string", default="model") != "adapter":
        raise TenaraiError(f"{path}: is a model, no adapter: name it with -m")
    kind = meta.typed("adapter.type", "string", default="")
    if kind != "lora":
        raise TenaraiError(f"{path}: is an adapter of type {kind!r}, expected lora")
    arch = meta.typed("general.architecture", "string", default="")
    if arch != arch_of(model):
        raise TenaraiError(
            f"{path}: is an adapter for arch {arch!r}, this model's is {arch_of(model)!r}"
        )
    alpha = float(meta.typed(ALPHA, "float32", default=0.0))
    if not 0 < alpha < math.inf:
        raise TenaraiError(f"{path}: {ALPHA} is {alpha}, expected more than 0")
    halves: dict[str, dict[str, gguf.GGUFTensor]] = {}
    for name, tensor in file.tensors.items():
        stem, _, half = name.rpartition(".lora_")
        if half not in ("a", "b") or tensor.ndim not in (2, 3) or min(tensor.shape) < 1:
            raise TenaraiError(f"{path}: {name} of shape {tensor.shape} is no part of a LoRA")
        halves.setdefault(stem, {})[half] = tensor
    need_pairs(path, halves)
    found = {}
    for stem, pair in halves.items():
        a, b = (np.array(pair[half].float32()) for half in "ab")
        found[stem] = Factors(a, b, alpha / a.shape[-2])
    ranks = sorted(f.rank for f in found.values())
    config = LoraConfig(ranks[0], alpha)
    groups = by_file_name(linear_layers(model.table()))

    def turn(p: Param, b: Array) -> Array:
        return _turned(model, p, b, out=False)

    return to_ours(Path(path), config, found, groups, turn, stacked=True)


def _turned(model: AnyModel, p: Param, b: Array, out: bool) -> Array:
    """B's rows as such a file has them (`out`), or the way back."""
    if not p.rope_heads or not isinstance(model, Llama):
        return b
    theirs = "adjacent" if arch_of(model) == "llama" else "half"
    if model.config.pairing == theirs:
        return b
    to = to_adjacent if (theirs == "adjacent") == out else to_half
    return to(b, p.rope_heads)
