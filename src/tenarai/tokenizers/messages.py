"""Messages that may hold anything: checked, and quoted so that they cannot act as special tokens.

A name of a special token that stands in a message is broken by a mark, a character that stands
nowhere else. Then special tokens are found in the template's text, and the marks are taken out of
what is left between them. The same goes for the start of a name at a message's end, which might
meet its rest. Letters are compared without regard to case, since a template may change it.
(`in` and `==` inside a template see the mark; and a template that deletes letters from the middle
of a message could still join a name: none known does.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .base import TokenizerError, utf8
from .special import SpecialFinder

Messages = Sequence[Mapping[str, Any]]
MAX_DEPTH = 32  # of lists in lists in a message
# Roles are written into special tokens (`<|user|>`), so they are no free text.
ROLES = frozenset(
    (
        *("system", "developer", "user", "assistant", "model", "tool", "function", "ipython"),
        *("observation", "environment", "context", "document", "tools"),
        *("tool_call", "tool_response"),
    )
)


def checked(messages: Messages) -> list[dict[str, Any]]:
    """Copies of plain data. Raises TokenizerError where these are no messages."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise TokenizerError('messages are a list such as [{"role": "user", "content": "Hello"}]')
    turns = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TokenizerError(f"message {number} has no role and content: give both")
        if message["role"] not in ROLES:
            raise TokenizerError(
                f"message {number} has the role {message['role'][:40]!r}: use system, user, "
                "assistant or tool"
            )
        if not isinstance(message.get("content"), (str, list, tuple, type(None))):
            raise TokenizerError(f"message {number} has a content that is no text")
        turns.append(plain(dict(message), what=f"message {number}"))
    return turns


def plain(value: Any, depth: int = 0, what: str = "an argument of the chat template") -> Any:
    """A copy of text, numbers, lists and dictionaries: a template must reach nothing else."""
    if depth > MAX_DEPTH:
        raise TokenizerError(f"{what} has lists in lists more than {MAX_DEPTH} deep")
    if type(value) in (bool, int, float, type(None)):
        return value
    if isinstance(value, str):
        utf8(value)  # refuses surrogates
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1, what) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): plain(item, depth + 1, what) for key, item in value.items()}
    raise TokenizerError(f"{what} holds a {type(value).__name__}: give text, numbers and lists")


def strings(value: Any) -> Iterator[str]:
    """Every string in plain data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def size_of(value: Any) -> int:
    """Characters of plain data, and a few for each item."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return 8 + sum(8 + len(str(key)) + size_of(item) for key, item in items)
    return len(value) if isinstance(value, str) else 8


def free_mark(*data: Any) -> str:
    """A character that stands in none of the data: one that Unicode keeps for such uses."""
    used = {letter for part in data for text in strings(part) for letter in set(text)}
    marks = (*range(0xFDD0, 0xFDF0), *((p << 16) + 0xFFFE + i for p in range(17) for i in (0, 1)))
    for mark in map(chr, marks):
        if mark not in used:
            return mark
    raise TokenizerError("the messages hold every character that is none: are they damaged?")


class Quoting:
    """Breaks the names of special tokens in plain data with `mark`."""

    def __init__(self, special: Mapping[str, int], mark: str):
        self._mark = mark
        names = {name.lower(): i for name, i in special.items()}
        self._finder, self._names = SpecialFinder(names), sorted(names)
        self._longest = max(map(len, names), default=0)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._quoted(value)
        if isinstance(value, dict):
            return {self._quoted(key): self(item) for key, item in value.items()}
        return [self(item) for item in value] if isinstance(value, list) else value

    def _quoted(self, text: str) -> str:
        # Where lower case has another length, places would be wrong; such letters are in no name.
        lower = "".join(c if len(c.lower()) > 1 else c.lower() for c in text)
        parts, start = [], 0
        for place in self._finder.places(lower):
            parts += [text[start : place + 1], self._mark]
            start = place + 1
        end = len(lower.rstrip())
        if self._begins_a_name(lower[max(0, end - self._longest) : end]):
            parts += [text[start:end], self._mark]
            start = end
        return "".join(parts) + text[start:]

    def _begins_a_name(self, tail: str) -> bool:
        for start in range(len(tail)):
            i = bisect_left(self._names, tail[start:])
            if i < len(self._names) and self._names[i].startswith(tail[start:]):
                return True
        return False
