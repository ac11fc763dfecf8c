"""Checkpoints: named arrays and a JSON object in one file, complete or refused.

    8 bytes    magic "tenarai\\0"
    u32        version, 1
    u32        n, bytes of the header
    n bytes    header: JSON in UTF-8 {"meta": {...}, "arrays": [{"name", "dtype", "shape",
               "offset"}, ...]}
    ...        the arrays, little-endian, row-major, each at its offset from the start of the
               file, a multiple of 64; zeros between them
    32 bytes   digest: BLAKE2b over the BLAKE2b digests of the file's 16 MiB blocks, up to here

The digest is made of blocks so that two cores can share it: 1.5 GB pass in about a second. One
changed byte anywhere is found before anything is used. A file is still untrusted when its digest
is right (anybody can make one), so each length, type and offset is checked against the file.

Which arrays there are and what `meta` says is the business of train/.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.digest import BLOCK, DIGEST, BlockDigest

MAGIC = b"tenarai\0"
VERSION = 1
START = struct.Struct("<8sII")
ALIGNMENT = 64
MAX_HEADER = 64 << 20
DTYPES = {"float32": "<f4", "float64": "<f8", "int32": "<i4", "int64": "<i8", "uint8": "|u1"}
DTYPES |= {"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}

Array = NDArray[Any]


class CheckpointError(TenaraiError):
    """A checkpoint that cannot be used. The message names the file."""


@dataclass(frozen=True)
class Entry:
    """Where one array stands in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    meta: Mapping[str, Any],
    progress: Callable[[int], object] = lambda numbers: None,
) -> int:
    """Write `arrays` and `meta` (what JSON can hold) to `path`, whole or not at all; → bytes.
    `progress` is told how many numbers were written.

    The arrays are contiguous and are written from where they stand, without a copy. Raises
    WriteError (full disk and the like; an older file at `path` is then untouched), ValueError for
    an array that the format has no type for.
    """
    header, offsets = _header(arrays, meta)
    digest = BlockDigest()
    with atomic_write(path) as f, digest:

        def put(data: bytes | memoryview) -> None:
            f.write(data)
            digest.update(data)

        put(header)
        at = len(header)
        for name, array in arrays.items():
            put(b"\0" * (offsets[name] - at))
            if array.nbytes:
                put(array.reshape(-1).view(np.uint8).data)
            at = offsets[name] + array.nbytes
            progress(array.size)
        f.write(digest.finish())
    return at + DIGEST


def _header(arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, padded to the alignment, and each array's offset."""
    names = {np.dtype(code): name for name, code in DTYPES.items()}
    for name, array in arrays.items():
        if array.dtype not in names or not array.flags.c_contiguous:
            raise ValueError(f"{name}: {array.dtype}, contiguous {array.flags.c_contiguous}")
    # Offsets are written into the header, whose length they depend on: take room for the longest.
    room = (
        200
        + len(json.dumps(dict(meta)))
        + sum(120 + 6 * len(name) + 24 * array.ndim for name, array in arrays.items())
    )
    start = at = _aligned(START.size + room)
    offsets, entries = {}, []
    for name, array in arrays.items():
        offsets[name] = at
        entry = {"name": name, "dtype": names[array.dtype], "shape": array.shape, "offset": at}
        entries.append(entry)
        at = _aligned(at + array.nbytes)
    text = json.dumps({"meta": dict(meta), "arrays": entries}).encode().ljust(start - START.size)
    assert len(text) == start - START.size
    return START.pack(MAGIC, VERSION, len(text)) + text, offsets


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


class Checkpoint:
    """An open checkpoint, checked whole. `meta` is its JSON object, `entries` its arrays.

        with Checkpoint(path) as c:
            w = c.read("weights/wte")

    Raises CheckpointError for whatever is not a complete, unchanged checkpoint. With
    `verify=False` the digest is not computed: for looking at `meta` alone.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool = True):
        self.path = Path(path)
        try:
            self._file: IO[bytes] = self.path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            end, text = self._read_start()
            if verify:
                self._verify(end)
            self.meta, self.entries = self._parse(text, START.size + len(text), end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def read(self, name: str, out: Array | None = None) -> Array:
        """The array of that name, in `out` (same shape and dtype, contiguous) where it is given.

        Raises CheckpointError when there is none or it has another shape or dtype than `out`.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path}: holds no {name}: is it of another kind?")
        if out is None:
            out = np.empty(entry.shape, entry.dtype)
        elif out.shape != entry.shape or out.dtype != entry.dtype:
            raise CheckpointError(
                f"{self.path}: {name} has shape {entry.shape} and type {entry.dtype}, expected "
                f"{out.shape} and {out.dtype}: is this checkpoint from other settings?"
            )
        if out.nbytes:
            self._file.seek(entry.offset)
            self._read_into(out.reshape(-1).view(np.uint8).data)
        return out

    def _fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}: use another checkpoint or copy it again")

    def _read_into(self, view: memoryview) -> None:
        """Fill `view`; one read gives at most 2 GiB."""
        while view:
            n = self._file.readinto(view)  # type: ignore[attr-defined]
            if not n:
                raise self._fail("the file ends in the middle of an array")
            view = view[n:]

    def _read_start(self) -> tuple[int, bytes]:
        """Where the digest begins, and the header's text."""
        start = self._file.read(START.size)
        if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
            raise self._fail("not a tenarai checkpoint" if start else "the file is empty")
        if len(start) < START.size or self._size < START.size + DIGEST:
            raise self._fail(f"only {self._size} bytes, the file was cut off")
        _, version, length = START.unpack(start)
        end = self._size - DIGEST
        if version != VERSION:
            raise self._fail(f"version {version}, this program reads {VERSION} (or it was damaged)")
        if length > min(MAX_HEADER, end - START.size):
            raise self._fail(f"a header of {length:,} bytes in {self._size:,}, it was cut off")
        text = bytearray(length)
        self._read_into(memoryview(text))
        return end, bytes(text)

    def _verify(self, end: int) -> None:
        self._file.seek(0)
        digest = BlockDigest()
        with digest:
            for start in range(0, end, BLOCK):
                block = bytearray(min(BLOCK, end - start))
                self._read_into(memoryview(block))
                digest.update(block)
            stored = self._file.read(DIGEST)
            if digest.finish() != stored:
                raise self._fail("the checksum does not match, the file was damaged or cut off")

    def _parse(self, text: bytes, low: int, high: int) -> tuple[dict[str, Any], dict[str, Entry]]:
        """meta and the arrays' entries, each inside [low, high) of the file."""
        try:
            document = json.loads(text)
            meta, rows = document["meta"], document["arrays"]
            entries = [_entry(row) for row in rows]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._fail(f"the header cannot be read ({type(error).__name__})") from error
        if not isinstance(meta, dict) or len({e.name for e in entries}) != len(entries):
            raise self._fail("the header has no meta object, or an array twice")
        for entry in entries:
            if entry.offset < low or entry.offset > high or entry.nbytes > high - entry.offset:
                raise self._fail(f"{entry.name} {entry.shape} lies outside the file")
        return meta, {entry.name: entry for entry in entries}


def _entry(row: dict[str, Any]) -> Entry:
    """One array's entry, its types checked. Raises ValueError, KeyError, TypeError."""
    name, shape, offset = row["name"], row["shape"], row["offset"]
    whole = all(type(n) is int and 0 <= n < 2**48 for n in [*shape, offset])
    if not isinstance(name, str) or len(shape) > 8 or not whole:
        raise ValueError("an array's name, shape or offset")
    return Entry(name, np.dtype(DTYPES[row["dtype"]]), tuple(shape), offset)
