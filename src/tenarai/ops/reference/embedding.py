"""Embedding: a row of wte for each token, plus a row of wpe for its position where there is one.

    x_bt = wte[token_bt] + wpe[start + t]

A token used at several places gets the sum of their gradients, a position the sum over the
batch:

    dwte[c] = Σ over (b, t) with token_bt = c of dx_bt      dwpe[start + t] = Σ_b dx_bt

Saved: the tokens and start. The gradient of the tokens does not exist (they are integers), so
the backward returns nothing. `start` is where the first token stands when a cache holds the
past.
"""

import numpy as np

from tenarai.quant import QuantTensor

from ..gradient import MaybeGradient, cleared, wanted
from .common import Array, Saved, place


def embedding_forward(
    tokens: Array,
    wte: Array | QuantTensor,
    wpe: Array | None = None,
    *,
    start: int = 0,
    positions: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """x = wte[tokens] + wpe[start + t]. tokens (B, T) int32, wte (V, C), wpe (Tmax, C).

    x (B, T, C). With `positions` (N,) int32, tokens are (N,), rows of any sequences, and
    x = wte[tokens] + wpe[positions] (N, C); that form has no backward. Of a quantised wte only the
    rows asked for are expanded. Raises ValueError for a token outside the vocabulary or a position
    outside wpe.
    """
    V, T = wte.shape[0], tokens.shape[-1]
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < V):
        raise ValueError(
            f"embedding: tokens from {tokens.min()} to {tokens.max()}, the vocabulary has 0 to "
            f"{V - 1}: was this text tokenized with another tokenizer?"
        )
    if isinstance(wte, QuantTensor):
        used, place_of = np.unique(tokens, return_inverse=True)
        x = wte[used].dequantize()[place_of.reshape(tokens.shape)]  # (B, T, C)
    else:
        x = wte[tokens]  # (B, T, C)
    if wpe is not None and positions is not None:
        if positions.size and not (positions.min() >= 0 and positions.max() < len(wpe)):
            raise ValueError(
                f"embedding: positions {positions.min()} to {positions.max()}, but wpe has "
                f"{len(wpe)}: shorten the text or take a model with a longer context"
            )
        x = x + wpe[positions]  # (N, C)
    elif wpe is not None:
        if not 0 <= start <= len(wpe) - T:
            raise ValueError(
                f"embedding: positions {start} to {start + T - 1}, but wpe has {len(wpe)}: "
                "shorten the text or take a model with a longer context"
            )
        x = x + wpe[start : start + T]  # (B, T, C) + (T, C)
    return place(x, out), (tokens, start)


def embedding_backward(
    dx: Array, saved: Saved, dwte: MaybeGradient, dwpe: MaybeGradient = None
) -> None:
    """dwte[tokens] += dx, dwpe[start + t] += Σ_b dx. dx (B, T, C), dwte (V, C), dwpe (Tmax, C)."""
    tokens, start = saved
    dwte, dwpe = cleared(wanted(dwte)), cleared(wanted(dwpe))
    if dwpe is not None:
        dwpe[start : start + tokens.shape[1]] += dx.sum(axis=0)  # (T, C)
    if dwte is not None:
        np.add.at(dwte, tokens, dx)  # unlike dwte[tokens] += dx, this adds repeated tokens up
