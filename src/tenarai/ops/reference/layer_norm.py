"""Layer norm: each row to mean 0 and variance 1, then scaled and shifted by weights.

    μ = mean(x)      σ² = mean((x - μ)²)      r = 1/√(σ² + eps)
    x̂ = (x - μ) r    y = x̂ w + b              (means over the C channels of a row)

Weights: dw = Σ_rows dy x̂, db = Σ_rows dy. For x, let g = dy w be the gradient of x̂. x_j acts
on x̂_i in three ways: itself, through μ, and through r:

    ∂x̂_i/∂x_j = r (δ_ij - 1/C) + (x_i - μ) ∂r/∂x_j
    ∂r/∂x_j   = -½ (σ² + eps)^(-3/2) · 2 (x_j - μ)/C = -r² x̂_j / C      (Σ(x_i - μ) = 0)
    ∂x̂_i/∂x_j = r (δ_ij - 1/C - x̂_i x̂_j / C)

and summing g_i over i,

    dx = r (g - mean(g) - x̂ mean(g x̂))

In words: g without its part along the constant row and its part along x̂, the two directions
in which moving x does not move x̂ (eps aside). Saved: x, w, and μ and r, two numbers a row; x̂
is recomputed from them by one subtraction and one product.
`dresidual` is the gradient that reached x by the residual path around the norm; adding it here
saves a pass over memory. Source: Ba, Kiros and Hinton, "Layer normalization" (2016).
"""

import numpy as np

from ..gradient import MaybeGradient, cleared, wanted
from .common import Array, Saved, place


def layer_norm_forward(
    x: Array, w: Array, b: Array | None = None, *, eps: float = 1e-5, out: Array | None = None
) -> tuple[Array, Saved]:
    """y = (x - mean) / sqrt(variance + eps) · w + b. x, y (..., C), w, b (C,)."""
    mean = x.mean(axis=-1, keepdims=True)  # (..., 1)
    centred = x - mean  # (..., C)
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # (..., 1); np.var has an abs
    rstd = 1 / np.sqrt(variance + eps)  # (..., 1)
    normed = centred * rstd  # (..., C)
    y = normed * w if b is None else normed * w + b  # (..., C)
    return place(y, out), (x, w, mean, rstd)


def layer_norm_backward(
    dy: Array,
    saved: Saved,
    dw: MaybeGradient,
    db: MaybeGradient = None,
    dresidual: Array | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """dx as derived above, + dresidual; dw += Σ dy x̂; db += Σ dy. dy, dx (..., C), dw, db (C,)."""
    x, w, mean, rstd = saved
    rows = tuple(range(x.ndim - 1))
    normed = (x - mean) * rstd  # (..., C), recomputed
    dw, db = cleared(wanted(dw)), cleared(wanted(db))
    if db is not None:
        db += dy.sum(axis=rows)  # (C,)
    if dw is not None:
        dw += (dy * normed).sum(axis=rows)  # (C,)
    dnormed = dy * w  # (..., C)
    along_ones = dnormed.mean(axis=-1, keepdims=True)  # (..., 1)
    along_normed = (dnormed * normed).mean(axis=-1, keepdims=True)  # (..., 1)
    dx = rstd * (dnormed - along_ones - normed * along_normed)  # (..., C)
    if dresidual is not None:
        dx = dx + dresidual
    return place(dx, out)
