"""The optimisers over a model's weights, and clipping by the global norm.

The matrices (and embeddings) decay, biases and the weights of norms do not. What a step computes
stands in ops/reference/optim.py and muon.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tenarai.config import Optimiser
from tenarai.models.table import Param, Weights

SMALL = 1 << 18  # weights of a matrix that one thread takes alone, as kernels/muon.cc has it


def optimiser_of(table: Sequence[Param], settings: Optimiser) -> AdamW | Muon:
    """The optimiser that the settings name."""
    return (Muon if settings.algorithm == "muon" else AdamW)(table, settings)


class AdamW:
    """First and second moments of a table's weights: m and v, `Weights` both."""

    def __init__(self, table: Sequence[Param], settings: Optimiser):
        self.settings = settings
        self.m, self.v = Weights(table), Weights(table)

    def working_bytes(self, threads: int) -> int:
        """What a step needs besides the states."""
        return 0

    def states(self) -> dict[str, Weights]:
        """What a checkpoint must hold, by the names it has there."""
        return {"adam_m": self.m, "adam_v": self.v}

    def step(
        self, ops: Any, params: Weights, grads: Weights, *, lr: float, step: int, grad_scale: float
    ) -> None:
        """Update `params` in place; `step` counts from 1. The gradient is grads · grad_scale."""
        end = len(params.flat)  # which is ordered so that two calls do
        for part, decays in (
            (slice(0, params.decayed), True),
            (slice(params.decayed, end), False),
        ):
            if part.start < part.stop:
                arrays = [w.flat[part] for w in (params, grads, self.m, self.v)]
                _adamw(ops, arrays, self.settings, decays, lr, step, grad_scale)


class Muon:
    """Muon for the matrices of the blocks, AdamW for embeddings, output, norms and biases."""

    def __init__(self, table: Sequence[Param], settings: Optimiser):
        self.settings = settings
        self.matrices = [p for p in table if is_hidden_matrix(p)]
        self.others = [p for p in table if not is_hidden_matrix(p)]
        self.momentum = Weights(self.matrices)
        self.m, self.v = Weights(self.others), Weights(self.others)

    def working_bytes(self, threads: int) -> int:
        """What a step needs besides the states: for a matrix X and its product, and two of the
        smaller side's square. Each thread has a small matrix, all together a large one."""
        small, large = 0, 0
        for p in self.matrices:
            need = 4 * (2 * p.size + 2 * min(p.shape) ** 2)
            if p.size <= SMALL:
                small = max(small, need)
            else:
                large = max(large, need)
        return threads * small + large

    def states(self) -> dict[str, Weights]:
        """What a checkpoint must hold, by the names it has there."""
        return {"momentum": self.momentum, "adam_m": self.m, "adam_v": self.v}

    def step(
        self, ops: Any, params: Weights, grads: Weights, *, lr: float, step: int, grad_scale: float
    ) -> None:
        """Update `params` in place; `step` counts from 1. The gradient is grads · grad_scale."""
        s = self.settings
        how = {"momentum": s.momentum, "weight_decay": s.weight_decay, "grad_scale": grad_scale}
        muon_lr = s.muon_lr * lr / s.lr if s.lr else 0.0
        arrays = [[w[p.name] for p in self.matrices] for w in (params, grads, self.momentum)]
        ops.muon_step(*arrays, lr=muon_lr, **how)
        for p in self.others:
            flat = [w[p.name].reshape(-1) for w in (params, grads, self.m, self.v)]
            _adamw(ops, flat, s, p.decay, lr, step, grad_scale)


def is_hidden_matrix(p: Param) -> bool:
    """Whether it maps hidden channels to hidden channels: no embedding, output or vector."""
    return len(p.shape) == 2 and p.name.startswith("h.")


def _adamw(
    ops: Any, arrays: list[Any], s: Optimiser, decays: bool, lr: float, step: int, scale: float
) -> None:
    """One step on p, g, m and v, all flat."""
    ops.adamw_step(
        *arrays,
        lr=lr,
        beta1=s.beta1,
        beta2=s.beta2,
        eps=s.eps,
        weight_decay=s.weight_decay if decays else 0.0,
        step=step,
        grad_scale=scale,
    )


def global_norm(ops: Any, grads: Weights) -> float:
    """√Σ g² over all weights together."""
    return math.sqrt(float(ops.square_sum(grads.flat)))


def clip_scale(norm: float, clip: float) -> float:
    """What brings a gradient of length `norm` to at most `clip`; 1 where clip is 0.

    Source: Pascanu and others, "On the difficulty of training recurrent neural networks" (2013).
    """
    return clip / norm if clip > 0 and norm > clip else 1.0
