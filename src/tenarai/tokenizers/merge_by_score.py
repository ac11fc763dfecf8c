"""SentencePiece's byte-pair encoding: pieces are joined in the order of their scores.

The whole text, spaces written as ▁, starts as single characters. Again and again those two
neighbours are joined whose union is the piece with the highest score, the leftmost of equals,
until no union is a piece. What is then no piece is written as its bytes. There is no list of
merges, so the `tokenizers` library, which needs one, does not serve: its order among equal
unions is another, and making the list takes longer than all else (Gemma: half a million).

Source: SentencePiece, bpe_model.cc; Kudo & Richardson 2018, arXiv:1808.06226.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .base import TokenizerError
from .merge import merge
from .pieces import PieceTokenizer, Remembered
from .vocabulary import SPACE, TokenType, Vocabulary


class ScoreTokenizer(PieceTokenizer):
    """Llama's, Phi-3's and Gemma's kind. `prefix_space`: a text is encoded as if after a space.

    Special tokens divide a text, and each part of it begins anew.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        metadata: Mapping[str, Any],
        prefix_space: bool,
        **options: Any,
    ):
        super().__init__(vocabulary, metadata, **options)
        if vocabulary.scores is None:
            raise TokenizerError("it has no scores (tokenizer.ggml.scores): is the file complete?")
        self.name, self.prefix_space = "sentencepiece", prefix_space
        self._bytes = vocabulary.byte_ids()
        # Control tokens, bytes and those found beforehand never come from joining.
        self.ranks = dict(zip(vocabulary.tokens, (-vocabulary.scores).tolist(), strict=True))
        fixed = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED, TokenType.BYTE)
        for name in vocabulary.of_type(*fixed):
            del self.ranks[name]
        self.ranks.pop("", None)
        self._unused = vocabulary.of_type(TokenType.UNUSED)
        self._word = _words(self.ranks)
        self._known = Remembered(self._encode_word)

    def _make_piece(self, token: int) -> bytes:
        name, kind = self.vocabulary.tokens[token], self.vocabulary.types[token]
        if kind == TokenType.BYTE:
            return bytes([int(name[3:5], 16)])
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            return name.encode()
        return name.replace(SPACE, " ").encode()

    def _encode_plain(self, text: str) -> list[int]:
        text = text.replace(" ", SPACE)
        if self.prefix_space:
            text = SPACE + text
        ids: list[int] = []
        for word in self._word.findall(text):
            ids += self._known(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for piece in self._pieces_of(word):
            i = self.vocabulary.ids[piece] if piece in self.ranks else None
            ids += self._fallback(piece) if i is None else [i]
        return ids

    def _pieces_of(self, word: str) -> list[str]:
        ranks, unused = self.ranks, self._unused
        if not unused:
            return merge(word, lambda left, right: ranks.get(left + right))
        parts: dict[str, tuple[str, str]] = {}  # what unused pieces were last offered from

        def rank(left: str, right: str) -> float | None:
            if left + right in unused:
                parts[left + right] = left, right
            return ranks.get(left + right)

        return _apart(merge(word, rank), parts)

    def _fallback(self, character: str) -> list[int]:
        """A character that is no piece: its bytes, or the unknown token."""
        found = [self._bytes.get(byte, self.vocabulary.unknown) for byte in character.encode()]
        if None not in found and self._bytes:
            return found  # type: ignore[return-value]
        if self.vocabulary.unknown is None:
            raise TokenizerError(
                f"character {character!r} (U+{ord(character):04X}) is not in the vocabulary, which "
                "has no tokens for bytes and no unknown token: leave it out"
            )
        return [self.vocabulary.unknown]


def _apart(pieces: list[str], parts: Mapping[str, tuple[str, str]]) -> list[str]:
    """Pieces that are not to be used fall apart again into what they were joined from."""
    result, left_over = [], pieces[::-1]
    while left_over:
        piece = left_over.pop()
        if piece in parts:
            left_over += reversed(parts[piece])
        else:
            result.append(piece)
    return result


def _words(pieces: Mapping[str, float]) -> re.Pattern[str]:
    """What a text may be cut into without a change: before spaces, except after characters that
    stand before a space inside some piece."""
    inside = "".join(sorted(set(re.findall(f"([^{SPACE}\uffff]){SPACE}", "\uffff".join(pieces)))))
    word = f"{SPACE}+[^{SPACE}]*"
    more = f"(?:(?<=[{re.escape(inside)}]){word})*" if inside else ""
    return re.compile(f"(?:{word}|[^{SPACE}]+){more}", re.DOTALL)
