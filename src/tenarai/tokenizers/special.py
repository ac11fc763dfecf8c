"""Finding special tokens in a text by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

# White space as Unicode has it, which is what the models' own tokenizers strip.
_SPACES = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")


class SpecialFinder:
    """Cuts a text into special tokens and what stands between: the leftmost first, then longest.

    tokens: name → id. swallow: names after which white space is dropped.
    """

    def __init__(self, tokens: Mapping[str, int], swallow: frozenset[str] = frozenset()):
        self._tokens, self._swallow = tokens, swallow
        # By the first two characters: how long the names are that begin so, longest first. A
        # pattern of all names takes long to compile where there are thousands (Gemma).
        lengths: dict[str, set[int]] = {}
        for name in tokens:
            lengths.setdefault(name[:2], set()).add(len(name))
        self._lengths = {head: sorted(found, reverse=True) for head, found in lengths.items()}
        for head in self._lengths:
            if len(head) == 2 and head[0] in self._lengths:
                self._lengths[head].append(1)
        heads = sorted(self._lengths, key=len, reverse=True)
        self._head = re.compile("|".join(map(re.escape, heads))) if heads else None

    def split(self, text: str) -> Iterator[str | int]:
        """Texts (none empty) and ids, in order."""
        start = at = 0
        while self._head and (found := self._head.search(text, at)):
            at = found.start()
            length = self._match(text, at, found.group())
            if not length:
                at += 1
                continue
            if start < at:
                yield text[start:at]
            name = text[at : at + length]
            yield self._tokens[name]
            start = at = at + length
            if name in self._swallow:
                start = at = _SPACES.match(text, at).end()  # type: ignore[union-attr]
        if start < len(text):
            yield text[start:]

    def places(self, text: str) -> Iterator[int]:
        """Every place where a name begins, also inside another name."""
        at = -1
        while self._head and (found := self._head.search(text, at + 1)):
            at = found.start()
            if self._match(text, at, found.group()):
                yield at

    def _match(self, text: str, at: int, head: str) -> int:
        for length in self._lengths[head]:
            if text[at : at + length] in self._tokens:
                return length
        return 0


def spliced(parts: Iterable[str | int], encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of what `split` gives."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += encode(part)
    return ids
