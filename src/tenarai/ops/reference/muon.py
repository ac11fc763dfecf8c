"""Muon: momentum whose direction is made orthogonal, for the matrices between the layers.

With g the gradient (O, I) times grad_scale, and m starting at 0:

    m ← μ m + (1 - μ) g                   momentum
    u = μ m + (1 - μ) g                   Nesterov's look ahead
    p ← p - lr · weight_decay · p
    p ← p - lr · √max(1, O/I) · NS(u)

NS(u) is near U Vᵀ for u = U S Vᵀ: every singular value becomes about 1, so that a step turns all
directions that the gradient knows alike, and not mostly the few that are large in it. It comes
without a decomposition, by five steps of an odd polynomial on X = u / ‖u‖:

    A = X Xᵀ,   X ← a X + (b A + c A²) X        s ← a s + b s³ + c s⁵ on singular values

whose coefficients carry singular values from 0.001 on into 0.7 to 1.2 (not to 1 exactly: faster,
and as good to train with). The scale makes a step's size the same for outputs of any width.

Source: Jordan and others, "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from collections.abc import Sequence

import numpy as np

from .common import Array

STEPS, A, B, C = 5, 3.4445, -4.7750, 2.0315
EPS = 1e-7  # added to the norm, so that a gradient of zeros moves nothing


def muon_step(
    ps: Sequence[Array],
    gs: Sequence[Array],
    ms: Sequence[Array],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    grad_scale: float,
) -> None:
    """One step of Muon for each of several matrices, in place on p and m; g is only read.

    All three of a matrix are (O, I); each matrix's step is its own.
    """
    for p, g, m in zip(ps, gs, ms, strict=True):
        if p.size == 0:
            continue
        O, I = p.shape
        g = g * p.dtype.type(grad_scale)  # (O, I)
        m *= momentum
        m += (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g  # (O, I)
        p *= 1 - lr * weight_decay
        p -= (lr * max(1.0, O / I) ** 0.5) * newton_schulz(u)


def newton_schulz(u: Array) -> Array:
    """NS(u) (O, I), by the formula above. The products are of the smaller side's size."""
    x = u / (np.linalg.norm(u) + EPS)
    if x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(STEPS):
        square = x @ x.T  # (n, n), n = min(O, I)
        x = A * x + (B * square + C * square @ square) @ x  # square is its own transpose
    return x if x.shape == u.shape else x.T
