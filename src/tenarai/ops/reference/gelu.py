"""GELU: x times the probability that a standard normal number is below x.

"none", the definition, with Φ the normal distribution function and φ its density:

    y = x Φ(x)        Φ(x) = (1 + erf(x/√2)) / 2      φ(x) = exp(-x²/2) / √(2π)
    dy/dx = Φ(x) + x φ(x)                             (product rule; Φ' = φ)

"tanh", the approximation that GPT-2 was trained with:

    y = x (1 + tanh u) / 2                            u = √(2/π) (x + 0.044715 x³)
    dy/dx = (1 + tanh u) / 2 + x (1 - tanh² u) u'/2   u' = √(2/π) (1 + 3·0.044715 x²)

Saved: x alone. tanh u or Φ(x) is recomputed: a second array as large as x would cost more to
write and read back than the function costs. Source: Hendrycks and Gimpel, "Gaussian error
linear units" (2016).
"""

import math

import numpy as np

from .common import Array, Saved, place

CUBIC = 0.044715
SCALE = math.sqrt(2 / math.pi)

_real_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    """The error function, elementwise.

    Of a complex number this is the real function and the first-order imaginary part,
    erf(a + ib) ≈ erf(a) + i b · 2/√π · exp(-a²). NumPy has no complex erf, and that is exact
    for the complex step, where b is 1e-50; it is not the complex error function.
    """
    a = x.real
    value = _real_erf(a).astype(a.dtype)
    if not np.iscomplexobj(x):
        return value
    return value + 1j * x.imag * (2 / math.sqrt(math.pi)) * np.exp(-a * a)


def _check(approximate: str) -> None:
    if approximate not in ("tanh", "none"):
        raise ValueError(f'gelu: approximate is {approximate!r}, it must be "tanh" or "none"')


def gelu_forward(
    x: Array, *, approximate: str = "tanh", out: Array | None = None
) -> tuple[Array, Saved]:
    """y = gelu(x). x, y (...). `approximate` is "tanh" or "none" (erf), else ValueError."""
    _check(approximate)
    if approximate == "tanh":
        u = SCALE * (x + CUBIC * (x * x * x))  # (...)
        y = 0.5 * x * (1 + np.tanh(u))  # (...)
    else:
        cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))  # (...)
        y = x * cdf  # (...)
    return place(y, out), (x, approximate)


def gelu_backward(dy: Array, saved: Saved, *, out: Array | None = None) -> Array:
    """dx = dy · gelu'(x). dy, dx (...)."""
    x, approximate = saved
    if approximate == "tanh":
        t = np.tanh(SCALE * (x + CUBIC * (x * x * x)))  # (...), recomputed
        du = 0.5 * x * (1 - t * t) * dy  # (...)
        dx = 0.5 * (1 + t) * dy + du * SCALE * (1 + 3 * CUBIC * (x * x))  # (...)
    else:
        cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))  # (...), recomputed
        pdf = np.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))  # (...)
        dx = (cdf + x * pdf) * dy  # (...)
    return place(dx, out)
