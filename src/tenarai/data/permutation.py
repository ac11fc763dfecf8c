"""A shuffle that is computed, not stored: position → window, for any number of windows.

For few windows a table sorted by random numbers. For many, a Feistel network: the position's
bits are split in two halves, and in turn each half is XORed with a random function of the other,
which can be undone and so is a permutation of 0 ... 2^bits − 1. A result ≥ n is sent through
again until it is < n (cycle walking), at most twice on average as 2^bits < 2n.

The random function is SplitMix64's (Steele, Lea, Flood 2014), not NumPy's generators: those may
change between versions, and a run must resume to the same stream.
"""

from __future__ import annotations

import numpy as np

TABLE = 1 << 12  # up to here a table, which also shuffles well where there are few bits to mix
ROUNDS = 6


def random_u64(key: int, x: np.ndarray) -> np.ndarray:
    """SplitMix64: 64 random bits for each uint64 of x, for this key."""
    z = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & (2**64 - 1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive(*numbers: int) -> int:
    """One 64-bit key of several numbers, all of which matter, and their order."""
    key = 0
    for number in numbers:
        key = int(random_u64(key, np.array([number & (2**64 - 1)], np.uint64))[0])
    return key


class Permutation:
    """`Permutation(n, key)(positions)`: a bijection of 0 ... n − 1, int64 arrays; memory O(1)."""

    def __init__(self, n: int, key: int):
        if n < 1:
            raise ValueError(f"a permutation of {n} things")
        self.n = n
        self._table = None
        if n <= TABLE:
            order = random_u64(derive(key), np.arange(n, dtype=np.uint64))
            self._table = np.argsort(order, kind="stable").astype(np.int64)
        bits = (n - 1).bit_length()
        self._low = np.uint64(bits // 2)
        self._masks = [np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)]
        self._keys = [derive(key, i) for i in range(ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        if self._table is not None:
            return self._table[positions]
        x = self._mix(positions.astype(np.uint64))
        while (beyond := x >= np.uint64(self.n)).any():
            x[beyond] = self._mix(x[beyond])
        return x.astype(np.int64)

    def _mix(self, x: np.ndarray) -> np.ndarray:
        low, high = x & self._masks[0], x >> self._low
        for i, key in enumerate(self._keys):
            if i % 2:
                low ^= random_u64(key, high) & self._masks[0]
            else:
                high ^= random_u64(key, low) & self._masks[1]
        return high << self._low | low
