"""The weights of a model: named once, in one table, kept in one flat buffer.

A model's table is a tuple of `Param`. From it everything else follows: allocation,
initialisation, which weights decay, and what they are called in other programs' files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tenarai.quant import QuantTensor

Weight = np.ndarray | QuantTensor
ALIGN = 16  # float32s: each weight begins on a 64-byte boundary


@dataclass(frozen=True)
class Fused:
    """Where a weight lies in a tensor of files that holds several, one above the other."""

    begin: int  # its first row
    rows: int  # of the whole tensor


@dataclass(frozen=True)
class Stacked:
    """Which of the matrices in a GGUF tensor of three dims a weight is."""

    index: int
    count: int


@dataclass(frozen=True)
class Param:
    """One weight.

    Drawn from a normal distribution of `mean` and `std` (0 gives the mean itself). `hf` and `gguf`
    are its names in Hugging Face's and in GGUF files, `fused` its place where files hold it in one
    tensor with others, `stacked` that of an expert's where GGUF files do. `hf_transposed`: Hugging
    Face's hold it (I, O) where we hold (O, I);
    `hf_shift`: they hold it less this number. `rope_heads`: its rows are the channels of so many
    heads, which files for another pairing of RoPE hold in another order.
    """

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    decay: bool = False
    hf: str = ""
    hf_transposed: bool = False
    gguf: str = ""
    fused: Fused | None = None
    hf_shift: float = 0.0
    rope_heads: int = 0
    stacked: Stacked | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)


def _aligned_zeros(n: int, dtype: np.dtype | type) -> np.ndarray:
    """n zeros from a 64-byte boundary on: no vector of the kernels lies across two cache lines."""
    size = np.dtype(dtype).itemsize
    memory = np.zeros(n * size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n * size].view(dtype)


class Weights(Mapping[str, np.ndarray]):
    """A value for each weight of a table: views by name into `flat`.

    `flat` holds the weights that decay first: `flat[:decayed]` is theirs, so that an optimiser
    makes two calls. Gradients and optimiser states are `Weights` of the same table.
    Unused places between weights are zero and stay zero.
    """

    def __init__(self, table: Sequence[Param], dtype: np.dtype | type = np.float32):
        self.table = tuple(table)
        ordered = sorted(self.table, key=lambda param: not param.decay)  # stable
        offsets, end, self.decayed = {}, 0, 0
        for param in ordered:
            offsets[param.name] = end
            end += -(-param.size // ALIGN) * ALIGN
            if param.decay:
                self.decayed = end
        if len(offsets) != len(self.table):
            raise ValueError("two weights of one table have the same name")
        self.flat = _aligned_zeros(end, dtype)
        self._views = {
            p.name: self.flat[offsets[p.name] : offsets[p.name] + p.size].reshape(p.shape)
            for p in self.table
        }
        self._scopes: dict[str, dict[str, np.ndarray]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def scope(self, prefix: str) -> dict[str, np.ndarray]:
        """The weights whose names begin with `prefix`, by the rest of their names."""
        if prefix not in self._scopes:
            n = len(prefix)
            self._scopes[prefix] = {
                k[n:]: v for k, v in self._views.items() if k.startswith(prefix)
            }
        return self._scopes[prefix]

    def expanded(self) -> Weights:
        """In float32: these are."""
        return self

    def initialise(self, seed: int) -> Weights:
        """Draws every weight; one does not depend on which others the table has before it."""
        for index, param in enumerate(self.table):
            view = self[param.name]
            view[...] = param.mean
            if param.std:
                random = np.random.Generator(np.random.Philox(key=[seed, index]))
                view += param.std * random.standard_normal(param.shape, np.float32)
        return self

    @property
    def count(self) -> int:
        """How many numbers the weights hold, places between them not counted."""
        return sum(param.size for param in self.table)


class NamedWeights(Mapping[str, Any]):
    """The weights of a table by name, of whatever kind each is."""

    def __init__(self, table: Sequence[Param], weights: Mapping[str, Any]):
        self.table, self._weights = tuple(table), dict(weights)
        self._scopes: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> Any:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def scope(self, prefix: str) -> dict[str, Any]:
        """The weights whose names begin with `prefix`, by the rest of their names."""
        if prefix not in self._scopes:
            n = len(prefix)
            self._scopes[prefix] = {
                k[n:]: v for k, v in self._weights.items() if k.startswith(prefix)
            }
        return self._scopes[prefix]

    @property
    def count(self) -> int:
        """How many numbers the weights hold."""
        return sum(param.size for param in self.table)


class FileWeights(NamedWeights):
    """The weights of a table as they lie in a file: float32 arrays and quantised tensors.

    What a model needs to run, and no more: they are not trained.
    """

    @property
    def quantised(self) -> str | None:
        """The name of a weight that is no float32 array, if there is one."""
        return next((n for n, w in self._weights.items() if isinstance(w, QuantTensor)), None)

    def expanded(self) -> Mapping[str, np.ndarray]:
        """The weights in float32, each made when it is asked for."""
        return Expanded(self._weights)


class Expanded(Mapping[str, np.ndarray]):
    """Weights in float32, each made when it is asked for."""

    def __init__(self, weights: Mapping[str, Weight]):
        self._weights = weights

    def __getitem__(self, name: str) -> np.ndarray:
        w = self._weights[name]
        return w.dequantize() if isinstance(w, QuantTensor) else w

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def and_more(names: list[str]) -> str:
    """How many names an error leaves out that tells the first."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
