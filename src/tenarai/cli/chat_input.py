"""What a person types or pipes into `chat`, message by message.

A line that ends in a backslash goes on in the next; a message between lines of three quotes may
have any lines in it. Where the standard library has readline, a terminal's lines can be edited and
earlier ones come back.
"""

from __future__ import annotations

import contextlib
import sys

from .prompt import from_argument, from_bytes

QUOTES = '"""'


class Input:
    """Messages from the terminal, or from a pipe or file as standard input."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        if self.terminal:
            with contextlib.suppress(ImportError):  # Windows has none; its console edits lines
                import readline

                readline.parse_and_bind("set enable-bracketed-paste on")

    def message(self) -> str:
        """The next message, without its marks. Raises EOFError at the end of the input,
        KeyboardInterrupt as Ctrl-C has it."""
        line = self._line("> ")
        if line.lstrip().startswith(QUOTES):
            return self._quoted(line.lstrip()[len(QUOTES) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._more())
        return "\n".join(lines)

    def _quoted(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(QUOTES):
            try:
                lines.append(self._line(". "))
            except EOFError:  # what is there counts
                return "\n".join(lines).strip("\n")
        lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
        return "\n".join(lines).strip("\n")

    def _more(self) -> str:
        try:
            return self._line(". ")
        except EOFError:
            return ""

    def _line(self, prompt: str) -> str:
        if self.terminal:
            return from_argument(input(prompt), "the line")
        data = sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        return from_bytes(data, sys.stdin.encoding).rstrip("\r\n")
