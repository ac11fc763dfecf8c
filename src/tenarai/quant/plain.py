"""The formats with one scale for 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL.

w is the weight, q its whole number as stored, d and m float16. Each function takes blocks, an
array of the block's dtype, and gives (blocks, 32) float32. The structs are those of
kernels/quant_formats.h.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
IQ4_NL = np.dtype([("d", "<f2"), ("q", "u1", 16)])

# Denser about zero, where most weights are.
LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def column(x: Array) -> Array:
    """(N,) or (N, groups) of any type to float32 with a dim of 1 behind, for each weight."""
    return x.astype(np.float32)[..., None]


def nibbles(q: Array) -> Array:
    """(..., n) bytes to (..., 2n): all low halves, then all high ones."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def fives(blocks: Array) -> Array:
    """(N, 32): nibbles with their fifth bits, bit i of `high` for weight i."""
    fifth = np.unpackbits(blocks["high"], axis=-1, bitorder="little")  # (N, 32)
    return nibbles(blocks["q"]) | fifth << 4


def q4_0(blocks: Array) -> Array:
    """w = d (q - 8)"""
    return column(blocks["d"]) * (nibbles(blocks["q"]) - np.float32(8))


def q4_1(blocks: Array) -> Array:
    """w = d q + m"""
    return column(blocks["d"]) * nibbles(blocks["q"]) + column(blocks["m"])


def q5_0(blocks: Array) -> Array:
    """w = d (q - 16)"""
    return column(blocks["d"]) * (fives(blocks) - np.float32(16))


def q5_1(blocks: Array) -> Array:
    """w = d q + m"""
    return column(blocks["d"]) * fives(blocks) + column(blocks["m"])


def q8_0(blocks: Array) -> Array:
    """w = d q"""
    return column(blocks["d"]) * blocks["q"]


def iq4_nl(blocks: Array) -> Array:
    """w = d LEVELS[q]"""
    return column(blocks["d"]) * LEVELS[nibbles(blocks["q"])]
