"""What is checked in a stranger's tokenizer.json before the library sees it.

The library answers most nonsense with an error, but a merge whose result is missing makes it
panic, with a stack trace on the terminal, and a huge id makes tables of that size.
"""

from __future__ import annotations

from typing import Any

from .base import TokenizerError

MAX_ID = 1 << 22  # the largest vocabularies have 2.6e5 tokens; more would only be memory


def check_document(document: dict[str, Any]) -> None:
    """Raise TokenizerError where a parsed tokenizer.json cannot be one."""
    model = document.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("it has no `model` part: is it the tokenizer.json of a model?")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        check_vocabulary(vocabulary)
        merges = model.get("merges")
        if merges is not None:
            prefix = model.get("continuing_subword_prefix") or ""
            check_merges(vocabulary, _pairs(merges), len(prefix))
    elif not isinstance(vocabulary, list) or len(vocabulary) > MAX_ID:
        raise TokenizerError("its `model` has no vocabulary: is the file complete?")
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise TokenizerError("`added_tokens` is not a list of tokens: damaged?")
    for token in added:
        _check_id(token.get("content"), token.get("id"))
    for part in ("decoder", "pre_tokenizer", "normalizer", "post_processor"):
        if not isinstance(document.get(part) or {}, dict):
            raise TokenizerError(f"`{part}` is not an object: damaged?")


def check_vocabulary(vocabulary: dict[str, Any]) -> None:
    """Tokens are strings (JSON sees to it), ids whole numbers, each once."""
    if not vocabulary:
        raise TokenizerError("it has no tokens: is this a complete tokenizer?")
    for piece, i in vocabulary.items():
        _check_id(piece, i)
    if len(set(vocabulary.values())) != len(vocabulary):
        raise TokenizerError("two tokens have the same id: damaged?")


def check_merges(vocabulary: dict[str, Any], merges: list[tuple[str, str]], prefix: int) -> None:
    """Both parts of a merge and their union are tokens. `prefix`: letters the union drops."""
    for number, (left, right) in enumerate(merges, 1):
        for piece in (left, right, left + right[prefix:]):
            if piece not in vocabulary:
                raise TokenizerError(
                    f"merge {number} needs {piece!r}, which is not in the vocabulary: "
                    "are the vocabulary and the merges of the same model?"
                )


def _check_id(piece: Any, i: Any) -> None:
    if type(i) is not int or not 0 <= i < MAX_ID:
        raise TokenizerError(f"the id of {piece!r} is {i!r}, expected 0 to {MAX_ID - 1}: damaged?")


def _pairs(merges: Any) -> list[tuple[str, str]]:
    """Merges are written "a b" or ["a", "b"]."""
    if isinstance(merges, list):
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else m for m in merges]
        if all(
            isinstance(p, (tuple, list)) and len(p) == 2 and all(isinstance(x, str) for x in p)
            for p in pairs
        ):
            return [(left, right) for left, right in pairs]
    raise TokenizerError("`merges` is not a list of pairs of tokens: damaged?")
