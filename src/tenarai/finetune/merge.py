"""An adapter put into the weights of its model, and the model written."""

from __future__ import annotations

import os
from pathlib import Path

from tenarai.api import load
from tenarai.errors import TenaraiError
from tenarai.io.named_models import model_path

PathName = str | os.PathLike[str]
KINDS = ("float16", "float32", "same")


def merge(
    model: PathName,
    lora: PathName,
    out: PathName,
    kind: str = "float16",
    overwrite: bool = False,
) -> list[str]:
    """Write `model` with the adapter `lora` in its weights; → what the format could not hold.

    `out` ends in .gguf, in .tenarai, or is a Hugging Face folder, in float32 but for GGUF files:
    there `kind` is what adapted matrices become, "same" being the format that each had. Others
    stay as they are. Raises TenaraiError: what cannot be opened, an adapter of another model,
    something at `out` (unless `overwrite`); WriteError.
    """
    source, target = Path(model_path(str(model))), Path(out)
    if kind not in KINDS:
        raise TenaraiError(f"kind is {kind!r}, expected {', '.join(KINDS)}")
    if target.exists() and target.resolve() == source.resolve():
        raise TenaraiError(f"{target}: is the model itself: name another target")
    if not overwrite:
        check_free(target)
    merged = load(source, lora=lora).merged(requantise=kind == "same")
    if target.suffix != ".gguf":
        return merged.save(target)
    return merged.save(target, "float16" if kind == "same" else kind, keep_quantised=True)


def check_free(target: PathName) -> None:
    """Raises TenaraiError where something is there already."""
    target = Path(target)
    if any(target.iterdir()) if target.is_dir() else target.exists():
        raise TenaraiError(f"{target}: exists: name another target, or remove it (merge --force)")
