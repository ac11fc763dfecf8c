"""Tokenizers as the metadata of a GGUF file, as llama.cpp and tokenizers/gguf.py read them.

    byte-level BPE      `gpt2`: tokens in GPT-2's letters, merges, and in `pre` how texts are cut
    bytes, characters   `rwkv`: each token's bytes, matched longest first; no token ends a text

A tokenizer that came from such metadata is written as it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import Tokenizer, TokenizerError
from .bpe import HFTokenizer
from .pieces import PieceTokenizer
from .pre_tokenizers import DIGIT, GPT2, KINDS
from .simple import ByteTokenizer, CharTokenizer
from .vocabulary import PREFIX, TokenType

Metadata = dict[str, Any]


def to_gguf(tokenizer: Tokenizer) -> Metadata:
    """Keys and values. Raises TokenizerError, which says why, where GGUF has no words for it."""
    if isinstance(tokenizer, PieceTokenizer):
        held = tokenizer.to_json()["metadata"]
        return {key: _typed(key, v) for key, v in held.items() if key.startswith("tokenizer.")}
    if isinstance(tokenizer, ByteTokenizer | CharTokenizer):
        return _by_bytes([tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)])
    if isinstance(tokenizer, HFTokenizer) and tokenizer.byte_level:
        return _byte_level(tokenizer)
    raise TokenizerError(f"GGUF has no words for a tokenizer of the kind {tokenizer.name}")


def _typed(key: str, value: Any) -> Any:
    """Lists with the types that readers expect; an empty one would not say its own."""
    kinds = {"scores": np.float32, "token_type": np.int32}
    kind = kinds.get(key.removeprefix(PREFIX))
    return value if kind is None else np.asarray(value, kind)


def _by_bytes(pieces: list[bytes]) -> Metadata:
    """Tokens of one byte or one character: no two can match at one place, so longest-first is
    what encoding means. Every byte is escaped, so that none is taken for another sign."""
    return {
        PREFIX + "model": "rwkv",
        PREFIX + "tokens": ["".join(f"\\x{byte:02x}" for byte in piece) for piece in pieces],
        PREFIX + "token_type": np.full(len(pieces), TokenType.NORMAL, np.int32),
        PREFIX + "add_bos_token": False,
        PREFIX + "add_space_prefix": False,
    }


def _byte_level(tokenizer: HFTokenizer) -> Metadata:
    document = tokenizer.document
    model = document["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"GGUF has no words for byte-level {model.get('type')}")
    added = {token["id"]: token for token in document.get("added_tokens") or []}
    names, types = [], []
    by_id = {i: name for name, i in model["vocab"].items()}
    for i in range(tokenizer.vocab_size):
        token = added.get(i)
        kind = TokenType.NORMAL if i in by_id else TokenType.UNUSED
        if token:
            kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        names.append(token["content"] if token else by_id.get(i, f"[unused {i}]"))
        types.append(kind)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not merges:
        raise TokenizerError("GGUF has no words for byte-level BPE without merges")
    keys = {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": _kind_of(document),
        PREFIX + "tokens": names,
        PREFIX + "token_type": np.array(types, np.int32),
        PREFIX + "merges": merges,
        PREFIX + "add_bos_token": tokenizer.add_bos,
    }
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eot}
    if tokenizer.bos is None:
        ends["bos_token_id"] = tokenizer.eot
    return keys | {PREFIX + name: i for name, i in ends.items() if i is not None}


def _kind_of(document: Mapping[str, Any]) -> str:
    """The name in GGUF of the way in which the document cuts texts. Raises TokenizerError."""
    normal = document.get("normalizer")
    nfc = isinstance(normal, Mapping) and normal.get("type") == "NFC"
    whole = bool(document["model"].get("ignore_merges"))
    patterns = _patterns(document.get("pre_tokenizer") or {})
    if normal is None or nfc:
        for name, kind in KINDS.items():
            alike = (kind.patterns, kind.whole_words, kind.nfc) == (patterns, whole, nfc)
            if alike and name != "default":
                return name
    raise TokenizerError("GGUF has no name for the way in which this tokenizer cuts words")


def _patterns(cutter: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Its patterns, one after the other; None where it does anything else."""
    found: list[str] = []
    parts = cutter.get("pretokenizers", []) if cutter.get("type") == "Sequence" else [cutter]
    for part in parts:
        kind = part.get("type")
        if kind == "ByteLevel" and not part.get("add_prefix_space"):
            found += [GPT2] if part.get("use_regex", True) else []
        elif kind == "Digits" and part.get("individual_digits"):
            found.append(DIGIT)
        elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            found.append((part.get("pattern") or {}).get("Regex"))
        else:
            return None
    return tuple(found)
