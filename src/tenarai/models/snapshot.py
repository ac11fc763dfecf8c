"""GPT-2's weights in tenarai's own checkpoints: read from any, written as one without a run.

A run's checkpoint holds the weights under `weights/NAME`, the tokenizer's JSON document under
`tokenizer` and GPT2Config under `model` in its meta, besides the optimiser's state and what else
the run needs (`tenarai.train.state`). One that is written here has those three alone, so it can be
loaded, converted and inspected, but not resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io.checkpoint import Checkpoint, write_checkpoint
from tenarai.io.checkpoint_folder import SUFFIX, newest_checkpoint
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights

__all__ = ["SUFFIX", "config_of", "describes_run", "open_newest", "read", "write"]

PathName = str | PathLike[str]
Document = dict[str, Any]
WEIGHTS = "weights/"  # before each weight's name
TOKENIZER = "tokenizer"  # its document as UTF-8, uint8
CONFIG = "model"  # in the meta


def read(path: PathName) -> tuple[GPT2, Weights, Document | None]:
    """Model, weights and tokenizer's document of a checkpoint, or of a run's newest whole one.

    Raises TenaraiError: no checkpoint, damaged, a configuration that cannot be, weights missing.
    """
    with open_newest(path) as checkpoint:
        model = GPT2(config_of(checkpoint))
        _check_shapes(checkpoint, model)
        params = Weights(model.table())
        for p in params.table:
            checkpoint.read(WEIGHTS + p.name, params[p.name])
        return model, params, tokenizer_of(checkpoint)


def write(
    path: PathName, model: GPT2, params: Mapping[str, Any], tokenizer: Document | None = None
) -> None:
    """Write the weights, the configuration and the tokenizer's document. Raises WriteError."""
    arrays = {WEIGHTS + p.name: params[p.name] for p in model.table()}
    if tokenizer is not None:
        document = json.dumps(tokenizer, ensure_ascii=False).encode()
        arrays[TOKENIZER] = np.frombuffer(document, np.uint8)
    meta = {"kind": "weights", "family": "gpt2", CONFIG: asdict(model.config)}
    write_checkpoint(path, arrays, meta)


def open_newest(path: PathName, verify: bool = True) -> Checkpoint:
    """The checkpoint, open: a file's own, or the newest whole one of a run's folder."""
    path = Path(path)
    if not path.is_dir():
        return Checkpoint(path, verify)
    folder = path / "checkpoints"
    checkpoint, errors = newest_checkpoint(folder if folder.is_dir() else path)
    if checkpoint is None:
        if errors:
            raise errors[0]
        raise TenaraiError(
            f"{path}: no model in this folder: expected config.json with model.safetensors "
            f"(Hugging Face), or checkpoints/step-*{SUFFIX} (a tenarai run)"
        )
    return checkpoint


def _check_shapes(checkpoint: Checkpoint, model: GPT2) -> None:
    """Shapes before anything is allocated, so that no number in the meta can ask for memory."""
    table = {WEIGHTS + p.name: p.shape for p in model.table()}
    held = {n: e.shape for n, e in checkpoint.entries.items() if n.startswith(WEIGHTS)}
    for name, shape in table.items():
        if held.get(name) != shape:
            raise TenaraiError(
                f"{checkpoint.path}: {name} has shape {held.get(name, '(none: it is missing)')}, "
                f"the model that it describes expects {shape}: use another checkpoint"
            )
    if extra := [name for name in held if name not in table]:
        raise TenaraiError(
            f"{checkpoint.path}: {extra[0]} of shape {held[extra[0]]} has no place in the model "
            "that it describes: use another checkpoint"
        )


def tokenizer_of(checkpoint: Checkpoint) -> Document | None:
    if TOKENIZER not in checkpoint.entries:
        return None
    try:
        document = json.loads(checkpoint.read(TOKENIZER).tobytes())
    except (ValueError, RecursionError) as error:
        raise TenaraiError(f"{checkpoint.path}: its tokenizer is damaged: {error}") from error
    if not isinstance(document, dict):
        raise TenaraiError(f"{checkpoint.path}: its tokenizer is damaged: no JSON object")
    return document


def describes_run(checkpoint: Checkpoint) -> bool:
    """Whether it holds what is needed to go on training."""
    return checkpoint.meta.get("kind") == "training"


def config_of(checkpoint: Checkpoint) -> GPT2Config:
    """GPT2Config of the meta, its types and bounds checked. Raises TenaraiError."""
    given = checkpoint.meta.get(CONFIG)
    defaults = asdict(GPT2Config())
    if not isinstance(given, dict) or not set(given) <= set(defaults):
        raise TenaraiError(
            f"{checkpoint.path}: its meta does not describe a GPT-2: is it from a newer tenarai?"
        )
    for f in fields(GPT2Config):
        value, kind = given.get(f.name), type(defaults[f.name])
        huge = kind is int and isinstance(value, int) and value > 1 << 31
        if f.name in given and (type(value) is not kind or huge):
            raise TenaraiError(f"{checkpoint.path}: {f.name} is {value!r}, expected {f.type}")
    try:
        config = GPT2Config(**given)
        if config.layers > 10_000 or config.width > 1 << 20:
            raise ValueError(f"{config.layers} layers of width {config.width}")
        return config
    except ValueError as error:
        raise TenaraiError(f"{checkpoint.path}: {error}: use another checkpoint") from error
