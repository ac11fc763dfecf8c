"""Kernel calls recorded once and made again without Python between them.

    program = Program(ops)
    with program.recording():
        y, _ = ops.linear_forward(x, w)       # runs, and is written down
    x[...] = other
    program.replay()                          # y is that of the other x

A call made again reads and writes the same arrays; the program keeps them alive. What is not a
kernel call is not made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class Program:
    """The calls of `ops` (tenarai.ops.Fast) made while `recording()`."""

    def __init__(self, ops: Any):
        self._program = ops.machine.Program(ops.machine)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Raises ValueError where another program is being recorded on the same machine."""
        self._program.start()
        try:
            yield
        finally:
            self._program.stop()

    def replay(self) -> None:
        self._program.replay()

    def __len__(self) -> int:
        return len(self._program)
