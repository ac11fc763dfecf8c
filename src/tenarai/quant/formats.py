"""The formats of weights in GGUF files: their names, numbers and sizes.

A format stores a row of weights as blocks of `block` weights in `bytes` bytes each. The structs
stand in kernels/quant_formats.h.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    name: str
    number: int  # ggml's, as GGUF files write it
    block: int  # weights a block
    bytes: int  # bytes a block

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes / self.block

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of n weights; ValueError where n is not a whole number of blocks."""
        if n % self.block:
            raise ValueError(f"{self.name}: a row of {n} weights is no multiple of {self.block}")
        return n // self.block * self.bytes


FORMATS = {
    f.name: f
    for f in (
        Format("F32", 0, 1, 4),
        Format("F16", 1, 1, 2),
        Format("Q4_0", 2, 32, 18),
        Format("Q4_1", 3, 32, 20),
        Format("Q5_0", 6, 32, 22),
        Format("Q5_1", 7, 32, 24),
        Format("Q8_0", 8, 32, 34),
        Format("Q2_K", 10, 256, 84),
        Format("Q3_K", 11, 256, 110),
        Format("Q4_K", 12, 256, 144),
        Format("Q5_K", 13, 256, 176),
        Format("Q6_K", 14, 256, 210),
        Format("Q8_K", 15, 256, 292),
        Format("IQ4_NL", 20, 32, 18),
        Format("IQ4_XS", 23, 256, 136),
        Format("BF16", 30, 1, 2),
    )
}
BY_NUMBER = {f.number: f for f in FORMATS.values()}
