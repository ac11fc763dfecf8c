"""JSON files of other programs: an object, of a bounded size, or one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write

MAX_BYTES = 1 << 20


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a UTF-8 JSON file.

    Raises TenaraiError: no such file, too large, not UTF-8, not JSON, nested too deeply, no object.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            raw = f.read(max_bytes + 1)
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > max_bytes:
        raise TenaraiError(f"{path}: larger than {max_bytes:,} bytes: is it really {path.name}?")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and bad JSON
        raise TenaraiError(f"{path}: is not JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise TenaraiError(f"{path}: holds {type(value).__name__}, expected an object {{...}}")
    return value


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write an object, readable, whole or not at all. Raises WriteError."""
    with atomic_write(path, "w") as f:
        f.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
