"""GGUF files put together byte by byte, right or wrong as a test wants them."""

import struct
from typing import NamedTuple

import numpy as np

STRING, ARRAY = 8, 9
NUMBERS = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "string": STRING, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor; `dims` innermost first, as in the file. `offset` None: after the one before."""

    name: str
    dims: tuple
    type: int
    data: bytes
    offset: int | None = None


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    """Type and value, as they follow a key."""
    number = NUMBERS[kind.strip("[]")]
    listed = content if kind.startswith("[") else [content]
    if number == STRING:
        data = b"".join(map(string, listed))
    else:
        data = np.array(listed, np.dtype(kind.strip("[]")).newbyteorder("<")).tobytes()
    if kind.startswith("["):
        return struct.pack("<IIQ", ARRAY, number, len(content)) + data
    return struct.pack("<I", number) + data


def key(name, data):
    return string(name) + data


def build(pairs=(), tensors=(), keys=None, count=None, pad=0, alignment=32):
    """A file. `keys` and `count` are what the header says, if it is to lie."""
    entries, data = b"", b""
    for t in tensors:
        offset = len(data) if t.offset is None else t.offset
        entries += string(t.name) + struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *t.dims)
        entries += struct.pack("<IQ", t.type, offset)
        data += t.data + bytes(-len(t.data) % alignment)
    counts = (len(tensors) if count is None else count, len(pairs) if keys is None else keys)
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(pairs) + entries
    if tensors:
        head += bytes(-len(head) % alignment)
    return head + data + bytes(pad)


def save(path, data):
    path.write_bytes(data)
    return path
