"""Byte-level BPE from a GGUF file's vocabulary and merges: GPT-2, SmolLM, Llama 3, Qwen.

The `tokenizers` library cuts texts into words. The words of a short text are merged here, since
the library takes longer to set up (50 ms for 50,000 tokens, 300 for 150,000) than a prompt takes
to encode; those of a long text by the library. Both give the same ids. A byte that the vocabulary
lacks is left out, as the models' own tokenizers do.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from .base import CHUNK, TokenizerError
from .bpe import cut, guard
from .byte_letters import bytes_of
from .merge import merge
from .pieces import CONTROL, PieceTokenizer, Remembered
from .pre_tokenizers import DEFAULT, KINDS, Kind, normalizer, pre_tokenizer
from .untrusted import check_merges
from .vocabulary import TokenType, Vocabulary

SHORT = 1 << 14  # characters of a text that is merged here
_WRITTEN_OUT = (*CONTROL, TokenType.USER_DEFINED)  # tokens whose names are their text
Rank = Callable[[str, str], int | None]  # of the merge that joins two pieces, if one does


class ByteLevelTokenizer(PieceTokenizer):
    """`kind`: where a text is cut before merging."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        metadata: Mapping[str, Any],
        kind: Kind,
        **options: Any,
    ):
        super().__init__(vocabulary, metadata, **options)
        self.name, self.kind = "bpe", kind
        self._ids = dict(vocabulary.ids)  # what text can become: no control tokens
        for name in self.special:
            del self._ids[name]
        self.merges, self._rank = _merges(vocabulary, self._ids)
        self.cutter, self.normalizer = pre_tokenizer(kind), normalizer(kind)
        self._known = Remembered(self._encode_word)

    def _make_piece(self, token: int) -> bytes:
        name = self.vocabulary.tokens[token]
        if self.vocabulary.types[token] in _WRITTEN_OUT:
            return name.encode()
        return bytes_of(name)

    def _encode_plain(self, text: str) -> list[int]:
        if self.normalizer:
            text = self.normalizer.normalize_str(text)
        if len(text) > SHORT:
            return guard(self._library.encode, text, add_special_tokens=False).ids
        ids: list[int] = []
        for word, _ in guard(self.cutter.pre_tokenize_str, text):
            ids += self._known(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        if self.kind.whole_words and word in self._ids:
            return [self._ids[word]]
        word = "".join(letter for letter in word if letter in self._ids)
        pieces = merge(word, self._rank)
        return [self._ids[piece] for piece in pieces if piece in self._ids]

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in self.merges)]
        check_merges(self._ids, pairs, 0)  # the library would panic
        whole = self.kind.whole_words
        made = guard(models.BPE, vocab=self._ids, merges=pairs, ignore_merges=whole)
        library = tokenizers.Tokenizer(made)
        library.pre_tokenizer = self.cutter
        return library

    def _parts(self, text: str) -> Iterator[str]:
        plain = self.kind.cuttable and not self.vocabulary.of_type(TokenType.USER_DEFINED)
        return cut(text, CHUNK) if plain else super()._parts(text)


def kind_of(name: str) -> Kind:
    """The kind of that name. An unknown one is answered with a warning and the default."""
    if name not in KINDS:
        warnings.warn(
            f"the tokenizer cuts words in a way that is not known here ({name[:40]!r}): texts may "
            "fall into other tokens than the model has learned; update tenarai",
            stacklevel=2,
        )
    return KINDS.get(name, DEFAULT)


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> tuple[Sequence[str], Rank]:
    """The merges that text may use, and which of them joins two pieces. `ids`: what text can
    become. Raises TokenizerError: a merge that is no two tokens, or whose union is none."""
    merges = vocabulary.merges
    if not merges:
        raise TokenizerError("it has no merges (tokenizer.ggml.merges): is the file complete?")
    lines = "\n".join([*merges, ""])
    if len(merges) != lines.count("\n") or not _are_pairs(lines):
        shape = re.compile(r"[^ \n]+ [^ \n]+")
        number = next(n for n, merge in enumerate(merges, 1) if not shape.fullmatch(merge))
        raise TokenizerError(
            f"merge {number}, {merges[number - 1][:40]!r}, is not two tokens: damaged?"
        )
    unions = lines.replace(" ", "").split("\n")[:-1]
    first = ids.get(unions[0], 0)
    # Trainers number tokens as they merge them. Then the ids say which merge it is, and a table
    # of all merges, which would take as long as all else here, is not needed.
    made = slice(first, first + len(unions))
    if vocabulary.tokens[made] == unions and not np.isin(vocabulary.types[made], CONTROL).any():
        return merges, _by_id(merges, ids, first)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    check_merges(dict(vocabulary.ids), pairs, 0)
    # Text must not become control tokens.
    merges = [merge for merge, union in zip(merges, unions, strict=True) if union in ids]
    ranks = dict(zip(merges, range(len(merges)), strict=True))
    return merges, lambda left, right: ranks.get(f"{left} {right}")


def _are_pairs(lines: str) -> bool:
    """Whether each line is two words with a space between."""
    bytes = np.frombuffer(lines.encode(), np.uint8)
    at = np.flatnonzero((bytes == ord(" ")) | (bytes == ord("\n")))
    between = np.diff(at, prepend=-1) > 1  # something stands before each
    return bool(between.all() and (bytes[at[0::2]] == 32).all() and (bytes[at[1::2]] == 10).all())


def _by_id(merges: Sequence[str], ids: Mapping[str, int], first: int) -> Rank:
    count = len(merges)

    def rank(left: str, right: str) -> int | None:
        place = ids.get(left + right, -1) - first
        known = 0 <= place < count and merges[place] == f"{left} {right}"
        return place if known else None

    return rank
