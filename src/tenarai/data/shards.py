"""Token shards: llm.c's `.bin` files, written and read. What the tokens mean is not known here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from tenarai.io.atomic import atomic_write

from .encoding import DataError

HEADER: tuple[np.dtype[Any], int] = (
    np.dtype("<i4"),
    256,
)  # of which {magic, version, count} are used, the rest is 0
HEADER_BYTES = 1024
FORMATS: dict[int, tuple[int, np.dtype[Any]]] = {  # magic: (version, dtype of a token)
    20240520: (1, np.dtype("<u2")),  # "gpt-2"
    20240801: (7, np.dtype("<u4")),  # "llama-3"
}
MAX_COUNT = 2**31 - 1  # the count is an int32
SHARD_TOKENS = 100_000_000

assert HEADER[0].itemsize * HEADER[1] == HEADER_BYTES


@dataclass(frozen=True)
class Shard:
    """One file of tokens, memory-mapped: `tokens` is a read-only uint16 or uint32 array."""

    path: Path
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def open_shard(path: str | os.PathLike[str]) -> Shard:
    """Map a shard. Raises DataError where its header and its size disagree in any way.

    The format, little-endian:

        struct { int32 magic, version, count, unused[253]; uintN token[count]; }

    N = 16 with magic 20240520 and version 1 (GPT-2), N = 32 with magic 20240801 and version 7
    (Llama 3); size of the file = 1024 + count · N/8, count > 0.
    Source: `write_datafile` in llm.c's dev/data/data_common.py.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            header = np.frombuffer(f.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), HEADER[0])
    except OSError as error:
        raise DataError(f"cannot read the shard {path}: {error.strerror or error}") from error
    dtype, count = _check(path, size, header)
    mapped = np.memmap(path, dtype, "r", offset=HEADER_BYTES, shape=(count,))
    # A plain view of the map: slices of a memmap object cost five times as much.
    return Shard(path, mapped.view(np.ndarray))


def _check(path: Path, size: int, header: np.ndarray) -> tuple[np.dtype, int]:
    magic, version, count = (int(x) for x in header[:3])
    again = "prepare or fetch it again"
    if size < HEADER_BYTES:
        raise DataError(f"shard {path} has {size} bytes, its header alone has 1024: {again}")
    if magic not in FORMATS:
        known = " or ".join(map(str, FORMATS))
        raise DataError(
            f"{path} is no token shard: it starts with {magic}, llm.c's shards with {known}; "
            "turn texts into shards with `tenarai data`"
        )
    expected, dtype = FORMATS[magic]
    if version != expected:
        raise DataError(f"shard {path} has version {version}, {magic} goes with {expected}")
    if count <= 0:
        raise DataError(f"shard {path} says that it has {count} tokens: {again}")
    wanted = HEADER_BYTES + count * dtype.itemsize
    if size < wanted:
        missing = wanted - size
        raise DataError(
            f"shard {path} is cut off: {count} tokens need {wanted} bytes, {missing} are missing; "
            + again
        )
    if size > wanted:
        raise DataError(
            f"shard {path} has {size - wanted} bytes more than its {count} tokens need: {again}"
        )
    return dtype, count


class ShardWriter:
    """Writes `folder/prefix_000000.bin`, `..._000001.bin`, ... each atomically.

        with ShardWriter(folder, "train", vocab_size) as writer:
            writer.append(ids)
        writer.paths

    Tokens are uint16 where the vocabulary fits, else uint32. After an error inside the block the
    shard being written is gone, the finished ones stay. Raises WriteError.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prefix: str,
        vocab_size: int,
        shard_tokens: int = SHARD_TOKENS,
    ):
        if not 0 < shard_tokens <= MAX_COUNT:
            raise DataError(f"a shard has 1 to {MAX_COUNT} tokens, not {shard_tokens}")
        self.folder, self.prefix, self.shard_tokens = Path(folder), prefix, shard_tokens
        self.paths: list[Path] = []
        self.count = 0  # tokens of all shards
        self._vocab_size = vocab_size
        self._magic = next(
            m for m, (_, d) in FORMATS.items() if vocab_size <= 2 ** (8 * d.itemsize)
        )
        self._in_shard = 0
        self._file: IO[Any] | None = None
        self._stack = contextlib.ExitStack()

    def append(self, ids: np.ndarray | Iterable[int]) -> None:
        """Add tokens; opens the next shard where one is full. Raises DataError at a wrong id."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self._vocab_size:
            raise DataError(
                f"token {array.max() if array.min() >= 0 else array.min()} is not in the "
                f"vocabulary of {self._vocab_size}: is the tokenizer the right one?"
            )
        array = array.astype(FORMATS[self._magic][1])
        while array.size:
            if self._file is None:
                self._open()
            room = self.shard_tokens - self._in_shard
            self._file.write(array[:room].tobytes())  # type: ignore[union-attr]
            self._in_shard += len(array[:room])
            self.count += len(array[:room])
            array = array[room:]
            if self._in_shard == self.shard_tokens:
                self._close()

    def _open(self) -> None:
        path = self.folder / f"{self.prefix}_{len(self.paths):06d}.bin"
        self._file = self._stack.enter_context(atomic_write(path))
        self._file.write(bytes(HEADER_BYTES))
        self._in_shard = 0
        self.paths.append(path)

    def _close(self) -> None:
        """Write the header, now that the count is known, and let the file come into being."""
        if self._file is None:
            return
        header = np.zeros(HEADER[1], HEADER[0])
        header[:3] = self._magic, FORMATS[self._magic][0], self._in_shard
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file = None
        self._stack.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._close()
            except BaseException:
                self._stack.close()
                raise
        else:
            self._stack.__exit__(kind, error, trace)
