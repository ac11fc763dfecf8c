"""Linear layer: y = x wᵀ + b + residual.

An element of the output is y_no = Σ_i x_ni w_oi + b_o + residual_no, with n any row. So

    ∂loss/∂x_ni = Σ_o dy_no w_oi      dx = dy w
    ∂loss/∂w_oi = Σ_n dy_no x_ni      dw = dyᵀ x
    ∂loss/∂b_o  = Σ_n dy_no           db = column sums of dy
    ∂loss/∂residual = dy              (the model passes it on)

Three products of the same three dims (rows, I, O), each summing over another one. Saved: x
and w, by reference; y is not needed. The residual is added here because y is still in cache
when the fast kernel finishes a tile.

A quantised weight is expanded first, and frozen: its backward gives dx alone.
"""

from ...quant import QuantTensor
from ..gradient import MaybeGradient, cleared, wanted
from .common import Array, Saved, place


def linear_forward(
    x: Array,
    w: Array | QuantTensor,
    b: Array | None = None,
    residual: Array | None = None,
    *,
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """y = x wᵀ + b + residual. x (..., I), w (O, I), b (O,), residual and y (..., O)."""
    matrix = w.dequantize() if isinstance(w, QuantTensor) else w
    y = x @ matrix.T  # (..., O)
    if b is not None:
        y = y + b
    if residual is not None:
        y = y + residual
    return place(y, out), (x, w)


def linear_backward(
    dy: Array,
    saved: Saved,
    dw: MaybeGradient,
    db: MaybeGradient = None,
    *,
    out: Array | None = None,
) -> Array:
    """dx = dy w; dw += dyᵀ x; db += Σ dy. dy (..., O), dw (O, I), db (O,), dx (..., I).

    dw is FROZEN or None where w is frozen, and db likewise.
    """
    x, w = saved
    w = w.dequantize() if isinstance(w, QuantTensor) else w
    dw, db = wanted(dw), wanted(db)
    dy_rows = dy.reshape(-1, w.shape[0])  # (N, O)
    x_rows = x.reshape(-1, w.shape[1])  # (N, I)
    if db is not None:
        db = cleared(db)
        db += dy_rows.sum(axis=0)  # (O,)
    if dw is not None:
        dw = cleared(dw)
        dw += dy_rows.T @ x_rows  # (O, I)
    dx = dy @ w  # (..., I)
    return place(dx, out)
