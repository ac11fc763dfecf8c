"""What the verbs `convert` and `inspect` do: model files turned into others, and described."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from tenarai import tokenizers
from tenarai.api import load
from tenarai.errors import TenaraiError
from tenarai.io import formats, gguf, gguf_describe, hugging_face, llama2c, llmc, safetensors_file
from tenarai.models import snapshot
from tenarai.opening import BESIDE

PathName = str | os.PathLike[str]
BYTES = {"float32": 4, "bfloat16": 2}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def convert(
    source: PathName,
    target: PathName,
    dtype: str | None = None,
    *,
    to: str | None = None,
    shard_size: int | None = None,
    tokenizer: PathName | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> list[str]:
    """Write the model in `source` as `target`, whose suffix says the format (or `to`); → what was
    left out.

    Formats, types and sizes are those of `tenarai.load` and `Model.save`; with `progress` a bar is
    drawn on stderr, where that is a terminal. Raises TenaraiError: either cannot be, or something
    is at `target` and `overwrite` is not set; WriteError.
    """
    from tqdm import tqdm

    source, target = Path(source), Path(target)
    if target.exists() and target.resolve() == source.resolve():
        raise TenaraiError(f"{target}: is the source itself: name another target")
    taken = any(target.iterdir()) if target.is_dir() else target.exists()
    if taken and not overwrite:
        raise TenaraiError(f"{target}: exists: name another target, or overwrite it (--force)")
    model = load(source, tokenizer=tokenizer)
    with tqdm(
        total=model.params.count, desc="convert", unit="weight", unit_scale=True,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        left_out = model.save(target, dtype, target=to, shard_size=shard_size, progress=bar.update)
    if formats.detect(source) in (formats.CHECKPOINT, formats.FOLDER):
        with snapshot.open_newest(source, verify=False) as checkpoint:
            if snapshot.describes_run(checkpoint):
                left_out.append(
                    "the optimiser's state and the place in the data: training cannot go on from "
                    "the result, only from the run itself"
                )
    return left_out


def describe(path: PathName) -> dict[str, Any]:
    """What a file or folder holds, for people and programs.

    {"path", "kind", "config": {...}, "tokenizer": text or None, "tensors": [{"name", "dtype",
    "shape", "bytes"}], "numbers": count over all tensors, "bytes": their size}, and "run": {...}
    for a run's checkpoint, "metadata" and more for a GGUF file (io/gguf_describe.py). Weights are
    not read, but a checkpoint's checksum is verified.
    Raises TenaraiError for what is no model file or is damaged.
    """
    path = Path(path)
    kind = formats.detect(path)
    if kind == formats.LLMC:
        return _describe_llmc(path, kind)
    if kind == formats.LLAMA2C:
        return _describe_llama2c(path, kind)
    if kind == formats.GGUF:
        found = gguf_describe.describe(gguf.read(path))
        return found | _description(path, kind, {}, found["tokenizer"], found["tensors"])
    if kind == formats.HUGGING_FACE:
        config, found = hugging_face.read_folder(path)
        file = tokenizers.find(path)
        tokenizer = repr(tokenizers.load(file)) if file else None
        return _description(path, kind, config, tokenizer, _rows(found))
    if kind == formats.SAFETENSORS:
        return _description(path, kind, {}, None, _rows(safetensors_file.open_file(path)))
    return _describe_checkpoint(path)


def _describe_llmc(path: Path, kind: str) -> dict[str, Any]:
    header, dtype = llmc.read_header(path)
    rows = [
        {"name": name, "dtype": dtype, "shape": list(shape), "bytes": prod(shape) * BYTES[dtype]}
        for name, shape in header.shapes().items()
    ]
    return _description(path, kind, dict(vars(header)), None, rows)


def _describe_llama2c(path: Path, kind: str) -> dict[str, Any]:
    header = llama2c.read_header(path)
    rows = []
    for name, shape in header.shapes().items():
        layers = header.n_layers if name in llama2c.LAYERED else 1
        whole = [layers, *shape] if name in llama2c.LAYERED else list(shape)
        dtype = "float32" if header.nbytes(shape) == 4 * prod(shape) else "int8"
        size = layers * header.nbytes(shape)
        rows.append({"name": name, "dtype": dtype, "shape": whole, "bytes": size})
    file = tokenizers.find(path.parent, BESIDE[kind])
    tokenizer = repr(tokenizers.load(file)) if file else None
    return _description(path, kind, dict(vars(header)), tokenizer, rows)


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    with snapshot.open_newest(path) as checkpoint:
        rows = [
            {"name": e.name, "dtype": e.dtype.name, "shape": list(e.shape), "bytes": e.nbytes}
            for e in checkpoint.entries.values()
        ]
        document = snapshot.tokenizer_of(checkpoint)
        tokenizer = None if document is None else repr(tokenizers.from_document(document))
        meta = dict(checkpoint.meta)
        config = meta.pop("model", {})
        kind = formats.CHECKPOINT + (" of a run" if snapshot.describes_run(checkpoint) else "")
        found = _description(checkpoint.path, kind, config, tokenizer, rows)
        return found | {"run": meta}


def _rows(tensors: dict[str, safetensors_file.Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "name": t.name,
            "dtype": NAMES.get(t.dtype, t.dtype.lower()),
            "shape": list(t.shape),
            "bytes": t.bytes,
        }
        for t in tensors.values()
    ]


def _description(
    path: Path, kind: str, config: Any, tokenizer: str | None, rows: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    tensors = list(rows)
    return {
        "path": str(path),
        "kind": kind,
        "config": config,
        "tokenizer": tokenizer,
        "tensors": tensors,
        "numbers": sum(prod(t["shape"]) for t in tensors),
        "bytes": sum(t["bytes"] for t in tensors),
    }
