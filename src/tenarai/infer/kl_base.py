"""A file of log-probabilities: what one model makes of a text, to compare others with later.

    file   = "tnklbase" · u32 n · n bytes of JSON, padded with spaces · rows × V float16
    header = {"rows", "vocab_size", "text": digest of the tokens and windows, "model", ...}

Little-endian; the rows begin at a multiple of 64. Half precision keeps a log-probability to 2^-11
of itself, and rows are normalised again when they are read: a KL divergence of a model from its
own file is some 1e-7.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write

from .perplexity import Array, Window

MAGIC = b"tnklbase"
PathName = str | os.PathLike[str]


def digest(tokens: Array, windows: Iterable[Window]) -> str:
    """Of what a base belongs to: the tokens, and which of them count after which."""
    h = hashlib.blake2b(np.ascontiguousarray(tokens, "<i4").tobytes(), digest_size=16)
    h.update(json.dumps([[w.start, w.end, w.first] for w in windows]).encode())
    return h.hexdigest()


class BaseWriter:
    """`with BaseWriter(path, about, rows, V) as save: measure(..., save=save)`. Written whole or
    not at all. Raises WriteError."""

    def __init__(self, path: PathName, about: dict[str, Any], rows: int, vocab_size: int):
        self._context = atomic_write(path)
        self._about = about | {"rows": rows, "vocab_size": vocab_size}
        self._rows = 0

    def __enter__(self) -> BaseWriter:
        self._file = self._context.__enter__()
        header = json.dumps(self._about, ensure_ascii=False).encode()
        header += b" " * (-(len(MAGIC) + 4 + len(header)) % 64)
        self._file.write(MAGIC + len(header).to_bytes(4, "little") + header)
        return self

    def __call__(self, log_probabilities: Array) -> None:
        self._file.write(np.ascontiguousarray(log_probabilities, "<f2").data)
        self._rows += len(log_probabilities)

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self._rows != self._about["rows"]:
            raised = ValueError(f"{self._rows} rows written, {self._about['rows']} announced")
            self._context.__exit__(ValueError, raised, None)
            raise raised
        self._context.__exit__(*error)


class BaseReader:
    """The rows of a file in the order in which they were saved; `base` for `measure`.

    Raises TenaraiError: no such file, damaged, or of another text, window or vocabulary.
    """

    def __init__(self, path: PathName, text: str, rows: int, vocab_size: int):
        self.path, self.about, start = Path(path), *_header(Path(path))
        wanted = {"text": text, "rows": rows, "vocab_size": vocab_size}
        for name, value in wanted.items():
            if self.about.get(name) != value:
                raise TenaraiError(
                    f"{path}: belongs to another {_NAMES[name]}: measure with the text, -c, "
                    "--stride and tokenizer that it was saved with, or save it anew (--save-base)"
                )
        size = os.path.getsize(path)
        if size != start + 2 * rows * vocab_size:
            raise TenaraiError(
                f"{path}: is {size} bytes long, its header says otherwise: save anew"
            )
        self._all = np.memmap(path, "<f2", "r", start, (rows, vocab_size))
        self._next = 0

    def __call__(self, ids: Array, first: int) -> Array:
        start = self._next
        self._next += len(ids) - first
        return self._all[start : self._next]


_NAMES = {"text": "text", "rows": "number of tokens", "vocab_size": "vocabulary"}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with open(path, "rb") as f:
            start = f.read(len(MAGIC) + 4)
            n = int.from_bytes(start[len(MAGIC) :], "little")
            header = f.read(n) if start[: len(MAGIC)] == MAGIC and n < 1 << 20 else b""
        about = json.loads(header)
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise TenaraiError(
            f"{path}: is no file of log-probabilities: save one with --save-base"
        ) from error
    if not isinstance(about, dict):
        raise TenaraiError(f"{path}: its header is damaged: save it anew (--save-base)")
    return about, len(MAGIC) + 4 + n
