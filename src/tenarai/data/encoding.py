"""Reading text files of whatever encoding, strictly: a wrong guess is an error, not mojibake."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tenarai.errors import TenaraiError

SUFFIXES = (".txt", ".md")  # what is read of a folder

_MARKS = (  # UTF-32's mark begins with UTF-16's, so it is looked for first
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with mark"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")  # hiragana and full-width katakana
_NOT_CP932 = re.compile("[\x80\xa0\uf8f0-\uf8f3]")  # what Python makes of its unused bytes
_CONTROL = re.compile("[\x01-\x07\x0e-\x19\x1c-\x1f\x7f]")


class DataError(TenaraiError):
    """A text, a dataset or a shard that cannot be used."""


@dataclass(frozen=True)
class Document:
    """One text. name: where it is from; encoding: how it was written there."""

    name: str
    text: str
    encoding: str = "UTF-8"


def decode(data: bytes, name: str, encoding: str | None = None) -> tuple[str, str]:
    """The text of some bytes and the name of its encoding; newlines become `\\n`.

    Without `encoding`: by its mark, else UTF-8 where it is, else Shift_JIS (as Windows has it,
    CP932) or EUC-JP where the bytes are valid and hold kana as Japanese does.
    Raises DataError: empty, binary, or none of these. `name` is for the message.
    """
    if encoding is not None:
        text, label = _named(data, name, encoding)
    else:
        text, label = _detect(data, name)
    if not text.strip():
        raise DataError(f"{name} has no text in it ({len(data)} bytes): name another file")
    controls = len(_CONTROL.findall(text)) + text.count("\0")
    if controls > 2 + len(text) // 1000:
        raise DataError(
            f"{name} is no text: {controls} of its {len(text)} characters are control characters; "
            "name a text file"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n"), label


def _named(data: bytes, name: str, encoding: str) -> tuple[str, str]:
    try:
        return data.decode(encoding), encoding
    except (LookupError, UnicodeError, ValueError) as error:
        raise DataError(
            f"{name} cannot be read as {encoding}: {error}; leave the encoding out to detect it"
        ) from error


def _detect(data: bytes, name: str) -> tuple[str, str]:
    for mark, codec, label in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(codec), label
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name} has the mark of {label} but is broken at byte {error.start}: "
                    "was it cut off? Save it again"
                ) from error
    if b"\0" in data:
        at = data.index(b"\0")
        raise DataError(
            f"{name} is a binary file (a zero byte at {at}): name a text file; "
            "if it is UTF-16 without its mark, convert it to UTF-8 or prepare it with "
            "`tenarai data FILE --encoding utf-16-le`"
        )
    try:
        return data.decode(), "UTF-8"
    except UnicodeDecodeError as error:
        at, byte = error.start, data[error.start]
    guesses = []
    for codec, label in (("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP")):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if codec == "cp932" and _NOT_CP932.search(text):
            continue
        guesses.append((_japanese(text), text, label))
    score, text, label = max(guesses, default=(0.0, "", ""))
    if score < 0.1:
        raise DataError(
            f"{name} is not UTF-8 (byte {at} is 0x{byte:02X}), nor Shift_JIS, EUC-JP or UTF-16 "
            "with a mark: if it is a text, give its --encoding (such as latin-1) or convert it"
        )
    return text, label


def _japanese(text: str) -> float:
    """The share of kana among what is not ASCII: real Japanese has much, a wrong guess none."""
    return len(_KANA.findall(text)) / max(1, sum(c > "\x7f" for c in text))


def read_paths(
    paths: Iterable[str | os.PathLike[str]], encoding: str | None = None
) -> list[Document]:
    """Read files, and of folders all *.txt and *.md below them, sorted by path.

    Raises DataError as `decode` does, and where there is no such file or nothing in a folder.
    """
    documents = []
    for given in map(Path, paths):
        files = sorted(_walk(given)) if given.is_dir() else [given]
        if not files:
            raise DataError(
                f"no {' or '.join('*' + s for s in SUFFIXES)} file below the folder {given}: "
                "name the files themselves"
            )
        documents += [_read(file, encoding) for file in files]
    return documents


def _walk(folder: Path) -> Iterable[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path


def _read(file: Path, encoding: str | None) -> Document:
    try:
        if not file.exists():
            raise DataError(f"no such file or named text: {file}; `tenarai data --list` has names")
        if not file.is_file():
            raise DataError(f"{file} is neither a file nor a folder: name a text file")
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    return Document(str(file), *decode(data, str(file), encoding))
