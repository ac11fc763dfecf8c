"""Opening models from anything but GGUF files: the reader, and the tokenizer beside the weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError, TenaraiWarning
from tenarai.io import formats, hugging_face
from tenarai.models import exchange, llama2c_exchange, llmc_exchange, snapshot
from tenarai.models.families import AnyModel
from tenarai.models.table import FileWeights, Weights
from tenarai.tokenizers import Tokenizer, files

BESIDE = {  # the names of tokenizers that lie beside a lone file
    formats.LLMC: (files.LLMC_NAME,),
    formats.LLAMA2C: (files.LLAMA2C_NAME, "tokenizer.model"),
}
Opened = tuple[AnyModel, Weights | FileWeights, Tokenizer | None, dict[str, Any]]


def open_model(path: Path, kind: str, look: bool = True) -> Opened:
    """Model, weights, the tokenizer (none without `look`), and what else is known by GGUF's keys.
    `kind` is formats.detect's. Raises TenaraiError."""
    model: AnyModel
    params: Weights | FileWeights
    if kind == formats.SAFETENSORS:
        raise TenaraiError(f"{path}: weights alone do not say their model: name the folder of them")
    if kind in (formats.CHECKPOINT, formats.FOLDER):
        model, params, document = snapshot.read(path)
        found = files.from_document(document) if document is not None and look else None
        return model, params, found, {}
    more: dict[str, Any] = {}
    if kind == formats.HUGGING_FACE:
        model, params = exchange.read_hugging_face(path)
        if look and (template := hugging_face.chat_template(path)) is not None:
            more["tokenizer.chat_template"] = template
    elif kind == formats.LLMC:
        model, params = llmc_exchange.read_llmc(path)
    else:
        model, params = llama2c_exchange.read_llama2c(path)
    return model, params, _tokenizer(path, kind, model) if look else None, more


def _tokenizer(path: Path, kind: str, model: AnyModel) -> Tokenizer | None:
    """The tokenizer that lies with the weights. A damaged one is an error, a missing one is not,
    and one with more tokens, beside llama2.c's file, is another model's."""
    found = files.find(path if path.is_dir() else path.parent, BESIDE.get(kind))
    if found is None:
        return None
    tokenizer, size = files.load(found), model.config.vocab_size
    if kind != formats.LLAMA2C or tokenizer.vocab_size <= size:
        return tokenizer
    warnings.warn(
        f"{found} has {tokenizer.vocab_size:,} tokens, and {path} has {size:,}: it is another "
        "model's; name this one's (--tokenizer)",
        TenaraiWarning,
        stacklevel=4,
    )
    return None


def other_tokenizer(path: str | os.PathLike[str], model: AnyModel) -> Tokenizer:
    """The tokenizer that somebody names. Raises TenaraiError where the model has fewer tokens."""
    tokenizer, size = files.load(path), model.config.vocab_size
    if tokenizer.vocab_size > size:
        raise TenaraiError(
            f"{path}: has {tokenizer.vocab_size:,} tokens, the model {size:,}: name the tokenizer "
            "of this model"
        )
    return tokenizer


def without_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in metadata if not key.startswith("tokenizer.")}
