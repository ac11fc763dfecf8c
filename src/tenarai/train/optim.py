"""AdamW over a model's flat weights, and clipping by the global norm.

The matrices (and embeddings) decay, biases and the weights of norms do not: the table orders the
flat buffer so, and one step is two calls of `adamw_step`. What it computes stands in
ops/reference/optim.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tenarai.config import Optimiser
from tenarai.models.table import Param, Weights


class AdamW:
    """First and second moments of a table's weights: m and v, `Weights` both."""

    def __init__(self, table: Sequence[Param], settings: Optimiser):
        self.settings = settings
        self.m, self.v = Weights(table), Weights(table)

    def step(
        self, ops: Any, params: Weights, grads: Weights, *, lr: float, step: int, grad_scale: float
    ) -> None:
        """Update `params` in place; `step` counts from 1. The gradient is grads · grad_scale."""
        s = self.settings
        end = len(params.flat)
        for part, decay in (
            (slice(0, params.decayed), s.weight_decay),
            (slice(params.decayed, end), 0.0),
        ):
            if part.start < part.stop:
                ops.adamw_step(
                    params.flat[part],
                    grads.flat[part],
                    self.m.flat[part],
                    self.v.flat[part],
                    lr=lr,
                    beta1=s.beta1,
                    beta2=s.beta2,
                    eps=s.eps,
                    weight_decay=decay,
                    step=step,
                    grad_scale=grad_scale,
                )


def global_norm(ops: Any, grads: Weights) -> float:
    """√Σ g² over all weights together."""
    return math.sqrt(float(ops.square_sum(grads.flat)))


def clip_scale(norm: float, clip: float) -> float:
    """What brings a gradient of length `norm` to at most `clip`; 1 where clip is 0.

    Source: Pascanu and others, "On the difficulty of training recurrent neural networks" (2013).
    """
    return clip / norm if clip > 0 and norm > clip else 1.0
