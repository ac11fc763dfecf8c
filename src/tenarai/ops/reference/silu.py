"""SiLU (swish): y = x σ(x), with σ(x) = 1 / (1 + exp(-x)).

    σ' = σ (1 - σ)
    dy/dx = σ + x σ (1 - σ) = σ (1 + x (1 - σ))

Saved: x; σ is recomputed. Source: Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units"
(2017).
"""

import numpy as np

from .common import Array, Saved


def sigmoid(x: Array) -> Array:
    """σ(x), elementwise, by the exponential of whichever of x and -x is negative: no overflow."""
    positive = x.real > 0
    z = np.exp(np.where(positive, -x, x))  # |z| ≤ 1
    return np.where(positive, 1, z) / (1 + z)


def silu_forward(x: Array) -> tuple[Array, Saved]:
    """y = x σ(x). x, y (...)."""
    y = x * sigmoid(x)  # (...)
    return y, (x,)


def silu_backward(dy: Array, saved: Saved) -> Array:
    """dx = dy σ(x) (1 + x (1 - σ(x))). dy, dx (...)."""
    (x,) = saved
    s = sigmoid(x)  # (...), recomputed
    dx = dy * s * (1 + x * (1 - s))  # (...)
    return dx
