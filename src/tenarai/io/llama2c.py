"""llama2.c's model files: a header, then every weight, in three versions, all little-endian.

    version 0   int32[7] numbers                                          28 bytes; run.c reads it
    version 1   "24ka" · int32 1 · int32[7] numbers · uint8 tied · zeros to byte 256
    version 2   "24ka" · int32 2 · int32[7] numbers · uint8 tied · int32 group · zeros to byte 256
                                                                          runq.c reads it
    numbers     dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len

The weights stand in the order of `ORDER`, one of a layer's for all layers in a row; matrices are
(O, I). Version 0 says with a negative vocab_size that the output is not the embedding, and has two
tables of RoPE's angles, which nobody reads. In version 2 a matrix is its whole numbers, int8, then
a float32 scale for each `group` of them, w = scale · q; vectors are float32 in all versions.

Nothing is allocated before the header has been checked against the file's size. What the weights
are for is models/llama2c_exchange.py's matter. Source: karpathy/llama2.c, export.py, run.c, runq.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write

Array = NDArray[Any]
MAGIC, HEADER_BYTES, NUMBERS = b"24ka", 256, struct.Struct("<7i")
GROUP = 64  # weights a scale, where it divides the rows
LIMITS = (1 << 20, 1 << 24, 10_000, 1 << 20, 1 << 20, 1 << 24, 1 << 31)  # of the seven numbers

MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")  # of a layer
NORMS = ("attention_norm", "ffn_norm")
LAYERED = MATRICES + NORMS
ORDER = {
    0: ("tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
        "norm", "freqs_cos", "freqs_sin", "output"),
    1: ("attention_norm", "ffn_norm", "norm", "tok_embeddings", *MATRICES, "output"),
}  # fmt: skip
ORDER[2] = ORDER[1]


@dataclass(frozen=True)
class Header:
    """The numbers that fix every shape. Raises ValueError, which names the number."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    tied: bool = True
    version: int = 0
    group: int = 0  # of version 2

    def __post_init__(self) -> None:
        for (name, value), high in zip(list(vars(self).items())[:7], LIMITS, strict=True):
            if not 1 <= value <= high:
                raise ValueError(f"{name} = {value}, expected 1 to {high}")
        if self.dim % self.n_heads or self.dim // self.n_heads % 2:
            raise ValueError(f"n_heads = {self.n_heads} for dim = {self.dim}: heads must be even")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads = {self.n_heads} is no multiple of {self.n_kv_heads}")
        if self.version == 2:
            sizes = [prod(s) for s in self.shapes().values() if len(s) == 2]
            if self.group < 1 or any(size % self.group for size in sizes):
                raise ValueError(f"group size {self.group} does not divide every matrix")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, of one layer where there is one a layer, in the file's order."""
        dim, hidden, D = self.dim, self.hidden_dim, self.dim // self.n_heads
        vocabulary, kv, angles = (self.vocab_size, dim), self.n_kv_heads * D, (self.max_seq_len, D)
        shapes = {
            "tok_embeddings": vocabulary, "output": vocabulary,
            "wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim),
            "w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim),
            "freqs_cos": (angles[0], D // 2), "freqs_sin": (angles[0], D // 2),
        }  # fmt: skip
        names = ORDER[self.version]
        return {n: shapes.get(n, (dim,)) for n in names if n != "output" or not self.tied}

    def tensors(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Name, layer and shape of everything in the file, in order."""
        for name, shape in self.shapes().items():
            for layer in range(self.n_layers if name in LAYERED else 1):
                yield name, layer, shape

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; Python ints, so that no header can make them wrap."""
        n = prod(shape)
        return n + 4 * (n // self.group) if self.version == 2 and len(shape) == 2 else 4 * n

    @property
    def begin(self) -> int:
        """Where the weights begin."""
        return HEADER_BYTES if self.version else NUMBERS.size

    def file_size(self) -> int:
        count = {n: self.n_layers if n in LAYERED else 1 for n in ORDER[self.version]}
        return self.begin + sum(count[n] * self.nbytes(s) for n, s in self.shapes().items())


def looks_like(start: bytes) -> bool:
    """Whether a file that begins so is one: by its magic, or by seven numbers that fit."""
    if start[:4] == MAGIC:
        return True
    try:
        _parse(start)
    except (ValueError, struct.error):
        return False
    return True


def _parse(start: bytes) -> Header:
    if start[:4] != MAGIC:
        given: list[Any] = list(NUMBERS.unpack_from(start))
        given.append(given[5] > 0)
        given[5] = abs(given[5])
        return Header(*given)
    version, *numbers, tied, group = struct.unpack_from("<i7iBi", start, 4)
    if version not in (1, 2):
        raise ValueError(f"version {version}, known are 0, 1 and 2")
    if tied not in (0, 1):
        raise ValueError(f"shared_classifier = {tied}, expected 0 or 1")
    given = [*numbers, bool(tied), version, group if version == 2 else 0]
    return Header(*given)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Header of a file, checked against the file's size.

    Raises TenaraiError: no such file, truncated, trailing bytes, an unknown version, a number that
    is out of bounds or does not fit the others.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            start = f.read(HEADER_BYTES)
            size = os.fstat(f.fileno()).st_size
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = _parse(start)
    except struct.error:
        raise TenaraiError(
            f"{path}: {len(start)} bytes, fewer than llama2.c's header has: the file is truncated"
        ) from None
    except ValueError as error:
        raise TenaraiError(
            f"{path}: its header says {error}: it is damaged, or no model of llama2.c"
        ) from error
    if size != header.file_size():
        what = "truncated" if size < header.file_size() else "longer than it says"
        raise TenaraiError(
            f"{path}: {size:,} bytes, its header asks for {header.file_size():,}: the file is "
            f"{what}: copy or download it again"
        )
    return header


def read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, list[Array]]]:
    """Header and weights of a file: name → an array a layer (one, where there is one for all).

    float32 (O, I): read-only views of the mapped file, which cost no memory; matrices of version 2
    are expanded. Raises TenaraiError as `read_header` does.
    """
    header = read_header(path)
    data = np.memmap(path, np.uint8, "r")
    if data.size != header.file_size():
        raise TenaraiError(f"{path}: changed while it was read: try again")
    arrays: dict[str, list[Array]] = {}
    at = header.begin
    for name, _, shape in header.tensors():
        part = data[at : at + header.nbytes(shape)]
        at += part.size
        if not name.startswith("freqs"):
            arrays.setdefault(name, []).append(_array(header, part, shape))
    return header, arrays


def _array(header: Header, part: Array, shape: tuple[int, ...]) -> Array:
    if header.version < 2 or len(shape) == 1:
        return part.view("<f4").reshape(shape)
    n = prod(shape)
    scales = part[n:].view("<f4")  # (n / group,)
    groups = part[:n].view(np.int8).reshape(-1, header.group) * scales[:, None]
    return groups.reshape(shape)


def group_size(*widths: int) -> int:
    """The largest group up to GROUP, a power of two, that divides the rows of all matrices: in
    runq.c no group may reach from one row into the next."""
    group = GROUP
    while any(width % group for width in widths):
        group //= 2
    return group


def write(
    path: str | os.PathLike[str],
    header: Header,
    tensor: Callable[[str, int], Array],
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write a file, whole or not at all. `tensor(name, layer)` gives each weight when its turn
    comes, in the header's shapes; `progress` is told how many numbers were written.
    Raises ValueError for another shape; WriteError."""
    with atomic_write(path) as f:
        numbers = list(vars(header).values())[:7]
        if header.version == 0:
            numbers[5] *= 1 if header.tied else -1
            f.write(NUMBERS.pack(*numbers))
        else:
            start = MAGIC + struct.pack(
                "<i7iBi", header.version, *numbers, header.tied, header.group
            )
            f.write(start.ljust(HEADER_BYTES, b"\0"))
        for name, layer, shape in header.tensors():
            array = np.ascontiguousarray(tensor(name, layer), "<f4")
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, the header asks for {shape}")
            if header.version == 2 and len(shape) == 2:
                for part in quantised(array, header.group):
                    f.write(part.data)
            else:
                f.write(array.data)
            progress(array.size)


def quantised(w: Array, group: int) -> tuple[Array, Array]:
    """Whole numbers int8 and scales float32 of a matrix, by group: scale = max|w| / 127,
    q = w / scale rounded to nearest. A group of zeros has scale 0."""
    groups = w.reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(groups * inverse[:, None]).astype(np.int8), scales.astype("<f4")
