"""Cross-entropy over its kernels, alone and fused with the output projection: methods of `Fast`.

The reference's names, arguments and order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gradient import Unwritten, cleared, wanted

# Logits held at a time by linear_cross_entropy. Larger blocks read the weights less often,
# smaller ones hold less memory.
LOGITS_BYTES = 128 << 20
# Rows in multiples of it where there is room: the gradients of the weights sum up so many at once.
EVEN_ROWS = 512


class Loss:
    arena: Any
    empty_like: Any
    _run: Any
    _new: Any
    _expanded: Any
    _product: Any
    _linear_backward: Any
    products: Any

    def cross_entropy_forward(self, logits, targets, *, z_loss=0.0):
        dlogits = self.empty_like(logits)  # the gradient at dloss = 1
        count = max(1, int(np.count_nonzero(targets >= 0)))
        if not self.arena.dry:
            dlogits[...] = logits
        loss = self._run("cross_entropy", dlogits, targets, 1 / count, z_loss)
        return loss / count, (dlogits,)

    def cross_entropy_backward(self, dloss, saved, *, out=None):
        (dlogits,) = saved
        dx = self.empty_like(dlogits) if out is None else out
        if not self.arena.dry:
            np.multiply(dlogits, np.float32(dloss), out=dx)
        return dx

    def linear_cross_entropy_forward(self, x, w, targets, dw=None, dloss=1.0, *, z_loss=0.0):
        V, C = w.shape
        rows, targets = x.reshape(-1, C), targets.reshape(-1)  # (M, C), (M,)
        count = max(1, int(np.count_nonzero(targets >= 0)))
        scale = dloss / count if dw is not None else 0.0
        dx = self.empty_like(x) if dw is not None else None
        step = _logits_step(len(rows), V)
        logits = self._new(step, V)
        chosen = _Chosen(self, targets, step, C) if wanted(dw) is None else None
        expanded = self._expanded(w)  # once: how many blocks there are, the targets decide
        share = None
        if dx is not None and self.products != "plain" and isinstance(w, np.ndarray):
            share = _TargetsShare(self, step, C)
        dw = wanted(dw)
        if isinstance(dw, Unwritten) and not len(rows):
            dw = cleared(dw)
        loss = 0.0
        drows = None if dx is None else dx.reshape(-1, C)
        blocks = chosen.blocks(rows, drows) if chosen else _blocks(rows, drows, step)
        for at, block, dblock in blocks:
            dlogits = logits[: len(block)]
            self._product(dlogits, block, w, None, None, "off")
            loss += self._run("cross_entropy", dlogits, targets[at], scale, z_loss)
            if dblock is not None:
                if scale == 0 and not self.arena.dry:  # the kernel left the logits there
                    dlogits[...] = 0
                if share:
                    share.take(dlogits, targets[at])
                self._linear_backward(dlogits, (block, w, "off"), dw, None, dblock, expanded)
                dw = dw.array if isinstance(dw, Unwritten) else dw
                if share:
                    share.add(dblock, dw, block, w)
        return loss / count, dx

    def linear_cross_entropy_backward(self, saved):
        return saved


def _logits_step(M, V):
    """Rows of logits at a time, whole multiples of 64 that share M evenly: a short last block
    costs more a row, because the weights are packed for it all the same."""
    most = LOGITS_BYTES // (4 * V)
    grain = EVEN_ROWS if most >= EVEN_ROWS else 64
    most = max(1, most // grain) * grain
    steps = -(-M // most) or 1
    return min(M, -(-M // steps // 64) * 64) or 1


def _blocks(rows, drows, step):
    """(where, rows, their gradients or None), `step` rows at a time."""
    for i in range(0, len(rows), step):
        at = slice(i, i + step)
        yield at, rows[at], None if drows is None else drows[at]


class _TargetsShare:
    """What the targets' own logits give to dx and dw, in float32. Products that round a row to a
    part of its greatest number would lose the others beside a target's: at first its gradient is
    -1, theirs 1 / V."""

    def __init__(self, ops, step, C):
        self._ops, self._rows = ops, ops._new(step, C)

    def take(self, dlogits, targets):
        """The targets' gradients, out of dlogits; 0 where there is none."""
        if self._ops.arena.dry:
            return
        self._at = np.maximum(targets, 0)
        places = np.arange(len(targets)), self._at
        self._own = dlogits[places][:, None]
        dlogits[places] = 0

    def add(self, dx, dw, x, w):
        if self._ops.arena.dry:
            return
        rows = self._rows[: len(x)]
        np.take(w, self._at, axis=0, out=rows)
        rows *= self._own
        dx += rows
        if dw is not None:
            np.multiply(x, self._own, out=rows)
            self._ops.embedding_backward(rows[None], (self._at[None], 0), dw)


class _Chosen:
    """The rows that have a target, `step` at a time, side by side: of a conversation, the answers.
    The others' gradients are zero, and their logits need not be made."""

    def __init__(self, ops, targets, step, C):
        self._ops, self._step = ops, step
        self._at = np.flatnonzero(targets >= 0)
        self._x, self._dx = ops._new(step, C), ops._new(step, C)

    def blocks(self, rows, drows):
        if self._ops.arena.dry or len(self._at) == len(rows):
            yield from _blocks(rows, drows, self._step)
            return
        if drows is not None:
            drows[...] = 0
        for i in range(0, len(self._at), self._step):
            at = self._at[i : i + self._step]
            x, dx = self._x[: len(at)], self._dx[: len(at)]
            np.take(rows, at, axis=0, out=x)
            yield at, x, None if drows is None else dx
            if drows is not None:
                drows[at] = dx
