"""The delta rule, plain and gated: a token corrects what the state says of its key.

    S̃_t = diag(α_t) S_{t-1}                     α_t = exp(g_t): what is left of the past
    u_t = β_t (v_t - S̃_tᵀ k_t)                  the new value less what the state gives for k_t
    S_t = S̃_t + k_t u_tᵀ                        so S_tᵀ k_t = v_t where β_t = |k_t| = 1
    y_t = scale · S_tᵀ q_t

Linear attention only adds; here a key's old value is taken out as the new one goes in: one step
of gradient descent on ½|Sᵀk - v|² with step size β. Without gates (g None) it is DeltaNet, with
one a head, (B, T, H), Gated DeltaNet (Qwen3-Next), with one a channel, (B, T, H, D), Kimi Delta
Attention.

Chunked form. Given u this is gated linear attention with u for v, and u is a strict read of the
state (the names of linear_attention_chunk.py: L_ij = Σ_d k_id k_jd e^{b_id-b_jd}, j < i):

    u = diag(β) (v - (k∘e^b) S_0 - L u)         so   (I + diag(β) L) u = diag(β) (v - (k∘e^b) S_0)

a triangular system of C equations, solved from the first token on. With M = (I + diag(β) L)⁻¹
that is u = M diag(β) v - M diag(β) (k∘e^b) S_0 = U - W S_0: the WY form, after that of products of
Householder matrices, for such the I - β k kᵀ are. A GPU makes U and W of all chunks at once; here
S_0 is known when a chunk is met, and one solve with Dv columns is the cheaper.

Gradient. y and S_C give du by linear attention's backward. Let

    z = the solution of (I + diag(β) L)ᵀ z = du    from the last token on
    r = v - (k∘e^b) S_0 - L u                      (u = β ∘ r)

Differentiating (I + diag(β) L) u = ... and multiplying by zᵀ leaves Σ z ∘ (dβ r + β dr), so

    dβ_i = z_i · r_i        dv = β ∘ z        and -β ∘ z is the gradient of k's strict read,

whose backward gives the rest of dk (twice: as reader and as writer), dS_0 and db.

Saved: the inputs, u, and each chunk's first state. Sources: Schlag et al., "Linear transformers are
secretly fast weight programmers" (2021); Yang et al., "Parallelizing linear transformers with the
delta rule over sequence length" (2024) and "Gated delta networks" (2025); Kimi team, "Kimi linear"
(2025).
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
    pairs,
    read,
    read_backward,
    recurrent,
    write,
    write_backward,
)

NAME = "delta_rule"


def _scale(scale: float | None, D: int) -> float:
    return D**-0.5 if scale is None else float(scale)


def _solve(L: Array, x: Array) -> Array:
    """u of (I + L) u = x, L (..., C, C) strictly lower: each row from those above it."""
    u = x.copy()
    for i in range(1, u.shape[-2]):
        u[..., i, :] -= (L[..., i : i + 1, :i] @ u[..., :i, :])[..., 0, :]
    return u


def _solve_transposed(L: Array, x: Array) -> Array:
    """z of (I + L)ᵀ z = x: each row from those below it."""
    z = x.copy()
    for i in reversed(range(z.shape[-2] - 1)):
        column = L[..., i + 1 :, i : i + 1].swapaxes(-1, -2)  # (..., 1, C - i - 1)
        z[..., i, :] -= (column @ z[..., i + 1 :, :])[..., 0, :]
    return z


def delta_rule_forward(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    initial: Array | None = None,
    *,
    scale: float | None = None,
    chunk: int = 64,
    out: Array | None = None,
) -> tuple[Array, Array, Saved]:
    """y (B, T, H, Dv), the last state (B, H, D, Dv), saved. q, k (B, T, H, D), v (B, T, H, Dv).

    beta (B, T, H), from 0 to 1. g, `initial`, scale and `chunk` as in gated linear attention. Keys
    should have length 1: with β|k|² > 2 the state grows without bound. Raises ValueError for shapes
    that do not fit.
    """
    check(NAME, q, k, v, beta, g)
    scale, S = _scale(scale, q.shape[-1]), initial_state(NAME, initial, k, v)
    q_h, k_h, v_h, g_h = heads_first(q), heads_first(k), heads_first(v), gates(g, k)
    beta_h = heads_first(beta)[..., None]  # (B, H, T, 1)
    y, u, states = np.empty_like(v_h), np.empty_like(v_h), []  # (B, H, T, Dv)
    for t in chunks(q.shape[1], chunk):
        q_t, k_t, beta_t = q_h[:, :, t], k_h[:, :, t], beta_h[:, :, t]
        b = np.cumsum(g_h[:, :, t], axis=-2)  # (B, H, C, D)
        states.append(S)
        L = pairs(k_t, k_t, b, strict=True)  # (B, H, C, C)
        u_t = _solve(beta_t * L, beta_t * (v_h[:, :, t] - (k_t * np.exp(b)) @ S))
        u[:, :, t], y[:, :, t] = u_t, scale * read(q_t, k_t, u_t, b, S, strict=False)
        S = write(k_t, u_t, b, S)
    y = place(np.ascontiguousarray(heads_first(y)), out)  # (B, T, H, Dv)
    return y, S, (q, k, v, beta, g, u, states, initial is not None, scale, chunk)


def delta_rule_backward(
    dy: Array, saved: Saved, dfinal: Array | None = None
) -> tuple[Array, Array, Array, Array, Array | None, Array | None]:
    """dq, dk, dv, dbeta, dg (None without gates), dinitial (None without `initial`), as derived.

    dy (B, T, H, Dv); dfinal (B, H, D, Dv) is the gradient of the last state, 0 where None.
    """
    q, k, v, beta, g, u, states, has_initial, scale, chunk = saved
    q_h, k_h, v_h, g_h = heads_first(q), heads_first(k), heads_first(v), gates(g, k)
    beta_h, dy_h = heads_first(beta)[..., None], scale * heads_first(dy)
    dq, dk, dv, dbeta, dg = (np.empty_like(x) for x in (q_h, k_h, v_h, beta_h, g_h))
    dS = initial_state(NAME, dfinal, k, v)
    for t, S in zip(chunks(q.shape[1], chunk)[::-1], states[::-1], strict=True):
        b = np.cumsum(g_h[:, :, t], axis=-2)  # (B, H, C, D), recomputed
        k_t, u_t, beta_t = k_h[:, :, t], u[:, :, t], beta_h[:, :, t]
        written = write_backward(dS, k_t, u_t, b, S)
        was_read = read_backward(dy_h[:, :, t], q_h[:, :, t], k_t, u_t, b, S, strict=False)
        dk_t, du, dS, db = (a + c for a, c in zip(written, was_read[1:], strict=True))

        L = pairs(k_t, k_t, b, strict=True)  # (B, H, C, C), recomputed
        z = _solve_transposed(beta_t * L, du)  # (B, H, C, Dv)
        r = v_h[:, :, t] - read(k_t, k_t, u_t, b, S, strict=True)  # (B, H, C, Dv)
        dr, dwriter, _, dS0, db_k = read_backward(-beta_t * z, k_t, k_t, u_t, b, S, strict=True)

        dq[:, :, t], dk[:, :, t], dv[:, :, t] = was_read[0], dk_t + dr + dwriter, beta_t * z
        dbeta[:, :, t] = (z * r).sum(axis=-1, keepdims=True)
        dg[:, :, t] = gate_gradient(db + db_k)
        dS = dS + dS0
    dq, dk, dv, dbeta, dg = (np.ascontiguousarray(heads_first(d)) for d in (dq, dk, dv, dbeta, dg))
    dinitial = dS if has_initial else None
    return dq, dk, dv, dbeta[..., 0], None if g is None else dg.reshape(g.shape), dinitial


def delta_rule_recurrent(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    initial: Array | None = None,
    *,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """y and the last state by the recurrence itself, a token at a time. Shapes as above."""
    check(NAME, q, k, v, beta, g)
    S = initial_state(NAME, initial, k, v)
    return recurrent(q, k, v, beta, g, S, _scale(scale, q.shape[-1]))


def delta_rule_decode(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None,
    states: Array,
    slots: Array,
    *,
    scale: float | None = None,
    out: Array | None = None,
) -> Array:
    """y (N, H, Dv) of one new token each for N sequences. q, k (N, H, D), v (N, H, Dv).

    beta (N, H), g (N, H, D), (N, H) or None. states (slots, H, D, Dv) are the sequences' and move
    on in place; slots (N,) int32 says whose each row is. Rows of one sequence follow each other in
    order.
    """
    return place(decode(q, k, v, beta, g, states, slots, _scale(scale, q.shape[-1])), out)
