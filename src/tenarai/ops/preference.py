"""Direct preference optimisation (DPO): of two answers to a question, the better one made likelier.

Rows come in pairs, the chosen answer and then the rejected one. With ℓ_b = Σ_t log p(target_bt) the
log-probability of row b's targets, and ℓ⁰_b that of the model as it was,

    z_i  = β ((ℓ − ℓ⁰)_chosen,i − (ℓ − ℓ⁰)_rejected,i)          a pair's margin
    loss = mean over the n pairs of −log σ(z_i)

Since d(−log σ(z))/dz = −σ(−z),

    ∂loss/∂ℓ_chosen,i = −β σ(−z_i) / n          ∂loss/∂ℓ_rejected,i = +β σ(−z_i) / n

and −ℓ_b is a cross-entropy, summed: so the gradient is that of linear_cross_entropy, row by row,
with ±β σ(−z_i) / n as the upstream gradient. A pair that the model has already set apart weighs
little, one that it has the wrong way round weighs most. The ℓ must be known before the first
gradient, so the logits are made twice; they are never kept.

Source: Rafailov and others, "Direct preference optimization" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .gradient import MaybeGradient, Unwritten

Array = np.ndarray


def log_probs(ops: Any, x: Array, w: Any, targets: Array) -> Array:
    """ℓ (B,): of row b's targets, those of −1 left out. x (B, T, C), w (V, C), targets (B, T)."""
    counts = np.count_nonzero(targets >= 0, axis=1)  # (B,)
    losses = [ops.linear_cross_entropy_forward(x[b], w, targets[b])[0] for b in range(len(x))]
    return -counts * np.array(losses)


def dpo_forward(
    ops: Any,
    x: Array,
    w: Any,
    targets: Array,
    reference: Array,
    beta: float,
    dw: MaybeGradient = None,
    dloss: Any = 1.0,
) -> tuple[Any, Array, Array | None]:
    """loss, margins z (B/2,) and dx, where `dw` (V, C), or FROZEN, is given: dw += ∂loss/∂w.

    x (B, T, C), targets (B, T): pairs of rows; reference (B,) is ℓ⁰. Pairs without a target are
    left out. ops: those that have linear_cross_entropy.
    """
    logs = log_probs(ops, x, w, targets)  # (B,)
    gained = (logs - reference).reshape(-1, 2)  # (B/2, 2)
    z = beta * (gained[:, 0] - gained[:, 1])
    counts = np.count_nonzero(targets >= 0, axis=1)  # (B,)
    real = counts.reshape(-1, 2).any(axis=1)
    n = max(1, int(real.sum()))
    # −log σ(z) = log(1 + exp(−z)), from the side on which exp is small
    shift = np.where(z.real < 0, -z, 0)
    loss = (np.where(real, shift + np.log(np.exp(-shift) + np.exp(-z - shift)), 0)).sum() / n
    if dw is None:
        return loss, z, None
    weight = np.where(real, beta * (1 - np.tanh(z.real / 2)) / 2, 0) / n  # β σ(−z) / n
    dx = ops.empty_like(x)
    for b in range(len(x)):
        upstream = (dloss if b % 2 == 0 else -dloss) * weight[b // 2] * counts[b]
        _, saved = ops.linear_cross_entropy_forward(x[b], w, targets[b], dw, float(upstream))
        np.copyto(dx[b], ops.linear_cross_entropy_backward(saved))
        dw = dw.array if isinstance(dw, Unwritten) else dw
    return loss, z, dx


@dataclass
class Preference:
    """DPO in the place of cross-entropy (`Tuning.head`); the margins of the last pass are kept."""

    beta: float
    reference: Array  # (B,)
    margins: Array = field(default_factory=lambda: np.zeros(0))

    def __call__(self, ops, x, w, targets, dw, dloss) -> tuple[Any, Any]:
        loss, self.margins, dx = dpo_forward(
            ops, x, w, targets, self.reference, self.beta, dw, dloss
        )
        return loss, dx


@dataclass
class LogProbs:
    """No loss (`Tuning.head`): the rows' log-probabilities are kept."""

    values: Array = field(default_factory=lambda: np.zeros(0))

    def __call__(self, ops, x, w, targets, dw, dloss) -> tuple[Any, Any]:
        self.values = log_probs(ops, x, w, targets)
        return 0.0, None
