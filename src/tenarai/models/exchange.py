"""Models in Hugging Face's files: where their names and numbers meet the model's table.

`Param` says how each weight lies there: its name, (I, O) or (O, I), alone or in one tensor with
others, less a number. q and k of a model whose RoPE pairs neighbours lie there for pairs of halves.
How the files look is the business of `tenarai.io`; llm.c's are llmc_exchange.py's, GGUF's
gguf_exchange.py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import hugging_face
from tenarai.io.safetensors_file import Tensor
from tenarai.models import families
from tenarai.models.families import AnyModel
from tenarai.models.gpt2 import GPT2
from tenarai.models.llama import Llama
from tenarai.models.pairing import in_pairing
from tenarai.models.table import Param, Weights, and_more

Array = np.ndarray
PathName = str | PathLike[str]

# Not weights: the causal mask and RoPE's angles, which older versions of transformers saved too.
BUFFERS = re.compile(
    r"transformer\.h\.\d+\.attn\.(bias|masked_bias)|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)
TIED = "lm_head.weight"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_hugging_face(folder: PathName) -> tuple[AnyModel, Weights]:
    """Model and weights of a folder. float32, float16 and bfloat16 files become float32.

    Names may lack `transformer.` or `model.`; the `lm_head.weight` of a model whose output is tied
    must equal the embedding. Every name and shape is checked before a weight is read.
    Raises TenaraiError: a model that is not known, tensors missing, misshapen, too many.
    """
    config, tensors = hugging_face.read_folder(folder)
    model = families.from_hugging_face(config, Path(folder) / hugging_face.CONFIG)
    table = model.table()
    groups = by_file_name(table)
    by_name = _canonical(tensors, folder, table[0].hf.split(".")[0])
    head = by_name.pop(TIED, None) if TIED not in groups else None
    _check_tensors(by_name, groups, folder)
    params = Weights(table)
    for name, group in groups.items():
        array = by_name[name].read()
        for p in group:
            params[p.name][...] = _from_file(model, p, array)
    if head and not (
        head.shape == params["wte.weight"].shape
        and np.array_equal(head.read(), params["wte.weight"], equal_nan=True)
    ):
        raise TenaraiError(
            f"{folder}: {TIED} differs from {table[0].hf}, but config.json says that the output "
            "layer is tied to the embedding: set tie_word_embeddings if the model has it"
        )
    return model, params


def write_hugging_face(
    folder: PathName,
    model: AnyModel,
    params: Mapping[str, Array],
    files: Mapping[str, bytes] | None = None,
    ids: Mapping[str, Any] | None = None,
    *,
    type: str = "F32",
    shard_size: int | None = None,
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write a folder that `transformers` loads as the model's ...ForCausalLM, with equal logits.

    `files` are the tokenizer's, by name; `ids` its special tokens', as config.json has them
    (bos_token_id, eos_token_id). Weights are `type` (F32, F16 or BF16) in files of at most
    `shard_size` bytes. A GPT-2 without biases is written with zeros there, since the format has no
    way to say so. Raises WriteError.
    """
    special = {"bos_token_id": None, "eos_token_id": None} | dict(ids or {})

    def maker(group: list[Param]) -> Callable[[], Array]:
        return lambda: _to_file(
            model, group, [value_or_zeros(params, p.name, p.shape) for p in group]
        )

    table = with_biases(model).table() if isinstance(model, GPT2) else model.table()
    arrays = [(n, _file_shape(g), maker(g)) for n, g in by_file_name(table).items()]
    config = families.to_hugging_face(model) | special | {"dtype": DTYPES[type]}
    hugging_face.write_folder(folder, config, arrays, special, files, type, shard_size, progress)


def in_hugging_face_layout(weights: Weights, model: AnyModel | None = None) -> dict[str, Array]:
    """Weights or gradients by Hugging Face's names and in its layout: what `named_parameters()`
    gives, a tied embedding once. Views where the layouts agree, contiguous copies elsewhere.

    Gradients are not shifted; so neither is anything here. `model` is needed where its RoPE pairs
    neighbours.
    """
    return {
        name: _to_file(model, group, [weights[p.name] for p in group], shift=False)
        for name, group in by_file_name(weights.table).items()
    }


def by_file_name(table: tuple[Param, ...]) -> dict[str, list[Param]]:
    """The weights in each tensor of a file, from its first row to its last."""
    groups: dict[str, list[Param]] = {}
    for p in table:
        groups.setdefault(p.hf, []).append(p)
    return groups


def _from_file(model: AnyModel, p: Param, array: Array) -> Array:
    """A weight as the model has it, out of the tensor that holds it."""
    if p.fused:
        array = array[p.fused.begin : p.fused.begin + p.shape[0]]
    if p.hf_transposed:
        array = array.T
    array = in_pairing(array, p.rope_heads, "half", _pairing(model))
    return array + np.float32(p.hf_shift) if p.hf_shift else array


def _to_file(
    model: AnyModel | None, group: list[Param], values: list[Array], shift: bool = True
) -> Array:
    """The tensor of a group of weights: `_from_file` backwards."""
    parts = []
    for p, array in zip(group, values, strict=True):
        array = in_pairing(array, p.rope_heads, _pairing(model), "half")
        if shift and p.hf_shift:
            array = array - np.float32(p.hf_shift)
        parts.append(np.ascontiguousarray(array.T) if p.hf_transposed else array)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pairing(model: AnyModel | None) -> str:
    return model.config.pairing if isinstance(model, Llama) else "half"


def _file_shape(group: list[Param]) -> tuple[int, ...]:
    p = group[0]
    if p.fused:
        return (p.fused.rows, *p.shape[1:])
    return p.shape[::-1] if p.hf_transposed else p.shape


def with_biases(model: GPT2) -> GPT2:
    return GPT2(replace(model.config, bias=True))


def value_or_zeros(params: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    """The weight, or zeros for a bias that the model does without."""
    return params[name] if name in params else np.zeros(shape, np.float32)


def _canonical(tensors: Mapping[str, Tensor], folder: PathName, prefix: str) -> dict[str, Tensor]:
    """Tensors by full name, without the buffers."""
    by_name: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = name if name.startswith((f"{prefix}.", "lm_head.")) else f"{prefix}.{name}"
        if full in by_name:
            raise TenaraiError(f"{folder}: holds {full} twice, with and without `{prefix}.`")
        if not BUFFERS.fullmatch(full):
            by_name[full] = tensor
    return by_name


def _check_tensors(
    tensors: Mapping[str, Tensor], groups: dict[str, list[Param]], folder: PathName
) -> None:
    expected = {name: _file_shape(group) for name, group in groups.items()}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise TenaraiError(
            f"{folder}: {missing[0]} of shape {expected[missing[0]]} is missing"
            f"{and_more(missing)}: is the file whole, and config.json of the same model?"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise TenaraiError(
                f"{folder}: {name} has shape {tensors[name].shape}, config.json asks for {shape}: "
                "is config.json from another model size?"
            )
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise TenaraiError(
            f"{folder}: {extra[0]} of shape {tensors[extra[0]].shape} has no place in the model "
            f"that config.json describes{and_more(extra)}: does config.json belong to this file?"
        )
