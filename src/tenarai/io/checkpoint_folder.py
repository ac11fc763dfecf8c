"""A run's checkpoints in one folder: step-00000250.tenarai, ...

There is no file that names the newest, since it could be wrong: the folder is looked through.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tenarai.io.checkpoint import Checkpoint, CheckpointError

SUFFIX = ".tenarai"


def checkpoint_path(folder: str | os.PathLike[str], step: int) -> Path:
    return Path(folder) / f"step-{step:08d}{SUFFIX}"


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The folder's checkpoints by file name, newest first; they may be broken."""
    found = []
    for path in Path(folder).glob(f"step-*{SUFFIX}"):
        digits = path.name[len("step-") : -len(SUFFIX)]
        if digits.isascii() and digits.isdigit():
            found.append((int(digits), path))
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that is whole, open, and the errors of those newer than it."""
    errors: list[CheckpointError] = []
    for path in list_checkpoints(folder):
        try:
            return Checkpoint(path), errors
        except CheckpointError as error:
            errors.append(error)
    return None, errors


def prune_checkpoints(folder: str | os.PathLike[str], keep: int, spare: Iterable[int]) -> None:
    """Delete all but the newest `keep` and the steps in `spare`."""
    spared = {checkpoint_path(folder, step) for step in spare}
    for path in list_checkpoints(folder)[keep:]:
        if path not in spared:
            with contextlib.suppress(OSError):
                path.unlink()


def checkpoint_metas(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and meta of each checkpoint whose header can be read, newest first."""
    for path in list_checkpoints(folder):
        with contextlib.suppress(CheckpointError), Checkpoint(path, verify=False) as c:
            yield path, c.meta
