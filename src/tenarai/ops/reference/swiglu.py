"""SwiGLU: y = silu(gate) · up, the gated activation of Llama's MLP.

A product of two functions of two inputs, so each gradient is dy times the other factor:

    dup = dy · silu(gate)      dgate = dy · up · silu'(gate)

Saved: gate and up; silu(gate) is recomputed. Source: Shazeer, "GLU variants improve
transformer" (2020).
"""

from .common import Array, Saved
from .silu import silu_backward, silu_forward


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, Saved]:
    """y = silu(gate) · up. gate, up, y (..., F)."""
    a, _ = silu_forward(gate)  # (..., F)
    y = a * up  # (..., F)
    return y, (gate, up)


def swiglu_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    """(dgate, dup) = (dy up silu'(gate), dy silu(gate)). All (..., F)."""
    gate, up = saved
    a, silu_saved = silu_forward(gate)  # (..., F), recomputed
    dup = dy * a  # (..., F)
    dgate = silu_backward(dy * up, silu_saved)  # (..., F)
    return dgate, dup
