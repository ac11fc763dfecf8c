"""A model folder as Hugging Face's `transformers` reads and writes it.

    config.json                     what the model is
    model.safetensors               its weights, or
    model.safetensors.index.json    which of several files holds which weight
    tokenizer.json, ...             its tokenizer, copied as it is

What the names and numbers mean is the models' matter (`tenarai.models.exchange`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.io.atomic import WriteError, atomic_write, fsync_folder, make_folder
from tenarai.io.json_file import read_json, write_json
from tenarai.io.safetensors_file import ITEM, Made, Tensor, open_file, open_index, write_file

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEMPLATE, TEMPLATE_BYTES, SETTINGS_BYTES = "chat_template.jinja", 1 << 20, 16 << 20
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    TEMPLATE,
    GENERATION_CONFIG,
)
SHARD = "model-{:05}-of-{:05}.safetensors"
SHARDS = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PARTIAL = ".partial"  # where files lie until all are written


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
    arrays: Iterable[Made],
    generation_config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    type: str = "F32",
    shard_size: int | None = None,
    progress: Callable[[int], object] = lambda numbers: None,
) -> None:
    """Write a folder that `transformers` loads; `arrays`, `type` and `progress` as
    `safetensors_file.write_file` has them, in several files where they are more than `shard_size`
    bytes (a tensor is never cut).

    `files` are further ones by name, such as the tokenizer's. All is written aside first and then
    moved into place, config.json last: a model that lay there stays until the new one is whole,
    and a folder without config.json is no model. Raises WriteError.
    """
    folder = make_folder(folder)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    aside = make_folder(folder / PARTIAL)
    try:
        _write_weights(aside, list(arrays), type, shard_size, progress)
        if generation_config is not None:
            write_json(aside / GENERATION_CONFIG, dict(generation_config))
        for name, content in (files or {}).items():
            with atomic_write(aside / name) as f:
                f.write(content)
        write_json(aside / CONFIG, dict(config))
        _move(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_weights(
    folder: Path,
    arrays: list[Made],
    type: str,
    shard_size: int | None,
    progress: Callable[[int], object],
) -> None:
    shards: list[list[Made]] = [[]]
    size = total = 0
    for made in arrays:
        nbytes = ITEM[type] * prod(made[1])
        if shard_size is not None and shards[-1] and size + nbytes > shard_size:
            shards.append([])
            size = 0
        shards[-1].append(made)
        size, total = size + nbytes, total + nbytes
    if len(shards) == 1:
        write_file(folder / WEIGHTS, arrays, {"format": "pt"}, type, progress)
        return
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = SHARD.format(i, len(shards))
        write_file(folder / name, shard, {"format": "pt"}, type, progress)
        places |= {tensor: name for tensor, _, _ in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _move(aside: Path, folder: Path) -> None:
    """Every file of `aside` into `folder`, without weights of an older model beside them."""
    new = {path.name for path in aside.iterdir()}
    try:
        (folder / CONFIG).unlink(missing_ok=True)
        for path in folder.iterdir():
            weights = SHARDS.fullmatch(path.name) or path.name in (WEIGHTS, INDEX)
            if weights and path.name not in new:
                path.unlink()
        for name in sorted(new, key=lambda name: name == CONFIG):
            os.replace(aside / name, folder / name)
    except OSError as error:
        raise WriteError(folder, error) from error
    fsync_folder(folder)


def tokenizer_files(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """The tokenizer's files of a folder, name → content, to be carried into another folder."""
    paths = [Path(folder) / name for name in TOKENIZER_FILES]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def chat_template(folder: str | os.PathLike[str]) -> str | None:
    """The chat template of a folder: its own file, or in tokenizer_config.json (the default one
    where there are several)."""
    own, settings = Path(folder) / TEMPLATE, Path(folder) / "tokenizer_config.json"
    if own.is_file():
        try:
            return own.read_bytes()[:TEMPLATE_BYTES].decode(errors="replace")
        except OSError as error:
            raise TenaraiError(f"cannot read {own}: {error.strerror}") from error
    found = read_json(settings, SETTINGS_BYTES).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
