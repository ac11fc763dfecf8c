"""The vocabulary in a GGUF file's metadata, checked. How it cuts a text is the tokenizers' matter.

    tokenizer.ggml.tokens       [string]   the V pieces; the place is the id
    tokenizer.ggml.token_type   [int32]    TokenType of each
    tokenizer.ggml.scores       [float32]  how early a piece is merged (SentencePiece's kind)
    tokenizer.ggml.merges       [string]   "left right", best first (byte-level BPE)
    tokenizer.ggml.*_token_id   uint32     what begins a text, ends it, ends a turn

Source: ggml, docs/gguf.md, and what the writers of such files do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from .base import TokenizerError
from .untrusted import MAX_ID

PREFIX = "tokenizer.ggml."
SPACE = "▁"  # U+2581, how a space is written in SentencePiece's pieces
MAX_PIECE = 1024  # characters of a token; the longest in use have some 500
NO_ID = 0xFFFFFFFF  # −1 as an unsigned number: what some writers put for "none"

# Tokens that end a turn or a text, whatever type a file gives them.
END_NAMES = frozenset(
    (
        *("<|endoftext|>", "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>"),
        *("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endofturn|>"),
        *("<|eot|>", "<|eom|>", "<|return|>", "<|call|>", "<|END_OF_TURN_TOKEN|>"),
    )
)
# Where a file has no types: how control tokens look.
_CONTROL = re.compile(r"<[|｜].*[|｜]>|<(s|/s|unk|pad|bos|eos|(start|end)_of_turn)>", re.DOTALL)
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """V tokens, `ids` the other way round; what is absent in the file is None."""

    tokens: Sequence[str]
    types: np.ndarray  # (V,) uint8
    ids: Mapping[str, int]
    scores: np.ndarray | None  # (V,) float32
    merges: Sequence[str] | None
    bos: int | None
    eos: int | None
    unknown: int | None
    end_tokens: frozenset[int]

    def of_type(self, *types: TokenType) -> dict[str, int]:
        """The tokens of some types, by name; the empty one, which nothing can match, left out."""
        where = np.flatnonzero(np.isin(self.types, types))
        return {t: i for i in where.tolist() if (t := self.tokens[i])}

    def byte_ids(self) -> dict[int, int]:
        """Byte → id of the token that stands for it alone. Raises for a name that is no byte."""
        found: dict[int, int] = {}
        for name, i in self.of_type(TokenType.BYTE).items():
            match = BYTE_NAME.fullmatch(name)
            if not match:
                raise TokenizerError(f"token {i}, {name[:40]!r}, is typed a byte but named no such")
            found[int(match[1], 16)] = i
        return found


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a file's metadata. Untrusted: raises TokenizerError."""
    tokens = _strings(metadata, "tokens")
    if not tokens:
        raise TokenizerError("it has no tokens (tokenizer.ggml.tokens): is the file complete?")
    size = len(tokens)
    ids = _ids(tokens)
    named = {
        key: _token_id(metadata, f"{key}_token_id", size)
        for key in ("bos", "eos", "unknown", "eot", "eom")
    }
    types = _types(metadata, tokens)
    for name in END_NAMES & ids.keys():
        types[ids[name]] = TokenType.CONTROL
    ends = {named["eos"], named["eot"], named["eom"], *(ids.get(name) for name in END_NAMES)}
    if "</s>" in ids and types[ids["</s>"]] == TokenType.CONTROL:  # in Gemma it is a tag of HTML
        ends.add(ids["</s>"])
    return Vocabulary(
        tokens,
        types,
        ids,
        _scores(metadata, size),
        _strings(metadata, "merges") if PREFIX + "merges" in metadata else None,
        named["bos"],
        named["eos"],
        named["unknown"],
        frozenset(i for i in ends if i is not None),
    )


def flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """A truth value among the tokenizer's keys. Raises TokenizerError where it is none."""
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, bool):
        raise TokenizerError(f"{PREFIX}{name} is {_said(value)}, expected true or false: damaged?")
    return value


def text(metadata: Mapping[str, Any], key: str, default: str = "") -> str:
    """A string in the metadata. Raises TokenizerError where it is none."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise TokenizerError(f"{key} is a {type(value).__name__}, expected a string: damaged?")
    return value


def _said(value: Any) -> str:
    """A value for a message, on one line; of an array what it is."""
    if isinstance(value, bool | int | float | str):
        return repr(value if not isinstance(value, str) else value[:40])
    return f"a {type(value).__name__}"


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(PREFIX + name, [])
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        raise TokenizerError(f"{PREFIX}{name} is not a list of strings: damaged?")
    if len(values) > MAX_ID:
        raise TokenizerError(f"{PREFIX}{name} has {len(values):,} strings, at most {MAX_ID:,} are")
    return values


def _ids(tokens: list[str]) -> dict[str, int]:
    if (length := max(map(len, tokens))) > MAX_PIECE:
        longest = next(i for i, token in enumerate(tokens) if len(token) == length)
        raise TokenizerError(
            f"token {longest} has {length:,} characters, "
            f"at most {MAX_PIECE:,} are possible: damaged?"
        )
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        raise TokenizerError("a token is not Unicode text: damaged?") from None
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) + max(0, tokens.count("") - 1) != len(tokens):
        later = next(i for i, token in enumerate(tokens) if token and ids[token] != i)
        raise TokenizerError(
            f"tokens {later} and {ids[tokens[later]]} are both {tokens[later][:40]!r}: damaged?"
        )
    ids.pop("", None)  # some files pad with nameless tokens
    return ids


def _numbers(
    metadata: Mapping[str, Any], name: str, kinds: str, size: int, what: str
) -> np.ndarray | None:
    values = metadata.get(PREFIX + name)
    if values is None:
        return None
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, TypeError):
        array = np.empty(0, object)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise TokenizerError(f"{PREFIX}{name} is not a list of {what}: damaged?")
    if len(array) != size:
        raise TokenizerError(
            f"{PREFIX}{name} has {len(array):,} entries for {size:,} tokens: damaged?"
        )
    return array


def _types(metadata: Mapping[str, Any], tokens: list[str]) -> np.ndarray:
    size = len(tokens)
    types = _numbers(metadata, "token_type", "iu", size, "whole numbers")
    if types is None:
        types = np.full(size, TokenType.NORMAL, np.uint8)
        for i, token in enumerate(tokens):
            if token[:1] == "<" and (BYTE_NAME.fullmatch(token) or _CONTROL.fullmatch(token)):
                types[i] = TokenType.BYTE if token[1] == "0" else TokenType.CONTROL
        return types
    wrong = (types < TokenType.NORMAL) | (types > TokenType.BYTE)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise TokenizerError(f"token {i} has the type {types[i]}, known are 1 to 6: damaged?")
    return types.astype(np.uint8)


def _scores(metadata: Mapping[str, Any], size: int) -> np.ndarray | None:
    scores = _numbers(metadata, "scores", "f", size, "floating-point numbers")
    if scores is not None and not np.isfinite(scores).all():
        i = int(np.argmin(np.isfinite(scores)))
        raise TokenizerError(f"token {i} has the score {scores[i]}, expected a number: damaged?")
    return scores


def _token_id(metadata: Mapping[str, Any], name: str, size: int) -> int | None:
    value = metadata.get(PREFIX + name)
    if value is None or (type(value) is int and value in (NO_ID, -1)):
        return None
    if type(value) is not int or not 0 <= value < size:
        raise TokenizerError(
            f"{PREFIX}{name} is {_said(value)}, expected an id from 0 to {size - 1}: "
            "is the vocabulary of another model?"
        )
    return value
