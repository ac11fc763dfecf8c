"""A mixture of experts: each token goes through k of E gated MLPs, those that a router chose.

    p = softmax(r)                          r (..., E), the router's logits
    e_1 ... e_k = the k largest of p        and w_j = p at e_j, over their sum where `normalise`
    y = Σ_j w_j · down_e(silu(gate_e(x)) · up_e(x))          e = e_j

The choice has no gradient, the weights have: with s = Σ_j p_j, w_j = p_j / s,

    dp_j = (dw_j - Σ_i dw_i w_i) / s        without `normalise` dp_j = dw_j; 0 elsewhere
    dr = p (dp - Σ_e dp_e p_e)              softmax backwards

A router soon sends everything to few experts, which then learn all the more. Against that stands
the balance loss b · E · Σ_e f_e P_e, f_e the tokens that e gets over N, P_e the mean of p_e: least
where both are even. f counts and has no gradient, so dp_e += b E f_e / N for every token.

Sources: Shazeer and others (2017), Fedus and others, "Switch transformers" (2021), (4) to (6);
Jiang and others, "Mixtral of experts" (2024).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..gradient import MaybeGradient, clear_unwritten
from .common import Array, Saved
from .linear import linear_backward, linear_forward
from .swiglu import swiglu_backward, swiglu_forward


def route_forward(
    logits: Array, k: int, *, normalise: bool = True, balance: float = 0.0
) -> tuple[Array, Array, Array, Saved]:
    """weights (..., k), experts (..., k) int32, the balance loss (), saved. logits (..., E).

    Of equal probabilities the first expert's counts as the largest. Raises ValueError where k is
    not from 1 to E.
    """
    E = logits.shape[-1]
    if not 1 <= k <= E:
        raise ValueError(f"route: {k} of {E} experts, expected 1 to {E}")
    top = logits.real.max(axis=-1, keepdims=True)  # (..., 1); real: a shift, no branch
    p = np.exp(logits - top)
    p = p / p.sum(axis=-1, keepdims=True)  # (..., E)
    experts = np.argsort(-p.real, axis=-1, kind="stable")[..., :k]  # (..., k)
    weights = np.take_along_axis(p, experts, axis=-1)  # (..., k)
    total = weights.sum(axis=-1, keepdims=True) if normalise else None  # (..., 1)
    weights = weights if total is None else weights / total
    N = max(1, p.size // E)
    share = np.bincount(experts.reshape(-1), minlength=E) / N  # (E,)
    slope = (balance * E * share).astype(logits.real.dtype)  # (E,), b E f
    loss = (slope * p.reshape(-1, E).sum(axis=0)).sum() / N  # ()
    return weights, experts.astype(np.int32), loss, (p, experts, weights, total, slope / N)


def route_backward(dweights: Array, saved: Saved) -> Array:
    """dlogits (..., E), the balance loss's own gradient in it. dweights (..., k)."""
    p, experts, weights, total, dbalance = saved
    dp = np.zeros_like(p) + dbalance  # (..., E)
    if total is not None:
        dweights = (dweights - (dweights * weights).sum(axis=-1, keepdims=True)) / total
    chosen = np.take_along_axis(dp, experts, axis=-1) + dweights  # (..., k)
    np.put_along_axis(dp, experts, chosen, axis=-1)
    return p * (dp - (dp * p).sum(axis=-1, keepdims=True))


def experts_forward(
    x: Array,
    weights: Array,
    experts: Array,
    gates: Sequence[Array],
    ups: Sequence[Array],
    downs: Sequence[Array],
    *,
    linear: Any = None,
) -> tuple[Array, Saved]:
    """y (..., C), the sum above. x (..., C), weights, experts (..., k); of each expert a gate and
    an up (F, C) and a down (C, F). `linear` are the ops whose linear layers multiply with them:
    those of ops/lora.py where they have adapters."""
    forward = linear.linear_forward if linear else linear_forward
    k = experts.shape[-1]
    rows, flat = x.reshape(-1, x.shape[-1]), experts.reshape(-1, k)  # (N, C), (N, k)
    scales, y = weights.reshape(-1, k), np.zeros_like(rows)
    each = []
    for e in range(len(gates)):
        tokens, places = np.nonzero(flat == e)  # each token at most once
        gate, to_gate = forward(rows[tokens], gates[e])  # (n, F)
        up, to_up = forward(rows[tokens], ups[e])
        f, gated = swiglu_forward(gate, up)
        out, from_f = forward(f, downs[e])  # (n, C)
        y[tokens] += scales[tokens, places][:, None] * out
        each.append((tokens, places, to_gate, to_up, gated, out, from_f))
    return y.reshape(x.shape), (linear, x.shape, scales, each, weights.shape)


def experts_backward(
    dy: Array,
    saved: Saved,
    dgates: Sequence[MaybeGradient],
    dups: Sequence[MaybeGradient],
    ddowns: Sequence[MaybeGradient],
) -> tuple[Array, Array]:
    """dx (..., C), dweights (..., k). Gradients of experts that no token goes to stay."""
    linear, shape, scales, each, weights_shape = saved
    backward = linear.linear_backward if linear else linear_backward
    dy_rows = dy.reshape(-1, shape[-1])  # (N, C)
    dx, dscales = np.zeros_like(dy_rows), np.zeros_like(scales)
    for e, (tokens, places, to_gate, to_up, gated, out, from_f) in enumerate(each):
        if not len(tokens):
            clear_unwritten(dgates[e], dups[e], ddowns[e])
            continue
        dscales[tokens, places] = (dy_rows[tokens] * out).sum(axis=-1)
        dout = scales[tokens, places][:, None] * dy_rows[tokens]  # (n, C)
        df = backward(dout, from_f, ddowns[e])
        dgate, dup = swiglu_backward(df, gated)
        dx[tokens] += backward(dup, to_up, dups[e])
        dx[tokens] += backward(dgate, to_gate, dgates[e])
    return dx.reshape(shape), dscales.reshape(weights_shape)
