"""Kernel calls recorded once and made again without Python between them.

    program = Program(ops)
    y = program.record(lambda: ops.linear_forward(x, w)[0])      # runs, and is written down
    x[...] = other
    program.replay()                          # y is that of the other x

A call made again reads and writes the same arrays; the program keeps them alive. What is not a
kernel call is not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .arena import Arena

T = TypeVar("T")


class Program:
    """The kernel calls of one step of `ops` (tenarai.ops.Fast)."""

    def __init__(self, ops: Any):
        self._ops = ops
        self._program = ops.machine.Program(ops.machine)

    def record(self, step: Callable[[], T]) -> T:
        """step(), whose intermediate arrays get a memory of their own that is laid out once.

        `step` runs a first time without computing anything, to see which they are. Raises
        RuntimeError where it makes a kernel call that cannot be made again, ValueError where
        another program is being recorded on the same machine.
        """
        ops, before = self._ops, self._ops.arena
        ops.arena = arena = Arena()
        try:
            plan = arena.plan(step)
            arena.allocate(plan)
            with arena.use(plan):
                return self._record(step)
        finally:
            ops.arena = before

    def _record(self, step: Callable[[], T]) -> T:
        calls = self._ops.calls
        self._program.start()
        try:
            result = step()
        finally:
            self._program.stop()
        if self._ops.calls - calls != len(self):
            made = self._ops.calls - calls
            raise RuntimeError(f"of {made} kernel calls {len(self)} can be made again")
        return result

    def replay(self) -> None:
        self._program.replay()

    def __len__(self) -> int:
        return len(self._program)
