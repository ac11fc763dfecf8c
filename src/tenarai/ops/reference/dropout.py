"""Dropout with a counted random stream: the mask is a function of (seed, counter), never stored.

Forward: y_i = x_i / (1 - p) where element i is kept, else 0; kept with probability 1 - p, so
the mean of y is x. Gradient: the same mask and the same factor on dy. Saved: p, seed and
counter, three numbers; the backward draws the mask again, since a hash costs less than
reading a mask from memory.

The random number of (seed, n), the same bits in NumPy and in C++. All words are uint32, all
arithmetic is modulo 2^32, and the elements are numbered n = counter + i modulo 2^64, with i
the index in row-major order:

    mix(h):  h ^= h >> 16;  h *= 0x21f0aaad;  h ^= h >> 15;  h *= 0xd35a2d97;  h ^= h >> 15

    s0, s1 = low and high word of seed        n0, n1 = low and high word of n
    k0 = mix(mix(s0 ^ 0x9e3779b9) + n1)
    k1 = mix(mix(s1 ^ 0x85ebca6b) + k0)
    random(seed, n) = mix(mix(n0 ^ k0) ^ k1)

    kept  iff  random(seed, counter + i) >= floor(p * 2^32)

The keys k0 and k1 change only where n1 does, once in 2^32 elements; what is left an element
is four 32-bit multiplications, exclusive ors and shifts, which every vector unit has. For a
given n1, (s0, s1) -> (k0, k1) is one to one, so no two seeds share a stream; the key between
the two rounds keeps one seed's stream from being another's in a different order.

mix is the two-round hash of lowest known bias found by a search over constants
(github.com/skeeto/hash-prospector). Counted streams as such: Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from typing import Any

import numpy as np

from .common import Array, Saved, place

WORD = 0xFFFFFFFF


def mix(h: Any) -> Any:
    """Hash uint32 words, an array or one; a bijection."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x21F0AAAD)
    h = h ^ (h >> np.uint32(15))
    h = h * np.uint32(0xD35A2D97)
    return h ^ (h >> np.uint32(15))


def counted_random(seed: int, counter: int, count: int) -> Array:
    """random(seed, counter + i) for i < count, as uint32 (count,). Negative seeds wrap to 64 bits.

    >>> [hex(r) for r in counted_random(seed=1234, counter=2**32 - 2, count=4)]
    ['0x1e8e9635', '0xbc90d38f', '0xedefcad', '0xe2918a8f']
    """
    s0, s1 = np.uint32(seed & WORD), np.uint32(seed >> 32 & WORD)
    with np.errstate(over="ignore"):  # modulo 2^32 is meant
        n = np.uint64(counter & (WORD << 32 | WORD)) + np.arange(count, dtype=np.uint64)
        n0, n1 = n.astype(np.uint32), (n >> np.uint64(32)).astype(np.uint32)
        k0 = mix(mix(s0 ^ np.uint32(0x9E3779B9)) + n1)
        k1 = mix(mix(s1 ^ np.uint32(0x85EBCA6B)) + k0)
        return mix(mix(n0 ^ k0) ^ k1)


def _mask(shape: tuple[int, ...], p: float, seed: int, counter: int) -> Array:
    threshold = np.uint32(int(p * 2.0**32))
    count = int(np.prod(shape, dtype=np.int64))
    return (counted_random(seed, counter, count) >= threshold).reshape(shape)


def dropout_forward(
    x: Array, p: float, seed: int, counter: int, *, out: Array | None = None
) -> tuple[Array, Saved]:
    """y = x · kept / (1 - p). x (...), 0 <= p < 1; uses the counters [counter, counter + x.size).

    Raises ValueError for another p.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}, it must be at least 0 and less than 1")
    kept = _mask(x.shape, p, seed, counter)  # (...)
    y = np.where(kept, x * float(1 / (1 - p)), 0)  # (...)
    return place(y, out), (p, seed, counter)


def dropout_backward(dy: Array, saved: Saved, *, out: Array | None = None) -> Array:
    """dx = dy · kept / (1 - p). dy, dx (...)."""
    p, seed, counter = saved
    kept = _mask(dy.shape, p, seed, counter)  # (...)
    dx = np.where(kept, dy * float(1 / (1 - p)), 0)  # (...)
    return place(dx, out)
