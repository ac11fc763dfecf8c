"""Low-rank adapters over frozen weights (LoRA), for any ops: what fine-tuning adds to them.

    y = x Wᵀ + s (d(x) Aᵀ) Bᵀ + b + residual        W (O, I) frozen, float32 or quantised
                                                     A (r, I), B (O, r) trained, d dropout

With h = d(x) Aᵀ and z = s h, both (..., r),

    ∂loss/∂B = Σ_rows dy zᵀ        dz = dy B
    ∂loss/∂A = Σ_rows dh d(x)ᵀ     dh = s dz
    dx = dy W + d(dh A)            the same mask d, for dropout is a product with it

Saved: x and z. d(x) is drawn again in the backward: random numbers are counted, so the mask is
the same, and a second x need not be kept. W is read twice, in the forward and for dx, and has no
gradient; a quantised W is expanded a few rows at a time, never whole. In what numbers the ops below
multiply (float32, or rounded ones) is theirs to say.

Source: Hu and others, "LoRA: Low-rank adaptation of large language models" (2021); over a
quantised W, Dettmers and others, "QLoRA" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..quant import QuantTensor
from .gradient import FROZEN

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LoraWeight:
    """W + s B A, where a weight of a linear layer may stand. `site` tells its dropout from others'.
    `first`: nothing that its input was made of is trained, so dx, which nobody needs, is zeros.

    Raises ValueError where the shapes do not fit together.
    """

    base: Array | QuantTensor  # (O, I)
    a: Array  # (r, I)
    b: Array  # (O, r)
    scale: float
    dropout: float = 0.0
    site: int = 0
    first: bool = False

    def __post_init__(self) -> None:
        O, I = self.base.shape
        r = len(self.a)
        if self.a.shape != (r, I) or self.b.shape != (O, r):
            raise ValueError(
                f"an adapter of shapes {self.a.shape} and {self.b.shape} for a weight {(O, I)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape[0], self.base.shape[1]

    def merged(self) -> Array:
        """W + s B A, expanded: (O, I) float32."""
        w = self.base.dequantize() if isinstance(self.base, QuantTensor) else self.base
        return (w + np.float32(self.scale) * (self.b @ self.a)).astype(np.float32)


class _Saved(NamedTuple):
    w: LoraWeight
    x: Array
    base: Any  # what the product with W saved
    of_a: Any  # with A; None where x was dropped from, and is to be so again
    of_b: Any  # with B
    mask: tuple | None  # p, seed, counter
    dropped: Any  # what the dropout saved


class _OfHead(NamedTuple):
    dx: Array | None


class _SavedGelu(NamedTuple):
    linear: _Saved
    gelu: Any


class Tuning:
    """`below`, ops of any kind, which take LoraWeights too. Everything else is theirs.

    seed: of this pass's dropout; None draws no masks. documents: (B, T) int32, which document of
    a packed row each place belongs to: attention stays within it; None for one a row. head: what
    takes the place of cross-entropy (preference.py), called with `below` and that op's arguments.
    share: the factor of the loss's gradient, as a batch's in a step of several.
    """

    def __init__(self, below: Any):
        self.below = below
        self.seed: int | None = None
        self.documents: Array | None = None
        self.share = 1.0
        self.head: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)

    @property
    def arena(self) -> Any:
        return getattr(self.below, "arena", None)

    @arena.setter
    def arena(self, arena: Any) -> None:  # what is recorded goes into another (replay.py)
        self.below.arena = arena

    def for_writing(self) -> Any:
        """See Fast.for_writing."""
        below = self.below.for_writing() if hasattr(self.below, "for_writing") else self.below
        return self if below is self.below else Tuning(below)

    # Linear layers

    def linear_forward(self, x, w, b=None, residual=None, *, out=None):
        if not isinstance(w, LoraWeight):
            return self.below.linear_forward(x, w, b, residual, out=out)
        ops = self.below
        y, base = ops.linear_forward(x, w.base, b, residual, out=out)  # (..., O)
        mask = None
        if w.dropout and self.seed is not None:
            mask = (w.dropout, self.seed, w.site << 40)
        z, of_a, dropped = self._down(x, w, mask)  # (..., r)
        z, _ = ops.scale_forward(z, w.scale, out=z)
        y, of_b = ops.linear_forward(z, w.b, None, y, out=y)
        return y, _Saved(w, x, base, None if mask else of_a, of_b, mask, dropped)

    def linear_backward(self, dy, saved, dw, db=None, *, out=None):
        if not isinstance(saved, _Saved):
            return self.below.linear_backward(dy, saved, dw, db, out=out)
        ops, w, of_a = self.below, saved.w, saved.of_a
        dz = ops.linear_backward(dy, saved.of_b, dw.b)  # (..., r)
        dh, _ = ops.scale_forward(dz, w.scale, out=dz)
        if saved.mask:  # d(x) once more
            _, of_a, _ = self._down(saved.x, w, saved.mask)
        part = ops.linear_backward(dh, of_a, dw.a)  # (..., I)
        del of_a
        if w.first:
            dx = part if out is None else out
            return ops.scale_forward(part, 0.0, out=dx)[0]
        if saved.mask:
            part = ops.dropout_backward(part, saved.dropped, out=part)
        dx = ops.linear_backward(dy, saved.base, FROZEN, db, out=out)
        return ops.residual_forward(dx, part, out=dx)[0]

    def gelu_linear_forward(self, x, w, b=None, residual=None, *, approximate="tanh", out=None):
        if not isinstance(w, LoraWeight):
            how = {"approximate": approximate, "out": out}
            return self.below.gelu_linear_forward(x, w, b, residual, **how)
        a, gelu = self.below.gelu_forward(x, approximate=approximate)
        y, linear = self.linear_forward(a, w, b, residual, out=out)
        return y, _SavedGelu(linear, gelu)

    def gelu_linear_backward(self, dy, saved, dw, db=None, *, out=None):
        if not isinstance(saved, _SavedGelu):
            return self.below.gelu_linear_backward(dy, saved, dw, db, out=out)
        da = self.linear_backward(dy, saved.linear, dw, db)
        return self.below.gelu_backward(da, saved.gelu, out=out)

    def _down(self, x: Array, w: LoraWeight, mask: tuple | None) -> tuple[Array, Any, Any]:
        """h = d(x) Aᵀ, and what the product and the dropout saved."""
        x, dropped = self.below.dropout_forward(x, *mask) if mask else (x, None)
        return (*self.below.linear_forward(x, w.a), dropped)

    # Mixture of experts

    def experts_forward(self, x, weights, experts, gates, ups, downs, *, linear=None):
        own = linear or self
        return self.below.experts_forward(x, weights, experts, gates, ups, downs, linear=own)

    # Attention, loss

    def attention_forward(self, q, k, v, sinks=None, **named):
        if self.documents is not None:
            named["documents"] = self.documents
        return self.below.attention_forward(q, k, v, sinks, **named)

    def linear_cross_entropy_forward(self, x, w, targets, dw=None, dloss=1.0, **named):
        dloss = dloss * self.share
        if self.head is None:
            return self.below.linear_cross_entropy_forward(x, w, targets, dw, dloss, **named)
        loss, dx = self.head(self.below, x, w, targets, dw, dloss)
        return loss, _OfHead(dx)

    def linear_cross_entropy_backward(self, saved):
        if isinstance(saved, _OfHead):
            return saved.dx
        return self.below.linear_cross_entropy_backward(saved)
