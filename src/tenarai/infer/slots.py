"""Whose text each slot of the cache holds, so that a text that begins like one read before need
not be read from its start."""

from __future__ import annotations

from tenarai.infer.kv_cache import KVCache
from tenarai.infer.sequence import common

WORTH_COPYING = 32  # tokens; fewer are read about as fast again


class Slots:
    """The slots of a cache, each with the tokens that it holds, in use or free."""

    def __init__(self, cache: KVCache):
        self.cache = cache
        self._texts: list[list[int]] = [[] for _ in cache.lengths]
        self._free = list(range(len(cache.lengths)))  # the one unused for longest first

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, ids: list[int]) -> int:
        """A free slot for a text `ids` that will grow, with as much of its beginning as is known;
        its last token is never among it, because logits after it are wanted.

        A free slot that holds mostly what is wanted is used as it is; of any other, in use or
        free, the beginning is copied.
        """
        alike = [common(self._held(i), ids[:-1]) for i in range(len(self._texts))]
        best = max(range(len(alike)), key=lambda i: alike[i])
        slot = self._free[0]
        if best in self._free and 2 * alike[best] >= len(self._held(best)):
            slot = best
        elif slot != best and alike[best] >= max(WORTH_COPYING, alike[slot] + 1):
            self.cache.copy(best, slot)
            alike[slot] = alike[best]
        self.cache.cut(slot, alike[slot])
        self._free.remove(slot)
        self._texts[slot] = ids
        return slot

    def replace(self, slot: int, ids: list[int]) -> None:
        """The text in use there goes on as `ids`; what they have in common is kept."""
        n = common(self._held(slot), ids[:-1])
        self._texts[slot] = ids
        self.cache.cut(slot, n)

    def release(self, slot: int) -> None:
        """The text there is finished. It stays for others to begin with."""
        self._texts[slot] = self._held(slot)
        self._free.append(slot)

    def forget(self) -> None:
        """Nothing of the free slots is used again: for weights that have changed."""
        for slot in self._free:
            self.cache.clear(slot)
            self._texts[slot] = []

    def _held(self, slot: int) -> list[int]:
        return self._texts[slot][: int(self.cache.lengths[slot])]
