"""Llama in llama2.c's files: where their names meet the model's table, in the dict `NAMES`.

Their RoPE turns neighbours, so q and k lie as in GGUF files of arch `llama`. How the files look is
the business of io/llama2c.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import llama2c
from tenarai.models import families
from tenarai.models.families import AnyModel
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.pairing import in_pairing
from tenarai.models.rope import Rope
from tenarai.models.table import FileWeights

Array = np.ndarray
PathName = str | PathLike[str]

NAMES = {
    "tok_embeddings": "wte.weight",
    "attention_norm": "h.{}.attn_norm.weight",
    "wq": "h.{}.attn.q.weight",
    "wk": "h.{}.attn.k.weight",
    "wv": "h.{}.attn.v.weight",
    "wo": "h.{}.attn.o.weight",
    "ffn_norm": "h.{}.mlp_norm.weight",
    "w1": "h.{}.mlp.gate.weight",
    "w2": "h.{}.mlp.down.weight",
    "w3": "h.{}.mlp.up.weight",
    "norm": "norm.weight",
    "output": "head.weight",
}


def read_llama2c(path: PathName) -> tuple[Llama, FileWeights]:
    """Model and weights of llama2.c's file: views of it, in version 2 expanded to float32.
    Raises TenaraiError."""
    header, arrays = llama2c.read(path)
    weights = {
        NAMES[name].format(i): array
        for name, group in arrays.items()
        for i, array in enumerate(group)
    }
    model = Llama(_config(header))
    return model, FileWeights(model.table(), weights)


def write_llama2c(
    path: PathName,
    model: AnyModel,
    params: Mapping[str, Array],
    version: int = 0,
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write llama2.c's file; version 0 or 1 (float32), or 2 (int8 by group).

    Raises TenaraiError for a model that llama2.c does not have, with all that it lacks; WriteError.
    """
    if not isinstance(model, Llama):
        raise TenaraiError(
            f"{path}: llama2.c's file holds a Llama, this is a {families.name_of(model)}: write "
            "llm.c's file (--to llmc), a Hugging Face folder or a GGUF file"
        )
    header = _header(path, model.config, version)
    rope_heads = {p.name: p.rope_heads for p in model.table()}

    cos, sin = model.config.rope.tables(header.max_seq_len, header.max_seq_len)

    def tensor(name: str, layer: int) -> Array:
        if name.startswith("freqs"):
            return cos if name == "freqs_cos" else sin
        ours = NAMES[name].format(layer)
        return in_pairing(params[ours], rope_heads[ours], model.config.pairing, "adjacent")

    llama2c.write(path, header, tensor, progress)


def _config(h: llama2c.Header) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=h.vocab_size,
        context=h.max_seq_len,
        layers=h.n_layers,
        heads=h.n_heads,
        kv_heads=h.n_kv_heads,
        head_size=h.dim // h.n_heads,
        width=h.dim,
        hidden=h.hidden_dim,
        rope=Rope(h.dim // h.n_heads),
        pairing="adjacent",
        tied=h.tied,
    )


def _header(path: PathName, c: LlamaConfig, version: int) -> llama2c.Header:
    """The model's header, after comparing the model with what a file of it would say."""
    try:
        header = llama2c.Header(
            c.width, c.hidden, c.layers, c.heads, c.kv_heads, c.vocab_size, c.context, c.tied,
            version, llama2c.group_size(c.width, c.hidden) if version == 2 else 0,
        )  # fmt: skip
    except ValueError as error:
        raise TenaraiError(f"{path}: llama2.c's file cannot hold {error}") from error
    again = _config(header)
    lacks = [
        f"{f.name} = {getattr(c, f.name)!r}"
        for f in fields(LlamaConfig)
        if f.name not in ("arch", "pairing", "local_rope")
        and not _same(getattr(c, f.name), getattr(again, f.name))
    ]
    if lacks:
        raise TenaraiError(
            f"{path}: llama2.c's file cannot hold this {families.NAMES[c.arch]}'s "
            f"{', '.join(lacks)}: write a GGUF file or a Hugging Face folder instead"
        )
    return header


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)  # GGUF's numbers are float32
    return bool(ours == theirs)
