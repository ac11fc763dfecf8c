"""Quantised weights back to float32, in plain NumPy: what the kernel in kernels/quant.cc must give.

The formulas stand in plain.py and k_quants.py. A product of scale and level is exact in float32
(float16 has 11 bits, a sub-block's scale at most 7, a level at most 7), so a weight is rounded at
most once and the order of factors does not matter: every implementation gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tenarai.quant import k_quants, plain
from tenarai.quant.formats import Format
from tenarai.quant.plain import Array

DEQUANTIZE: dict[str, tuple[np.dtype, Callable[[Array], Array]]] = {
    "Q4_0": (plain.Q4_0, plain.q4_0),
    "Q4_1": (plain.Q4_1, plain.q4_1),
    "Q5_0": (plain.Q5_0, plain.q5_0),
    "Q5_1": (plain.Q5_1, plain.q5_1),
    "Q8_0": (plain.Q8_0, plain.q8_0),
    "Q2_K": (k_quants.Q2_K, k_quants.q2_k),
    "Q3_K": (k_quants.Q3_K, k_quants.q3_k),
    "Q4_K": (k_quants.Q4_K, k_quants.q4_k),
    "Q5_K": (k_quants.Q5_K, k_quants.q5_k),
    "Q6_K": (k_quants.Q6_K, k_quants.q6_k),
    "Q8_K": (k_quants.Q8_K, k_quants.q8_k),
    "IQ4_NL": (plain.IQ4_NL, plain.iq4_nl),
    "IQ4_XS": (k_quants.IQ4_XS, k_quants.iq4_xs),
}
BLOCKS_AT_ONCE = 1 << 16  # intermediate arrays stay below some 200 MB


def dequantize(data: Array, format: Format) -> Array:
    """(rows, bytes a row) uint8 to (rows, I) float32.

    Raises ValueError where a row is not a whole number of blocks.
    """
    rows, row_bytes = data.shape
    if data.dtype != np.uint8 or row_bytes % format.bytes:
        raise ValueError(
            f"{format.name}: rows of {row_bytes} bytes of {data.dtype}, expected uint8 in "
            f"multiples of {format.bytes}"
        )
    data = np.ascontiguousarray(data)
    if format.name in ("F32", "F16"):
        return data.view("<f4" if format.name == "F32" else "<f2").astype(np.float32)
    if format.name == "BF16":  # the upper half of a float32
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    dtype, expand = DEQUANTIZE[format.name]
    blocks = data.reshape(-1).view(dtype)  # (N,)
    w = np.empty((len(blocks), format.block), np.float32)
    for i in range(0, len(blocks), BLOCKS_AT_ONCE):
        w[i : i + BLOCKS_AT_ONCE] = expand(blocks[i : i + BLOCKS_AT_ONCE])
    return w.reshape(rows, row_bytes // format.bytes * format.block)
