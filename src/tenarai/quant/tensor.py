"""A weight matrix in one of the formats, usually a view into a memory-mapped file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tenarai.quant.dequantize import dequantize
from tenarai.quant.formats import Format


@dataclass(frozen=True, eq=False)
class QuantTensor:
    """A matrix (O, I) whose rows lie in blocks. `data`: (O, bytes a row) uint8, contiguous.

    It stands where a float32 weight may stand in `linear_forward` and `embedding_forward`.
    Raises ValueError where data and shape do not fit together.
    """

    format: Format
    shape: tuple[int, int]
    data: np.ndarray

    def __post_init__(self) -> None:
        O, I = self.shape
        expected = (O, self.format.row_bytes(I))
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            raise ValueError(
                f"{self.format.name} of shape {self.shape}: data are {self.data.dtype} of shape "
                f"{self.data.shape}, expected uint8 of shape {expected}"
            )

    @property
    def ndim(self) -> int:
        return 2

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> QuantTensor:
        """Some of the rows: a slice is a view, so a fused weight falls apart without a copy."""
        data = self.data[rows]
        return QuantTensor(self.format, (len(data), self.shape[1]), data)

    def dequantize(self) -> np.ndarray:
        """The weights in float32, (O, I)."""
        return dequantize(self.data, self.format)
