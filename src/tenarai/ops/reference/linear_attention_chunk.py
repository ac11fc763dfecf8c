"""One chunk of linear attention: reading the state, writing to it, and the gradients of both.

What gated linear attention and the delta rule share. A head keeps a state S (D, Dv). Token t lets
it fade by α_t = exp(g_t), a number for each of its D rows or one for all, adds k_t u_tᵀ, and reads
it with a vector r_t:

    S_t = diag(α_t) S_{t-1} + k_t u_tᵀ      read_t = S_tᵀ r_t,  strictly (S_t - k_t u_tᵀ)ᵀ r_t

Over a chunk of C tokens that begins with S_0 the recurrence unrolls. With b_i = g_1 + ... + g_i,

    S_i    = diag(e^{b_i}) S_0 + Σ_{j≤i} diag(e^{b_i-b_j}) k_j u_jᵀ
    read_i = (r_i ∘ e^{b_i}) S_0 + Σ_{j≤i} A_ij u_j        A_ij = Σ_d r_id k_jd e^{b_id-b_jd}
    S_C    = diag(e^{b_C}) S_0 + Σ_j (k_j ∘ e^{b_C-b_j}) u_jᵀ

(j < i in a strict read): four products of matrices in place of C steps. Every exponent is a sum
of g's, so with g ≤ 0 nothing overflows; splitting e^{b_i-b_j} into e^{b_i} and e^{-b_j} would.

The gradients, with dread and dS_C given and ᵀ for the transpose:

    dA_ij = dread_i · u_j                        where j ≤ i (or j < i), else 0
    dr_i  = (S_0 dread_i) ∘ e^{b_i} + Σ_j dA_ij k_j ∘ e^{b_i-b_j}
    dk_j  = Σ_i dA_ij r_i ∘ e^{b_i-b_j} + (dS_C u_j) ∘ e^{b_C-b_j}
    du_j  = Σ_i A_ij dread_i + dS_Cᵀ (k_j ∘ e^{b_C-b_j})
    dS_0  = Σ_i (r_i ∘ e^{b_i}) dread_iᵀ + diag(e^{b_C}) dS_C

b stands next to r and k alone: b_i grows with r_i, and shrinks what k_i leaves, so

    db_i = r_i ∘ dr_i - k_i ∘ dk_i     and b_C, in all of S_C, also gets   Σ_v (S_C ∘ dS_C)_dv

which needs no product of its own. Last, g_i is in b_i and all later ones: dg_i = Σ_{l≥i} db_l,
within the chunk; what lies behind it has been in dS_C. Source: Yang et al., "Gated linear attention
transformers with hardware-efficient training" (2024).

Shapes here: r, k (..., C, D), u (..., C, Dv), S (..., D, Dv), b (..., C, D) or (..., C, 1).
"""

import numpy as np

from .common import Array


def heads_first(x: Array) -> Array:
    """(B, T, H, ...) → (B, H, T, ...), and back."""
    return x.swapaxes(1, 2)


def gates(g: Array | None, k: Array) -> Array:
    """g as (B, H, T, D), (B, H, T, 1) for one gate a head, or zeros where there is none."""
    if g is None:
        g = np.zeros(k.shape[:3], k.dtype)  # (B, T, H)
    return heads_first(g[..., None] if g.ndim == 3 else g)


def check(op: str, q: Array, k: Array, v: Array, beta: Array | None, g: Array | None) -> None:
    """Raises ValueError where the shapes of an op's inputs do not fit together."""
    if q.ndim != 4 or k.shape != q.shape or v.shape[:-1] != q.shape[:-1]:
        shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
        raise ValueError(f"{op}: {shapes}: expected (B, T, H, D) twice and (B, T, H, Dv)")
    if beta is not None and beta.shape != q.shape[:3]:
        raise ValueError(f"{op}: beta has shape {beta.shape}, expected (B, T, H) = {q.shape[:3]}")
    if g is not None and g.shape not in (q.shape[:3], q.shape):
        raise ValueError(f"{op}: g has shape {g.shape}, expected {q.shape[:3]} or {q.shape}")


def initial_state(op: str, initial: Array | None, k: Array, v: Array) -> Array:
    """`initial` (B, H, D, Dv), or zeros. Raises ValueError where its shape is another."""
    (B, _, H, D), Dv = k.shape, v.shape[-1]
    if initial is None:
        return np.zeros((B, H, D, Dv), k.dtype)
    if initial.shape != (B, H, D, Dv):
        raise ValueError(f"{op}: the state has shape {initial.shape}, expected {(B, H, D, Dv)}")
    return initial


def chunks(T: int, C: int) -> list[slice]:
    """[0, T) in pieces of C, the last one as long as what is left."""
    return [slice(t, min(t + C, T)) for t in range(0, T, C)]


def _pair_decay(b: Array, strict: bool) -> Array:
    """e^{b_i-b_j}, 0 where token i does not see j. (..., C, C, D) or (..., C, C, 1)."""
    i = np.arange(b.shape[-2])
    seen = (i[:, None] > i if strict else i[:, None] >= i)[..., None]  # (C, C, 1)
    exponent = np.where(seen, b[..., :, None, :] - b[..., None, :, :], 0)
    return np.where(seen, np.exp(exponent), 0)


def pairs(r: Array, k: Array, b: Array, strict: bool) -> Array:
    """A (..., C, C)."""
    products = r[..., :, None, :] * k[..., None, :, :] * _pair_decay(b, strict)
    return products.sum(axis=-1)


def read(r: Array, k: Array, u: Array, b: Array, S0: Array, strict: bool) -> Array:
    """read (..., C, Dv)."""
    return (r * np.exp(b)) @ S0 + pairs(r, k, b, strict) @ u


def read_backward(
    dread: Array, r: Array, k: Array, u: Array, b: Array, S0: Array, strict: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """dr, dk, du, dS0, db as derived above."""
    decay = _pair_decay(b, strict)  # (..., C, C, D)
    A = (r[..., :, None, :] * k[..., None, :, :] * decay).sum(axis=-1)  # (..., C, C)
    dA = (dread @ u.swapaxes(-1, -2))[..., None] * decay  # (..., C, C, D), with its decay
    dr = (dread @ S0.swapaxes(-1, -2)) * np.exp(b) + (dA * k[..., None, :, :]).sum(axis=-2)
    dk = (dA * r[..., :, None, :]).sum(axis=-3)  # (..., C, D)
    du = A.swapaxes(-1, -2) @ dread  # (..., C, Dv)
    dS0 = (r * np.exp(b)).swapaxes(-1, -2) @ dread  # (..., D, Dv)
    return dr, dk, du, dS0, _as_gate(r * dr - k * dk, b)


def write(k: Array, u: Array, b: Array, S0: Array) -> Array:
    """S_C (..., D, Dv)."""
    end = b[..., -1:, :]  # (..., 1, D)
    return np.exp(end).swapaxes(-1, -2) * S0 + (k * np.exp(end - b)).swapaxes(-1, -2) @ u


def write_backward(
    dS: Array, k: Array, u: Array, b: Array, S0: Array
) -> tuple[Array, Array, Array, Array]:
    """dk, du, dS0, db as derived above; S_C is made again."""
    end = b[..., -1:, :]  # (..., 1, D)
    dk = (u @ dS.swapaxes(-1, -2)) * np.exp(end - b)  # (..., C, D)
    du = (k * np.exp(end - b)) @ dS  # (..., C, Dv)
    dS0 = np.exp(end).swapaxes(-1, -2) * dS  # (..., D, Dv)
    db = _as_gate(-k * dk, b)  # (..., C, D)
    of_end = (write(k, u, b, S0) * dS).sum(axis=-1)[..., None, :]  # (..., 1, D)
    db[..., -1:, :] += _as_gate(of_end, b)
    return dk, du, dS0, db


def _as_gate(x: Array, b: Array) -> Array:
    """x (..., D) as it is, or summed over D where one gate is all of theirs."""
    return x if b.shape[-1] == x.shape[-1] else x.sum(axis=-1, keepdims=True)


def gate_gradient(db: Array) -> Array:
    """dg of a chunk: dg_i = Σ_{l≥i} db_l."""
    return np.flip(np.cumsum(np.flip(db, axis=-2), axis=-2), axis=-2)


def step(
    S: Array, q: Array, k: Array, v: Array, g: Array, beta: Array | None = None
) -> tuple[Array, Array]:
    """One token: the new state (..., D, Dv), and q's read of it (..., Dv). The plain recurrence.

    q, k (..., D), v (..., Dv), g (..., D) or (..., 1). With beta (...) the token first subtracts
    what the state gives for its key: u = beta (v - Sᵀ k). Without, u = v.
    """
    S = np.exp(g)[..., None] * S  # (..., D, Dv)
    u = v
    if beta is not None:
        u = beta[..., None] * (v - (k[..., None, :] @ S)[..., 0, :])  # (..., Dv)
    S = S + k[..., None] * u[..., None, :]
    return S, (q[..., None, :] @ S)[..., 0, :]


def recurrent(
    q: Array, k: Array, v: Array, beta: Array | None, g: Array | None, S: Array, scale: float
) -> tuple[Array, Array]:
    """y (B, T, H, Dv) and the last state, a token at a time: what every other form must equal."""
    y = np.empty_like(v)
    g = heads_first(gates(g, k))  # (B, T, H, D)
    for t in range(q.shape[1]):
        b = None if beta is None else beta[:, t]
        S, y[:, t] = step(S, scale * q[:, t], k[:, t], v[:, t], g[:, t], b)
    return y, S


def decode(
    q: Array,
    k: Array,
    v: Array,
    beta: Array | None,
    g: Array | None,
    states: Array,
    slots: Array,
    scale: float,
) -> Array:
    """y (N, H, Dv) of N new tokens in order; states (slots, H, D, Dv) move on in place."""
    y = np.empty_like(v)
    g = gates(None if g is None else g[None], k[None])[0]  # (H, N, D)
    for n, slot in enumerate(slots):
        b = None if beta is None else beta[n]
        states[slot], y[n] = step(states[slot], scale * q[n], k[n], v[n], g[:, n], b)
    return y
