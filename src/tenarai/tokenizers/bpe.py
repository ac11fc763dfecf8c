"""Byte-pair encoding, and whatever else a Hugging Face tokenizer.json describes.

The work is done by the `tokenizers` library. Here: training, the bytes of each token (so that a
stream never gives half a character), cutting long texts where it changes nothing, and errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .base import CHUNK, ByteStream, StreamDecoder, Tokenizer, TokenizerError, piece_of, utf8
from .untrusted import MAX_ID, check_document, check_merges, check_vocabulary

EOT = "<|endoftext|>"
EOT_NAMES = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")

# GPT-2's pattern never lets a token hold a space after something that is none, so a text may be
# cut there. (Of the patterns of other models that is not true: a newline may follow a full stop.)
_CUT = re.compile(r"\S(?=\s)")


class HFTokenizer(Tokenizer):
    """A tokenizer.json of the `tokenizers` library. Untrusted: raises TokenizerError.

    document: the parsed file. eot: the id or name of the token that ends a text; without it the
    first of EOT_NAMES that the vocabulary has.
    """

    def __init__(self, document: dict[str, Any], eot: int | str | None = None):
        self._document = document = {**document, "truncation": None, "padding": None}
        check_document(document)
        if document["model"].get("dropout"):
            document["model"] = {**document["model"], "dropout": None}  # for training only
        self._hf = _guard(tokenizers.Tokenizer.from_str, json.dumps(document))
        self._hf.encode_special_tokens = True
        vocabulary = self._hf.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError("it has no tokens: is this a complete tokenizer.json?")
        self.vocab_size = max(vocabulary.values()) + 1
        self.name = str((document.get("model") or {}).get("type") or "bpe").lower()
        self._named_eot = next((vocabulary[n] for n in EOT_NAMES if n in vocabulary), None)
        self.eot = self._named_eot if eot is None else self._find_eot(vocabulary, eot)
        self.byte_level = (document.get("decoder") or {}).get("type") == "ByteLevel"
        self._cuttable = self.byte_level and _is_gpt2_pattern(document)
        self._pieces = self._byte_pieces(vocabulary) if self.byte_level else ()

    def id_of(self, piece: str) -> int | None:
        """The id of the token that is written so in the vocabulary, None where there is none."""
        return self._hf.token_to_id(piece)

    def _find_eot(self, vocabulary: dict[str, int], eot: int | str) -> int:
        found = vocabulary.get(eot) if isinstance(eot, str) else eot
        if type(found) is not int or not 0 <= found < self.vocab_size:
            raise TokenizerError(f"the end-of-text token {eot!r} is not in its vocabulary")
        return found

    def _byte_pieces(self, vocabulary: dict[str, int]) -> list[bytes | None]:
        pieces: list[bytes | None] = [None] * self.vocab_size
        for piece, i in vocabulary.items():
            pieces[i] = bytes_of(piece)
        for i, added in self._hf.get_added_tokens_decoder().items():
            pieces[i] = added.content.encode()  # written as it is
        return pieces

    def encode(self, text: str) -> list[int]:
        return self._guard_text(text, lambda: self._hf.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        if self.byte_level:
            return b"".join(piece_of(self._pieces, i) for i in ids).decode(errors="replace")
        parts, known = [], []
        for i in [*ids, -1]:  # the unknown −1 ends the last run; its U+FFFD is dropped
            if 0 <= i < self.vocab_size:
                known.append(i)
                continue
            parts += [_guard(self._hf.decode, known, skip_special_tokens=False), "\ufffd"]
            known = []
        return "".join(parts[:-1])

    def stream(self) -> StreamDecoder:
        return ByteStream(self._pieces) if self.byte_level else _WindowStream(self)

    def to_json(self) -> dict[str, Any]:
        """The library's own format, so that other programs read it; wrapped only where the
        end-of-text token would not be found again, since that format has no place for it."""
        if self.eot == self._named_eot:
            return self._document
        return {
            "tenarai_tokenizer": 1,
            "type": "huggingface",
            "eot": self.eot,
            "tokenizer": self._document,
        }

    def _parts(self, text: str) -> Iterator[str]:
        return cut(text, CHUNK) if self._cuttable else iter([text])

    def _encode_part(self, part: str) -> np.ndarray:
        # Short pieces: all threads have work, and the library's offsets stay small.
        pieces = list(cut(part, 8192)) if self._cuttable else [part]
        batch = getattr(self._hf, "encode_batch_fast", self._hf.encode_batch)
        encoded = self._guard_text(part, lambda: batch(pieces, add_special_tokens=False))
        return np.concatenate([np.asarray(e.ids, np.int32) for e in encoded])

    def _guard_text(self, text: str, call: Any) -> Any:
        try:
            return _guard(call)
        except TokenizerError:
            utf8(text)  # says it better where half a surrogate pair is the cause
            raise


class _WindowStream(StreamDecoder):
    """For decoders that look at neighbours: what a few ids say with and without the new one."""

    def __init__(self, tokenizer: HFTokenizer):
        self._tokenizer = tokenizer
        self._told: list[int] = []  # ids whose text was given; context of the next
        self._new: list[int] = []

    def _text(self) -> str:
        before = self._tokenizer.decode(self._told)
        return self._tokenizer.decode(self._told + self._new)[len(before) :]

    def push(self, token: int) -> str:
        self._new.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        self._told, self._new = self._new, []
        return text

    def flush(self) -> str:
        text = self._text() if self._new else ""
        self._told, self._new = [], []
        return text


def train_bpe(texts: Iterable[str], vocab_size: int) -> HFTokenizer:
    """Byte-level BPE with GPT-2's pattern: `<|endoftext|>`, the 256 bytes, then merges.

    The same texts give the same tokenizer. Short texts give fewer tokens than `vocab_size`
    (a merge must occur twice). Raises TokenizerError below 257 tokens.
    """
    if not 257 <= vocab_size <= MAX_ID:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is impossible for bpe: it has 256 bytes and an "
            f"end-of-text token before any merge; choose 257 to {MAX_ID}, such as 2048"
        )
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[EOT],
        initial_alphabet=sorted(_byte_letters().values()),
    )
    hf.train_from_iterator((part for text in texts for part in cut(text, CHUNK)), trainer)
    return HFTokenizer(json.loads(hf.to_str()))


def byte_level_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> HFTokenizer:
    """GPT-2's kind of tokenizer from its vocabulary (token → id) and merges, best first."""
    check_vocabulary(vocabulary)
    check_merges(vocabulary, merges, 0)
    model = _guard(models.BPE, vocab=vocabulary, merges=merges)
    hf = tokenizers.Tokenizer(model)
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    if EOT in vocabulary:
        hf.add_special_tokens([EOT])
    return HFTokenizer(json.loads(hf.to_str()))


def cut(text: str, size: int) -> Iterator[str]:
    """Pieces of about `size` characters or more, cut where GPT-2's pattern cuts anyway."""
    start = 0
    while len(text) - start > size and (match := _CUT.search(text, start + size)):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


@cache
def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it prints in Latin-1, else U+0100 and on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in prints)
    return {b: chr(b) for b in prints} | {b: chr(256 + n) for n, b in enumerate(others)}


@cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in _byte_letters().items()}


def bytes_of(piece: str) -> bytes:
    """The bytes that a byte-level token stands for."""
    table = _letter_bytes()
    try:
        return bytes(table[letter] for letter in piece)
    except KeyError:
        return piece.encode()


def letters_of(data: bytes) -> str:
    """The byte-level name of some bytes; the inverse of `bytes_of`."""
    table = _byte_letters()
    return "".join(table[b] for b in data)


def _is_gpt2_pattern(document: dict[str, Any]) -> bool:
    before = document.get("pre_tokenizer") or {}
    added = document.get("added_tokens") or []
    return (
        before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space", True)
        and before.get("use_regex", True)
        and not document.get("normalizer")
        and all(token.get("special") for token in added)  # others are searched for in the text
    )


def _guard(call: Any, *arguments: Any, **options: Any) -> Any:
    """Call the library; whatever it throws at a strange file becomes one TokenizerError."""
    try:
        return call(*arguments, **options)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is a BaseException
        raise TokenizerError(f"the tokenizers library says: {error}") from error
