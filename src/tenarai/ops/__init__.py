"""The operations that models are made of, each with a forward and a backward.

`reference` is the NumPy that people read, one op a file, its derivation on top; `Fast` is
the same names over the C++ kernels. A model takes either as its `ops` argument.

Letters, for the whole project:
    B batch   T time (queries)   S keys, past and present   C channels
    H query heads   K key/value heads   D head size   F hidden size of the MLP
    V vocabulary   L layers   I, O a linear layer's inputs and outputs

Contract: `y, saved = x_forward(...)`, `dx = x_backward(dy, saved, dw, ...)`. Gradients of
weights are added to arrays that the caller gives; gradients of activations are returned.
The table of all ops stands in docs/design.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import reference
    from .arena import Arena
    from .fast import Fast

__all__ = ["Arena", "Fast", "reference"]

_HOME = {"Arena": "arena", "Fast": "fast"}


def __getattr__(name: str) -> Any:
    """Imported when first used: running a model needs no reference ops, these need no kernels."""
    if name == "reference":
        return import_module(f"{__name__}.reference")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
