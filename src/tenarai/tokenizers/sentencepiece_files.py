"""SentencePiece's own .model files and llama2.c's tokenizer.bin, as a GGUF file would have them.

    .model           ModelProto of Protocol Buffers: 1 pieces {1 piece, 2 score, 3 type},
                     2 trainer {3 kind, 40 unknown, 41 begin, 42 end}, 3 normalizer {2 table,
                     3 prefix space, 4 drops spaces}
    tokenizer.bin    int32 longest · V × (float32 score · int32 n · n bytes), little-endian

Both are untrusted. Sources: sentencepiece_model.proto; llama2.c, tokenizer.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from .base import Tokenizer, TokenizerError
from .gguf import from_gguf
from .gguf_out import to_gguf
from .merge_by_score import ScoreTokenizer
from .pieces import PieceTokenizer
from .vocabulary import BYTE_NAME, MAX_PIECE, PREFIX, SPACE, TokenType

LLAMA2C_NAME = "tokenizer.bin"
BPE = 2  # of the trainer's kinds: 1 unigram, 2 bpe, 3 word, 4 char
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DAMAGED = "it is cut off or damaged: fetch it again"


def from_model(data: bytes) -> PieceTokenizer:
    """The tokenizer of a .model file of byte-pair encoding, such as Llama 2's."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(dict(_fields(value))))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise TokenizerError("it has no pieces: is it a SentencePiece model?")
    if trainer.get(3, 1) != BPE:
        raise TokenizerError("it is no byte-pair encoding (SentencePiece's unigram is unsupported)")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise TokenizerError(
            "it changes texts before it cuts them (a normalizer), which is not supported"
        )
    special = {name: trainer.get(40 + i, i) for i, name in enumerate(("unknown", "bos", "eos"))}
    return _tokenizer(pieces, special, bool(normalizer.get(3, 1)))


def from_llama2c(data: bytes) -> PieceTokenizer:
    """The tokenizer of llama2.c's tokenizer.bin: Llama 2's vocabulary, or a smaller one's."""
    pieces: list[tuple[str, float, int]] = []
    at = 4
    while at < len(data):
        number = len(pieces)
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        at += 8
        if not 0 <= length <= min(MAX_PIECE, len(data) - at):
            raise TokenizerError(f"token {number}: {_DAMAGED}")
        name = _text(data[at : at + length], number)
        at += length
        if number < 3:  # <unk>, and the two that frame a text, which are written with line ends
            kind: int = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL)[number]
            name = name.strip("\n")
        else:
            kind = TokenType.BYTE if BYTE_NAME.fullmatch(name) else TokenType.NORMAL
            name = name.replace(" ", SPACE)
        pieces.append((name, score, kind))
    if len(pieces) < 3:
        raise TokenizerError("it has fewer than three tokens: is it llama2.c's tokenizer.bin?")
    return _tokenizer(pieces, {"unknown": 0, "bos": 1, "eos": 2}, True)


def to_llama2c(tokenizer: Tokenizer, size: int) -> bytes:
    """llama2.c's tokenizer.bin for a model of `size` tokens: `from_llama2c` backwards.

    Raises TokenizerError for what its programs take for granted and this tokenizer is not:
    SentencePiece's kind, with <unk>, <s>, </s> and the 256 bytes as tokens 0 to 258.
    """
    made = from_gguf(to_gguf(tokenizer, size))
    if not isinstance(made, ScoreTokenizer) or not made.prefix_space:
        raise TokenizerError(f"llama2.c knows SentencePiece's kind, this is {tokenizer.name}")
    v = made.vocabulary
    fixed = {"<unk>": v.unknown, "<s>": v.bos, "</s>": v.eos}
    if [*fixed.values()] != [0, 1, 2] or v.byte_ids() != {i: i + 3 for i in range(256)}:
        raise TokenizerError("llama2.c has <unk>, <s>, </s> and the bytes as tokens 0 to 258")
    if len(v.tokens) != size:
        raise TokenizerError(f"it has {len(v.tokens)} tokens, the model {size}")
    assert v.scores is not None
    names = [token.replace(SPACE, " ").encode() for token in v.tokens]
    for i in (v.bos, v.eos):
        assert i is not None
        names[i] = b"\n" + names[i] + b"\n"
    parts = [struct.pack("<i", max(map(len, names)))]
    for name, score in zip(names, v.scores.tolist(), strict=True):
        parts += [struct.pack("<fi", score, len(name)), name]
    return b"".join(parts)


def _tokenizer(
    pieces: list[tuple[str, float, int]],
    special: dict[str, int],
    prefix_space: bool,
) -> PieceTokenizer:
    names, scores, types = zip(*pieces, strict=True)
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": list(names),
        "scores": np.array(scores, np.float32),
        "token_type": np.array(types, np.int64),
        "add_space_prefix": prefix_space,
        "add_bos_token": True,
    }
    metadata |= {f"{name}_token_id": i for name, i in special.items()}
    made = from_gguf({PREFIX + key: value for key, value in metadata.items()})
    assert isinstance(made, PieceTokenizer)
    return made


def _piece(fields: dict[int, Any]) -> tuple[str, float, int]:
    name, score, kind = fields.get(1, b""), fields.get(2, 0.0), fields.get(3, TokenType.NORMAL)
    if not isinstance(name, bytes) or not isinstance(score, float) or not isinstance(kind, int):
        raise TokenizerError(f"a piece has parts of other kinds: {_DAMAGED}")
    text = _text(name, None)
    return text.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else text, score, kind


def _text(data: bytes, number: int | None) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        which = "a token" if number is None else f"token {number}"
        raise TokenizerError(f"{which} is not UTF-8: {_DAMAGED}") from None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: int, float (of 32 bits), or bytes."""
    if not isinstance(data, bytes):
        raise TokenizerError(f"a part is not where it should be: {_DAMAGED}")
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield field, value - (1 << 64) if value >> 63 else value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, len(data))
        if length > len(data) - at:
            raise TokenizerError(f"a part of {length:,} bytes at {at:,}: {_DAMAGED}")
        part = data[at : at + length]
        yield field, struct.unpack("<f", part)[0] if kind == _FIXED32 else part
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, the lowest first; and the place after it."""
    value = 0
    for n in range(10):
        if at + n >= len(data):
            break
        value |= (data[at + n] & 127) << (7 * n)
        if data[at + n] < 128:
            return value & ((1 << 64) - 1), at + n + 1
    raise TokenizerError(f"a number at {at:,}: {_DAMAGED}")
