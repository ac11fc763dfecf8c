"""The link that lets only those tokens through with which the text still obeys a grammar.

Grammars (Lark, or GBNF as llama.cpp writes them) and JSON schemas are compiled and followed by
the library llguidance (the extra `grammar`); here its tables meet our tokenizers and candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.tokenizers import Tokenizer

from .candidates import Candidates


class Vocabulary:
    """A tokenizer as llguidance wants it; made once a model, since it builds a trie of all tokens.

    Raises TenaraiError: the library is missing, the tokenizer has no token that ends a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None):
        library = _library()
        ends = sorted(tokenizer.end_tokens)
        if not ends:
            raise TenaraiError(
                "a grammar needs a token that ends the text, and this model's tokenizer has none: "
                "run without --grammar and --json-schema"
            )
        special = sorted({*tokenizer.special.values(), *ends})
        self.table = library.LLTokenizer(
            library.TokenizerWrapper(_Tokens(tokenizer, special, ends[0])),
            n_vocab=max(vocab_size or 0, tokenizer.vocab_size),
            eos_token=ends,
        )


class _Tokens:
    """What llguidance's TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, special: list[int], end: int):
        self.eos_token_id, self.special_token_ids = end, special
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        for i in special:  # names of special tokens must not be taken for text
            self.tokens[i] = b"<%d>" % i
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Grammar:
    """Where a text stands in its grammar. `mask` is pure, `accept` moves on."""

    def __init__(self, vocabulary: Vocabulary, text: str, kind: str = "grammar"):
        """`kind` "grammar" (Lark or GBNF) or "json_schema". Raises TenaraiError: not valid."""
        library = _library()
        self._matcher = library.LLMatcher(vocabulary.table, _compiled(library, text, kind))
        self._check(f"the {_NAMES[kind]} is not valid")

    def mask(self, c: Candidates) -> Candidates:
        """The candidates that may come next. Raises TenaraiError where there are none."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check("the grammar stopped")
        allowed = np.unpackbits(bits, bitorder="little").view(bool)  # (V rounded up,)
        if c.ids is None:
            allowed = allowed[: len(c.logits)]
            return c.take(np.pad(allowed, (0, len(c.logits) - len(allowed))))
        known = c.ids < len(allowed)
        return c.take(known & allowed[np.where(known, c.ids, 0)])

    def accept(self, token: int) -> None:
        """Go on by one token. Raises TenaraiError where the grammar does not allow it."""
        self._matcher.consume_token(token)
        self._check(f"token {token} does not obey the grammar")

    def reset(self, tokens: Iterable[int] = ()) -> None:
        """Back to the start of a text, or to where it stands after `tokens`."""
        self._matcher.reset()
        for token in tokens:
            self.accept(token)

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise TenaraiError(f"{what}: {_first_lines(self._matcher.get_error())}")


_NAMES = {"grammar": "grammar", "json_schema": "JSON schema"}


def _compiled(library: Any, text: str, kind: str) -> str:
    try:
        if kind == "json_schema":
            schema = json.loads(text)
            if not isinstance(schema, dict | bool):
                raise ValueError(f"it is {type(schema).__name__}, expected an object")
        return library.grammar_from(kind, text)
    except (ValueError, RecursionError) as error:
        raise TenaraiError(
            f"the {_NAMES[kind]} is not valid: {_first_lines(str(error))}"
        ) from error


def _first_lines(message: str) -> str:
    """An error of the library as one line: it prints where it stood below."""
    return " ".join(message.split("<state>")[0].split())[:300]


def _library() -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise TenaraiError(
            "a grammar or JSON schema needs the library llguidance, which is not installed: "
            "pip install 'tenarai[grammar]'"
        ) from error
    return llguidance
