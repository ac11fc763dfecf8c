"""Gated linear attention: a state of fixed size in place of the keys and values of the past.

    S_t = diag(α_t) S_{t-1} + k_t v_tᵀ          α_t = exp(g_t)
    y_t = scale · S_tᵀ q_t

S (D, Dv) for each head holds Σ k vᵀ of the past, each of its D rows fading by its own gate.
Without gates (g None) this is linear attention: softmax attention without the exponential. With
one gate a head, (B, T, H), it is Mamba-2's recurrence (q = C, k = B, v = Δ x, g = -Δ a), RetNet's
and lightning attention's (the same g for all tokens).

Chunked form: the recurrence unrolled over a chunk of C tokens is four products of matrices, and
between chunks only the state is passed (linear_attention_chunk.py derives it, with u = v, and the
gradients). T/C steps one after another in place of T; work T·C·(D + Dv) + 2·T·D·Dv a head, linear
in T. The backward goes through the chunks from the last to the first, and dS_C of a chunk is dS_0
of the next.

Saved: the inputs and each chunk's first state: (T/C)·D·Dv numbers a head, with C = D = Dv as many
as k has. A is made again. Sources: Yang et al., "Gated linear attention transformers with
hardware-efficient training" (2024); Dao and Gu, "Transformers are SSMs" (2024); Sun et al.,
"Retentive network" (2023).
"""

import numpy as np

from .common import Array, Saved, place
from .linear_attention_chunk import (
    check,
    chunks,
    decode,
    gate_gradient,
    gates,
    heads_first,
    initial_state,
    read,
    read_backward,
    recurrent,
    write,
    write_backward,
)

NAME = "gated_linear_attention"


def _scale(scale: float | None, D: int) -> float:
    return D**-0.5 if scale is None else float(scale)


def gated_linear_attention_forward(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    initial: Array | None = None,
    *,
    scale: float | None = None,
    chunk: int = 64,
    out: Array | None = None,
) -> tuple[Array, Array, Saved]:
    """y (B, T, H, Dv), the last state (B, H, D, Dv), saved. q, k (B, T, H, D), v (B, T, H, Dv).

    g, the logarithms of the gates (≤ 0): (B, T, H, D), or (B, T, H), or None for none. `initial`
    (B, H, D, Dv) is the state before the first token, 0 by default; scale 1/√D. `chunk` changes
    nothing but the rounding. Raises ValueError for shapes that do not fit.
    """
    check(NAME, q, k, v, None, g)
    scale, S = _scale(scale, q.shape[-1]), initial_state(NAME, initial, k, v)
    q_h, k_h, v_h, g_h = heads_first(q), heads_first(k), heads_first(v), gates(g, k)
    y, states = np.empty_like(v_h), []  # (B, H, T, Dv)
    for t in chunks(q.shape[1], chunk):
        b = np.cumsum(g_h[:, :, t], axis=-2)  # (B, H, C, D)
        states.append(S)
        y[:, :, t] = scale * read(q_h[:, :, t], k_h[:, :, t], v_h[:, :, t], b, S, strict=False)
        S = write(k_h[:, :, t], v_h[:, :, t], b, S)
    y = place(np.ascontiguousarray(heads_first(y)), out)  # (B, T, H, Dv)
    return y, S, (q, k, v, g, states, initial is not None, scale, chunk)


def gated_linear_attention_backward(
    dy: Array, saved: Saved, dfinal: Array | None = None
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """dq, dk, dv, dg (None without gates), dinitial (None without `initial`), as derived.

    dy (B, T, H, Dv); dfinal (B, H, D, Dv) is the gradient of the last state, 0 where None.
    """
    q, k, v, g, states, has_initial, scale, chunk = saved
    q_h, k_h, v_h, g_h = heads_first(q), heads_first(k), heads_first(v), gates(g, k)
    dy_h = scale * heads_first(dy)
    dq, dk, dv, dg = (np.empty_like(x) for x in (q_h, k_h, v_h, g_h))
    dS = initial_state(NAME, dfinal, k, v)
    for t, S in zip(chunks(q.shape[1], chunk)[::-1], states[::-1], strict=True):
        b = np.cumsum(g_h[:, :, t], axis=-2)  # (B, H, C, D), recomputed
        k_t, v_t = k_h[:, :, t], v_h[:, :, t]
        written = write_backward(dS, k_t, v_t, b, S)
        was_read = read_backward(dy_h[:, :, t], q_h[:, :, t], k_t, v_t, b, S, strict=False)
        dq[:, :, t] = was_read[0]
        dk[:, :, t], dv[:, :, t], dS, db = (
            a + c for a, c in zip(written, was_read[1:], strict=True)
        )
        dg[:, :, t] = gate_gradient(db)
    dq, dk, dv, dg = (np.ascontiguousarray(heads_first(d)) for d in (dq, dk, dv, dg))
    return dq, dk, dv, None if g is None else dg.reshape(g.shape), dS if has_initial else None


def gated_linear_attention_recurrent(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    initial: Array | None = None,
    *,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """y and the last state by the recurrence itself, a token at a time. Shapes as above."""
    check(NAME, q, k, v, None, g)
    S = initial_state(NAME, initial, k, v)
    return recurrent(q, k, v, None, g, S, _scale(scale, q.shape[-1]))


def gated_linear_attention_decode(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None,
    states: Array,
    slots: Array,
    *,
    scale: float | None = None,
    out: Array | None = None,
) -> Array:
    """y (N, H, Dv) of one new token each for N sequences. q, k (N, H, D), v (N, H, Dv).

    g (N, H, D), (N, H) or None. states (slots, H, D, Dv) are the sequences' and move on in place;
    slots (N,) int32 says whose each row is. Rows of one sequence follow each other in order.
    """
    return place(decode(q, k, v, None, g, states, slots, _scale(scale, q.shape[-1])), out)
