"""AdamW on flat arrays, and the sum of squares that clipping by the global norm needs.

With g the gradient times grad_scale (clipping, or the mean over micro-batches):

    m ← β1 m + (1 - β1) g                first moment
    v ← β2 v + (1 - β2) g²               second moment
    p ← p - lr · weight_decay · p        decay, apart from the gradient: the W in AdamW
    p ← p - lr · m̂ / (√v̂ + eps)          m̂ = m / (1 - β1^step), v̂ = v / (1 - β2^step)

m and v start at 0 and so are too small at first; m̂ and v̂ mend that. Source: Loshchilov and
Hutter, "Decoupled weight decay regularization" (2019).
"""

import math

import numpy as np

from .common import Array


def adamw_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None:
    """One step of AdamW, in place on p, m and v; g is only read. All (N,); step counts from 1.

    Raises ValueError for a step below 1.
    """
    if step < 1:
        raise ValueError(f"adamw_step: step is {step}, the first step is 1")
    g = g * grad_scale  # (N,)
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * (g * g)
    m_hat = m / (1 - beta1**step)  # (N,)
    v_hat = v / (1 - beta2**step)  # (N,)
    p *= 1 - lr * weight_decay
    p -= lr * m_hat / (np.sqrt(v_hat) + eps)


def square_sum(g: Array) -> float:
    """Σ g², summed in float64. g (N,) real. Its root over all gradients is the global norm."""
    return math.fsum(float(np.square(part, dtype=np.float64).sum()) for part in _parts(g))


def _parts(g: Array, size: int = 1 << 20) -> list[Array]:
    """g in parts, so that the squares in float64 need little memory."""
    flat = g.reshape(-1)
    return [flat[i : i + size] for i in range(0, flat.size, size)]
