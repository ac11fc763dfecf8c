"""What every reference op uses: the names of its types, and the way to `out`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Saved = tuple[Any, ...]  # what a forward keeps for its backward; private to the op


def place(result: Array, out: Array | None) -> Array:
    """Copy `result` into `out` where the caller gave one, and return where it now stands.

    Copied after the computation, so `out` may be one of the op's inputs. Raises ValueError
    when the shapes differ (NumPy would repeat the result along a missing dim), TypeError when
    `out` cannot hold the result's kind (complex into float).
    """
    if out is None:
        return result
    if out.shape != result.shape:
        raise ValueError(f"out has shape {out.shape}, the result has {result.shape}")
    np.copyto(out, result, casting="same_kind")
    return out
