"""The model that is tuned: its weights, what of them is trained, and its losses and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tenarai.data.packing import Rows
from tenarai.errors import TenaraiError
from tenarai.models.families import AnyModel
from tenarai.models.gpt2 import GPT2, Dropout
from tenarai.models.llama import Llama
from tenarai.models.lora import (
    Adapted,
    AdapterGradients,
    LoraConfig,
    adapter_table,
    chosen_layers,
)
from tenarai.models.table import FileWeights, Weights
from tenarai.ops.lora import Tuning
from tenarai.ops.preference import LogProbs, Preference

Array = np.ndarray


@dataclass
class Tuned:
    """A model in tuning. `trained` are the weights that change: an adapter's, or all."""

    model: AnyModel
    weights: Any  # what the model is called with: an Adapted, or `trained` itself
    trained: Weights
    lora: LoraConfig | None
    beta: float | None = None  # of DPO; None: cross-entropy
    margins: Array = field(default_factory=lambda: np.zeros(0), init=False)  # of the last pairs
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = frozenset(self.weights)

    def gradients(
        self, ops: Tuning, rows: Rows, targets: Array, dropout: Dropout | None, grads: Any
    ) -> float:
        """Add a micro-batch's gradients to `grads`, which are as `trained`; → its loss. Both count
        rows.share, by which batches with more targets weigh more."""
        try:
            self._begin(ops, rows, targets)
            ops.seed = None if dropout is None else seed_of(dropout)
            wanted = AdapterGradients(grads, self.names) if self.lora else grads
            loss, saved = self._forward(ops, rows.tokens, targets, wanted, dropout)
            self.model.backward(ops, self.weights, saved, wanted)
        finally:
            self._end(ops)
        return float(loss) * rows.share

    def loss(self, ops: Tuning, rows: Rows, targets: Array) -> float:
        """Without gradients or dropout."""
        try:
            self._begin(ops, rows, targets)
            return float(self._forward(ops, rows.tokens, targets, None, None)[0]) * rows.share
        finally:
            self._end(ops)

    def _begin(self, ops: Tuning, rows: Rows, targets: Array) -> None:
        """Which places a row's see, and which loss: of preferences, against the base's."""
        ops.documents, ops.share = rows.documents, rows.share
        if self.beta is not None:
            ops.head = base = LogProbs()
            self.model.forward(ops, self.weights.base, rows.tokens, targets)
            ops.head = Preference(self.beta, base.values)

    def _end(self, ops: Tuning) -> None:
        if isinstance(ops.head, Preference):
            self.margins = ops.head.margins
        ops.seed = ops.documents = ops.head = None
        ops.share = 1.0

    def _forward(self, ops, tokens, targets, grads, dropout) -> tuple[Any, Any]:
        more = (dropout,) if isinstance(self.model, GPT2) else ()
        return self.model.forward(ops, self.weights, tokens, targets, grads, *more)


def seed_of(dropout: Dropout) -> int:
    """The adapters' seed of one forward pass: every draw has its own."""
    return (dropout.seed + 0x9E3779B97F4A7C15 * (dropout.draw + 1)) % (1 << 64)


def tuned(
    model: AnyModel,
    weights: Any,
    lora: LoraConfig | None,
    recompute: bool = False,
    beta: float | None = None,
    saved_bfloat16: bool = False,
) -> Tuned:
    """The model with an adapter that is yet to be drawn, or with every weight to be trained. With
    `beta`, from preferences.

    Raises TenaraiError: weights that are quantised cannot be trained themselves; preferences are
    learned beside the model as it was, which an adapter leaves there.
    """
    if beta is not None and lora is None:
        raise TenaraiError(
            "--dpo holds the model against what it was, which an adapter leaves as it is: ask for "
            "one (--lora 16)"
        )
    model = replace(model, recompute=recompute, saved_bfloat16=saved_bfloat16)
    if lora is not None:
        trained = Weights(adapter_table(chosen_layers(model.table(), lora.layers), lora.rank))
        return Tuned(model, Adapted(weights, trained, lora), trained, lora, beta)
    return Tuned(model, full := _floats(model, weights), full, None)


def _floats(model: AnyModel, weights: Any) -> Weights:
    if isinstance(weights, Weights):
        return weights
    assert isinstance(weights, FileWeights)
    for name, w in weights.items():
        format = getattr(w, "format", None)
        if format is not None and format.name not in ("F32", "F16", "BF16"):
            raise TenaraiError(
                f"{name} is quantised ({format.name}), and such weights cannot be tuned "
                "themselves: put an adapter on them (--lora 16), or take the model in float32 "
                "or float16"
            )
    full, expanded = Weights(model.table()), weights.expanded()
    for name in full:
        full[name][...] = expanded[name]
    return full


def packs(model: AnyModel) -> bool:
    """Whether an example is the same anywhere in a row: GPT-2's places are learned from its start,
    RoPE's are relative."""
    return isinstance(model, Llama)


def bytes_of(weights: Mapping[str, Any]) -> int:
    return sum(int(w.nbytes) for w in weights.values())
