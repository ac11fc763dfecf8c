"""Reading GGUF files: metadata, and tensors as views of the mapped file.

    "GGUF" · u32 version, 2 or 3 · u64 tensors n · u64 keys m     (little-endian throughout)
    m keys with their values                                      (gguf_metadata.py)
    n times  name string · u32 dims d · d × u64 · u32 type · u64 offset
    zeros up to a multiple of general.alignment (32)
    the tensors, each at its offset from here, a multiple of the alignment

The dims are written innermost first; here a shape is NumPy's, outermost first. A file is
untrusted: every count, length, offset, type and product is checked against the file's size before
anything is made of it, in Python's integers, which do not wrap. A model in several files
(`NAME-00001-of-00003.gguf`) is opened through any of them.

What the keys and names mean is left to models/ and tokenizers/. Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.io import formats
from tenarai.io.gguf_metadata import CUT_OFF, Cursor, Metadata, read_metadata
from tenarai.io.gguf_types import (
    ALIGNMENT,
    BY_NUMBER,
    DROPPED,
    INTEGERS,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    MAX_TENSORS,
    VERSIONS,
    GGUFError,
    shown,
)
from tenarai.quant import FORMATS, Format, QuantTensor
from tenarai.quant.dequantize import dequantize

PathName = str | os.PathLike[str]
MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # bytes of the smallest entry
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """One tensor of a file. `shape` is outermost first, `offset` from the start of its file."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    path: str = field(repr=False)
    _data: Any = field(repr=False)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])

    def raw(self) -> np.ndarray:
        """The tensor as it stands in the file: uint8 (rows, bytes a row), a read-only view."""
        flat = np.frombuffer(self._data, np.uint8, self.nbytes, self.offset)
        return flat.reshape(prod(self.shape[:-1]), -1)

    def array(self) -> np.ndarray | QuantTensor:
        """A read-only view of the mapped file: float32 (shape) for F32, else a QuantTensor.

        Raises GGUFError for a type that tenarai does not compute with, and for one other than
        F32 in a tensor that is no matrix (`float32` serves there).
        """
        self._check_known()
        if self.format.name == "F32":
            return np.frombuffer(self._data, "<f4", self.size, self.offset).reshape(self.shape)
        if self.ndim != 2:
            raise self._fail(f"stored as {self.format.name} with shape {self.shape}, no matrix")
        return QuantTensor(self.format, (self.shape[0], self.shape[1]), self.raw())

    def matrices(self) -> np.ndarray | QuantTensor:
        """Of a tensor of three dims (E, O, I), its matrices one above the other, (E·O, I), as
        `array` gives one. Raises GGUFError for a type that tenarai does not compute with."""
        self._check_known()
        shape = prod(self.shape[:-1]), self.shape[-1]
        if self.format.name == "F32":
            return np.frombuffer(self._data, "<f4", self.size, self.offset).reshape(shape)
        return QuantTensor(self.format, shape, self.raw())

    def float32(self) -> np.ndarray:
        """float32 (shape): a view for F32, made from the tensor's bytes for all other formats.

        Raises GGUFError for a type that tenarai does not compute with.
        """
        self._check_known()
        if self.format.name == "F32":
            return self.array()  # type: ignore[return-value]
        return dequantize(self.raw(), self.format).reshape(self.shape)

    def _check_known(self) -> None:
        if self.format.name not in FORMATS:
            raise self._fail(
                f"stored as {self.format.name}, which tenarai does not compute with",
                "take the model in another quantisation, such as Q4_K_M or Q8_0",
            )

    def _fail(self, what: str, advice: str = "is the file of another model?") -> GGUFError:
        return GGUFError(f"{self.path}: {shown(self.name)} is {what}: {advice}")


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """A model in one or several files: its metadata (the first part's) and all its tensors."""

    path: Path  # the one that was asked for
    paths: tuple[Path, ...]  # all of its parts
    version: int
    metadata: Metadata
    tensors: dict[str, GGUFTensor]
    alignment: int
    size: int  # bytes of all parts


def read(path: PathName) -> GGUFFile:
    """Open a GGUF file, or all parts of a split one. Tensors stay in the mapped file.

    Raises GGUFError or TenaraiError (one line) for what is no GGUF file or a damaged one.
    """
    file = _read_one(Path(path))
    count = file.metadata.typed("split.count", *INTEGERS, default=1)
    return file if count <= 1 else _read_parts(file, count)


def parse(data: Any, path: PathName = "GGUF") -> GGUFFile:
    """One file whose bytes are `data` (bytes or a map). `path` is for messages."""
    cursor = Cursor(data, os.fspath(path))
    version = _read_version(cursor)
    tensors = cursor.u64("the number of tensors")
    keys = cursor.u64("the number of keys")
    metadata = read_metadata(cursor, keys)
    cursor.room(tensors, MIN_TENSOR, MAX_TENSORS, "tensors")
    alignment = metadata.typed("general.alignment", "uint32", default=ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment:,}, expected a power of two from 8 on")
    entries: dict[str, GGUFTensor] = {}
    for i in range(tensors):
        tensor = _read_tensor(cursor, f"tensor {i + 1} of {tensors:,}")
        if tensor.name in entries:
            raise cursor.fail(f"the tensor {shown(tensor.name)} stands there twice")
        entries[tensor.name] = tensor
    found = _place(cursor, entries, alignment)
    path = Path(path)
    return GGUFFile(path, (path,), version, metadata, found, alignment, len(data))


def _read_one(path: Path) -> GGUFFile:
    kind = formats.detect(path)
    if kind != formats.GGUF:
        raise GGUFError(f"{path}: is a {kind}, expected a GGUF file: check the name")
    try:
        with path.open("rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise GGUFError(f"cannot read {path}: {error}") from error
    return parse(data, path)


def _read_version(cursor: Cursor) -> int:
    if cursor.data[:4] not in (MAGIC, MAGIC[::-1]):
        raise cursor.fail(f"begins with {cursor.data[:4]!r}, no GGUF file")
    cursor.at = 4
    version = cursor.u32("the version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if cursor.data[:4] != MAGIC or (version > 0xFFFF and swapped <= 0xFFFF):
        raise cursor.fail(
            "is big-endian, this program reads little-endian files",
            "take the ordinary file, or turn it round with the gguf package's gguf-convert-endian",
        )
    if version not in VERSIONS:
        advice = "update tenarai" if version > max(VERSIONS) else "convert the model again"
        raise cursor.fail(f"is GGUF version {version}, versions 2 and 3 can be read", advice)
    return version


def _read_tensor(cursor: Cursor, what: str) -> GGUFTensor:
    """An entry; its offset still counts from the start of the tensors' part."""
    name = cursor.string(f"the name of {what}", MAX_NAME)
    if not name:
        raise cursor.fail(f"{what} has an empty name")
    what = shown(name)
    n = cursor.u32(f"the number of dims of {what}")
    if not 1 <= n <= MAX_DIMS:
        raise cursor.fail(f"{what} has {n:,} dims, expected 1 to {MAX_DIMS}")
    shape = tuple(cursor.u64(f"dims of {what}") for _ in range(n))[::-1]
    number = cursor.u32(f"the type of {what}")
    offset = cursor.u64(f"the offset of {what}")
    if 0 in shape:
        raise cursor.fail(f"{what} has shape {shape}, no dim may be 0")
    if number in DROPPED:
        raise cursor.fail(
            f"{what} has the type {DROPPED[number]}, which no longer stands in files",
            "take a newer file of this model",
        )
    if number not in BY_NUMBER:
        raise cursor.fail(
            f"{what} has the unknown type number {number}", "it is damaged, or update tenarai"
        )
    format = BY_NUMBER[number]
    if shape[-1] % format.block:
        raise cursor.fail(
            f"{what} has shape {shape}, {format.name} needs rows of a multiple of {format.block}"
        )
    return GGUFTensor(name, shape, format, offset, cursor.path, cursor.data)


def _place(cursor: Cursor, entries: dict[str, GGUFTensor], alignment: int) -> dict[str, GGUFTensor]:
    """The tensors with offsets from the start of the file, in the file's order of entries."""
    start = -(-cursor.at // alignment) * alignment
    end, before = start, ""
    for t in sorted(entries.values(), key=lambda t: t.offset):
        name, begin = shown(t.name), start + t.offset
        if t.offset % alignment:
            raise cursor.fail(f"{name} is at offset {t.offset:,}, no multiple of {alignment}")
        if begin < end:
            raise cursor.fail(f"{name} and {before} overlap at offset {t.offset:,}")
        end, before = begin + t.nbytes, name
        if end > cursor.size:
            raise cursor.fail(f"{name} ends at byte {end:,}, the file has {cursor.size:,}", CUT_OFF)
    return {
        t.name: GGUFTensor(t.name, t.shape, t.format, start + t.offset, t.path, cursor.data)
        for t in entries.values()
    }


def _read_parts(file: GGUFFile, count: int) -> GGUFFile:
    """All parts of a split model, one of which is open already."""
    match = PART.fullmatch(file.path.name)
    if match is None or int(match[3]) != count:
        raise GGUFError(
            f"{file.path}: is one of {count} parts, but its name does not end in "
            f"-0000N-of-{count:05}.gguf: give all parts their names again"
        )
    parts = []
    for i in range(1, count + 1):
        path = file.path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf")
        if not path.exists():
            raise GGUFError(f"{path}: is missing, part {i} of {count}: download it too")
        part = file if i == int(match[2]) else _read_one(path)
        said = [part.metadata.typed(key, *INTEGERS) for key in ("split.no", "split.count")]
        if said != [i - 1, count]:
            raise GGUFError(
                f"{path}: says it is part {said[0] + 1} of {said[1]}: give it its name again"
            )
        parts.append(part)
    return _joined(file.path, parts)


def _joined(path: Path, parts: list[GGUFFile]) -> GGUFFile:
    tensors: dict[str, GGUFTensor] = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            raise GGUFError(
                f"{part.path}: the tensor {shown(min(twice))} stands in another part too: are "
                "the parts of one model?"
            )
        tensors |= part.tensors
    first = parts[0]
    expected = first.metadata.typed("split.tensors.count", *INTEGERS, default=len(tensors))
    if len(tensors) != expected:
        raise GGUFError(
            f"{path}: its {len(parts)} parts have {len(tensors):,} tensors, expected {expected:,}: "
            "are the parts of one model?"
        )
    paths = tuple(part.path for part in parts)
    size = sum(part.size for part in parts)
    return GGUFFile(path, paths, first.version, first.metadata, tensors, first.alignment, size)
