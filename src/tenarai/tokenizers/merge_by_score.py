"""SentencePiece's byte-pair encoding: pieces are joined in the order of their scores.

The whole text, spaces written as ▁, starts as single characters. Again and again those two
neighbours are joined whose union is the piece with the highest score, the leftmost of equals,
until no union is a piece. What is then no piece is written as its bytes. There is no list of
merges, so the `tokenizers` library, which needs one, does not serve: its order among equal
unions is another, and making the list takes longer than all else (Gemma: half a million).

Source: SentencePiece, bpe_model.cc; Kudo & Richardson 2018, arXiv:1808.06226.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from typing import Any

from .base import TokenizerError
from .pieces import PieceTokenizer
from .vocabulary import SPACE, TokenType, Vocabulary

KEPT = 1 << 16  # words whose ids are remembered
KEPT_LENGTH = 32  # characters of such a word


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
        self._ranks = dict(zip(vocabulary.tokens, (-vocabulary.scores).tolist(), strict=True))
        fixed = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED, TokenType.BYTE)
        for name in vocabulary.of_type(*fixed):
            del self._ranks[name]
        self._ranks.pop("", None)
        self._unused = vocabulary.of_type(TokenType.UNUSED)
        self._word = _words(self._ranks)
        self._known: dict[str, list[int]] = {}

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
            found = self._known.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(word) <= KEPT_LENGTH:
                    if len(self._known) >= KEPT:
                        self._known.clear()
                    self._known[word] = found
            ids += found
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for piece in merge(word, self._ranks, self._unused):
            i = self.vocabulary.ids[piece] if piece in self._ranks else None
            ids += self._fallback(piece) if i is None else [i]
        return ids

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


def merge(word: str, ranks: Mapping[str, float], unused: Mapping[str, int]) -> list[str]:
    """The pieces of a word: neighbours joined by lowest rank, the leftmost first among equals.

    Pieces of `unused` are joined like others, but in the end fall apart into what they were joined
    from. Takes O(n log n) for n characters.
    """
    pieces: list[str] = list(word)
    after = [*range(1, len(pieces)), -1]  # the place of the next piece
    before = [*range(-1, len(pieces) - 1)]
    heap: list[tuple[float, int, int]] = []  # rank, place of the left piece, length of the union
    parts: dict[str, tuple[str, str]] = {}

    def offer(left: int) -> None:
        right = after[left]
        if right >= 0:
            union = pieces[left] + pieces[right]
            rank = ranks.get(union)
            if rank is not None:
                heapq.heappush(heap, (rank, left, len(union)))
                if union in unused:
                    parts[union] = pieces[left], pieces[right]

    for place in range(len(pieces)):
        offer(place)
    while heap:
        _, left, length = heapq.heappop(heap)
        right = after[left]
        if not pieces[left] or right < 0 or len(pieces[left]) + len(pieces[right]) != length:
            continue  # one of the two has been joined with another since
        pieces[left] += pieces[right]
        pieces[right] = ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(left)
        if before[left] >= 0:
            offer(before[left])
    joined = [piece for piece in pieces if piece]
    return _apart(joined, parts) if parts else joined


def _apart(pieces: list[str], parts: Mapping[str, tuple[str, str]]) -> list[str]:
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
