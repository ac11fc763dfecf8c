"""The kinds of files that models are written as, and which types of numbers each has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tenarai.errors import TenaraiError
from tenarai.quant.mixes import MIXES


@dataclass(frozen=True)
class Target:
    """A kind, told by `suffix`. `types`: those of its matrices, the usual one first."""

    what: str
    suffix: str
    types: tuple[str, ...]


TARGETS = {
    "hf": Target("a Hugging Face folder", "", ("F32", "F16", "BF16")),
    "gguf": Target("a GGUF file", ".gguf", tuple(MIXES)),
    "llama2c": Target("llama2.c's file", ".bin", ("F32", "Q8_0")),
    "llama2c-v1": Target("llama2.c's file of version 1", ".bin", ("F32",)),
    "llmc": Target("llm.c's file", ".bin", ("F32", "BF16")),
    "tenarai": Target("a tenarai checkpoint", ".tenarai", ("F32",)),
}
TYPES = {"FLOAT32": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}  # other names of types


def type_for(path: str | os.PathLike[str], target: str, name: str | None) -> str:
    """The type of numbers that `name` (in any case; None: the usual one) means in a target.
    Raises TenaraiError that says which there are."""
    there = TARGETS[target]
    wanted = there.types[0] if name is None else TYPES.get(name.upper(), name.upper())
    if wanted in there.types:
        return wanted
    others = [t.what for t in TARGETS.values() if wanted in t.types]
    where = f"only {' or '.join(others)} can" if others else "there is no such type"
    raise TenaraiError(
        f"{path}: {there.what} cannot hold {name} ({where}): take one of {', '.join(there.types)}"
    )
