"""GELU followed by a linear layer: y = gelu(x) wᵀ + b + residual.

The second half of an MLP. By the chain rule, with a = gelu(x):

    da = dy w      dw = dyᵀ a      db = Σ dy      dx = da · gelu'(x)

Saved: x and w. a is never kept: the backward makes it again from x, which it needs anyhow for
gelu'. For GPT-2 that is B·T·4C numbers a layer less, the largest activation of a block. The
fast kernel does not even write a to memory: it applies GELU while it packs x for the product,
and multiplies by gelu' where da leaves it.
"""

from ..gradient import MaybeGradient
from .common import Array, Saved
from .gelu import gelu_backward, gelu_forward
from .linear import linear_backward, linear_forward


def gelu_linear_forward(
    x: Array,
    w: Array,
    b: Array | None = None,
    residual: Array | None = None,
    *,
    approximate: str = "tanh",
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """y = gelu(x) wᵀ + b + residual. x (..., I), w (O, I), b (O,), residual and y (..., O)."""
    a, _ = gelu_forward(x, approximate=approximate)  # (..., I)
    y, _ = linear_forward(a, w, b, residual, out=out)  # (..., O)
    return y, (x, w, approximate)


def gelu_linear_backward(
    dy: Array,
    saved: Saved,
    dw: MaybeGradient,
    db: MaybeGradient = None,
    *,
    out: Array | None = None,
) -> Array:
    """dx = (dy w) gelu'(x); dw += dyᵀ gelu(x); db += Σ dy. dy (..., O), dx (..., I)."""
    x, w, approximate = saved
    a, gelu_saved = gelu_forward(x, approximate=approximate)  # (..., I), recomputed
    da = linear_backward(dy, (a, w), dw, db)  # (..., I)
    return gelu_backward(da, gelu_saved, out=out)  # (..., I)
