"""Byte-level BPE from a GGUF file's vocabulary and merges: GPT-2, SmolLM, Llama 3, Qwen.

The `tokenizers` library cuts and merges. A byte that the vocabulary lacks is left out, as there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import models

from .base import CHUNK, TokenizerError
from .bpe import cut, guard
from .byte_letters import bytes_of
from .pieces import CONTROL, PieceTokenizer
from .pre_tokenizers import DEFAULT, KINDS, Kind, normalizer, pre_tokenizer
from .untrusted import check_merges
from .vocabulary import TokenType, Vocabulary

_WRITTEN_OUT = (*CONTROL, TokenType.USER_DEFINED)  # tokens whose names are their text


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
        self.name, self._kind = "bpe", kind
        pairs = _pairs(vocabulary)
        ids = dict(vocabulary.ids)
        check_merges(ids, pairs, 0)
        model = guard(models.BPE, vocab=ids, merges=pairs, ignore_merges=kind.whole_words)
        self._hf = tokenizers.Tokenizer(model)
        self._hf.pre_tokenizer = pre_tokenizer(kind)
        if before := normalizer(kind):
            self._hf.normalizer = before

    def _make_piece(self, token: int) -> bytes:
        name = self.vocabulary.tokens[token]
        if self.vocabulary.types[token] in _WRITTEN_OUT:
            return name.encode()
        return bytes_of(name)

    def _encode_plain(self, text: str) -> list[int]:
        return guard(self._hf.encode, text, add_special_tokens=False).ids

    def _parts(self, text: str) -> Iterator[str]:
        plain = self._kind.cuttable and not self._defined
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


def _pairs(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    if vocabulary.merges is None:
        raise TokenizerError("it has no merges (tokenizer.ggml.merges): is the file complete?")
    pairs = []
    for number, merge in enumerate(vocabulary.merges, 1):
        left, space, right = merge.partition(" ")
        if not left or not right:
            raise TokenizerError(f"merge {number}, {merge[:40]!r}, is not two tokens: damaged?")
        pairs.append((left, right))
    return pairs
