"""GPT-2's letters for bytes: how byte-level BPE writes its tokens as text."""

from __future__ import annotations

from functools import cache


@cache
def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it prints in Latin-1, else U+0100 and on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in prints)
    return {b: chr(b) for b in prints} | {b: chr(256 + n) for n, b in enumerate(others)}


@cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}


def bytes_of(piece: str) -> bytes:
    """The bytes that a byte-level token stands for."""
    table = _letter_bytes()
    try:
        return bytes(table[letter] for letter in piece)
    except KeyError:
        return piece.encode()


def letters_of(data: bytes) -> str:
    """The byte-level name of some bytes; the inverse of `bytes_of`."""
    table = byte_letters()
    return "".join(table[b] for b in data)
