"""Where byte-level BPE cuts a text before it merges, by the name in `tokenizer.ggml.pre`.

A kind is the patterns that are applied one after the other, each match and each gap between
matches becoming a word of its own. The patterns are those of the models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English endings, in either case
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_START = r"[^\r\n\p{L}\p{N}]?"
LLAMA3 = rf"{_SHORT}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
QWEN2 = rf"{_SHORT}|{_START}\p{{L}}+|\p{{N}}|{_SIGNS}|{_SPACES}"

# Words by their case: capitals, then small letters. Marks and letters without case are in both.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
TEKKEN = rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_PATHS}|{_SPACES}"
GPT4O = (
    rf"{_START}{_UPPER}*{_LOWER}+{_SHORT}?|{_START}{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}|{_PATHS}|{_SPACES}"
)
DEEPSEEK3 = (
    r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}"
)
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class Kind:
    """patterns; whether a word that is a token needs no merging; bos unless the file says no."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False
    nfc: bool = False
    cuttable: bool = False  # no word holds a space after something that is none


_GPT2 = Kind((GPT2,), cuttable=True)
_DIGITS = Kind((DIGIT, GPT2), cuttable=True)
_LLAMA3 = Kind((LLAMA3,), whole_words=True, bos=True)
_QWEN2 = Kind((QWEN2,), nfc=True)
_GPT4O = Kind((GPT4O,))
_BLOOM = Kind((BLOOM,))

# What is applied where a file names none ("default"), as the writers of old files expected.
DEFAULT = Kind((PUNCTUATION, GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

_NAMES: Iterable[tuple[str, Kind]] = (
    ("default", DEFAULT),
    ("gpt-2 gpt2 phi-2 mpt olmo jais trillion granite-docling", _GPT2),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b", _DIGITS),
    ("llama-bpe llama3 llama-v3 falcon3 lfm2", _LLAMA3),
    ("dbrx smaug-bpe glm4 chatglm-bpe", Kind((LLAMA3,))),
    ("qwen2 deepseek-r1-qwen", _QWEN2),
    ("stablelm2 hunyuan megrez", Kind((QWEN2,))),
    ("gpt-4o llama4", _GPT4O),
    ("tekken", Kind((TEKKEN,), whole_words=True, bos=True)),
    ("deepseek-v3", Kind((r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3))),
    ("falcon", Kind((PUNCTUATION.replace("]", "`]"), GPT2, r"[0-9][0-9][0-9]"))),
    ("bloom gpt3-finnish poro-chat", _BLOOM),
    ("viking", Kind((BLOOM, DIGIT))),
)
KINDS = {name: kind for names, kind in _NAMES for name in names.split()}


def pre_tokenizer(kind: Kind) -> pre_tokenizers.PreTokenizer:
    """The library's object that cuts so, and writes bytes as GPT-2's letters."""
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in kind.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, byte_level])


def normalizer(kind: Kind) -> normalizers.Normalizer | None:
    return normalizers.NFC() if kind.nfc else None
