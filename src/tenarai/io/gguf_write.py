"""Writing GGUF files (version 3), whole or not at all, a tensor at a time.

    write(path, metadata, [Tensor("token_embd.weight", (V, C), FORMATS["Q4_K"], make), ...])

`make` is called when the tensor's turn comes, so that large ones live one at a time. The layout
stands in gguf.py; which keys and names a model needs is left to models/.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from tenarai.io.atomic import atomic_write
from tenarai.io.gguf_metadata import Metadata
from tenarai.io.gguf_types import (
    ALIGNMENT,
    ARRAY,
    MAGIC,
    MAX_DIMS,
    MAX_KEY,
    MAX_NAME,
    SCALARS,
    STRING,
    VALUE_NUMBERS,
)
from tenarai.quant import Format

Buffer = bytes | bytearray | memoryview | np.ndarray
VERSION = 3


@dataclass(frozen=True)
class Tensor:
    """What is to be written. `shape` is outermost first.

    `make` gives the tensor's bytes in that format: one buffer (bytes, or a C-contiguous
    little-endian array), or an iterable of them, written one after the other.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    make: Callable[[], Buffer | Iterable[Buffer]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    types: Mapping[str, str] | None = None,
    alignment: int = ALIGNMENT,
) -> int:
    """Write a file; → its bytes.

    A key's type is that of `types` (as in `Metadata.types`; those of `metadata` itself where it
    was read from a file), else it follows from the value: bool; int: uint32, or the first of
    int32, uint64, int64 that holds it; float: float32; str; a NumPy array or scalar: its dtype;
    a list of str, int (int32), float (float32) or bool. Keys that say how a file was split are
    left out, `general.alignment` is that of this file.

    Raises WriteError; ValueError for what no file can hold, or bytes of another number than the
    shape asks for.
    """
    if types is None:
        types = metadata.types if isinstance(metadata, Metadata) else {}
    pairs = {
        key: (types.get(key) or guess_type(value), value)
        for key, value in metadata.items()
        if not key.startswith("split.") and key != "general.alignment"
    }
    if alignment < 8 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment}: expected a power of two from 8 on")
    if alignment != ALIGNMENT:
        pairs["general.alignment"] = ("uint32", alignment)
    tensors = list(tensors)
    _check_names(tensors)
    with atomic_write(path) as f:
        f.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(pairs)))
        for key, (kind, value) in pairs.items():
            f.write(_string(_bounded(key, MAX_KEY)))
            _write_value(f, key, kind, value)
        offset = 0
        for t in tensors:
            f.write(_string(t.name) + struct.pack("<I", len(t.shape)))
            f.write(struct.pack(f"<{len(t.shape)}Q", *t.shape[::-1]))
            f.write(struct.pack("<IQ", t.format.number, offset))
            offset += -(-t.nbytes // alignment) * alignment
        for t in tensors:
            f.write(bytes(-f.tell() % alignment))
            _write_tensor(f, t)
        return f.tell() + f.write(bytes(-f.tell() % alignment))


def guess_type(value: Any) -> str:
    """The type of a value that says none itself. Raises ValueError where there is no such type."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.name not in VALUE_NUMBERS or value.ndim > 1:
            raise ValueError(f"no GGUF type for an array of {value.dtype}, shape {value.shape}")
        return f"[{value.dtype.name}]" if value.ndim else value.dtype.name
    if isinstance(value, list | tuple):
        for kind, name in ((str, "string"), (bool, "bool"), (int, "int32"), (float, "float32")):
            if value and all(isinstance(v, kind) for v in value):
                return f"[{name}]"
        raise ValueError(f"no GGUF type for {value!r}: give it one, or an array")
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "float32"
    if isinstance(value, int):
        for name in ("uint32", "int32", "uint64", "int64"):
            if np.iinfo(name).min <= value <= np.iinfo(name).max:
                return name
    raise ValueError(f"no GGUF type for {value!r}")


def _check_names(tensors: Sequence[Tensor]) -> None:
    if len({t.name for t in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    for t in tensors:
        _bounded(t.name, MAX_NAME - 1)  # ggml keeps names in 64 bytes with a zero at the end
        if not 1 <= len(t.shape) <= MAX_DIMS or min(t.shape) < 1:
            raise ValueError(f"{t.name}: shape {t.shape}, expected 1 to {MAX_DIMS} dims from 1 on")


def _bounded(name: str, limit: int) -> str:
    if not 1 <= len(name.encode()) <= limit:
        raise ValueError(f"the name {name!r} has {len(name.encode())} bytes, allowed 1 to {limit}")
    return name


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _write_value(f: IO[bytes], key: str, kind: str, value: Any) -> None:
    element = kind.strip("[]")
    number = VALUE_NUMBERS[element]
    if kind == element:
        f.write(struct.pack("<I", number))
        f.write(_string(value) if number == STRING else _packed(key, number, value).tobytes())
        return
    f.write(struct.pack("<IIQ", ARRAY, number, len(value)))
    if number == STRING:
        for text in value:
            f.write(_string(text))
    else:
        f.write(_packed(key, number, value).tobytes())


def _packed(key: str, number: int, value: Any) -> np.ndarray:
    """The value or values as the file's type; ValueError where it cannot hold them."""
    dtype = SCALARS[number]
    array = np.asarray(value)
    if array.size == 0:
        return np.zeros(0, dtype)
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if int(array.min()) < low or int(array.max()) > high:
            raise ValueError(f"{key}: {value!r} does not fit into {dtype.name}")
    elif array.dtype.kind != dtype.kind and not (array.dtype.kind in "iu" and dtype.kind == "f"):
        raise ValueError(f"{key}: {value!r} is no {dtype.name}")
    return array.astype(dtype)


def _write_tensor(f: IO[bytes], t: Tensor) -> None:
    made = t.make()
    written = 0
    for part in _buffers(made):
        written += f.write(part)
    if written != t.nbytes:
        raise ValueError(
            f"{t.name}: {written:,} bytes made, {t.format.name} of shape {t.shape} has {t.nbytes:,}"
        )


def _buffers(made: Buffer | Iterable[Buffer]) -> Iterator[memoryview]:
    if isinstance(made, bytes | bytearray | memoryview | np.ndarray):
        made = (made,)
    for part in made:
        view = memoryview(part)  # type: ignore[arg-type]
        if view.nbytes:  # an empty one cannot be cast
            yield view.cast("B")
