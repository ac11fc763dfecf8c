"""The MLP half of a block with a mixture of experts: what it adds to x (ops/reference/experts.py).

    x + Σ_j w_j expert_(e_j)(m) + shared(m),   w, e = route(router(m)),   m = norm(x)

The shared expert, where there is one, is a gated MLP that every token goes through (DeepSeekMoE,
Dai et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tenarai.ops.gradient import MaybeGradient

from .llama_config import LlamaConfig

Array = np.ndarray


def forward(
    ops: Any, c: LlamaConfig, w: Mapping[str, Any], m: Array, x: Array, balance: float
) -> tuple[Array, tuple]:
    """x (..., C) with what the experts add; `balance` is the weight of the layer's balance loss."""
    logits, to_logits = ops.linear_forward(m, w["mlp.router.weight"])  # (..., E)
    weights, experts, loss, routed = ops.route_forward(
        logits, c.experts_per_token, normalise=c.normalise_experts, balance=balance
    )
    y, mixed = ops.experts_forward(m, weights, experts, *_of_experts(c, w))
    x, _ = ops.residual_forward(x, y)
    shared = None
    if c.shared_hidden:
        gate, to_gate = ops.linear_forward(m, w["mlp.shared.gate.weight"])
        up, to_up = ops.linear_forward(m, w["mlp.shared.up.weight"])
        f, gated = ops.swiglu_forward(gate, up)  # (..., F)
        x, from_f = ops.linear_forward(f, w["mlp.shared.down.weight"], None, x)
        shared = (to_gate, to_up, gated, from_f)
    return x, (loss, to_logits, routed, mixed, shared)


def backward(
    ops: Any, c: LlamaConfig, dx: Array, saved: tuple, dw: Mapping[str, MaybeGradient]
) -> Array:
    """dm; x's own gradient is dx itself."""
    _, to_logits, routed, mixed, shared = saved
    dm, dweights = ops.experts_backward(dx, mixed, *_of_experts(c, dw))
    dlogits = ops.route_backward(dweights, routed)
    more = [ops.linear_backward(dlogits, to_logits, dw["mlp.router.weight"])]
    if shared is not None:
        to_gate, to_up, gated, from_f = shared
        df = ops.linear_backward(dx, from_f, dw["mlp.shared.down.weight"])
        dgate, dup = ops.swiglu_backward(df, gated)
        more.append(ops.linear_backward(dup, to_up, dw["mlp.shared.up.weight"]))
        more.append(ops.linear_backward(dgate, to_gate, dw["mlp.shared.gate.weight"]))
    for d in more:
        dm, _ = ops.residual_forward(dm, d, out=dm)
    return dm


def balance_loss(saved: tuple) -> Any:
    """The balance loss of a forward."""
    return saved[0]


def _of_experts(c: LlamaConfig, w: Mapping[str, Any]) -> list[list[Any]]:
    """Gates, ups and downs of all experts. Gradients are asked for in this order, once."""
    return [
        [w[f"mlp.experts.{e}.{part}.weight"] for e in range(c.experts)]
        for part in ("gate", "up", "down")
    ]
