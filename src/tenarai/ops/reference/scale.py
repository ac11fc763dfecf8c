"""Scaling: y = factor · x, the factor a number that is no weight (Gemma's √C of the embedding).

The gradient passes the same factor: dx = factor · dy. Saved: the factor.
"""

from .common import Array, Saved, place


def scale_forward(x: Array, factor: float, *, out: Array | None = None) -> tuple[Array, Saved]:
    """y = factor · x. x, y (...); `out` may be x."""
    return place(factor * x, out), (factor,)


def scale_backward(dy: Array, saved: Saved, *, out: Array | None = None) -> Array:
    """dx = factor · dy. dy, dx (...)."""
    (factor,) = saved
    return place(factor * dy, out)
