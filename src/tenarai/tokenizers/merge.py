"""Joining neighbours, best first: the one step that every byte-pair encoding has."""

from __future__ import annotations

import heapq
from collections.abc import Callable


def merge(word: str, rank: Callable[[str, str], float | None]) -> list[str]:
    """The pieces that the characters of `word` are joined to.

    Again and again the two neighbours of lowest rank are joined, the leftmost of equals, until no
    two have one (None). Takes O(n log n) for n characters.
    """
    pieces = list(word)
    after = [*range(1, len(pieces)), -1]  # the place of the next piece
    before = [*range(-1, len(pieces) - 1)]
    heap: list[tuple[float, int, int, int]] = []  # rank, place, lengths of left and right

    def offer(left: int) -> None:
        right = after[left]
        if right >= 0 and (found := rank(pieces[left], pieces[right])) is not None:
            heapq.heappush(heap, (found, left, len(pieces[left]), len(pieces[right])))

    for place in range(len(pieces)):
        offer(place)
    while heap:
        _, left, length, right_length = heapq.heappop(heap)
        right = after[left]
        if right < 0 or len(pieces[left]) != length or len(pieces[right]) != right_length:
            continue  # one of the two has been joined with another since
        pieces[left] += pieces[right]
        pieces[right] = ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(left)
        if before[left] >= 0:
            offer(before[left])
    return [piece for piece in pieces if piece]
