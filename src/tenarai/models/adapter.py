"""Adapters in files, read and written for the model that they are for.

PEFT's folders (adapter_peft.py) and GGUF adapters (adapter_gguf.py) hold A and B of each tensor of
a file. Where files hold several of our weights in one tensor (Phi-3's qkv), they have one A for all
of them and B's rows one above the other: a part of ours is that A and its rows of B. The way back,
parts with an A each become one of their ranks together, B a matrix of blocks. A GGUF adapter's
experts lie in one tensor as in the model's file, each with an A and a B: (E, r, I) and (E, O, r).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import formats

from .families import AnyModel
from .lora import A, Adapted, B, LoraConfig
from .table import Param

Array = np.ndarray
PathName = str | PathLike[str]
CONFIG = "adapter_config.json"
FOLDER = "adapter"  # in a run's folder
Turn = Callable[[Param, Array], Array]  # B's rows, from our order to a file's or back


@dataclass(frozen=True)
class Adapter:
    """A and B by our names (`h.0.attn.q.lora_a`), float32. `scales`, by weight's name, where one
    differs from the config's."""

    config: LoraConfig
    weights: Mapping[str, Array]
    scales: Mapping[str, float] = field(default_factory=dict)

    def on(self, base: object) -> Adapted:
        """The model's weights with it. It is not trained here, so nothing is dropped."""
        return Adapted(base, self.weights, self.config, self.scales)

    def scale_of(self, name: str) -> float:
        return self.scales.get(name, self.config.scale)


def read_adapter(path: PathName, model: AnyModel) -> Adapter:
    """The adapter in a PEFT folder, a GGUF file or a run's folder.

    Raises TenaraiError: none of these, damaged, or for another model (which tensor, which shape).
    """
    from . import adapter_gguf, adapter_peft

    path = Path(path)
    for folder in (path, path / FOLDER):
        if (folder / CONFIG).exists():
            return adapter_peft.read(folder, model)
    if path.is_dir():
        raise TenaraiError(f"{path}: no adapter in this folder: expected {CONFIG}")
    if formats.detect(path) == formats.GGUF:
        return adapter_gguf.read(path, model)
    raise TenaraiError(f"{path}: is no adapter: name a PEFT folder or a GGUF adapter")


@dataclass(frozen=True)
class Factors:
    """A (r, I) and B (O, r) of one tensor of a file, and their scale; of experts that lie in one,
    (E, r, I) and (E, O, r)."""

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[-2])

    def of(self, p: Param) -> tuple[Array, Array]:
        """A and B of one of the weights in the tensor."""
        if p.stacked and self.a.ndim == 3:
            return self.a[p.stacked.index], self.b[p.stacked.index]
        if p.fused:
            return self.a, self.b[p.fused.begin : p.fused.begin + p.shape[0]]
        return self.a, self.b


def to_ours(
    path: PathName,
    config: LoraConfig,
    found: Mapping[str, Factors],
    groups: Mapping[str, Sequence[Param]],
    turn: Turn,
    stacked: bool = False,
) -> Adapter:
    """An adapter of a file's tensors. `groups` are our weights in each tensor, `turn` puts B's rows
    in our order, `stacked`: experts lie in one tensor. Raises TenaraiError, which names tensor and
    shapes, for another model's."""
    weights: dict[str, Array] = {}
    scales: dict[str, float] = {}
    for name, factors in found.items():
        group, a, b = groups.get(name), factors.a, factors.b
        if group is None:
            raise TenaraiError(
                f"{path}: adapts {name}, which this model has not: is the adapter for another one?"
            )
        first, r = group[0], factors.rank
        O, I = first.fused.rows if first.fused else first.shape[0], first.shape[1]
        E = (first.stacked.count,) if stacked and first.stacked else ()
        if a.shape != (*E, r, I) or b.shape != (*E, O, r):
            raise TenaraiError(
                f"{path}: {name} has an adapter of shapes {a.shape} and {b.shape} for a weight "
                f"{(*E, O, I)}: is it for another model size?"
            )
        for p in group:
            part, rows = factors.of(p)
            stem = p.name.removesuffix(".weight")
            weights[stem + A] = part
            weights[stem + B] = np.ascontiguousarray(turn(p, rows))
            if factors.scale != config.scale:
                scales[p.name] = factors.scale
    return Adapter(config, weights, scales)


def to_files(
    adapter: Adapter, groups: Mapping[str, Sequence[Param]], turn: Turn, stacked: bool = False
) -> dict[str, Factors]:
    """By a file's names, `turn` from our order of rows to its. Parts of one tensor become one,
    where files are `stacked` a mixture's experts too."""
    found: dict[str, Factors] = {}
    for name, group in groups.items():
        parts = [p for p in group if p.name.removesuffix(".weight") + A in adapter.weights]
        if parts:
            join = _stacked if stacked and parts[0].stacked else _joined
            found[name] = join(adapter, parts, turn)
    return found


def _stacked(adapter: Adapter, parts: Sequence[Param], turn: Turn) -> Factors:
    """Zeros for experts that have no adapter, and beyond the rank of those with a smaller one."""
    each = {p.stacked.index: _joined(adapter, [p], turn) for p in parts if p.stacked}
    first, E = next(iter(each.values())), next(p.stacked.count for p in parts if p.stacked)
    r = max(f.rank for f in each.values())
    a = np.zeros((E, r, first.a.shape[1]), np.float32)
    b = np.zeros((E, first.b.shape[0], r), np.float32)
    for e, f in each.items():
        a[e, : f.rank], b[e, :, : f.rank] = f.a, f.b * np.float32(f.scale / first.scale)
    return Factors(a, b, first.scale)


def _joined(adapter: Adapter, parts: Sequence[Param], turn: Turn) -> Factors:
    factors = []
    for p in parts:
        stem = p.name.removesuffix(".weight")
        a, b = adapter.weights[stem + A], adapter.weights[stem + B]
        factors.append(Factors(a, turn(p, b), adapter.scale_of(p.name)))
    first, fused = factors[0], parts[0].fused
    if fused is None:
        return first
    same = all(np.array_equal(f.a, first.a) and f.scale == first.scale for f in factors)
    a = first.a if same else np.concatenate([f.a for f in factors])
    b = np.zeros((fused.rows, len(a)), np.float32)
    column = 0
    for p, f in zip(parts, factors, strict=True):
        assert p.fused is not None
        ranks = slice(0, len(f.a)) if same else slice(column, column + len(f.a))
        b[p.fused.begin : p.fused.begin + p.shape[0], ranks] = f.b * (f.scale / first.scale)
        column += len(f.a)
    return Factors(a, b, first.scale)


def need_pairs(path: PathName, halves: Mapping[str, Iterable[str]]) -> None:
    """Raises TenaraiError for a tensor of which A or B is missing."""
    for name, which in halves.items():
        if set(which) != {"a", "b"}:
            raise TenaraiError(f"{path}: {name} has no {'b' if 'a' in which else 'a'}: not whole")
    if not halves:
        raise TenaraiError(f"{path}: holds no adapter of any tensor")
