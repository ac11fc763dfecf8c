"""Gradients of weights, which ops add to, and the marks of one that holds nothing yet, and of none.

Clearing all gradients before a step and reading them again to add the first contribution goes
twice through memory for nothing. So whoever knows that a gradient's first contribution is next
gives it as `Unwritten`: the op then writes it whole. In fine-tuning most weights stay as they
are: `FROZEN` stands where their gradients would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Unwritten:
    """A gradient whose numbers mean nothing: an op that would add to it writes it instead."""

    array: Array


class _Frozen:
    """There is one: FROZEN."""

    def __repr__(self) -> str:
        return "FROZEN"


FROZEN = _Frozen()
Gradient = Array | Unwritten
MaybeGradient = Gradient | _Frozen | None


@dataclass(frozen=True)
class LoraGradient:
    """Of a weight with an adapter (lora.py): where the gradients of A and B go."""

    a: Gradient
    b: Gradient


def wanted(dw: MaybeGradient) -> Gradient | None:
    """None where the weight is frozen, or the op has none."""
    return None if isinstance(dw, _Frozen) else dw


@overload
def cleared(dw: Gradient) -> Array: ...
@overload
def cleared(dw: None) -> None: ...
def cleared(dw: Gradient | None) -> Array | None:
    """The array, to be added to: zeros where nothing is in it yet."""
    if isinstance(dw, Unwritten):
        dw.array[...] = 0
        return dw.array
    return dw


def clear_unwritten(*gradients: MaybeGradient | LoraGradient) -> None:
    """Zeros where a gradient would have been written, had its weight been used."""
    for dw in gradients:
        if isinstance(dw, LoraGradient):
            clear_unwritten(dw.a, dw.b)
        elif isinstance(dw, Unwritten):
            cleared(dw)
