"""bfloat16, the upper half of a float32, as uint16: sign 1 bit, exponent 8, fraction 7.

With u the 32 bits of x and b = u >> 16 the half that stays, the other half, r = u mod 2¹⁶, is what
is rounded away: up where r > 2¹⁵, or where r = 2¹⁵ and b is odd (ties to even). Adding 2¹⁵ - 1 and
b's last bit carries into b in just those cases:

    h = (u + 0x7fff + (b & 1)) >> 16

The carry may go on into the exponent, which is right: 1.99.. becomes 2, the largest numbers
infinity. Of a NaN it could leave infinity or zero, so a NaN keeps its upper half, its quiet bit
set. Subnormal numbers need nothing special. Back is h << 16, exact.

|x̃ - x| ≤ 2⁻⁸ |x|, but for subnormal x. No gradient: what is rounded is kept between a forward and
its backward (ops/saved.py says what that does). Source: the format is float32's (IEEE 754 binary32)
without its lower half; the rounding IEEE 754's default, roundTiesToEven.
"""

import numpy as np
from numpy.typing import NDArray

from .common import place


def to_bfloat16(
    x: NDArray[np.float32], *, out: NDArray[np.uint16] | None = None
) -> NDArray[np.uint16]:
    """h (...) of x (...)."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    b = u >> np.uint32(16)
    rounded = (u + (np.uint32(0x7FFF) + (b & np.uint32(1)))) >> np.uint32(16)
    h = np.where(np.isnan(x), b | np.uint32(0x40), rounded).astype(np.uint16)
    return place(h, out)


def from_bfloat16(
    h: NDArray[np.uint16], *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """x (...) of h (...)."""
    return place((h.astype(np.uint32) << np.uint32(16)).view(np.float32), out)
