"""GPT-2 in other programs' files: where their names and numbers meet the model's table.

Hugging Face: `Param.hf` names each weight, `Param.hf_transposed` says which linear layers lie
there as (I, O). llm.c: the dict `LLMC` below; its linear layers lie as ours do, (O, I).
How the files look is the business of `tenarai.io`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import hugging_face, llmc
from tenarai.io.safetensors_file import Tensor
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.hf_config import from_hugging_face, to_hugging_face
from tenarai.models.table import Param, Weights

Array = np.ndarray
PathName = str | PathLike[str]

# Not weights: the causal mask, which older versions of transformers saved with them.
BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
TIED = "lm_head.weight"

LLMC = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln1w": "h.{}.ln_1.weight",
    "ln1b": "h.{}.ln_1.bias",
    "qkvw": "h.{}.attn.c_attn.weight",
    "qkvb": "h.{}.attn.c_attn.bias",
    "attprojw": "h.{}.attn.c_proj.weight",
    "attprojb": "h.{}.attn.c_proj.bias",
    "ln2w": "h.{}.ln_2.weight",
    "ln2b": "h.{}.ln_2.bias",
    "fcw": "h.{}.mlp.c_fc.weight",
    "fcb": "h.{}.mlp.c_fc.bias",
    "fcprojw": "h.{}.mlp.c_proj.weight",
    "fcprojb": "h.{}.mlp.c_proj.bias",
    "lnfw": "ln_f.weight",
    "lnfb": "ln_f.bias",
}


# Hugging Face


def read_hugging_face(folder: PathName) -> tuple[GPT2, Weights]:
    """Model and weights of a folder. float32, float16 and bfloat16 files become float32.

    Names may lack `transformer.`; `lm_head.weight` must equal the embedding that it is tied to.
    Every name and shape is checked before a weight is read.
    Raises TenaraiError: not GPT-2 as it is written here, tensors missing, misshapen, too many.
    """
    config, tensors = hugging_face.read_folder(folder)
    model = GPT2(from_hugging_face(config, Path(folder) / hugging_face.CONFIG))
    by_name = _canonical(tensors, folder)
    head = by_name.pop(TIED, None)
    _check_tensors(by_name, model.table(), folder)
    params = Weights(model.table())
    for p in params.table:
        array = by_name[p.hf].read()
        params[p.name][...] = array.T if p.hf_transposed else array
    if head and not (
        head.shape == params["wte.weight"].shape
        and np.array_equal(head.read(), params["wte.weight"], equal_nan=True)
    ):
        raise TenaraiError(
            f"{folder}: {TIED} differs from transformer.wte.weight: a model whose output layer is "
            "not tied to its embedding cannot be read yet"
        )
    return model, params


def write_hugging_face(
    folder: PathName,
    model: GPT2,
    params: Mapping[str, Array],
    files: Mapping[str, bytes] | None = None,
    end_token: int | None = None,
) -> None:
    """Write a folder that `transformers` loads as GPT2LMHeadModel, with equal logits.

    `files` are the tokenizer's, by name; `end_token` is the id that ends a text, if one does.
    A model without biases is written with zeros there, since the format has no way to say so.
    Raises WriteError.
    """
    special = {"bos_token_id": end_token, "eos_token_id": end_token}

    def maker(p: Param) -> Callable[[], Array]:
        return lambda: _hf_layout(p, _value(params, p.name, p.shape))

    arrays = [(p.hf, _hf_shape(p), maker(p)) for p in _with_biases(model)]
    config = to_hugging_face(model.config) | special
    hugging_face.write_folder(folder, config, arrays, special, files)


def in_hugging_face_layout(weights: Weights) -> dict[str, Array]:
    """Weights or gradients by Hugging Face's names and in its layout: what `named_parameters()`
    gives, the tied embedding once. Views where the layouts agree, contiguous copies elsewhere."""
    return {p.hf: _hf_layout(p, weights[p.name]) for p in weights.table}


def _hf_layout(p: Param, array: Array) -> Array:
    return np.ascontiguousarray(array.T) if p.hf_transposed else array


def _hf_shape(p: Param) -> tuple[int, ...]:
    return p.shape[::-1] if p.hf_transposed else p.shape


def _with_biases(model: GPT2) -> Iterable[Param]:
    return GPT2(replace(model.config, bias=True)).table()


def _value(params: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    """The weight, or zeros for a bias that the model does without."""
    return params[name] if name in params else np.zeros(shape, np.float32)


def _canonical(tensors: Mapping[str, Tensor], folder: PathName) -> dict[str, Tensor]:
    """Tensors by full name, without the buffers."""
    by_name: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if full in by_name:
            raise TenaraiError(f"{folder}: holds {full} twice, with and without `transformer.`")
        if not BUFFERS.fullmatch(full):
            by_name[full] = tensor
    return by_name


def _check_tensors(
    tensors: Mapping[str, Tensor], table: tuple[Param, ...], folder: PathName
) -> None:
    expected = {p.hf: _hf_shape(p) for p in table}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise TenaraiError(
            f"{folder}: {missing[0]} of shape {expected[missing[0]]} is missing"
            f"{_and_more(missing)}: is the file whole, and config.json of the same model?"
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
            f"{folder}: {extra[0]} of shape {tensors[extra[0]].shape} has no place in a GPT-2 as "
            f"config.json describes it{_and_more(extra)}: does config.json belong to this file?"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


# llm.c


def read_llmc(path: PathName) -> tuple[GPT2, Weights]:
    """Model and weights of llm.c's file, float32 or bfloat16. Raises TenaraiError."""
    header, arrays = llmc.read(path)
    config = GPT2Config(
        vocab_size=header.vocab_size,
        context=header.max_seq_len,
        layers=header.num_layers,
        heads=header.num_heads,
        width=header.channels,
    )
    model = GPT2(config)
    params = Weights(model.table())
    for theirs, ours in LLMC.items():
        if "{}" not in ours:
            params[ours][...] = llmc.to_float32(arrays[theirs])
            continue
        for i in range(config.layers):
            params[ours.format(i)][...] = llmc.to_float32(arrays[theirs][i])
    return model, params


def write_llmc(
    path: PathName, model: GPT2, params: Mapping[str, Array], dtype: str = "float32"
) -> None:
    """Write llm.c's file; `dtype` "float32" or "bfloat16". Missing biases are written as zeros.

    Raises TenaraiError for a model that llm.c computes differently (exact GELU, another epsilon);
    WriteError.
    """
    c = model.config
    for name, ours, theirs in (("gelu", c.gelu, "tanh"), ("norm_eps", c.norm_eps, 1e-5)):
        if ours != theirs:
            raise TenaraiError(
                f"{path}: llm.c computes with {name} = {theirs}, this model with {ours}: its "
                "results would differ; write a Hugging Face folder instead"
            )
    V = c.vocab_size
    header = llmc.Header(c.context, V, c.layers, c.heads, c.width, llmc.pad_vocabulary(V))
    shapes = {p.name: p.shape for p in _with_biases(model)}

    def value(name: str) -> Array:
        return _value(params, name, shapes[name])

    arrays: dict[str, Any] = {
        key: [value(name.format(i)) for i in range(c.layers)] if "{}" in name else value(name)
        for key, name in LLMC.items()
    }
    llmc.write(path, header, arrays, dtype)
