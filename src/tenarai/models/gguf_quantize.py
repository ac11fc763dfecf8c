"""A GGUF file into another one of fewer bits a weight, a tensor at a time.

Which tensor gets which format stands in quant/mixes.py, how a block's scales are found in
kernels/quant_search.h. Metadata, tokenizer and vectors go over as they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import formats, gguf, gguf_write, imatrix
from tenarai.io.gguf_types import INTEGERS
from tenarai.ops.fast import Fast
from tenarai.quant import mixes
from tenarai.quant.formats import FORMATS, Format
from tenarai.quant.tensor import QuantTensor

PathName = str | os.PathLike[str]
AT_ONCE = 1 << 22  # weights in float32 at a time
FLOATS = ("F32", "F16", "BF16")
VERSION = 2  # of the formats of blocks: general.quantization_version
FLOOR = 1e-4  # of the mean importance, added to all: no column may become arbitrary


@dataclass
class _Row:
    """What became of a tensor."""

    name: str
    shape: tuple[int, ...]
    old: Format
    new: Format
    bytes: int
    importance: bool = False
    square: float = 0.0  # Σ x²
    lost: float = 0.0  # Σ (w − x)²

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "from": self.old.name,
            "to": self.new.name,
            "bytes": self.bytes,
            "importance": self.importance,
            "relative_rms_error": (self.lost / self.square) ** 0.5 if self.square else 0.0,
        }


@dataclass
class _Work:
    ops: Fast
    importance: dict[str, np.ndarray]
    progress: Callable[[int], object]
    rows: list[_Row] = field(default_factory=list)


def quantize_file(
    source: PathName,
    target: PathName,
    kind: str,
    *,
    importance: PathName | None = None,
    pure: bool = False,
    requantize: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda weights: None,
) -> dict[str, Any]:
    """Write GGUF file `source` as `target` in the mix or format `kind`; → what was done.

    {"source", "target", "type", "weights", "bytes_before", "bytes_after", "bits_before",
    "bits_after" (a weight), "relative_rms_error", "seconds", "tensors": [{"name", "shape", "from",
    "to", "bytes", "importance", "relative_rms_error"}]}. `importance` is an importance matrix
    (io/imatrix.py); `progress` is called with the number of weights done since the last call.
    Raises TenaraiError: no GGUF file, an unknown kind, weights that are quantised already (unless
    `requantize`) or not finite, something at `target` (unless `overwrite`) or the source there;
    WriteError.
    """
    mix, began = mixes.mix_of(kind), time.perf_counter()
    file = _open(Path(source), Path(target), overwrite)
    already = [t for t in file.tensors.values() if t.ndim > 1 and t.format.name not in FLOATS]
    if already and not requantize:
        raise TenaraiError(
            f"{source}: {already[0].name} is {already[0].format.name} already, and rounding twice "
            "adds up: take a file of F16, BF16 or F32, or say --requantize"
        )
    columns = {} if importance is None else _importance(Path(importance), file)
    work = _Work(Fast(threads), columns, progress)
    tensors = [_plan(t, mix, _place(file), pure, work) for t in file.tensors.values()]
    metadata = dict(file.metadata) | {"general.file_type": mix.number}
    types = dict(file.metadata.types) | {"general.file_type": "uint32"}
    if not mix.is_float:
        metadata["general.quantization_version"] = VERSION
        types["general.quantization_version"] = "uint32"
    size = gguf_write.write(target, metadata, tensors, types)
    return _report(file, Path(target), mix, size, work.rows, time.perf_counter() - began)


def total_weights(source: PathName) -> int:
    """How many weights `progress` will be told of in all. Raises as `quantize_file` does."""
    _need_gguf(Path(source))
    return sum(t.size for t in gguf.read(source).tensors.values())


def _need_gguf(source: Path) -> None:
    kind = formats.detect(source)
    if kind != formats.GGUF:
        raise TenaraiError(
            f"{source}: is a {kind}, expected a GGUF file: `tenarai convert {source} model.gguf` "
            "makes one"
        )


def _open(source: Path, target: Path, overwrite: bool) -> gguf.GGUFFile:
    _need_gguf(source)
    file = gguf.read(source)
    if target.exists():
        if any(path.samefile(target) for path in file.paths):
            raise TenaraiError(f"{target}: is the source itself: name another target")
        if not overwrite:
            raise TenaraiError(f"{target}: exists: name another target, or overwrite it (--force)")
    return file


def _place(file: gguf.GGUFFile) -> mixes.Place:
    """What the mixes ask of a model, from its metadata."""
    arch = file.metadata.typed("general.architecture", "string", default="")

    def number(key: str, default: int) -> int:
        """A count that may be given for each layer: then the first one's."""
        key = f"{arch}.{key}"
        if file.metadata.types.get(key, "").startswith("["):
            first = file.metadata.first(key, 1)
            return int(first[0]) if len(first) else default
        return file.metadata.typed(key, *INTEGERS, default=default)

    heads = number("attention.head_count", 1)
    shared = heads // max(1, number("attention.head_count_kv", heads))
    tied = "output.weight" not in file.tensors
    return mixes.Place(number("block_count", 0), shared, tied)


def _importance(path: Path, file: gguf.GGUFFile) -> dict[str, np.ndarray]:
    """Importances of the file's tensors, their mean 1."""
    found = {name: v for name, v in imatrix.read(path).items() if name in file.tensors}
    if not found:
        raise TenaraiError(f"{path}: none of its names is a tensor of {file.path}: another model?")
    for name, values in found.items():
        width = file.tensors[name].shape[-1]
        if len(values) != width:
            raise TenaraiError(
                f"{path}: {name} has {len(values):,} columns, {width:,} in {file.path}: is it of "
                "another model?"
            )
        mean = float(values.mean()) or 1.0
        found[name] = np.ascontiguousarray(values / mean + FLOOR, np.float32)
    return found


def _plan(
    t: gguf.GGUFTensor, mix: mixes.Mix, place: mixes.Place, pure: bool, work: _Work
) -> gguf_write.Tensor:
    """The tensor as it is to be written; its numbers are made when its turn comes."""
    format = mixes.format_of(mix, t.name, t.shape, place, pure=pure)
    row = _Row(t.name, t.shape, t.format, format, 0, t.name in work.importance)
    work.rows.append(row)

    def make() -> Iterator[np.ndarray]:
        yield from _converted(t, row, work)

    tensor = gguf_write.Tensor(t.name, t.shape, format, make)
    row.bytes = tensor.nbytes
    return tensor


def _converted(t: gguf.GGUFTensor, row: _Row, work: _Work) -> Iterator[np.ndarray]:
    """The rows of a tensor in their new format, some at a time."""
    raw, width = t.raw(), t.shape[-1]
    if t.format == row.new:
        work.progress(t.size)
        yield raw
        return
    if t.format.name not in FORMATS:
        t.array()  # raises, and says which types there are
    columns = work.importance.get(t.name)
    step = max(1, AT_ONCE // width)
    for i in range(0, len(raw), step):
        some = raw[i : i + step]
        x = work.ops.dequantize(QuantTensor(t.format, (len(some), width), some))
        try:
            w = work.ops.quantize(x, row.new, columns)
        except ValueError as error:
            raise TenaraiError(f"{t.path}: {t.name}, rows from {i}: {error}") from error
        row.square += float(np.vdot(x, x))
        x -= work.ops.dequantize(w)
        row.lost += float(np.vdot(x, x))
        work.progress(x.size)
        yield w.data


def _report(
    file: gguf.GGUFFile, target: Path, mix: mixes.Mix, size: int, rows: list[_Row], seconds: float
) -> dict[str, Any]:
    before = list(file.tensors.values())
    weights = sum(t.size for t in before)
    square, lost = sum(r.square for r in rows), sum(r.lost for r in rows)
    return {
        "source": str(file.path),
        "target": str(target),
        "type": mix.name,
        "weights": weights,
        "bytes_before": file.size,
        "bytes_after": size,
        "bits_before": 8 * sum(t.nbytes for t in before) / max(1, weights),
        "bits_after": 8 * sum(r.bytes for r in rows) / max(1, weights),
        "relative_rms_error": (lost / square) ** 0.5 if square else 0.0,
        "seconds": seconds,
        "tensors": [r.as_json() for r in rows],
    }
