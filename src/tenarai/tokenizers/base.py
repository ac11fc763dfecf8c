"""What every tokenizer can do. The kinds stand in simple.py and bpe.py, the files in files.py."""

from __future__ import annotations

import codecs
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write

CHUNK = 1 << 18  # characters of a long text that are encoded between two moves of the bar


class TokenizerError(TenaraiError):
    """A tokenizer's file that cannot be used, or a text that it cannot encode."""


class Tokenizer(ABC):
    """Text to token ids and back.

    name: what kind it is, for people. vocab_size: ids are 0 ≤ id < vocab_size.
    eot: the id that ends a text (`<|endoftext|>` and its kin), or None; `eos` is the same.
    bos: the id that begins a text, or None; add_bos: whether the model wants it there.
    special: the control tokens by name, which only `encode(..., parse_special=True)` finds.
    end_tokens: every id that ends a text or a speaker's turn: where generation stops.
    """

    name: str
    vocab_size: int
    eot: int | None = None
    bos: int | None = None
    add_bos: bool = False
    special: Mapping[str, int] = MappingProxyType({})
    _pieces: Sequence[bytes | None] = ()  # the bytes of each token, for kinds that have them

    @abstractmethod
    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of `text`, none added; the names of special tokens are ordinary text.

        With `parse_special` they become those tokens: for chat templates, not for what users
        write. Raises TokenizerError where a character has no id, or is half of a surrogate pair.
        """

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Ids of a chat template's text: special tokens as with `parse_special`, and `mark`, which
        keeps names in messages from being such, taken out (chat.py)."""
        return self.encode(text.replace(mark, ""))

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Bytes that are no UTF-8 and unknown ids become U+FFFD."""

    @abstractmethod
    def stream(self, start: bool = False) -> StreamDecoder:
        """A decoder that is given one id at a time; it never gives half a character.

        It goes on after some text; with `start` it begins one, and gives what `decode` gives:
        Llama's kind puts a space before every text, which is dropped there and only there.
        """

    @property
    def eos(self) -> int | None:
        return self.eot

    @property
    def end_tokens(self) -> frozenset[int]:
        return frozenset() if self.eot is None else frozenset([self.eot])

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """`ids` as the model wants a text to begin: after `bos` where it asks for that."""
        begun = not self.add_bos or self.bos is None or list(ids[:1]) == [self.bos]
        return list(ids) if begun else [self.bos, *ids]  # type: ignore[list-item]

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The document that `save` writes and `tenarai.tokenizers.load` reads."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that one token stands for; possibly not whole characters."""
        return piece_of(self._pieces, token) if self._pieces else self.decode([token]).encode()

    def encode_chunks(self, text: str, progress: bool = False) -> Iterator[np.ndarray]:
        """The ids of a long text in order, int32 arrays: `concatenate(...) == encode(text)`.

        With `progress` a bar is drawn on stderr, where that is a terminal.
        """
        from tqdm import tqdm  # 40 ms, and not needed for a prompt

        # disable=None: tqdm is silent where stderr is no terminal
        with tqdm(
            total=len(text),
            desc="encode",
            unit="char",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar:
            for part in self._parts(text):
                yield self._encode_part(part)
                bar.update(len(part))

    def _parts(self, text: str) -> Iterator[str]:
        """Cut where the cut changes nothing. Anywhere, for tokenizers of single characters."""
        for start in range(0, len(text), CHUNK):
            yield text[start : start + CHUNK]

    def _encode_part(self, part: str) -> np.ndarray:
        return np.asarray(self.encode(part), np.int32)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `path`, or `path`/tokenizer.json where it is a folder. Raises WriteError."""
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        with atomic_write(path, "w") as f:
            json.dump(self.to_json(), f, ensure_ascii=False, indent=1)
            f.write("\n")
        return path

    def __repr__(self) -> str:
        return f"<tokenizer {self.name}, {self.vocab_size} tokens>"


class StreamDecoder(ABC):
    """`push` each id, print what it gives; `flush` at the end."""

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that is certain now: whole characters only, possibly none."""

    @abstractmethod
    def flush(self) -> str:
        """What is left (U+FFFD for the bytes of an unfinished character). Ready for a new text."""


class ByteStream(StreamDecoder):
    """Joins the bytes of tokens and gives characters as they become whole.

    `pieces[id]` are the bytes of a token; other ids become U+FFFD. With `drop_space` each text
    loses a space that it begins with.
    """

    def __init__(self, pieces: Sequence[bytes | None], drop_space: bool = False):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = self._at_start = drop_space

    def push(self, token: int) -> str:
        return self._given(self._decoder.decode(piece_of(self._pieces, token)))

    def flush(self) -> str:
        text = self._given(self._decoder.decode(b"", final=True))
        self._at_start = self._drop_space
        return text

    def _given(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


REPLACEMENT = "\ufffd".encode()


def piece_of(pieces: Sequence[bytes | None], token: int) -> bytes:
    """The bytes of a token, those of U+FFFD where there is no such token."""
    piece = pieces[token] if 0 <= token < len(pieces) else None
    return REPLACEMENT if piece is None else piece


def utf8(text: str) -> bytes:
    """UTF-8 of `text`. Raises TokenizerError at half a surrogate pair, which is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = ord(text[error.start])
        raise TokenizerError(
            f"character {error.start} of the text is U+{bad:04X}, half of a surrogate pair: "
            "the text was not read as Unicode; save it as UTF-8"
        ) from error
