"""What tokenizers with a GGUF-like vocabulary share: special tokens, decoding, streams, saving.

A kind adds `_encode_plain` (ids of a text without special tokens in it) and `_make_piece` (the
bytes of a token).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from .base import ByteStream, Tokenizer, piece_of, utf8
from .special import SpecialFinder, spliced
from .vocabulary import PREFIX, TokenType, Vocabulary

KEPT = (PREFIX, "tokenizer.chat_template", "general.architecture")
KEPT_WORDS, KEPT_LENGTH = 1 << 16, 32  # words whose ids are remembered, and their characters
CONTROL = (TokenType.CONTROL, TokenType.UNKNOWN)


class LazyPieces(Sequence[bytes]):
    """The bytes of each token, made when first asked for: a start must not wait for all of them."""

    def __init__(self, count: int, make: Callable[[int], bytes]):
        self._made: list[bytes | None] = [None] * count
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        piece = self._made[i]
        if piece is None:
            piece = self._made[i] = self._make(i)
        return piece


class Remembered:
    """`encode` of a word, with the ids of short words kept: most words come again and again."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self._encode = encode
        self._known: dict[str, list[int]] = {}

    def __call__(self, word: str) -> list[int]:
        found = self._known.get(word)
        if found is None:
            found = self._encode(word)
            if len(word) <= KEPT_LENGTH:
                if len(self._known) >= KEPT_WORDS:
                    self._known.clear()
                self._known[word] = found
        return found


class PieceTokenizer(Tokenizer):
    """A tokenizer of a checked Vocabulary. `metadata`: where it came from, for `to_json`.

    swallow: names of special tokens that drop the white space after them.
    """

    prefix_space = False  # whether a space is put before every text, and dropped in decoding

    def __init__(
        self,
        vocabulary: Vocabulary,
        metadata: Mapping[str, Any],
        add_bos: bool = False,
        swallow: frozenset[str] = frozenset(),
    ):
        self.vocabulary, self._metadata, self.swallow = vocabulary, metadata, swallow
        self.vocab_size = len(vocabulary.tokens)
        self.bos, self.add_bos = vocabulary.bos, add_bos and vocabulary.bos is not None
        self.eot = vocabulary.eos
        self.special = MappingProxyType(vocabulary.of_type(*CONTROL))
        self._pieces = LazyPieces(self.vocab_size, self._make_piece)

    @abstractmethod
    def _encode_plain(self, text: str) -> list[int]: ...

    @abstractmethod
    def _make_piece(self, token: int) -> bytes: ...

    @property
    def end_tokens(self) -> frozenset[int]:
        return self.vocabulary.end_tokens

    @cached_property
    def _defined(self) -> SpecialFinder:
        """Tokens that were added to the vocabulary and are found in any text."""
        return SpecialFinder(self.vocabulary.of_type(TokenType.USER_DEFINED), self.swallow)

    @cached_property
    def _all_special(self) -> SpecialFinder:
        tokens = self.vocabulary.of_type(TokenType.USER_DEFINED, *CONTROL)
        return SpecialFinder(tokens, self.swallow)

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        utf8(text)  # refuses surrogates
        finder = self._all_special if parse_special else self._defined
        return spliced(finder.split(text), self._encode_plain)

    def encode_marked(self, text: str, mark: str) -> list[int]:
        parts = self._all_special.split(text)
        return spliced(parts, lambda part: self.encode(part.replace(mark, "")))

    def id_of(self, piece: str) -> int | None:
        """The id of the token that is written so in the vocabulary, None where there is none."""
        return self.vocabulary.ids.get(piece)

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(piece_of(self._pieces, i) for i in ids).decode(errors="replace")
        return text.removeprefix(" ") if self.prefix_space else text

    def stream(self, start: bool = False) -> ByteStream:
        return ByteStream(self._pieces, drop_space=start and self.prefix_space)

    def to_json(self) -> dict[str, Any]:
        kept = {key: self._metadata[key] for key in self._metadata if key.startswith(KEPT)}
        for key, value in kept.items():
            kept[key] = value.tolist() if isinstance(value, np.ndarray) else value
        return {"tenarai_tokenizer": 1, "type": "gguf", "metadata": kept}

    def _parts(self, text: str) -> Iterator[str]:
        yield text  # a cut may change what is merged
