"""Tokenizers without training: one token a byte, one token a character, and bare ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .base import ByteStream, StreamDecoder, Tokenizer, TokenizerError, piece_of, utf8
from .untrusted import MAX_ID


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8. Every text can be encoded; Japanese takes three tokens a letter."""

    name = "byte"
    vocab_size = 256
    _pieces = [bytes([i]) for i in range(256)]

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        return list(utf8(text))

    def _encode_part(self, part: str) -> np.ndarray:
        return np.frombuffer(utf8(part), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(piece_of(self._pieces, i) for i in ids).decode(errors="replace")

    def stream(self, start: bool = False) -> ByteStream:
        return ByteStream(self._pieces)

    def to_json(self) -> dict[str, Any]:
        return {"tenarai_tokenizer": 1, "type": "byte"}


class CharTokenizer(Tokenizer):
    """One token a character of a given text, in the order of code points (as nanoGPT has it)."""

    name = "char"

    def __init__(self, characters: Iterable[str]):
        self.characters = list(characters)
        self.vocab_size = len(self.characters)
        if not self.characters:
            raise TokenizerError("a character tokenizer needs at least one character: empty text?")
        self._ids = {c: i for i, c in enumerate(self.characters)}
        if len(self._ids) != self.vocab_size or any(len(c) != 1 for c in self.characters):
            raise TokenizerError(
                "the vocabulary of a character tokenizer is single characters, each once: "
                "this one is damaged, prepare the data again"
            )
        self._pieces = [utf8(c) for c in self.characters]
        # Code point → id; −1 where there is none. At most 1.1 million entries.
        self._table = np.full(max(map(ord, self.characters)) + 2, -1, np.int32)
        self._table[[ord(c) for c in self.characters]] = np.arange(self.vocab_size)

    @classmethod
    def of_text(cls, text: str) -> CharTokenizer:
        """The tokenizer whose vocabulary is the characters of `text`."""
        return cls(sorted(set(text)))

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        return self._encode_part(text).tolist()

    def _encode_part(self, part: str) -> np.ndarray:
        utf8(part)  # refuses surrogates with its own message
        points = np.frombuffer(part.encode("utf-32-le"), np.uint32)
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        if (ids < 0).any():
            bad = part[int(np.argmax(ids < 0))]
            raise TokenizerError(
                f"character {bad!r} (U+{ord(bad):04X}) is not among the {self.vocab_size} "
                "characters of this tokenizer: leave it out, or prepare the data with a byte "
                "or bpe tokenizer, which know every character"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(piece_of(self._pieces, i) for i in ids).decode()

    def stream(self, start: bool = False) -> ByteStream:
        return ByteStream(self._pieces)

    def to_json(self) -> dict[str, Any]:
        return {"tenarai_tokenizer": 1, "type": "char", "characters": self.characters}


class IdTokenizer(Tokenizer):
    """For tokens whose vocabulary is not at hand: the text is the ids, `464 3290 `."""

    name = "ids"

    def __init__(self, vocab_size: int, eot: int | None = None):
        if not 0 < vocab_size <= MAX_ID or not (eot is None or 0 <= eot < vocab_size):
            raise TokenizerError(f"{vocab_size} tokens with end of text {eot} cannot be: damaged?")
        self.vocab_size, self.eot = vocab_size, eot

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            ids = [-1]
        if not all(0 <= i < self.vocab_size for i in ids):
            raise TokenizerError(
                "the vocabulary of this data is not at hand: write token ids (numbers from 0 to "
                f"{self.vocab_size - 1} with spaces), or put its tokenizer.json beside the data"
            )
        return ids

    def _parts(self, text: str) -> Iterator[str]:
        yield text

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{i} " for i in ids)

    def stream(self, start: bool = False) -> StreamDecoder:
        return _IdStream()

    def to_json(self) -> dict[str, Any]:
        document = {"tenarai_tokenizer": 1, "type": "ids", "vocab_size": self.vocab_size}
        return {**document, "eot": self.eot}


class _IdStream(StreamDecoder):
    def push(self, token: int) -> str:
        return f"{token} "

    def flush(self) -> str:
        return ""


def from_json(document: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a document that `to_json` made. Raises TokenizerError."""
    kind, version = document.get("type"), document.get("tenarai_tokenizer")
    if version != 1:
        raise TokenizerError(f"version {version!r} of the file is unknown: update tenarai")
    if kind == "byte":
        return ByteTokenizer()
    if kind == "ids":
        size, eot = document.get("vocab_size"), document.get("eot")
        if type(size) is not int or not (eot is None or type(eot) is int):
            raise TokenizerError("its vocab_size or eot is no number: prepare the data again")
        return IdTokenizer(size, eot)
    characters = document.get("characters")
    if kind == "char" and isinstance(characters, list):
        if all(isinstance(c, str) for c in characters):
            return CharTokenizer(characters)
        raise TokenizerError("its characters are not all strings: prepare the data again")
    raise TokenizerError(f"its type is {kind!r}, known are byte, char and ids: update tenarai")
