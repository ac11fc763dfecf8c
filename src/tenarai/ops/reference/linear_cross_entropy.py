"""The output projection and its cross-entropy together, without storing all logits.

    logits = x wᵀ      loss = cross_entropy(logits, targets)
    dx = dlogits w     dw = dlogitsᵀ x      dlogits = (p - onehot) dloss / n

B·T rows of V logits are by far the largest array of a small model (GPT-2 at B=4, T=1024:
824 MB), and each passes through memory several times. But a row's logits depend on that row
of x alone, and the loss is a sum over rows. So: a block of rows at a time, make the logits,
take their loss, and, where gradients are wanted, take these at once, for the logits are gone
afterwards. That is why `dw` and `dloss` are arguments of the forward. n, the count of targets,
is known before the first block, since the targets are.

A block's mean loss stands for n_block of the n targets, hence the factor `share`.
Saved: dx (where `dw` was given), and nothing else.
"""

from typing import Any

import numpy as np

from ...quant import QuantTensor
from ..gradient import MaybeGradient, cleared, wanted
from .common import Array, Saved
from .cross_entropy import IGNORED, check_targets, cross_entropy_backward, cross_entropy_forward

BLOCK_ROWS = 64  # a block of GPT-2's logits is 13 MB in float32


def linear_cross_entropy_forward(
    x: Array,
    w: Array | QuantTensor,
    targets: Array,
    dw: MaybeGradient = None,
    dloss: Any = 1.0,
    *,
    z_loss: float = 0.0,
) -> tuple[Array, Saved]:
    """loss = cross_entropy(x wᵀ, targets, z_loss). x (..., C), w (V, C), targets (...) integer,
    -1 ignored.

    With `dw` (V, C) given, dw += dloss · ∂loss/∂w, and dx is taken along for the backward to
    return; with FROZEN dx alone. Raises ValueError for a target outside the vocabulary.
    """
    check_targets(targets, w.shape[0])
    x_rows, target_rows = x.reshape(-1, x.shape[-1]), targets.reshape(-1)  # (N, C), (N,)
    counted = target_rows != IGNORED  # (N,)
    n = max(int(counted.sum()), 1)
    loss = np.zeros((), x.dtype)  # ()
    dx_rows = None if dw is None else np.empty_like(x_rows)  # (N, C)
    dw = cleared(wanted(dw))
    w = w.dequantize() if isinstance(w, QuantTensor) else w

    for start in range(0, len(x_rows), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)  # R rows
        share = int(counted[rows].sum()) / n
        logits = x_rows[rows] @ w.T  # (R, V)
        block_loss, logits_saved = cross_entropy_forward(logits, target_rows[rows], z_loss=z_loss)
        loss += share * block_loss
        if dx_rows is not None:
            dlogits = cross_entropy_backward(dloss * share, logits_saved)  # (R, V)
            if dw is not None:
                dw += dlogits.T @ x_rows[rows]  # (V, C)
            dx_rows[rows] = dlogits @ w  # (R, C)

    dx = None if dx_rows is None else dx_rows.reshape(x.shape)  # (..., C)
    return loss[()], (dx,)


def linear_cross_entropy_backward(saved: Saved) -> Array:
    """dx (..., C), taken by the forward. Raises ValueError when that one was given no `dw`."""
    (dx,) = saved
    if dx is None:
        raise ValueError(
            "linear_cross_entropy: the forward was given no dw, so no gradients were taken and "
            "the logits are gone: pass dw and dloss to linear_cross_entropy_forward"
        )
    return dx
