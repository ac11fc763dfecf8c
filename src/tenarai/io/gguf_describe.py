"""What is in a GGUF file, as plain data for people and programs: no weight is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tenarai.io.gguf import GGUFFile, GGUFTensor
from tenarai.io.gguf_metadata import Metadata

SHOWN = 8  # elements of an array


def describe(file: GGUFFile) -> dict[str, Any]:
    """What `tenarai.files.describe` says of a GGUF file beyond what it says of every model.

    {"version", "parts": paths, "metadata": {key: {"type", "value"}}, "tokenizer": text or None,
    "tensors": [{"name", "dtype", "shape", "bytes"}], "bits_per_weight" (None without tensors),
    "types": {format: {"tensors", "numbers", "bytes", "bits_per_weight"}}, largest first}. An
    array has {"type", "length", "first": its first elements} in place of the value.
    """
    tensors = list(file.tensors.values())
    return {
        "version": file.version,
        "parts": [str(path) for path in file.paths],
        "metadata": {key: _value(file.metadata, key) for key in file.metadata},
        "tokenizer": _tokenizer(file.metadata),
        "tensors": [
            {"name": t.name, "dtype": t.format.name, "shape": list(t.shape), "bytes": t.nbytes}
            for t in tensors
        ],
        "bits_per_weight": _bits(tensors) if tensors else None,
        "types": _by_type(tensors),
    }


def _by_type(tensors: list[GGUFTensor]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[GGUFTensor]] = {}
    for t in tensors:
        groups.setdefault(t.format.name, []).append(t)
    sizes = {name: sum(t.nbytes for t in group) for name, group in groups.items()}
    return {
        name: {
            "tensors": len(groups[name]),
            "numbers": sum(t.size for t in groups[name]),
            "bytes": sizes[name],
            "bits_per_weight": _bits(groups[name]),
        }
        for name in sorted(groups, key=lambda name: -sizes[name])
    }


def _bits(tensors: list[GGUFTensor]) -> float:
    return 8 * sum(t.nbytes for t in tensors) / sum(t.size for t in tensors)


def _value(metadata: Metadata, key: str) -> dict[str, Any]:
    kind = metadata.types[key]
    if not kind.startswith("["):
        return {"type": kind, "value": _plain(metadata[key])}
    first = [_plain(v) for v in metadata.first(key, SHOWN)]
    return {"type": kind, "length": metadata.length(key), "first": first}


def _plain(value: Any) -> Any:
    """What JSON can hold: it has no infinity and no NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tokenizer(metadata: Metadata) -> str | None:
    """What kind the file says, and how many tokens; whether it can be used is not tried."""
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return None
    pre = metadata.get("tokenizer.ggml.pre")
    kind = f"{model} ({pre})" if pre else f"{model}"
    if not metadata.types.get("tokenizer.ggml.tokens", "").startswith("["):
        return kind
    return f"{kind}, {metadata.length('tokenizer.ggml.tokens'):,} tokens"
