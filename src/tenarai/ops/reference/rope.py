"""Rotary position embedding: each pair of channels turned by an angle that grows with position.

For a pair (a, b) at position t, with c = cos θ_t and s = sin θ_t of that pair:

    a' = a c - b s          da = da' c + db' s
    b' = b c + a s          db = db' c - da' s

The forward is a rotation, its gradient the transposed matrix, which is the rotation back: the
backward is the forward with -s for s. Two rotated vectors have a product that depends only on
the distance between their positions, which is the point of it.

Which channels are a pair is a convention of the checkpoint: "half" pairs i with i + D/2
(Hugging Face's Llama), "adjacent" pairs 2i with 2i + 1 (the paper). Saved: cos, sin and the
pairing; not x, for the op is linear. The angles are no weights and get no gradient. Source: Su
et al., "RoFormer: enhanced transformer with rotary position embedding" (2021).
"""

import numpy as np

from .common import Array, Saved


def _pairs(x: Array, pairing: str) -> tuple[Array, Array]:
    """The first and the second of each pair, as views (B, T, H, D/2) of x (B, T, H, D)."""
    if x.shape[-1] % 2:
        raise ValueError(f"rope: head size {x.shape[-1]} is odd, its channels do not pair")
    if pairing == "half":
        middle = x.shape[-1] // 2
        return x[..., :middle], x[..., middle:]
    if pairing == "adjacent":
        return x[..., 0::2], x[..., 1::2]
    raise ValueError(f'rope: pairing is {pairing!r}, it must be "half" or "adjacent"')


def _rotate(x: Array, cos: Array, sin: Array, pairing: str, out: Array | None) -> Array:
    y = np.empty(x.shape, x.dtype) if out is None else out  # (B, T, H, D)
    c, s = cos[:, None, :], sin[:, None, :]  # (T, 1, D/2): the same for all heads
    a, b = _pairs(x, pairing)
    y_a, y_b = _pairs(y, pairing)
    # Both computed before either is written, so that y may be x.
    y_a[...], y_b[...] = a * c - b * s, b * c + a * s
    return y


def rope_forward(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    pairing: str = "half",
    positions: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """Turn each pair of x by its position's angle. x, y (B, T, H, D), cos, sin (T, D/2).

    With `positions` (N,) int32, x is (N, H, D), rows of any sequences, and cos and sin have a row
    for every position of the context; that form has no backward. Raises ValueError for an odd D or
    another pairing than "half" and "adjacent".
    """
    if positions is not None:
        cos, sin = cos[positions], sin[positions]  # (N, D/2)
    y = _rotate(x, cos, sin, pairing, out)  # (B, T, H, D)
    return y, (cos, sin, pairing)


def rope_backward(dy: Array, saved: Saved, *, out: Array | None = None) -> Array:
    """dx: each pair of dy turned back. dy, dx (B, T, H, D)."""
    cos, sin, pairing = saved
    dx = _rotate(dy, cos, -sin, pairing, out)  # (B, T, H, D)
    return dx
