"""llm.c's model file, `gpt2_124M.bin`: a header of 1,024 bytes, then every weight, nothing else.

    struct {                        // all little-endian
        int32 magic;                // 20240326
        int32 version;              // 3: float32, 5: bfloat16; both with the padded vocabulary
        int32 max_seq_len;          // T, the longest context
        int32 vocab_size;           // V
        int32 num_layers;           // L
        int32 num_heads;            // H, divides C
        int32 channels;             // C
        int32 padded_vocab_size;    // Vp >= V, a multiple of 128 when llm.c writes it
        int32 unused[248];          // 0
    } header;
    element weights[N];

The weights are 16 tensors in the order of `SHAPES` below; one of a layer's tensors stands there
for all layers in a row, (L, ...). Linear layers are (O, I). Rows V to Vp of wte are zero. So

    file size = 1024 + element size · N
    N = (Vp + T + 2) C + L (12 C² + 13 C)

Nothing is read or allocated before the header has been checked against the file's size. Source:
karpathy/llm.c, `train_gpt2.py` (writes it) and `train_gpt2.c` (reads it).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.bfloat16 import narrow, widen

Array = NDArray[Any]
MAGIC, HEADER_INTS, HEADER_BYTES = 20240326, 256, 1024
VERSIONS = {3: ("float32", 4), 5: ("bfloat16", 2)}  # version: dtype, bytes an element

# name: whether there is one a layer, its shape in the header's letters
SHAPES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "wte": (False, ("Vp", "C")),
    "wpe": (False, ("T", "C")),
    "ln1w": (True, ("C",)),
    "ln1b": (True, ("C",)),
    "qkvw": (True, ("3C", "C")),
    "qkvb": (True, ("3C",)),
    "attprojw": (True, ("C", "C")),
    "attprojb": (True, ("C",)),
    "ln2w": (True, ("C",)),
    "ln2b": (True, ("C",)),
    "fcw": (True, ("4C", "C")),
    "fcb": (True, ("4C",)),
    "fcprojw": (True, ("C", "4C")),
    "fcprojb": (True, ("C",)),
    "lnfw": (False, ("C",)),
    "lnfb": (False, ("C",)),
}


@dataclass(frozen=True)
class Header:
    """The six numbers that fix every shape, in the file's order."""

    max_seq_len: int
    vocab_size: int
    num_layers: int
    num_heads: int
    channels: int
    padded_vocab_size: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor as the file holds it, layers stacked in front."""
        C = self.channels
        size = {
            "Vp": self.padded_vocab_size,
            "T": self.max_seq_len,
            "C": C,
            "3C": 3 * C,
            "4C": 4 * C,
        }
        return {
            name: ((self.num_layers,) if layered else ()) + tuple(size[s] for s in letters)
            for name, (layered, letters) in SHAPES.items()
        }

    def count(self) -> int:
        """N, the number of weights; a Python int, so that no header can make it wrap."""
        return sum(prod(shape) for shape in self.shapes().values())


def pad_vocabulary(vocab_size: int) -> int:
    """The next multiple of 128, as llm.c pads."""
    return -(-vocab_size // 128) * 128


def read_header(path: str | os.PathLike[str]) -> tuple[Header, str]:
    """Header and dtype ("float32" or "bfloat16") of a file, checked against the file's size.

    Raises TenaraiError: no such file, truncated, trailing bytes, another format or version, a
    field that is zero, negative or does not fit the others.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            raw = f.read(HEADER_BYTES)
            size = os.fstat(f.fileno()).st_size
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) < HEADER_BYTES:
        raise TenaraiError(
            f"{path}: {len(raw)} bytes, but llm.c's header alone takes {HEADER_BYTES}: "
            "the file is truncated, or no llm.c model"
        )
    magic, version, *fields = (int(n) for n in np.frombuffer(raw, "<i4")[:8])
    if magic != MAGIC:
        raise TenaraiError(
            f"{path}: starts with {magic}, an llm.c model with {MAGIC}: is it another format?"
        )
    if version not in VERSIONS:
        raise TenaraiError(
            f"{path}: llm.c model of version {version}; versions 3 (float32) and 5 (bfloat16) can "
            "be read: write it again with a current llm.c"
        )
    dtype, itemsize = VERSIONS[version]
    header = Header(*fields)
    _check(path, header)
    expected = HEADER_BYTES + itemsize * header.count()
    if size != expected:
        what = "truncated" if size < expected else "longer than it says"
        raise TenaraiError(
            f"{path}: {size:,} bytes, its header asks for {expected:,}: the file is {what}: "
            "copy or download it again"
        )
    return header, dtype


def _check(path: Path, header: Header) -> None:
    for name, value in vars(header).items():
        if value < 1:
            raise TenaraiError(f"{path}: header says {name} = {value}, it must be at least 1")
    if header.channels % header.num_heads:
        raise TenaraiError(
            f"{path}: header says {header.num_heads} heads for {header.channels} channels, which "
            "they do not divide: the header is damaged"
        )
    if header.padded_vocab_size < header.vocab_size:
        raise TenaraiError(
            f"{path}: header says padded_vocab_size = {header.padded_vocab_size}, less than "
            f"vocab_size = {header.vocab_size}: the header is damaged"
        )


def read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Array]]:
    """Header and weights of a file: name → (L, ...) or (...), read-only, wte without padding.

    float32 arrays are views of the mapped file and cost no memory; bfloat16 ones hold uint16 bits
    (`tenarai.io.bfloat16.widen` makes float32 of them, one layer at a time if need be).
    Raises TenaraiError as `read_header` does.
    """
    header, dtype = read_header(path)
    weights = np.memmap(path, "<f4" if dtype == "float32" else "<u2", "r", HEADER_BYTES)
    if weights.size != header.count():
        raise TenaraiError(f"{path}: changed while it was read: try again")
    arrays: dict[str, Array] = {}
    start = 0
    for name, shape in header.shapes().items():
        arrays[name] = weights[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    arrays["wte"] = arrays["wte"][: header.vocab_size]
    return header, arrays


def to_float32(array: Array) -> Array:
    """A float32 array of what `read` gives, whichever of the two types it holds."""
    return widen(array) if array.dtype == np.dtype("<u2") else np.asarray(array, np.float32)


def write(
    path: str | os.PathLike[str],
    header: Header,
    arrays: Mapping[str, Any],
    dtype: str = "float32",
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write a file, whole or not at all; wte is (V, C) and gets its padding here.

    `arrays` has the names of SHAPES: an array each, for a layer's tensor a sequence of L arrays.
    `dtype` "float32" is version 3, "bfloat16" version 5 (rounded to nearest even).
    `progress` is told how many numbers were written.
    Raises TenaraiError for a header that cannot be and for a wrong shape; WriteError.
    """
    path = Path(path)
    _check(path, header)
    version = {name: version for version, (name, _) in VERSIONS.items()}[dtype]
    start = np.zeros(HEADER_INTS, "<i4")
    start[:8] = [MAGIC, version, *vars(header).values()]
    shapes = header.shapes()
    shapes["wte"] = (header.vocab_size, header.channels)
    padding = np.zeros((header.padded_vocab_size - header.vocab_size, header.channels))

    with atomic_write(path) as f:
        f.write(start.tobytes())
        for name, (layered, _) in SHAPES.items():
            given = np.shape(arrays[name][0]) if layered else np.shape(arrays[name])
            count = len(arrays[name]) if layered else 1
            expected = shapes[name][1:] if layered else shapes[name]
            if given != expected or count != (header.num_layers if layered else 1):
                raise TenaraiError(f"{path}: {name} is {count} of {given}, not of {expected}")
            parts = list(arrays[name]) if layered else [arrays[name]]
            for part in parts + ([padding] if name == "wte" else []):
                bits = narrow(part).astype("<u2") if dtype == "bfloat16" else part
                f.write(np.ascontiguousarray(bits, "<u2" if dtype == "bfloat16" else "<f4").data)
                progress(np.size(bits))
