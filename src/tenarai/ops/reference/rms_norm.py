"""RMS norm: each row divided by its root mean square, then scaled by a weight.

    r = 1/√(mean(x²) + eps)      x̂ = x r      y = x̂ w

Layer norm without the mean (layer_norm.py has the longer derivation). With g = dy w,

    ∂r/∂x_j   = -½ (mean(x²) + eps)^(-3/2) · 2 x_j / C = -r² x̂_j / C
    ∂x̂_i/∂x_j = r δ_ij + x_i ∂r/∂x_j = r (δ_ij - x̂_i x̂_j / C)
    dx = r (g - x̂ mean(g x̂))           dw = Σ_rows dy x̂

Saved: x, w and r, one number a row; x̂ is recomputed. `dresidual` as in layer norm. Source:
Zhang and Sennrich, "Root mean square layer normalization" (2019).
"""

import numpy as np

from ..gradient import MaybeGradient, cleared, wanted
from .common import Array, Saved, place


def rms_norm_forward(
    x: Array, w: Array, *, eps: float = 1e-5, out: Array | None = None
) -> tuple[Array, Saved]:
    """y = x / sqrt(mean(x²) + eps) · w. x, y (..., C), w (C,)."""
    mean_square = (x * x).mean(axis=-1, keepdims=True)  # (..., 1)
    rrms = 1 / np.sqrt(mean_square + eps)  # (..., 1)
    normed = x * rrms  # (..., C)
    y = normed * w  # (..., C)
    return place(y, out), (x, w, rrms)


def rms_norm_backward(
    dy: Array,
    saved: Saved,
    dw: MaybeGradient,
    dresidual: Array | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """dx = r (g - x̂ mean(g x̂)) + dresidual, g = dy w; dw += Σ dy x̂. dy, dx (..., C), dw (C,)."""
    x, w, rrms = saved
    normed = x * rrms  # (..., C), recomputed
    dw = cleared(wanted(dw))
    if dw is not None:
        dw += (dy * normed).sum(axis=tuple(range(x.ndim - 1)))  # (C,)
    dnormed = dy * w  # (..., C)
    along_normed = (dnormed * normed).mean(axis=-1, keepdims=True)  # (..., 1)
    dx = rrms * (dnormed - normed * along_normed)  # (..., C)
    if dresidual is not None:
        dx = dx + dresidual
    return place(dx, out)
