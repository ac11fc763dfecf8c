"""Tokenizers as the metadata of a GGUF file, as llama.cpp and tokenizers/gguf.py read them.

    byte-level BPE      `gpt2`: tokens in GPT-2's letters, merges, and in `pre` how texts are cut
    SentencePiece's     `llama`: a piece's score is how late it is merged
    bytes, characters   `rwkv`: each token's bytes, matched longest first; no token ends a text

A tokenizer that came from such metadata is written as it was read; others are opened again and
compared on a few texts before they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import Tokenizer, TokenizerError
from .bpe import HFTokenizer, metaspace
from .gguf import from_gguf
from .pieces import PieceTokenizer
from .pre_tokenizers import DIGIT, GPT2, KINDS
from .simple import ByteTokenizer, CharTokenizer
from .vocabulary import BYTE_NAME, PREFIX, SPACE, TokenType

Metadata = dict[str, Any]
PROBES = (  # spaces, digits, signs, capitals, other scripts, characters of four bytes
    "Hello World, it's 12345 o'clock!  two  spaces\n\n\tand a tab\r\n",
    " leading, trailing ",
    "吾輩は猫である。名前はまだ無い。 Übergrößenträger naïve — «ça»",
    "I'LL don't x=1.5e-3; for(i=0;i<10;++i){} 🙂👩‍💻 ﬁ ½",
)


def to_gguf(tokenizer: Tokenizer, size: int = 0) -> Metadata:
    """Keys and values, for a model of `size` tokens: ids without a token get one of their own,
    since readers count them. Raises TokenizerError, which says why, where GGUF has no words."""
    found = _words_for(tokenizer)
    _pad(found, size)
    if isinstance(tokenizer, HFTokenizer):
        made = from_gguf(found)
        for text in PROBES:
            if made.encode(text) != tokenizer.encode(text):
                raise TokenizerError(f"in GGUF's words it would cut {text[:20]!r}... otherwise")
    return found


def _pad(found: Metadata, size: int) -> None:
    tokens = found[PREFIX + "tokens"]
    missing = range(len(tokens), size)
    if not missing or found[PREFIX + "model"] == "rwkv":
        return
    found[PREFIX + "tokens"] = [*tokens, *(f"[unused {i}]" for i in missing)]
    for name, value in (("token_type", TokenType.UNUSED), ("scores", -1e9)):
        if (values := found.get(PREFIX + name)) is not None:
            more = np.full(len(missing), value, values.dtype)
            found[PREFIX + name] = np.concatenate([values, more])


def _words_for(tokenizer: Tokenizer) -> Metadata:
    if isinstance(tokenizer, PieceTokenizer):
        held = tokenizer.to_json()["metadata"]
        return {key: _typed(key, v) for key, v in held.items() if key.startswith("tokenizer.")}
    if isinstance(tokenizer, ByteTokenizer | CharTokenizer):
        return _by_bytes([tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)])
    if isinstance(tokenizer, HFTokenizer):
        return _of_document(tokenizer)
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


def _of_document(tokenizer: HFTokenizer) -> Metadata:
    document = tokenizer.document
    model = document["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"GGUF has no words for a tokenizer of the kind {model.get('type')}")
    names, types = _tokens(document, tokenizer.vocab_size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not merges:
        raise TokenizerError("GGUF has no words for BPE without merges")
    keys: Metadata = {"tokens": names, "token_type": types, "add_bos_token": tokenizer.add_bos}
    if tokenizer.byte_level:
        keys |= {"model": "gpt2", "pre": _kind_of(document), "merges": merges}
    else:
        keys |= _by_score(document, names, types, merges)
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eot}
    if tokenizer.bos is None:
        ends["bos_token_id"] = tokenizer.eot
    keys |= {name: i for name, i in ends.items() if i is not None}
    return {PREFIX + name: value for name, value in keys.items()}


def _tokens(document: Mapping[str, Any], size: int) -> tuple[list[str], np.ndarray]:
    """The tokens by id, and the type of each (V,)."""
    added = {token["id"]: token for token in document.get("added_tokens") or []}
    names, types = [], []
    by_id = {i: name for name, i in document["model"]["vocab"].items()}
    for i in range(size):
        token = added.get(i)
        kind = TokenType.NORMAL if i in by_id else TokenType.UNUSED
        if token:
            kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        names.append(token["content"] if token else by_id.get(i, f"[unused {i}]"))
        types.append(kind)
    return names, np.array(types, np.int32)


def _by_score(
    document: Mapping[str, Any], names: list[str], types: np.ndarray, merges: list[str]
) -> Metadata:
    """SentencePiece's kind; `types` of bytes and of the unknown token are set."""
    if metaspace(document.get("decoder") or {}) is None:
        raise TokenizerError("it is neither byte-level nor SentencePiece's kind")
    order: dict[str, int] = {}
    for i, merge in enumerate(merges):
        order.setdefault(merge.replace(" ", "", 1), i)
    scores = [-float(order.get(name, len(merges) if len(name) > 1 else 0)) for name in names]
    types[[i for i, name in enumerate(names) if BYTE_NAME.fullmatch(name)]] = TokenType.BYTE
    keys: Metadata = {
        "model": "llama",
        "pre": "default",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": _prepends(document),
    }
    unknown = document["model"].get("unk_token")
    if unknown in names:
        keys["unknown_token_id"] = names.index(unknown)
        types[keys["unknown_token_id"]] = TokenType.UNKNOWN
    return keys


def _prepends(document: Mapping[str, Any]) -> bool:
    """Whether a text is encoded as if after a space."""
    normalizer, cutter = (document.get(n) or {} for n in ("normalizer", "pre_tokenizer"))
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps):
        return True
    return cutter.get("type") == "Metaspace" and cutter.get("prepend_scheme") != "never"


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
            found.append((part.get("pattern") or {}).get("Regex", ""))
        else:
            return None
    return tuple(found)
