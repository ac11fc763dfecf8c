"""The mixture of experts over the kernels: tokens gathered by expert, a product an expert.

All N·k pairs of token and place lie in one array, sorted by expert, so that an expert's are rows
side by side and what is kept for the backward has the same size whatever the router chose. What is
computed stands in ops/reference/experts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .gradient import MaybeGradient, clear_unwritten
from .saved import Saved

Array = np.ndarray


class Gathered:
    """Pairs of token and place, sorted by expert: which rows are whose."""

    def __init__(self, experts: Array, E: int):
        self.N, self.k = experts.size // experts.shape[-1], experts.shape[-1]
        flat = experts.reshape(-1)
        order = np.argsort(flat, kind="stable")  # (M,), M = N·k
        self.order, self.tokens = order, order // self.k
        self.places = np.empty_like(order)  # where each pair went
        self.places[order] = np.arange(len(order))
        self.places = self.places.reshape(self.N, self.k)
        ends = np.cumsum(np.bincount(flat, minlength=E)).tolist()
        self.parts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def gather(self, x: Array, out: Array) -> None:
        """out (M, C) = the token of each pair, of x (N, C)."""
        np.take(x, self.tokens, axis=0, out=out, mode="clip")

    def scatter(self, rows: Array, out: Array, scales: Array | None = None) -> None:
        """out (N, C) = Σ_j of a token's rows (M, C), times scales (N, k) where given."""
        for j in range(self.k):
            of_place = rows[self.places[:, j]]  # (N, C)
            if scales is not None:
                of_place *= scales[:, j, None]
            if j:
                out += of_place
            else:
                out[...] = of_place


def forward(
    ops: Any,
    x: Array,
    weights: Array,
    experts: Array,
    gates: Sequence[Any],
    ups: Sequence[Any],
    downs: Sequence[Any],
    linear: Any,
) -> tuple[Array, tuple]:
    """`linear` are the ops whose linear layers multiply: with adapters not `ops` (lora.py)."""
    (C, F), E, dry = downs[0].shape, len(gates), ops.arena.dry
    g = Gathered(experts, E)
    M = g.N * g.k
    rows, gate, up = ops._new(M, C), ops._new(M, F), ops._new(M, F)
    y, out = ops._new(M, C), ops.empty_like(x)
    if not dry:
        g.gather(x.reshape(-1, C), rows)
    to_gate = _products(linear, g, rows, gates, gate)
    to_up = _products(linear, g, rows, ups, up)
    f, gated = ops.swiglu_forward(gate, up)  # (M, F)
    from_f = _products(linear, g, f, downs, y)
    if not dry:
        g.scatter(y, out.reshape(-1, C), weights.reshape(-1, g.k))
    return out, Saved.of((y, to_gate, to_up, gated, from_f), (linear, g, weights))


def backward(
    ops: Any,
    dy: Array,
    saved: tuple,
    dgates: Sequence[MaybeGradient],
    dups: Sequence[MaybeGradient],
    ddowns: Sequence[MaybeGradient],
) -> tuple[Array, Array]:
    y, to_gate, to_up, gated, from_f, linear, g, weights = saved
    C, M, dry = dy.shape[-1], g.N * g.k, ops.arena.dry
    dout = ops._new(M, C)  # first the gradient of each token, then times its weight
    dweights = np.zeros(M, np.float32)
    if not dry:
        g.gather(dy.reshape(-1, C), dout)
        dweights[g.order] = np.einsum("mc,mc->m", dout, y)
        dout *= weights.reshape(-1)[g.order, None]
    df = ops.empty_like(gated[0])  # (M, F)
    _gradients(linear, g, dout, from_f, ddowns, df)
    dgate, dup = ops.swiglu_backward(df, gated)
    drows, more, dx = dout, ops._new(M, C), ops.empty_like(dy)  # dout has served
    _gradients(linear, g, dup, to_up, dups, drows)
    _gradients(linear, g, dgate, to_gate, dgates, more)
    ops.residual_forward(drows, more, out=drows)
    if not dry:
        g.scatter(drows, dx.reshape(-1, C))
    return dx, dweights.reshape(weights.shape)


def _products(ops: Any, g: Gathered, rows: Array, ws: Sequence[Any], out: Array) -> list[Any]:
    """out[part] = rows[part] wᵀ for each expert's part; → what their backward needs."""
    saved: list[Any] = []
    with ops.arena.aside():  # how many rows an expert has is not the plan's to know
        for part, w in zip(g.parts, ws, strict=True):
            empty = part.start == part.stop
            saved.append(None if empty else ops.linear_forward(rows[part], w, out=out[part])[1])
    return saved


def _gradients(
    ops: Any, g: Gathered, dy: Array, saved: list[Any], dws: Sequence[MaybeGradient], dx: Array
) -> None:
    with ops.arena.aside():
        for part, held, dw in zip(g.parts, saved, dws, strict=True):
            if held is None:
                clear_unwritten(dw)
            else:
                ops.linear_backward(dy[part], held, dw, out=dx[part])
