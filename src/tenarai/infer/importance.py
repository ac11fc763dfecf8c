"""An importance matrix from a text: how large the inputs of each matrix are, column by column.

For y = x wᵀ the error that rounding w by δ makes is, for rows x of a text and δ that know nothing
of each other, Σ_i δ_oi² · mean(x_i²) in the square: so column i's importance is the mean square of
x_i. It is gathered by operations that note their input and then do what they always do. What is
done with it: models/gguf_quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.models.table import FileWeights
from tenarai.quant import QuantTensor

Array = np.ndarray


class Gatherer:
    """`ops` with products that add up the squares of their inputs.

    sums: tensor's name in a GGUF file → Σ x² (I,) float64. counts: over how many rows.
    """

    def __init__(self, ops: Any, names: Mapping[int, str]):
        self._ops, self._names = ops, names
        self.sums: dict[str, Array] = {}
        self.counts: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear_forward(self, x: Array, w: Any, *args: Any, **options: Any) -> Any:
        self._note(x, w)
        return self._ops.linear_forward(x, w, *args, **options)

    def gelu_linear_forward(
        self, x: Array, w: Any, *args: Any, approximate: str = "tanh", **options: Any
    ) -> Any:
        self._note(self._ops.gelu_forward(x, approximate=approximate)[0], w)
        return self._ops.gelu_linear_forward(x, w, *args, approximate=approximate, **options)

    def _note(self, x: Array, w: Any) -> None:
        name = self._names.get(address(w))
        if name is None:
            return
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        total = np.einsum("ni,ni->i", rows, rows)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + len(rows)


def address(w: Any) -> int:
    """Where a weight's numbers begin in memory: the same weight, the same address."""
    return (w.data if isinstance(w, QuantTensor) else w).ctypes.data


def gather(
    model: Any,
    ids: Array,
    context: int,
    bos: int | None = None,
    progress: Callable[[int], object] = lambda tokens: None,
) -> Gatherer:
    """Let a model (tenarai.Model from a GGUF file) read tokens (N,), `context` at a time.

    `bos` is put before each of these windows, as one of its tokens. A matrix that is split when it
    is loaded (Phi-3's q, k, v) has one input: it is noted for the first part alone. Raises
    TenaraiError for a model from elsewhere, and for a text without tokens.
    """
    if not isinstance(model.params, FileWeights):
        raise TenaraiError("importance is gathered on GGUF files: convert the model to one first")
    if not len(ids):
        raise TenaraiError("the text has no tokens: name a longer one")
    names: dict[int, str] = {}
    seen: set[str] = set()
    for p in model.params.table:
        if len(p.shape) == 2 and p.gguf not in seen:
            seen.add(p.gguf)
            names[address(model.params[p.name])] = p.gguf
    gatherer = Gatherer(model.ops, names)
    start = np.array([] if bos is None else [bos], np.int32)
    step = max(1, context - len(start))
    for i in range(0, len(ids), step):
        window = np.concatenate([start, ids[i : i + step]]).astype(np.int32)
        model.model.logits(gatherer, model.params, window[None])
        progress(len(window) - len(start))
    return gatherer
