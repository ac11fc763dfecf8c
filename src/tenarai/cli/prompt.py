"""Texts that people give to a verb: arguments and files in whatever encoding, as Unicode."""

from __future__ import annotations

import contextlib
import os
import sys

import click

UNUSED_CP932 = frozenset("\x80\xa0\uf8f0\uf8f1\uf8f2\uf8f3")  # Python's reading of unused bytes


def from_argument(text: str, name: str = "-p") -> str:
    """An argument of the command line as it was meant.

    On Windows arguments are Unicode. Elsewhere they are bytes, and where they are not in the
    locale's encoding Python hides them in surrogates: those bytes are read as a file's would be.
    """
    if not any(map(_is_surrogate, text)):
        return text
    from tenarai.data.encoding import DataError, decode

    try:
        text, encoding = decode(os.fsencode(text), name)
        click.echo(f"{name}: read as {encoding}", err=True)
    except (UnicodeEncodeError, DataError):  # half of a pair on its own; or no known encoding
        text = "".join("\ufffd" if _is_surrogate(c) else c for c in text)
        click.echo(f"{name}: what is no character here was replaced by U+FFFD", err=True)
    return text


def from_file(file: str) -> str:
    """A text file's text without the line end that closes it; the encoding is said on stderr.

    UTF-8, UTF-16 with a mark, Shift_JIS, EUC-JP. Raises TenaraiError: no such file, a folder,
    binary, another encoding.
    """
    from tenarai.data import read_paths
    from tenarai.errors import TenaraiError

    if not os.path.isfile(file):
        what = "is a folder" if os.path.isdir(file) else "is not there"
        raise TenaraiError(f"{file}: {what}: -f takes a text file")
    (document,) = read_paths([file])
    click.echo(f"{file}: {len(document.text):,} characters, read as {document.encoding}", err=True)
    return document.text.removesuffix("\n")


def from_bytes(data: bytes, encoding: str | None) -> str:
    """A piped line: in the stream's encoding, else UTF-8, else Shift_JIS; U+FFFD for the rest."""
    for name in (encoding or "utf-8", "utf-8", "cp932"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(name)
            if name != "cp932" or not UNUSED_CP932.intersection(text):
                return text
    return data.decode("utf-8", "replace")


def write(text: str) -> None:
    """Onto stdout as it comes. What its encoding cannot show becomes `?` (see cli/__init__.py)."""
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
