"""GeGLU: y = gelu(gate) · up, the gated activation of Gemma's MLP, GELU in its tanh form.

A product of two functions of two inputs, so each gradient is dy times the other factor:

    dup = dy · gelu(gate)      dgate = dy · up · gelu'(gate)

Saved: gate and up; gelu(gate) is recomputed. What gelu and gelu' are stands in gelu.py. Source:
Shazeer, "GLU variants improve transformer" (2020).
"""

from .common import Array, Saved
from .gelu import gelu_backward, gelu_forward


def geglu_forward(gate: Array, up: Array) -> tuple[Array, Saved]:
    """y = gelu(gate) · up. gate, up, y (..., F)."""
    a, _ = gelu_forward(gate)  # (..., F)
    y = a * up  # (..., F)
    return y, (gate, up)


def geglu_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    """(dgate, dup) = (dy up gelu'(gate), dy gelu(gate)). All (..., F)."""
    gate, up = saved
    a, gelu_saved = gelu_forward(gate)  # (..., F), recomputed
    dup = dy * a  # (..., F)
    dgate = gelu_backward(dy * up, gelu_saved)  # (..., F)
    return dgate, dup
