"""A model folder as Hugging Face's `transformers` reads and writes it.

    config.json                     what the model is
    model.safetensors               its weights, or
    model.safetensors.index.json    which of several files holds which weight
    tokenizer.json, ...             its tokenizer, copied as it is

What the names and numbers mean is the models' matter (`tenarai.models.exchange`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write, make_folder
from tenarai.io.json_file import read_json, write_json
from tenarai.io.safetensors_file import Array, Tensor, open_file, open_index, write_file

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights (name → Tensor, not yet read) of a folder.

    Raises TenaraiError: no config.json, no weights, either damaged, only weights in Python's
    pickle format, which can run any program when opened.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise TenaraiError(
            f"{folder}: has no {CONFIG}, so it is not a Hugging Face folder: name the folder that "
            f"holds {CONFIG} and {WEIGHTS}"
        )
    config = read_json(folder / CONFIG)
    if (folder / WEIGHTS).exists():
        return config, open_file(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return config, open_index(folder / INDEX)
    advice = f"download {WEIGHTS} too"
    if any(folder.glob("pytorch_model*.bin")):
        advice = (
            "pytorch_model.bin can run any program when opened, so it is not read: convert it "
            "with transformers' save_pretrained"
        )
    raise TenaraiError(f"{folder}: has {CONFIG} but no {WEIGHTS}: {advice}")


def write_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    arrays: Iterable[tuple[str, tuple[int, ...], Callable[[], Array]]],
    generation_config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a folder that `transformers` loads; `arrays` as `safetensors_file.write_file` has it.

    `files` are further ones by name, such as the tokenizer's. Each file is written whole or not
    at all, config.json last: a folder without one is no model yet. Raises WriteError.
    """
    folder = make_folder(folder)
    write_file(folder / WEIGHTS, arrays, {"format": "pt"})
    for name, content in (files or {}).items():
        with atomic_write(folder / name) as f:
            f.write(content)
    if generation_config is not None:
        write_json(folder / GENERATION_CONFIG, dict(generation_config))
    write_json(folder / CONFIG, dict(config))


def tokenizer_files(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """The tokenizer's files of a folder, name → content, to be carried into another folder."""
    paths = [Path(folder) / name for name in TOKENIZER_FILES]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
