"""Adapters of a model: which of its linear layers have one, their weights, and the model with them.

An adapter's A and B are `Param`s of a table of their own, so that it is allocated, trained, saved
and resumed as a model is. What A and B compute stands in ops/lora.py; the files of adapters in
adapter_exchange.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.ops.gradient import FROZEN, Gradient, LoraGradient
from tenarai.ops.lora import LoraWeight
from tenarai.quant import Format, QuantTensor

from .table import Expanded, NamedWeights, Param, Weight

Array = np.ndarray
A, B = ".lora_a", ".lora_b"
# Below these are norms and the embedding, which have no adapters.
FIRST = frozenset(f"h.0.attn.{name}.weight" for name in ("q", "k", "v", "c_attn"))
# What people call groups of layers: parts of our names. "all" is attention and MLP.
GROUPS = {
    "attention": (".attn.",),
    "mlp": (".mlp.",),
    "experts": (".experts.",),
    "all": (".attn.", ".mlp."),
}


@dataclass(frozen=True)
class LoraConfig:
    """rank r, alpha (the scale is alpha / r), dropout of the adapters' inputs, and the layers:
    "all", "attention", "mlp", "experts", or names such as "attn.q,attn.v"."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: str = "all"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def linear_layers(table: Sequence[Param]) -> tuple[Param, ...]:
    """The weights that may have an adapter: the matrices of the blocks' linear layers, a mixture's
    experts too, but not its router."""
    return tuple(
        p for p in table
        if len(p.shape) == 2 and p.name.endswith(".weight") and p.name.startswith("h.")
        and ".router." not in p.name
    )  # fmt: skip


def chosen_layers(table: Sequence[Param], layers: str) -> tuple[Param, ...]:
    """Those of them that `layers` names. Raises TenaraiError for a name that is none."""
    linear, names = linear_layers(table), [n.strip() for n in layers.split(",") if n.strip()]
    kinds = sorted({kind_of(p.name) for p in linear})
    chosen: set[str] = set()
    for name in names:
        found = {p.name for p in linear if name == kind_of(p.name)}
        for part in GROUPS.get(name, ()):
            found |= {p.name for p in linear if part in p.name}
        if not found:
            raise TenaraiError(
                f"no linear layer of this model is called {name!r}: choose of "
                f"{', '.join(kinds)}, or {', '.join(GROUPS)}"
            )
        chosen |= found
    if not chosen:
        raise TenaraiError(f"no layer is named to adapt: choose of {', '.join((*GROUPS, *kinds))}")
    return tuple(p for p in linear if p.name in chosen)


def kind_of(name: str) -> str:
    """ "attn.q" of "h.3.attn.q.weight", "mlp.experts.up" of "h.3.mlp.experts.7.up.weight"."""
    return re.sub(r"\.experts\.\d+\.", ".experts.", name.split(".", 2)[2].removesuffix(".weight"))


def adapter_table(params: Sequence[Param], rank: int) -> tuple[Param, ...]:
    """A (r, I) and B (O, r) of each of the weights. A begins random, as PEFT's does (uniform within
    ±1/√I, so its deviation is 1/√(3 I)), B at zero: the model begins as the base."""
    table: list[Param] = []
    for p in params:
        O, I = p.shape
        stem = p.name.removesuffix(".weight")
        table.append(Param(stem + A, (rank, I), (3 * I) ** -0.5, decay=True))
        table.append(Param(stem + B, (O, rank), 0.0, decay=True))
    return tuple(table)


class Adapted(NamedWeights):
    """A model's weights, `base`, with an adapter: LoraWeights where it has one.

    `scale` and `dropout` are all layers'; `scales`, by weight's name, of those that differ.
    """

    def __init__(
        self,
        base: Any,
        adapter: Mapping[str, Array],
        config: LoraConfig,
        scales: Mapping[str, float] | None = None,
    ):
        super().__init__(base.table, base)
        self.base, self.adapter, self.config = base, adapter, config
        for site, p in enumerate(linear_layers(base.table)):
            stem = p.name.removesuffix(".weight")
            if stem + A in adapter:
                a, b = adapter[stem + A], adapter[stem + B]
                scale = (scales or {}).get(p.name, config.scale)
                self._weights[p.name] = LoraWeight(
                    base[p.name], a, b, scale, config.dropout, site, p.name in FIRST
                )

    @property
    def count(self) -> int:
        return int(self.base.count) + sum(int(w.size) for w in self.adapter.values())

    def expanded(self) -> Mapping[str, Array]:
        """Merged, in float32, each made when it is asked for."""
        return Merged(self).expanded()


class Merged(Mapping[str, Weight]):
    """An adapted model's weights with W + s B A in the place of W, each made when asked for.

    In float32; with `requantise`, which makes a QuantTensor of an array and a format, in the
    format that W has. Weights without an adapter stay as they are.
    """

    def __init__(
        self, weights: Adapted, requantise: Callable[[Array, Format], Weight] | None = None
    ):
        self._weights, self._requantise = weights, requantise
        self.table = weights.table

    def __getitem__(self, name: str) -> Weight:
        w = self._weights[name]
        if not isinstance(w, LoraWeight):
            return w
        merged = w.merged()
        if self._requantise is not None and isinstance(w.base, QuantTensor):
            return self._requantise(merged, w.base.format)
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def count(self) -> int:
        return int(self._weights.base.count)

    def expanded(self) -> Mapping[str, Array]:
        return Expanded(self)


class AdapterGradients(Mapping[str, Any]):
    """Gradients as a model asks for them, by its own names: those of an adapter, and FROZEN.

    `grads` has the adapter's, by its names.
    """

    def __init__(self, grads: Mapping[str, Gradient], names: Collection[str], prefix: str = ""):
        self._grads, self._names, self._prefix = grads, names, prefix

    def __getitem__(self, name: str) -> Any:
        stem = (self._prefix + name).removesuffix(".weight")
        if stem + A in self._grads:
            return LoraGradient(self._grads[stem + A], self._grads[stem + B])
        return FROZEN

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._names

    def __iter__(self) -> Iterator[str]:
        n = len(self._prefix)
        return (name[n:] for name in self._names if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def scope(self, prefix: str) -> AdapterGradients:
        return AdapterGradients(self._grads, self._names, self._prefix + prefix)
