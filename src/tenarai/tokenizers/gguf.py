"""The tokenizer of a GGUF file, from its metadata alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .base import Tokenizer, TokenizerError
from .byte_level import ByteLevelTokenizer, kind_of
from .merge_by_score import ScoreTokenizer
from .simple import ByteTokenizer, CharTokenizer
from .vocabulary import PREFIX, TokenType, Vocabulary, flag, read_vocabulary, text

# Phi-3's special tokens drop the white space after them, but for those that frame a text.
_PHI3_KEEPS = frozenset(["<unk>", "<s>", "<|endoftext|>"])
_ESCAPED = re.compile(r"(\\x[0-9a-f]{2}){1,4}")  # as gguf_out.py writes the bytes of a token
_OTHERS = {"bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV", "plamo2": "PLaMo-2"}


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes; `metadata` is `io.gguf.read(path).metadata`.

    `tokenizer.ggml.model` is `llama` (pieces joined by score), `gpt2` (byte-level BPE, words cut
    as `tokenizer.ggml.pre` says; of an unknown name a warning is given) or `rwkv` (of those the
    ones whose tokens are single bytes or characters). Untrusted: raises TokenizerError for other
    kinds, and for whatever does not fit together.
    """
    model = text(metadata, PREFIX + "model")
    if model == "rwkv" and (simple := _by_bytes(metadata)):
        return simple
    if model in _OTHERS:
        raise TokenizerError(
            f"its tokenizer is of the kind {_OTHERS[model]} ({model!r}), which is not supported: "
            "supported are 'llama' (SentencePiece) and 'gpt2' (byte-level BPE)"
        )
    if model not in ("llama", "gpt2"):
        what = f"the tokenizer model {model[:40]!r}, which is unknown" if model else "no tokenizer"
        raise TokenizerError(f"it has {what}; known are 'llama' and 'gpt2' (tokenizer.ggml.model)")
    vocabulary = read_vocabulary(metadata)
    if model == "gpt2":
        kind = kind_of(text(metadata, PREFIX + "pre", "default"))
        add_bos = flag(metadata, "add_bos_token", kind.bos)
        return ByteLevelTokenizer(vocabulary, metadata, kind, add_bos=add_bos)
    return ScoreTokenizer(
        vocabulary,
        metadata,
        prefix_space=flag(metadata, "add_space_prefix", True),
        add_bos=flag(metadata, "add_bos_token", True),
        swallow=_phi3_swallows(metadata, vocabulary),
    )


def _by_bytes(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of the 256 bytes, or of characters, where the tokens are these."""
    tokens = metadata.get(PREFIX + "tokens")
    if not isinstance(tokens, list) or not all(
        isinstance(t, str) and _ESCAPED.fullmatch(t) for t in tokens
    ):
        return None
    pieces = [bytes.fromhex(token.replace("\\x", "")) for token in tokens]
    if pieces == [bytes([i]) for i in range(256)]:
        return ByteTokenizer()
    try:
        characters = [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        return None
    return CharTokenizer(characters) if all(len(c) == 1 for c in characters) else None


def _phi3_swallows(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> frozenset[str]:
    """The rule is in Phi-3's tokenizer.json (`rstrip`); GGUF has no place for it."""
    if text(metadata, "general.architecture") != "phi3":
        return frozenset()
    special = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return frozenset(special) - _PHI3_KEEPS
