"""GPT-2 in llm.c's files: where their names meet the model's table, in the dict `LLMC`.

Their linear layers lie as ours do, (O, I). How the files look is the business of io/llmc.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import llmc
from tenarai.models import families
from tenarai.models.exchange import value_or_zeros, with_biases
from tenarai.models.families import AnyModel
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights

Array = np.ndarray
PathName = str | PathLike[str]

DTYPES = {"F32": "float32", "BF16": "bfloat16"}

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
    path: PathName,
    model: AnyModel,
    params: Mapping[str, Array],
    type: str = "F32",
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write llm.c's file; `type` "F32" or "BF16". Missing biases are written as zeros.

    Raises TenaraiError for a model that llm.c does not have, or computes differently (exact GELU,
    another epsilon); WriteError.
    """
    if not isinstance(model, GPT2):
        raise TenaraiError(
            f"{path}: llm.c's file holds GPT-2 only, this is a {families.name_of(model)}: write "
            "llama2.c's file (--to llama2c), a Hugging Face folder or a GGUF file"
        )
    c = model.config
    for name, ours, theirs in (("gelu", c.gelu, "tanh"), ("norm_eps", c.norm_eps, 1e-5)):
        if ours != theirs:
            raise TenaraiError(
                f"{path}: llm.c computes with {name} = {theirs}, this model with {ours}: its "
                "results would differ; write a Hugging Face folder instead"
            )
    V = c.vocab_size
    header = llmc.Header(c.context, V, c.layers, c.heads, c.width, llmc.pad_vocabulary(V))
    shapes = {p.name: p.shape for p in with_biases(model).table()}

    def value(name: str) -> Array:
        return value_or_zeros(params, name, shapes[name])

    arrays: dict[str, Any] = {
        key: [value(name.format(i)) for i in range(c.layers)] if "{}" in name else value(name)
        for key, name in LLMC.items()
    }
    llmc.write(path, header, arrays, DTYPES[type], progress)
