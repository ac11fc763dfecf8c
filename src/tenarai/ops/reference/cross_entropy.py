"""Softmax cross-entropy: the mean of -log p(target), over the rows that have a target.

With logits z of a row, ℓ = log Σ_v exp(z_v) and p_v = exp(z_v - ℓ):

    loss_row = -log p_target = ℓ - z_target
    ∂ℓ/∂z_v = p_v      so      ∂loss_row/∂z_v = p_v - [v = target]

With a z-loss of weight ζ, which keeps the logits from drifting away (Chowdhery et al. 2022):

    loss_row = ℓ - z_target + ζ ℓ²      ∂loss_row/∂z_v = (1 + 2 ζ ℓ) p_v - [v = target]

The mean over n counted rows divides by n; rows whose target is -1 do not count and get no
gradient, and where none counts the loss is 0. Saved: logits, targets, ℓ (one number a row), n
and ζ; the probabilities are recomputed, as in attention.
"""

import numpy as np

from .common import Array, Saved, place

IGNORED = -1


def check_targets(targets: Array, V: int) -> None:
    """Raise ValueError unless every target is -1 or a token of the vocabulary."""
    if targets.size and not (targets.min() >= IGNORED and targets.max() < V):
        raise ValueError(
            f"cross_entropy: targets from {targets.min()} to {targets.max()}, the vocabulary has "
            f"0 to {V - 1} (and {IGNORED} for ignored ones)"
        )


def cross_entropy_forward(
    logits: Array, targets: Array, *, z_loss: float = 0.0
) -> tuple[Array, Saved]:
    """loss = mean over counted targets of (ℓ - logits[target] + z_loss ℓ²). logits (..., V),
    targets (...).

    Targets are integers, -1 is ignored. The loss is a scalar of the logits' dtype. Raises
    ValueError for a target outside the vocabulary.
    """
    check_targets(targets, logits.shape[-1])
    counted = targets != IGNORED  # (...)
    n = max(int(counted.sum()), 1)
    top = logits.real.max(axis=-1, keepdims=True)  # (..., 1); real: a shift, no branch
    lse = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))  # (..., 1)
    index = np.where(counted, targets, 0)[..., None]  # (..., 1)
    rows = lse - np.take_along_axis(logits, index, axis=-1) + z_loss * lse**2  # (..., 1)
    loss = np.where(counted, rows[..., 0], 0).sum() / n  # ()
    return loss, (logits, targets, lse, n, z_loss)


def cross_entropy_backward(dloss: Array, saved: Saved, *, out: Array | None = None) -> Array:
    """dlogits = ((1 + 2 ζ ℓ) p - onehot(target)) dloss / n, 0 where ignored.

    dloss (), dlogits (..., V).
    """
    logits, targets, lse, n, z_loss = saved
    counted = (targets != IGNORED)[..., None]  # (..., 1)
    index = np.where(counted, targets[..., None], 0)  # (..., 1)
    drows = np.where(counted, dloss / n, 0).astype(logits.dtype)  # (..., 1)
    dlogits = np.exp(logits - lse) * (
        (1 + 2 * z_loss * lse) * drows
    )  # (..., V), the probabilities recomputed
    at_target = np.take_along_axis(dlogits, index, axis=-1) - drows  # (..., 1)
    np.put_along_axis(dlogits, index, at_target, axis=-1)
    return place(dlogits, out)
