"""What a forward keeps for its backward, and how it is kept in half the memory.

    kept  = round_saved(ops, saved)         activations become bfloat16, two bytes a number
    saved = expand_saved(ops, kept)         float32 again, q, k and v views into one qkv again

Between the two x becomes x (1 + δ), |δ| ≤ 2⁻⁸: bfloat16 has 8 significant bits. The forward has run
by then, so outputs and loss are what they were. In the backward each gradient is a sum of products
with such x; the δ are as good as independent, so it is off by some 2⁻⁹ of its norm for each
rounding on its way, and dy, weights and sums are float32. Attention is the exception: in
p = exp(q·k - lse) an error grows with the size of the scores, and rows of p no longer sum to 1.

Not rounded: weights and tables, which others hold anyway, and statistics of rows (a norm's 1/σ,
attention's log-sum-exp), one number where an activation has C: they save nothing, and an error in
one is the same for its whole row, so it does not average out.

An array is rounded once, whoever keeps it and as whatever view. When a block's turn comes all of
it is float32 for a while; the peak is that block and the bfloat16 of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TenaraiError

Array = np.ndarray


class Saved(tuple[Any, ...]):
    """What an op keeps: its activations, then what is to stay as it is, in the order given.

    In a plain tuple, list or named tuple, as models make of several ops', every float32 array
    counts as an activation.
    """

    activations: int  # how many

    @classmethod
    def of(cls, activations: tuple[Any, ...], exact: tuple[Any, ...] = ()) -> Saved:
        saved = cls((*activations, *exact))
        saved.activations = len(activations)
        return saved


@dataclass(frozen=True)
class _View:
    """One that was an array: where in which of the rounded ones."""

    index: int
    offset: int  # bytes of float32
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Rounded:
    """What was kept, its activations in bfloat16."""

    tree: Any  # as it was, with a _View for each array
    halves: list[Array]  # uint16


def round_saved(ops: Any, saved: Any) -> Rounded:
    """`saved` with its activations rounded. The float32 ones go when nobody else holds them.

    Raises TenaraiError for the reference ops, which do not say what of theirs is a weight.
    """
    if not hasattr(ops, "arena"):
        raise TenaraiError(
            "saved activations in bfloat16 are for the kernels (tenarai.ops.Fast): leave "
            "saved_activations at float32 with the reference ops"
        )
    owners: list[Array] = []
    halves: list[Array] = []
    index: dict[int, int] = {}  # by an owner's id; `owners` keeps them alive

    def leaf(x: Array) -> _View:
        owner = _owner(x)
        if id(owner) not in index:
            index[id(owner)] = len(owners)
            owners.append(owner)
            halves.append(ops.to_bfloat16(owner))
        offset = x.ctypes.data - owner.ctypes.data
        return _View(index[id(owner)], offset, x.shape, x.strides)

    return Rounded(_mapped(saved, leaf, np.ndarray), halves)


def expand_saved(ops: Any, kept: Rounded) -> Any:
    """What `kept` was made of, in float32."""
    owners = [ops.from_bfloat16(half) for half in kept.halves]

    def leaf(view: _View) -> Array:
        begin = owners[view.index].reshape(-1)[view.offset // 4 :]
        return np.lib.stride_tricks.as_strided(begin, view.shape, view.strides)

    return _mapped(kept.tree, leaf, _View)


def _owner(x: Array) -> Array:
    """The array that x is a view of."""
    while isinstance(x.base, np.ndarray) and x.base.dtype == x.dtype:
        x = x.base
    return x


def _mapped(node: Any, leaf: Any, kind: type) -> Any:
    """The same nest of tuples with leaf(x) for each activation x of that kind."""
    if isinstance(node, kind):
        return leaf(node) if getattr(node, "dtype", np.float32) == np.float32 else node
    if isinstance(node, Saved):
        n = node.activations
        return Saved.of(tuple(_mapped(x, leaf, kind) for x in node[:n]), tuple(node[n:]))
    if isinstance(node, tuple | list):
        parts = [_mapped(x, leaf, kind) for x in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    return node
