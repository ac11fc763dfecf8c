"""Adapters in PEFT's format: a folder with

    adapter_config.json          {"peft_type": "LORA", "r", "lora_alpha", "target_modules", ...}
    adapter_model.safetensors    base_model.model.NAME.lora_A.weight (r, I), ….lora_B.weight (O, r)

NAME being the layer's in Hugging Face's model. A layer's scale is alpha / r, or alpha / √r with
use_rslora, and rank_pattern and alpha_pattern say what is another for some. Variants that compute
something else (DoRA, trained biases, whole modules) are refused.
Source: github.com/huggingface/peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import safetensors_file
from tenarai.io.atomic import make_folder
from tenarai.io.json_file import read_json, write_json

from .adapter import CONFIG, Adapter, Factors, need_pairs, to_files, to_ours
from .exchange import by_file_name
from .families import AnyModel
from .gpt2 import GPT2
from .llama import Llama
from .lora import LoraConfig, linear_layers
from .pairing import to_adjacent, to_half
from .table import Param

Array = np.ndarray
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_([AB])(?:\.default)?\.weight")
MOST_RANK = 4096


def write(folder: str | PathLike[str], adapter: Adapter, model: AnyModel, base: str = "") -> None:
    """`base` names the model that it is for. Raises WriteError."""
    folder = make_folder(folder)
    found = to_files(adapter, _groups(model), lambda p, b: _turned(model, p, b, to_half))
    arrays = []
    for name, f in found.items():
        stem = PREFIX + name.removesuffix(".weight")
        arrays.append((f"{stem}.lora_A.weight", f.a.shape, lambda f=f: f.a))
        arrays.append((f"{stem}.lora_B.weight", f.b.shape, lambda f=f: f.b))
    safetensors_file.write_file(folder / WEIGHTS, arrays, {"format": "pt"})
    write_json(folder / CONFIG, _config(adapter.config, model, found, base))


def _config(
    c: LoraConfig, model: AnyModel, found: Mapping[str, Factors], base: str
) -> dict[str, Any]:
    stems = {n: n.removesuffix(".weight") for n in found}
    ranks = {stems[n]: len(f.a) for n, f in found.items() if len(f.a) != c.rank}
    alphas = {n: found[n].scale * len(found[n].a) for n in found}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": c.rank,
        "lora_alpha": c.alpha,
        "lora_dropout": c.dropout,
        "target_modules": _targets(model, found),
        "rank_pattern": ranks,
        "alpha_pattern": {stems[n]: a for n, a in alphas.items() if a != c.alpha},
        "fan_in_fan_out": isinstance(model, GPT2),  # its layers hold (I, O)
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _targets(model: AnyModel, found: Mapping[str, Factors]) -> list[str]:
    """The last parts of the layers' names, or whole names where those would mean others too."""
    every = {n.removesuffix(".weight") for n in _groups(model)}
    adapted = {n.removesuffix(".weight") for n in found}
    short = {n.rsplit(".", 1)[-1] for n in adapted}
    meant = {n for n in every if n.rsplit(".", 1)[-1] in short}
    return sorted(short if meant == adapted else adapted)


def read(folder: str | PathLike[str], model: AnyModel) -> Adapter:
    """The adapter in `folder`, for `model`. Raises TenaraiError: damaged, a variant that is not
    known, tensors missing, another model's."""
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    lora, root = _read_config(config, folder / CONFIG)
    if not (folder / WEIGHTS).exists():
        raise TenaraiError(
            f"{folder}: has {CONFIG} but no {WEIGHTS}: a .bin can run any program when opened, and "
            "is not read; save the adapter with PEFT's save_pretrained"
        )
    halves: dict[str, dict[str, safetensors_file.Tensor]] = {}
    for name, tensor in safetensors_file.open_file(folder / WEIGHTS).items():
        match = TENSOR.fullmatch(name)
        if match is None:
            raise TenaraiError(
                f"{folder / WEIGHTS}: {name} is no matrix of a plain LoRA of linear layers, and "
                "nothing else can be read"
            )
        if len(tensor.shape) != 2 or min(tensor.shape) < 1:
            raise TenaraiError(f"{folder / WEIGHTS}: {name} has shape {tensor.shape}, no matrix")
        halves.setdefault(match[1], {})[match[2].lower()] = tensor
    need_pairs(folder / WEIGHTS, halves)
    groups = _groups(model)
    found: dict[str, Factors] = {}
    for stem, pair in halves.items():
        name = next((n for n in (f"{stem}.weight", f"{_root(model)}{stem}.weight") if n in groups),
                    f"{stem}.weight")  # fmt: skip
        rank = pair["a"].shape[0]
        alpha = _of_pattern(config.get("alpha_pattern"), stem, lora.alpha)
        scale = alpha / (rank**0.5 if root else rank)
        found[name] = Factors(pair["a"].read(), pair["b"].read(), scale)
    return to_ours(folder, lora, found, groups, lambda p, b: _turned(model, p, b, to_adjacent))


def _read_config(config: Mapping[str, Any], where: Path) -> tuple[LoraConfig, bool]:
    if config.get("peft_type") != "LORA":
        raise TenaraiError(f"{where}: peft_type is {config.get('peft_type')!r}, expected LORA")
    for name, usual in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(name, usual) not in (usual, None, []):
            raise TenaraiError(f"{where}: {name} is {config[name]!r}, which cannot be followed")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MOST_RANK:
        raise TenaraiError(f"{where}: r is {rank!r}, expected 1 to {MOST_RANK}")
    if not _is_alpha(alpha):
        raise TenaraiError(f"{where}: lora_alpha is {alpha!r}, expected a number")
    return LoraConfig(rank, float(alpha)), config.get("use_rslora") is True


def _is_alpha(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < 1e9


def _of_pattern(pattern: Any, stem: str, default: float) -> float:
    """The value of the first key that is the layer's name or its end, as PEFT looks it up."""
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if stem == key or stem.endswith(f".{key}"):
            if not _is_alpha(value):
                raise TenaraiError(f"{CONFIG}: alpha_pattern of {key} is {value!r}, no number")
            return float(value)
    return default


def _groups(model: AnyModel) -> dict[str, list[Param]]:
    return by_file_name(linear_layers(model.table()))


def _root(model: AnyModel) -> str:
    return "transformer." if isinstance(model, GPT2) else "model."


def _turned(model: AnyModel, p: Param, b: Array, to: Any) -> Array:
    """B's rows for a file, or out of one, where our q and k lie for neighbouring pairs."""
    if p.rope_heads and isinstance(model, Llama) and model.config.pairing == "adjacent":
        return to(b, p.rope_heads)
    return b
