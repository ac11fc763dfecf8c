"""Byte-pair encoding, and whatever else a Hugging Face tokenizer.json describes.

The work is done by the `tokenizers` library. Here: training, the bytes of each token (so that a
stream never gives half a character), cutting long texts where it changes nothing, and errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .base import (
    CHUNK,
    REPLACEMENT,
    ByteStream,
    StreamDecoder,
    Tokenizer,
    TokenizerError,
    piece_of,
    utf8,
)
from .byte_letters import byte_letters, bytes_of
from .pieces import LazyPieces
from .special import SpecialFinder, spliced
from .untrusted import MAX_ID, check_document, check_merges, check_vocabulary
from .vocabulary import BYTE_NAME, END_NAMES, SPACE

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
        self._hf = guard(tokenizers.Tokenizer.from_str, json.dumps(document))
        self._hf.encode_special_tokens = True
        vocabulary = self._hf.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError("it has no tokens: is this a complete tokenizer.json?")
        self.vocab_size = max(vocabulary.values()) + 1
        self.name = str((document.get("model") or {}).get("type") or "bpe").lower()
        self._named_eot = next((vocabulary[n] for n in EOT_NAMES if n in vocabulary), None)
        self.eot = self._named_eot if eot is None else self._find_eot(vocabulary, eot)
        decoder = document.get("decoder") or {}
        self.byte_level = decoder.get("type") == "ByteLevel"
        self._cuttable = self.byte_level and _is_gpt2_pattern(document)
        self._added = self._hf.get_added_tokens_decoder()
        self.special = {t.content: i for i, t in self._added.items() if t.special}
        named = {vocabulary[name] for name in END_NAMES if name in vocabulary}
        self._ends = named | {i for name, i in self.special.items() if name == "</s>"}
        self._drops_space = False
        if self.byte_level:
            self._pieces = LazyPieces(self.vocab_size, self._letters_piece)
        elif (drops := metaspace(decoder)) is not None:
            self._drops_space = drops
            self._pieces = LazyPieces(self.vocab_size, self._metaspace_piece)
        self._find_bos()

    @property
    def document(self) -> dict[str, Any]:
        """The tokenizer.json, parsed."""
        return self._document

    @property
    def end_tokens(self) -> frozenset[int]:
        return frozenset(self._ends if self.eot is None else self._ends | {self.eot})

    def _find_bos(self) -> None:
        """The file's own rule (`post_processor`) shows in what it puts before a letter."""
        plain, framed = (guard(self._ids, "a", add_special) for add_special in (False, True))
        if framed != plain and framed[1 : 1 + len(plain)] == plain:
            self.bos, self.add_bos = framed[0], True

    def id_of(self, piece: str) -> int | None:
        """The id of the token that is written so in the vocabulary, None where there is none."""
        return self._hf.token_to_id(piece)

    def _find_eot(self, vocabulary: dict[str, int], eot: int | str) -> int:
        found = vocabulary.get(eot) if isinstance(eot, str) else eot
        if type(found) is not int or not 0 <= found < self.vocab_size:
            raise TokenizerError(f"the end-of-text token {eot!r} is not in its vocabulary")
        return found

    def _letters_piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].content.encode()  # written as it is
        piece = self._hf.id_to_token(token)
        return REPLACEMENT if piece is None else bytes_of(piece)

    def _metaspace_piece(self, token: int) -> bytes:
        piece = self._hf.id_to_token(token)
        if token not in self._added and piece and (byte := BYTE_NAME.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return REPLACEMENT if piece is None else piece.replace(SPACE, " ").encode()

    def _ids(self, text: str, add_special: bool = False) -> list[int]:
        return self._hf.encode(text, add_special_tokens=add_special).ids

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """A second one, since what it does with special tokens is a property of the object."""
        return guard(tokenizers.Tokenizer.from_str, json.dumps(self._document))

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        if parse_special:
            hf = self._parsing
            return self._guard_text(text, lambda: hf.encode(text, add_special_tokens=False).ids)
        return self._guard_text(text, lambda: self._ids(text))

    def encode_marked(self, text: str, mark: str) -> list[int]:
        if mark not in text:  # as the library has it, to the last space
            return self.encode(text, parse_special=True)
        swallow = frozenset(t.content for t in self._added.values() if t.special and t.rstrip)
        parts = SpecialFinder(self.special, swallow).split(text)
        return spliced(parts, lambda part: self.encode(part.replace(mark, "")))

    def decode(self, ids: Sequence[int]) -> str:
        if self._pieces:
            text = b"".join(piece_of(self._pieces, i) for i in ids).decode(errors="replace")
            return text.removeprefix(" ") if self._drops_space else text
        parts, known = [], []
        for i in [*ids, -1]:  # the unknown −1 ends the last run; its U+FFFD is dropped
            if 0 <= i < self.vocab_size:
                known.append(i)
                continue
            parts += [guard(self._hf.decode, known, skip_special_tokens=False), "\ufffd"]
            known = []
        return "".join(parts[:-1])

    def stream(self, start: bool = False) -> StreamDecoder:
        if self._pieces:
            return ByteStream(self._pieces, drop_space=start and self._drops_space)
        return _WindowStream(self)

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
            return guard(call)
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
        initial_alphabet=sorted(byte_letters().values()),
    )
    hf.train_from_iterator((part for text in texts for part in cut(text, CHUNK)), trainer)
    return HFTokenizer(json.loads(hf.to_str()))


def byte_level_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> HFTokenizer:
    """GPT-2's kind of tokenizer from its vocabulary (token → id) and merges, best first."""
    check_vocabulary(vocabulary)
    check_merges(vocabulary, merges, 0)
    model = guard(models.BPE, vocab=vocabulary, merges=merges)
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


def metaspace(decoder: dict[str, Any]) -> bool | None:
    """Whether decoding drops a leading space; None where ▁ is not what a space is written as."""
    parts = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    parts = [p for p in parts or [] if isinstance(p, dict)]
    drops, found = False, False
    for part in parts:
        kind = part.get("type")
        if kind == "Metaspace" and part.get("replacement") == SPACE:
            found = True
            scheme = "always" if part.get("add_prefix_space", True) else "never"
            drops |= part.get("prepend_scheme", scheme) != "never"
        elif kind == "Replace" and part.get("pattern") == {"String": SPACE}:
            found |= part.get("content") == " "
        elif kind == "Strip":
            drops |= part.get("content") == " " and part.get("start") == 1
        elif kind not in ("ByteFallback", "Fuse"):
            return None
    return drops if found else None


def guard(call: Any, *arguments: Any, **options: Any) -> Any:
    """Call the library; whatever it throws at a strange file becomes one TokenizerError."""
    try:
        return call(*arguments, **options)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is a BaseException
        raise TokenizerError(f"the tokenizers library says: {error}") from error
