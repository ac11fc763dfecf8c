"""From texts to a dataset folder: tokenizer.json, train_*.bin, val_*.bin, dataset.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenarai import tokenizers
from tenarai.io.atomic import WriteError, atomic_write, fsync_folder, make_folder
from tenarai.tokenizers import CharTokenizer, Tokenizer, train_bpe

from .dataset import (
    DESCRIPTION,
    Dataset,
    is_dataset,
    named_tokenizer,
    open_dataset,
    read_info,
    sha256_of,
)
from .encoding import DataError, Document, read_paths
from .shards import SHARD_TOKENS, ShardWriter
from .sources import SOURCES, cache_folder


def load(
    source: str | os.PathLike[str] | Sequence[str],
    tokenizer: str = "bpe",
    vocab_size: int = 2048,
    encoding: str | None = None,
) -> Dataset:
    """What a training run learns from: a named text, files and folders of text, or shards.

    Texts are prepared into the cache, or taken from there. Raises TenaraiError.
    """
    sources = [str(source)] if isinstance(source, (str, os.PathLike)) else list(map(str, source))
    if len(sources) == 1 and sources[0] not in SOURCES and is_dataset(sources[0]):
        return open_dataset(sources[0], tokenizer)
    return prepare(sources, None, tokenizer, vocab_size, encoding=encoding)


def prepare(
    sources: Sequence[str],
    out_dir: str | os.PathLike[str] | None = None,
    tokenizer: str = "bpe",
    vocab_size: int = 2048,
    val_fraction: float = 0.1,
    encoding: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Dataset:
    """Read texts, make or take a tokenizer, and write a dataset folder; reuse it where it is there.

    sources: names of SOURCES, files, folders. out_dir: the folder, one in the cache by default.
    tokenizer: "byte", "char" (the characters of the text), "bpe" (trained on the training part,
    `vocab_size` tokens), "gpt2", or a path. val_fraction: the part at the end, by characters,
    that is kept for validation. Texts are separated by the end-of-text token, where there is one.
    The folder appears whole or not at all. Raises DataError, TokenizerError, WriteError.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"the validation part is {val_fraction}, it must be between 0 and 1")
    if not 0 < shard_tokens < 2**31:
        raise DataError(f"a shard has 1 to {2**31 - 1} tokens, not {shard_tokens}")
    documents, described = _read(sources, encoding)
    settings: dict[str, Any] = {"val_fraction": val_fraction, "shard_tokens": shard_tokens}
    ready = None
    if tokenizer in ("char", "bpe"):
        settings |= {"tokenizer": tokenizer} | ({"vocab": vocab_size} if tokenizer == "bpe" else {})
    else:
        ready = named_tokenizer(tokenizer)
        settings["tokenizer"] = _digest(ready.to_json())
    key = _digest({"sources": described, "settings": settings, "version": 1})
    if out_dir is None:
        stem = "".join(c for c in Path(sources[0]).stem if c.isalnum() or c in "-_")[:40]
        out_dir = cache_folder() / "datasets" / f"{stem}-{tokenizer_stem(tokenizer)}-{key[:8]}"
    folder = Path(out_dir)
    if _is_made(folder, key):
        return open_dataset(folder)
    train, val = _split(documents, val_fraction)
    made = ready or _make_tokenizer(tokenizer, train, val, vocab_size)
    info = {"key": key, "sources": described, "settings": settings}
    _write(folder, made, train, val, shard_tokens, info)
    return open_dataset(folder)


def tokenizer_stem(tokenizer: str) -> str:
    return "".join(c for c in Path(tokenizer).name if c.isalnum())[:20] or "tokenizer"


def _digest(value: Any) -> str:
    data = json.dumps(value, ensure_ascii=False, sort_keys=True).encode(errors="surrogatepass")
    return hashlib.sha256(data).hexdigest()


def _read(
    sources: Sequence[str], encoding: str | None
) -> tuple[list[Document], list[dict[str, Any]]]:
    """The documents, and for each source what dataset.json says of it."""
    if not sources:
        raise DataError("no text named: give a file, a folder or one of `tenarai data --list`")
    documents: list[Document] = []
    described = []
    for name in sources:
        entry: dict[str, Any] = {"name": name}
        if source := SOURCES.get(name):
            found = source.read()
            entry |= {"licence": source.licence, "attribution": source.attribution}
        else:
            found = read_paths([name], encoding)
            _say_encodings(found)
        digest = hashlib.sha256()
        for document in found:
            digest.update(document.text.encode(errors="surrogatepass") + b"\0")
        entry["documents"] = len(found)
        entry["characters"] = sum(len(d.text) for d in found)
        entry["encodings"] = sorted({d.encoding for d in found})
        entry["sha256"] = digest.hexdigest()
        documents += found
        described.append(entry)
    return documents, described


def _say_encodings(documents: list[Document]) -> None:
    """Somebody should notice a wrong guess, so whatever is not plain UTF-8 is said."""
    for encoding in sorted({d.encoding for d in documents} - {"UTF-8"}):
        names = [d.name for d in documents if d.encoding == encoding]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"{names[0]}{more}: read as {encoding}", file=sys.stderr)


def _split(documents: list[Document], fraction: float) -> tuple[list[str], list[str]]:
    """Texts for training and validation: cut at one place, as nanoGPT does for a single text."""
    left = int(sum(len(d.text) for d in documents) * (1 - fraction))
    train, val = [], []
    for document in documents:
        train.append(document.text[:left])
        val.append(document.text[left:])
        left = max(0, left - len(document.text))
    return [t for t in train if t], [t for t in val if t]


def _make_tokenizer(kind: str, train: list[str], val: list[str], vocab_size: int) -> Tokenizer:
    if kind == "char":  # all characters, or the validation text could not be written
        return CharTokenizer(sorted(set().union(*train, *val)))
    return train_bpe(train, vocab_size)


def _is_made(folder: Path, key: str) -> bool:
    """Whether the folder holds this very dataset. Raises DataError where it holds other things."""
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return False
    except NotADirectoryError as error:
        raise WriteError(folder, error) from error
    except OSError as error:
        raise DataError(f"cannot look into {folder}: {error.strerror or error}") from error
    if not (folder / DESCRIPTION).is_file():
        raise DataError(
            f"{folder} has other things in it than a dataset: choose an empty or a new folder"
        )
    try:
        if read_info(folder).get("key") != key:
            return False
        open_dataset(folder)
    except (DataError, tokenizers.TokenizerError) as error:
        print(f"making {folder} again: {error}", file=sys.stderr)
        return False
    return True


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    train: list[str],
    val: list[str],
    shard_tokens: int,
    info: dict[str, Any],
) -> None:
    """Everything into a folder beside, which then takes the place of the old one."""
    folder = Path(os.path.abspath(folder))
    make_folder(folder.parent)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise WriteError(folder, error) from error
    try:
        new = make_folder(work / "new")
        splits = {}
        for split, texts in (("train", train), ("val", val)):
            with ShardWriter(new, split, tokenizer.vocab_size, shard_tokens) as writer:
                _encode(tokenizer, texts, writer)
            entries = [
                {"file": p.name, "tokens": _count(p, tokenizer.vocab_size), "sha256": sha256_of(p)}
                for p in writer.paths
            ]
            splits[split] = {"tokens": writer.count, "shards": entries}
        digest = sha256_of(tokenizer.save(new))
        described = {"name": tokenizer.name, "eot": tokenizer.eot, "sha256": digest}
        document = {
            "format": "tenarai-dataset",
            "version": 1,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": described,
            **splits,
            **info,
        }
        with atomic_write(new / DESCRIPTION, "w") as f:
            json.dump(document, f, ensure_ascii=False, indent=1)
        if not _is_made(folder, info["key"]):  # else another process was faster
            _swap(new, folder, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _encode(tokenizer: Tokenizer, texts: list[str], writer: ShardWriter) -> None:
    for number, text in enumerate(texts):
        if number and tokenizer.eot is not None:
            writer.append(np.array([tokenizer.eot]))
        for ids in tokenizer.encode_chunks(text, progress=len(text) > 1_000_000):
            writer.append(ids)


def _count(path: Path, vocab_size: int) -> int:
    return (path.stat().st_size - 1024) // (2 if vocab_size <= 2**16 else 4)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Two renames; whoever is killed between them finds the old folder in `.NAME.*/old`."""
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        if isinstance(error, OSError):
            raise WriteError(folder, error) from error
        raise
    fsync_folder(folder.parent)
