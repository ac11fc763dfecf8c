"""Importance matrices: for each matrix of a model, how much each column of it matters.

The importance of column i is the mean square of the input that is multiplied with it, over some
text. Two formats are read, both llama.cpp's, and the first is written:

    GGUF    general.type "imatrix"; for each matrix NAME two float32 tensors,
            NAME.in_sum2 (1, I), sums of squares, and NAME.counts (1, 1), over how many
    legacy  i32 entries n · n times: i32 length · name · i32 calls · i32 I · I × float32, the sums
            of means; then what it was made from, which is not read

Who uses them is models/gguf_quantize.py, who makes them infer/importance.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import gguf, gguf_write
from tenarai.io.gguf_metadata import Cursor
from tenarai.quant import FORMATS

PathName = str | os.PathLike[str]
SUMS, COUNTS = ".in_sum2", ".counts"
MAX_ENTRIES, MAX_NAME = 1 << 17, 64


def read(path: PathName) -> dict[str, np.ndarray]:
    """Tensor name → importance of its columns, (I,) float32, finite and not negative.

    Of a matrix of experts (one after the other) that is the mean over those that were used.
    Raises TenaraiError, one line, for what is no importance matrix or a damaged one.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            start = f.read(4)
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror}") from error
    found = _read_gguf(path) if start == b"GGUF" else _read_legacy(path)
    if not found:
        raise TenaraiError(f"{path}: has no entries: is it an importance matrix?")
    for name, values in found.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise TenaraiError(f"{path}: {name} has a value that is no mean square: it is damaged")
    return found


def write(
    path: PathName, sums: Mapping[str, np.ndarray], counts: Mapping[str, int], source: str = ""
) -> None:
    """Write sums of squares (I,), over `counts` rows each, as a GGUF file; WriteError."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": [source],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": max(counts.values(), default=0),
    }
    tensors = []
    for name, total in sums.items():
        for suffix, numbers in ((SUMS, total), (COUNTS, np.array([counts[name]]))):
            array = np.ascontiguousarray(numbers, "<f4")[None]
            tensors.append(_tensor(name + suffix, array))
    gguf_write.write(path, metadata, tensors)


def _tensor(name: str, array: np.ndarray) -> gguf_write.Tensor:
    return gguf_write.Tensor(name, array.shape, FORMATS["F32"], lambda: array)


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    file = gguf.read(path)
    if file.metadata.get("general.type") != "imatrix":
        raise TenaraiError(f"{path}: is a model, not an importance matrix: make one from a text")
    found = {}
    for key, tensor in file.tensors.items():
        if not key.endswith(SUMS):
            continue
        name = key.removesuffix(SUMS)
        if name + COUNTS not in file.tensors:
            raise TenaraiError(f"{path}: {name} has sums and no count: it is damaged")
        sums = tensor.float32().reshape(-1, tensor.shape[-1])
        counts = file.tensors[name + COUNTS].float32().reshape(-1)
        if len(counts) != len(sums):
            raise TenaraiError(f"{path}: {name} has {len(sums)} sums and {len(counts)} counts")
        used = counts > 0
        if used.any():
            found[name] = (sums[used] / counts[used, None]).mean(axis=0)
    return found


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    cursor = Cursor(path.read_bytes(), os.fspath(path))
    entries = _count(cursor, "the number of entries")
    cursor.room(entries, 12, MAX_ENTRIES, "entries")
    found = {}
    for i in range(entries):
        length = _count(cursor, f"the length of name {i + 1}")
        if not 1 <= length <= MAX_NAME:
            raise cursor.fail(
                f"name {i + 1} is {length:,} bytes long", "is it an importance matrix?"
            )
        at = cursor.need(length, f"name {i + 1}")
        name = cursor.text(at, at + length, f"name {i + 1}")
        calls = _count(cursor, f"{name}: the number of calls")
        n = _count(cursor, f"{name}: the number of values")
        at = cursor.need(4 * n, f"{name}, {n:,} values,")
        values = np.frombuffer(cursor.data, "<f4", n, at)
        if n and calls:
            found[name] = values / np.float32(calls)
    return found


def _count(cursor: Cursor, what: str) -> int:
    value = cursor.u32(what)
    if value > 1 << 30:
        raise cursor.fail(f"{what} is {value:,}", "is it an importance matrix?")
    return value
