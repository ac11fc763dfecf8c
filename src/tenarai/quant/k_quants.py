"""The formats of 256 weights with a scale for each 16 or 32: Q2_K to Q6_K, Q8_K, IQ4_XS.

w is the weight, q its whole number as stored, d and dmin float16; a sub-block has a whole-number
scale s, some a minimum z as well. Each function takes blocks, an array of the block's dtype, and
gives (blocks, 256) float32. The structs are those of kernels/quant_formats.h.
"""

from __future__ import annotations

import numpy as np

from tenarai.quant.plain import LEVELS, Array, column, nibbles

Q2_K = np.dtype([("scale", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
Q3_K = np.dtype([("high", "u1", 32), ("q", "u1", 64), ("scale", "u1", 12), ("d", "<f2")])
Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scale", "u1", 12), ("q", "u1", 128)])
Q5_K = np.dtype(
    [("d", "<f2"), ("dmin", "<f2"), ("scale", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)]
)
Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scale", "i1", 16), ("d", "<f2")])
Q8_K = np.dtype([("d", "<f4"), ("q", "i1", 256), ("sums", "<i2", 16)])
IQ4_XS = np.dtype([("d", "<f2"), ("scale_high", "<u2"), ("scale_low", "u1", 4), ("q", "u1", 128)])

TWOS = np.array([0, 2, 4, 6], np.uint8)[:, None]  # shifts to the four pairs of bits in a byte
ONES = np.arange(8, dtype=np.uint8)[:, None]  # and to the eight bits


def twos(q: Array) -> Array:
    """(N, 64) to (N, 256): byte 32 (i / 128) + i % 32, bits 2 (i / 32 % 4)."""
    return (q.reshape(-1, 2, 1, 32) >> TWOS & 3).reshape(-1, 256)


def ones(high: Array) -> Array:
    """(N, 32) to (N, 256): bit i / 32 of byte i % 32."""
    return (high[:, None, :] >> ONES & 1).reshape(-1, 256)


def grouped(scale: Array, q: Array, minimum: Array | None = None) -> Array:
    """scale q - minimum, scale and minimum (N, groups), q (N, 256)."""
    w = column(scale) * q.reshape(*scale.shape, -1).astype(np.float32)
    if minimum is not None:
        w -= column(minimum)
    return w.reshape(len(q), 256)


def sixes(packed: Array) -> tuple[Array, Array]:
    """Scales s and minima z, both (N, 8), of Q4_K and Q5_K from their 12 bytes.

    Sub-blocks 0 to 3: the low six bits of bytes j (s) and j + 4 (z). Sub-blocks 4 to 7: the
    nibbles of byte j + 4, and above them the top two bits of bytes j - 4 (s) and j (z).
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    s = np.concatenate([first & 63, (third & 15) | first >> 6 << 4], axis=-1)
    z = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return s, z


def times(d: Array, whole: Array) -> Array:
    """d (N,) float16 times whole numbers (N, groups), in float32."""
    return column(d) * whole.astype(np.float32)


def q2_k(blocks: Array) -> Array:
    """w = d s q - dmin z; 16 sub-blocks of 16, scale = s | z << 4."""
    s, z = blocks["scale"] & 15, blocks["scale"] >> 4
    return grouped(times(blocks["d"], s), twos(blocks["q"]), times(blocks["dmin"], z))


def q3_k(blocks: Array) -> Array:
    """w = d (s - 32) (q - 4); 16 sub-blocks of 16.

    s: its low four bits are nibble j / 8 of byte j % 8, its upper two bits 2 (j / 4) of byte
    8 + j % 4. q: two bits as in Q2_K, the third from `high`.
    """
    packed = blocks["scale"]
    upper = (packed[:, None, 8:] >> TWOS & 3).reshape(-1, 16)
    s = (nibbles(packed[:, :8]) | upper << 4).astype(np.int8) - 32
    q = (twos(blocks["q"]) | ones(blocks["high"]) << 2).astype(np.int8) - 4
    return grouped(times(blocks["d"], s), q)


def q4_k(blocks: Array) -> Array:
    """w = d s q - dmin z; 8 sub-blocks of 32."""
    s, z = sixes(blocks["scale"])
    q = nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(-1, 256)
    return grouped(times(blocks["d"], s), q, times(blocks["dmin"], z))


def q5_k(blocks: Array) -> Array:
    """w = d s q - dmin z; 8 sub-blocks of 32, the fifth bits from `high`."""
    s, z = sixes(blocks["scale"])
    q = nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(-1, 256) | ones(blocks["high"]) << 4
    return grouped(times(blocks["d"], s), q, times(blocks["dmin"], z))


def q6_k(blocks: Array) -> Array:
    """w = d s (q - 32); 16 sub-blocks of 16; q: nibbles of `low`, two bits of `high`."""
    low = nibbles(blocks["low"].reshape(-1, 2, 64)).reshape(-1, 256)
    q = (low | twos(blocks["high"]) << 4).astype(np.int8) - 32
    return grouped(times(blocks["d"], blocks["scale"]), q)


def q8_k(blocks: Array) -> Array:
    """w = d q, d float32."""
    return column(blocks["d"]) * blocks["q"]


def iq4_xs(blocks: Array) -> Array:
    """w = d (s - 32) LEVELS[q]; 8 sub-blocks of 32, two bits of s each in scale_high."""
    low = (blocks["scale_low"][:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    upper = blocks["scale_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    s = (low | upper << 4).astype(np.int8) - 32
    q = LEVELS[nibbles(blocks["q"].reshape(-1, 8, 16))].reshape(-1, 256)
    return grouped(times(blocks["d"], s), q)
