"""Gradients of weights, which ops add to, and the mark of one that holds nothing yet.

Clearing all gradients before a step and reading them again to add the first contribution goes
twice through memory for nothing. So whoever knows that a gradient's first contribution is next
gives it as `Unwritten`: the op then writes it whole.
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


Gradient = Array | Unwritten


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
