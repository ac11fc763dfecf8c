"""Gated linear attention and the delta rule as cases (see op_cases): y and the last state in one.

The result of a case is y and the state one after the other, flat, so that a random upstream
gradient reaches both.
"""

from typing import Any

import numpy as np

from op_cases import Array, Arrays, Case, _normal, _rng

GATES = ("none", "head", "channel")


def inputs(
    name: str, B: int, T: int, H: int, D: int, Dv: int, gate: str, delta: bool, initial: bool
) -> Arrays:
    """Keys of length about 1, gates from weak to strong, beta inside of (0, 1)."""
    x = _normal(name, q=(B, T, H, D), k=(B, T, H, D), v=(B, T, H, Dv))
    x["k"] /= np.sqrt(D)
    if delta:
        x["beta"] = _rng(name + "beta").uniform(0.1, 0.9, (B, T, H))
    if gate != "none":
        shape = (B, T, H) if gate == "head" else (B, T, H, D)
        x["g"] = -np.exp(_rng(name + "g").uniform(-5, 1, shape))
    if initial:
        x |= _normal(name + "s", initial=(B, H, D, Dv))
    return x


def case(
    B: int,
    T: int,
    H: int,
    D: int,
    Dv: int,
    gate: str,
    delta: bool,
    initial: bool,
    scale: float | None = None,
    **options: Any,
) -> Case:
    op = "delta_rule" if delta else "gated_linear_attention"
    name = f"{op}-{B}-{T}-{H}-{D}-{Dv}-gate-{gate}" + "-initial" * initial + f"-{scale}-{options}"
    n = B * T * H * Dv

    def arguments(x: Arrays) -> list[Any]:
        return [x["q"], x["k"], x["v"], *([x["beta"]] if delta else []), x.get("g")]

    def forward(ops: Any, x: Arrays) -> tuple[Any, Any]:
        f = getattr(ops, op + "_forward")
        y, state, saved = f(*arguments(x), x.get("initial"), scale=scale, **options)
        return np.concatenate([y.reshape(-1), state.reshape(-1)]), saved

    def backward(ops: Any, dy: Array, saved: Any, grads: Arrays) -> Arrays:
        f = getattr(ops, op + "_backward")
        d = f(dy[:n].reshape(B, T, H, Dv), saved, dy[n:].reshape(B, H, D, Dv))
        names = ["q", "k", "v", *(["beta"] if delta else []), "g", "initial"]
        given = dict(zip(names, d, strict=True))
        assert {key for key, a in given.items() if a is None} == set(names) - set(x)
        return {key: a for key, a in given.items() if a is not None}

    x = inputs(name, B, T, H, D, Dv, gate, delta, initial)
    return Case(name, x, forward, backward, lambda x: torch_recurrence(x, scale))


def torch_recurrence(x: dict[str, Any], scale: float | None) -> Any:
    """The recurrence as its papers write it, a token at a time, for autograd."""
    import torch

    q, k, v = x["q"], x["k"], x["v"]
    (B, T, H, D), Dv = q.shape, v.shape[-1]
    S = x.get("initial", torch.zeros(B, H, D, Dv, dtype=q.dtype))
    outputs = []
    for t in range(T):
        if "g" in x:
            alpha = x["g"][:, t].exp()
            alpha = alpha[..., None].expand(B, H, D) if alpha.ndim == 2 else alpha
            S = torch.diag_embed(alpha) @ S
        if "beta" in x:  # (I - beta k kᵀ) S + beta k vᵀ
            beta_k = x["beta"][:, t, :, None] * k[:, t]
            S = S - torch.einsum("bhd,bhe,bhev->bhdv", beta_k, k[:, t], S)
            S = S + torch.einsum("bhd,bhv->bhdv", beta_k, v[:, t])
        else:
            S = S + torch.einsum("bhd,bhv->bhdv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhdv,bhd->bhv", S, q[:, t]))
    y = (D**-0.5 if scale is None else scale) * torch.stack(outputs, 1)
    return torch.cat([y.reshape(-1), S.reshape(-1)])


def small_cases() -> list[Case]:
    """Every gate, with and without a first state, chunks that divide T and that do not."""
    cases = []
    for delta in (False, True):
        for gate in GATES:
            for T, chunk in ((1, 4), (7, 3), (8, 4), (7, 64), (5, 1)):
                cases.append(case(2, T, 3, 5, 4, gate, delta, T != 8, chunk=chunk))
        cases.append(case(1, 6, 2, 3, 7, "channel", delta, True, 0.7, chunk=4))
        cases.append(case(1, 3, 1, 1, 1, "head", delta, True, chunk=2))
    return cases


def odd_cases() -> list[Case]:
    """For the kernels: blocks of 16 tokens and chunks of 64, begun and whole; widths below, of and
    above a vector."""
    cases = []
    for delta in (False, True):
        for gate in GATES:
            for T, H, D, Dv in ((1, 3, 5, 7), (15, 2, 16, 13), (64, 1, 33, 16), (150, 3, 20, 37)):
                cases.append(case(2, T, H, D, Dv, gate, delta, T != 15))
        cases.append(case(1, 65, 2, 64, 128, "head", delta, False, 0.7))
        cases += [case(1, 18, 1, n, 36 - n, "channel", delta, True) for n in range(1, 36, 2)]
    return cases
