"""What is learned from and validated on: JSON lines, text files, or a text known by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenarai.data.encoding import DataError, Document, read_paths
from tenarai.data.packing import Example, windows_of
from tenarai.data.permutation import Permutation, derive
from tenarai.data.records import SUFFIXES, Record, read_records
from tenarai.data.sources import SOURCES

from .examples import Encoder
from .settings import Settings

PathName = str | os.PathLike[str]


@dataclass(frozen=True)
class Sets:
    """Examples to learn from and to validate on, and a prompt that is fair to both."""

    train: list[Example]
    val: list[Example]
    prompt: str
    chat: bool  # whether the prompt is a question to be put as the template does


def read_sets(source: PathName, settings: Settings, encode: Encoder) -> Sets:
    """Raises TenaraiError: what cannot be read, which line; too little to set some apart."""
    data, seed = settings.data, settings.run.seed
    if not _is_lines(source):
        if settings.preferences.dpo:
            raise DataError(f"{source}: --dpo learns from JSON lines of pairs of answers")
        train = _texts(source, encode)
        if data.val:
            val = _texts(data.val, encode)
        else:
            cut = len(train) - max(2, round(len(train) * data.val_share))
            train, val = train[: max(0, cut)], train[max(0, cut) :]
        if min(len(train), len(val)) < 2:
            raise DataError(f"{source}: is too short to learn from and to validate on")
        T = settings.model.context
        prompt = _first_words(encode, val)
        return Sets(
            windows_of(train, T, str(source)), windows_of(val, T, data.val or str(source)), prompt,
            False,
        )  # fmt: skip
    pairs = settings.preferences.dpo
    records = read_records(source, pairs)
    if data.val:
        val_records = read_records(data.val, pairs)
    else:
        records, val_records = split(records, data.val_share, seed, str(source))
    question = next((_question(r) for r in val_records if r.messages), "")
    prompt = question or val_records[0].text[:32].rsplit(" ", 1)[0]
    train_set, val_set = _examples(encode, records, pairs), _examples(encode, val_records, pairs)
    return Sets(train_set, val_set, prompt, bool(question))


def _examples(encode: Encoder, records: Sequence[Record], pairs: bool) -> list[Example]:
    """Of pairs the chosen and the rejected answer, one after the other."""
    if pairs:
        return [example for r in records for example in encode.pair(r)]
    return [encode(r) for r in records]


def split(
    records: Sequence[Record], share: float, seed: int, source: str
) -> tuple[list[Record], list[Record]]:
    """Some of the records, chosen by the seed, to validate on: one at least."""
    n = len(records)
    if n < 2:
        raise DataError(
            f"{source}: has one example, and one more is needed to validate on: name a file with "
            "--val"
        )
    count = min(n - 1, max(1, round(n * share)))
    chosen = {int(i) for i in Permutation(n, derive(seed, 4))(np.arange(count))}
    train = [r for i, r in enumerate(records) if i not in chosen]
    return train, [r for i, r in enumerate(records) if i in chosen]


def _is_lines(source: PathName) -> bool:
    return Path(source).suffix.lower() in SUFFIXES


def _texts(source: PathName, encode: Encoder) -> np.ndarray:
    """All documents one after the other, as ids."""
    documents: list[Document]
    if str(source) in SOURCES and not Path(source).exists():
        documents = SOURCES[str(source)].read()
    else:
        documents = read_paths([source])
    ids = [np.array(encode.text(d.text), np.int32) for d in documents]
    return np.concatenate(ids)


def _question(record: Record) -> str:
    return next((str(m["content"]) for m in record.messages if m["role"] == "user"), "")


def _first_words(encode: Encoder, ids: np.ndarray) -> str:
    """Some words that begin a line of the validation text."""
    text = encode.tokenizer.decode(ids[:512].tolist())
    for line in text.split("\n")[1:]:
        words = line.split()
        if len(line) >= 8 and line[0].isalnum() and "\ufffd" not in line:
            return " ".join(words[:3]) if len(words) > 3 else line[:8]
    return text[:16]
