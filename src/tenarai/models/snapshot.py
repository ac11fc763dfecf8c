"""Models' weights in tenarai's own checkpoints: read from any, written as one without a run.

A run's checkpoint holds the weights under `weights/NAME`, the tokenizer's JSON document under
`tokenizer` and the configuration under `model` in its meta, besides the optimiser's state and what
else the run needs (`tenarai.train.state`). One that is written here has those three alone, so it
can be loaded, converted and inspected, but not resumed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError, TenaraiWarning
from tenarai.io.checkpoint import Checkpoint, write_checkpoint
from tenarai.io.checkpoint_folder import SUFFIX, newest_checkpoint
from tenarai.models import config_json, families
from tenarai.models.families import AnyConfig, AnyModel
from tenarai.models.table import Weights

__all__ = ["SUFFIX", "config_of", "describes_run", "open_newest", "read", "write"]

PathName = str | PathLike[str]
Document = dict[str, Any]
WEIGHTS = "weights/"  # before each weight's name
TOKENIZER = "tokenizer"  # its document as UTF-8, uint8
CONFIG = "model"  # in the meta


def read(path: PathName) -> tuple[AnyModel, Weights, Document | None]:
    """Model, weights and tokenizer's document of a checkpoint, or of a run's newest whole one.

    Raises TenaraiError: no checkpoint, damaged, a configuration that cannot be, weights missing.
    """
    with open_newest(path) as checkpoint:
        if checkpoint.meta.get("kind") == "adapter":
            raise TenaraiError(
                f"{path}: holds an adapter, not its model: name the model, and this with --lora "
                f"(it was trained on {str(checkpoint.meta.get('base', 'another'))[:200]})"
            )
        model = families.model_of(config_of(checkpoint))
        _check_shapes(checkpoint, model)
        params = Weights(model.table())
        for p in params.table:
            checkpoint.read(WEIGHTS + p.name, params[p.name])
        return model, params, tokenizer_of(checkpoint)


def write(
    path: PathName,
    model: AnyModel,
    params: Mapping[str, Any],
    tokenizer: Document | None = None,
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write the weights, the configuration and the tokenizer's document. Raises WriteError."""
    arrays = {WEIGHTS + p.name: params[p.name] for p in model.table()}
    if tokenizer is not None:
        document = json.dumps(tokenizer, ensure_ascii=False).encode()
        arrays[TOKENIZER] = np.frombuffer(document, np.uint8)
    family = config_json.family_of(model.config)
    meta = {"kind": "weights", "family": family, CONFIG: config_json.to_json(model.config)}
    write_checkpoint(path, arrays, meta, progress)


def open_newest(path: PathName, verify: bool = True) -> Checkpoint:
    """The checkpoint, open: a file's own, or the newest whole one of a run's folder.

    Newer ones that are broken are told in a TenaraiWarning.
    """
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
    for error in errors:
        warnings.warn(
            f"{error}; {checkpoint.path.name} is used instead", TenaraiWarning, stacklevel=2
        )
    return checkpoint


def _check_shapes(checkpoint: Checkpoint, model: AnyModel) -> None:
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


def config_of(checkpoint: Checkpoint) -> AnyConfig:
    """The configuration in the meta, its types and bounds checked. Raises TenaraiError."""
    family = checkpoint.meta.get("family", "gpt2")
    try:
        return config_json.from_json(family, checkpoint.meta.get(CONFIG))
    except ValueError as error:
        raise TenaraiError(
            f"{checkpoint.path}: its meta does not describe a model that is known here: {error}: "
            "use another checkpoint"
        ) from error
