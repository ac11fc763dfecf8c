"""What a stranger's template may use up while it runs: steps, time, characters."""

from __future__ import annotations

import time
from typing import Any

STEPS = 100_000
SECONDS = 0.4  # of this thread's processor time
SIZE = 1 << 20  # characters of all that is written, and of a value; each thing in a list is eight
MAX_RANGE = 10_000
MAX_WIDTH = 100  # of an indent, and of a number in a format
MAX_BITS = 4096  # of a whole number


class Limit(Exception):
    """A template that does more than it may."""


class Budget:
    """What one rendering may use. `size`: characters of the data that it is given."""

    def __init__(self, size: int):
        self.size = SIZE + 8 * size
        self.written, self.steps = 0, STEPS + size // 8
        self.until = time.thread_time() + SECONDS + size * 1e-6

    def step(self, size: int = 0) -> None:
        """Take one step, and more for work on `size` characters or things."""
        self.steps -= 1 + (size >> 8)
        if self.steps < 0:
            raise Limit("it takes too many steps (a loop without end?)")
        if time.thread_time() > self.until:
            raise Limit("it takes too long")
        self.fits(size)

    def fits(self, size: int) -> None:
        if size > self.size:
            raise Limit(f"it makes something of more than {self.size:,} characters")

    def write(self, size: int) -> None:
        self.written += size
        if self.written > self.size:
            raise Limit(f"it writes more than {self.size:,} characters")

    def weigh(self, value: Any) -> int:
        """How much it would be to write a value out; lists may hold the same list twice."""
        weight, left = 0, [value]
        while left:
            item = left.pop()
            weight += 8
            if isinstance(item, str):
                weight += len(item)
            elif isinstance(item, dict):
                left += item.keys()
                left += item.values()
            elif isinstance(item, (list, tuple)):
                left += item
            elif isinstance(item, int):
                weight += item.bit_length() // 3
            self.fits(weight + 8 * len(left))
        return weight
