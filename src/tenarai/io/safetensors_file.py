"""Named arrays in .safetensors files: one file, or the several that an index lists.

    file = uint64 n (little-endian) · n bytes of JSON · the arrays' bytes, nothing between
    JSON = {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...,
            "__metadata__": {"key": "text"}}

Model files are untrusted: the `safetensors` library checks the header (sizes, overflow, overlap,
coverage of the whole file) before anything here looks at it. The bytes are then mapped and
widened to float32 an array at a time; the library itself gives NumPy no bfloat16. Writing is done
here because the library writes to a path of its own: here the bytes go straight into the
temporary file of `atomic_write`, one array at a time, never a second copy of the model.
Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.bfloat16 import narrow, widen
from tenarai.io.json_file import read_json

Array = NDArray[Any]
INDEX_BYTES = 64 << 20  # no index of a real model comes near

FLOATS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "F64": ("<f8", lambda x: x.astype(np.float32)),
    "F32": ("<f4", lambda x: x.astype(np.float32)),
    "F16": ("<f2", lambda x: x.astype(np.float32)),
    "BF16": ("<u2", widen),
}


@dataclass(frozen=True)
class Tensor:
    """Where one array lies. `begin` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    bytes: int

    def read(self) -> Array:
        """The array in float32, (shape). Raises TenaraiError for a type that is no float."""
        if self.dtype not in FLOATS:
            raise TenaraiError(
                f"{self.file}: {self.name} has type {self.dtype}, expected one of "
                f"{', '.join(FLOATS)}: quantised files of this kind cannot be read yet"
            )
        kind, to_float32 = FLOATS[self.dtype]
        if not prod(self.shape):
            return np.zeros(self.shape, np.float32)
        stored = np.memmap(self.file, kind, "r", self.begin, self.shape)
        return np.asarray(to_float32(stored))


def open_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name → Tensor of one file, in the file's order. Raises TenaraiError when it is damaged."""
    path = Path(path)
    try:
        with safe_open(path, "np"):  # checks the whole header
            pass
        with path.open("rb") as f:
            n = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(n))
    except SafetensorError as error:
        raise TenaraiError(
            f"{path}: not a whole safetensors file ({error}): copy or download it again"
        ) from error
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror or 'no such file'}") from error
    except ValueError as error:
        raise TenaraiError(f"cannot read {path}: {error}") from error
    header.pop("__metadata__", None)
    tensors = []
    for name, info in header.items():
        begin, end = info["data_offsets"]
        shape = tuple(info["shape"])
        tensors.append(Tensor(name, info["dtype"], shape, path, 8 + n + begin, end - begin))
    return {t.name: t for t in sorted(tensors, key=lambda t: t.begin)}


def open_index(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name → Tensor of all files that `model.safetensors.index.json` lists: all that they hold,
    be it listed or not.

    Raises TenaraiError: a file missing or damaged, a file outside the index's own folder, a
    tensor that is not in the file where the index places it, or that is in two.
    """
    path = Path(path)
    places = read_json(path, INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise TenaraiError(f"{path}: has no weight_map from names to files: download it again")
    for file in set(places.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise TenaraiError(
                f"{path}: lists the file {file!r}, expected a .safetensors beside it"
            )
    found: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        for name, tensor in open_file(path.parent / file).items():
            if name in found:
                raise TenaraiError(
                    f"{path}: {name} is in two files, {found[name].file.name} and {file}: are they "
                    "of one model?"
                )
            found[name] = tensor
    for name, file in places.items():
        if name not in found or found[name].file.name != file:
            raise TenaraiError(f"{path}: {name} is not in {file}: download both again")
    return found


Made = tuple[str, tuple[int, ...], Callable[[], Array]]  # name, shape, function that makes it
STORED: dict[str, Callable[[Array], Array]] = {
    "F32": lambda x: np.ascontiguousarray(x, "<f4"),
    "F16": lambda x: np.ascontiguousarray(x, "<f2"),
    "BF16": lambda x: narrow(x).astype("<u2", copy=False),
}
ITEM = {"F32": 4, "F16": 2, "BF16": 2}  # bytes a number
F16_MAX = 65504.0


def write_file(
    path: str | os.PathLike[str],
    arrays: Iterable[Made],
    metadata: Mapping[str, str],
    type: str = "F32",
    progress: Callable[[int], object] = lambda numbers: None,
) -> None:
    """Write float32 arrays as `type`, whole or not at all.

    A function is called when its array's turn comes, so that transposed copies live one at a time;
    `progress` is told how many numbers were written. Raises WriteError; TenaraiError for a number
    that float16 cannot hold.
    """
    arrays = list(arrays)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape, _ in arrays:
        begin, end = end, end + ITEM[type] * prod(shape)
        header[name] = {"dtype": type, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8
    with atomic_write(path) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape, make in arrays:
            made = make()
            if made.shape != shape:
                raise ValueError(f"{name}: made {made.shape}, announced {shape}")
            if type == "F16" and np.abs(made).max(initial=0) > F16_MAX:
                raise TenaraiError(f"{path}: {name} has numbers beyond float16: take BF16 or F32")
            f.write(STORED[type](made).data)
            progress(made.size)
