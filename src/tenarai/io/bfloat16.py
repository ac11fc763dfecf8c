"""bfloat16, which NumPy lacks: the upper half of a float32, kept as uint16.

    sign 1 bit · exponent 8 bits · fraction 7 bits

Widening is exact. Narrowing rounds to the nearest, ties to the even neighbour; a NaN stays one
(plain rounding could carry its fraction away and leave infinity).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 (...) of bfloat16 bits (...)."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(x: NDArray[Any]) -> NDArray[np.uint16]:
    """bfloat16 bits (...) of float32 (...), rounded to nearest even."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):  # only NaNs can wrap, and they are replaced below
        rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(x), quiet, rounded).astype(np.uint16)
