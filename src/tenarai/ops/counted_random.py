"""A stream of random numbers that is a function of (seed, counter): nothing is stored.

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

Array = np.ndarray
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
