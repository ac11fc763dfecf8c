"""PyTorch's side of `bench ops`: the same work as `ops_ours.py`, a request an op.

A backward is autograd's, from a graph that is kept, so that only its own time counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .peer import Answer, serve
from .timing import call_seconds

Call = Callable[[], Any]
Pair = tuple[Call, Call | None]


def variable(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def differentiated(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Pair:
    """The forward, and the backward of one forward with a random upstream gradient."""
    y = forward()
    dy = torch.randn_like(y)
    return forward, lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def linear(M: int, I: int, O: int) -> Pair:
    x, w, b = variable(M, I), variable(O, I), variable(O)
    return differentiated(lambda: F.linear(x, w, b), [x, w, b])


def gelu_linear(M: int, I: int, O: int) -> Pair:
    x, w, b = variable(M, I), variable(O, I), variable(O)
    return differentiated(lambda: F.linear(F.gelu(x, approximate="tanh"), w, b), [x, w, b])


def attention(B: int, T: int, H: int, D: int) -> Pair:
    qkv = variable(B, T, 3, H, D)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    return differentiated(
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v]
    )


def gated_linear_attention(B: int, T: int, H: int, D: int) -> Pair:
    return _linear_attention(B, T, H, D, False)


def delta_rule(B: int, T: int, H: int, D: int) -> Pair:
    return _linear_attention(B, T, H, D, True)


def _linear_attention(B: int, T: int, H: int, D: int, delta: bool) -> Pair:
    k = F.normalize(torch.randn(B, H, T, D), dim=-1).requires_grad_()
    q, v, g = variable(B, H, T, D), variable(B, H, T, D), (-0.1 * torch.rand(B, H, T))
    inputs = [q, k, v, g.requires_grad_()] + [torch.rand(B, H, T).requires_grad_()] * delta
    return differentiated(lambda: chunked(*inputs), inputs)


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None = None) -> Tensor:
    """y (B, H, T, D) in chunks of 64 tokens (which divide T), with beta by the delta rule in its WY
    form: docs/attention-linear.md, sections 7 and 10. g, beta (B, H, T)."""
    (B, H, T, D), C = q.shape, 64
    qc, kc, vc = (x.view(B, H, -1, C, D) for x in (q, k, v))
    b = g.view(B, H, -1, C).cumsum(-1)[..., None]  # (B, H, N, C, 1)
    end = b[..., -1:, :]
    fade = (b - b.transpose(-1, -2)).tril().exp().tril()  # (B, H, N, C, C)
    pairs, from_start, to_end = qc @ kc.transpose(-1, -2) * fade, qc * b.exp(), kc * (end - b).exp()
    u, w = vc, None
    if beta is not None:
        step = beta.view(B, H, -1, C, 1)
        equations = step * (kc @ kc.transpose(-1, -2) * fade).tril(-1)
        right = torch.cat([step * vc, step * kc * b.exp()], -1)
        solved = torch.linalg.solve_triangular(equations, right, upper=False, unitriangular=True)
        u, w = solved.split(D, dim=-1)
    state, y = q.new_zeros(B, H, D, D), []
    for n in range(T // C):
        un = u[:, :, n] if w is None else u[:, :, n] - w[:, :, n] @ state
        y.append(from_start[:, :, n] @ state + pairs[:, :, n] @ un)
        state = end[:, :, n].exp() * state + to_end[:, :, n].transpose(-1, -2) @ un
    return torch.stack(y, 2).view(B, H, T, D)


def layer_norm(M: int, C: int) -> Pair:
    x, w, b = variable(M, C), variable(C), variable(C)
    return differentiated(lambda: F.layer_norm(x, (C,), w, b), [x, w, b])


def gelu(M: int, C: int) -> Pair:
    x = variable(M, C)
    return differentiated(lambda: F.gelu(x, approximate="tanh"), [x])


def linear_cross_entropy(M: int, I: int, O: int) -> Pair:
    x, w = variable(M, I), (0.02 * torch.randn(O, I)).requires_grad_()
    targets = torch.randint(O, (M,))
    return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, w), targets), [x, w]), None


def adamw(M: int) -> Pair:
    p = variable(M)
    p.grad = torch.randn(M)
    optimiser = torch.optim.AdamW([p], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return optimiser.step, None


OPS: dict[str, Callable[..., Pair]] = {
    op.__name__: op
    for op in (linear, gelu_linear, attention, gated_linear_attention, delta_rule)
    + (layer_norm, gelu, linear_cross_entropy, adamw)
}


def configure(request: dict[str, Any]) -> Answer:
    """{"threads"}; then {"op", "shape", "seconds"} each."""
    torch.set_num_threads(request["threads"])

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        forward, backward = OPS[ask["op"]](**ask["shape"])
        return {
            "forward": min(call_seconds(forward, ask["seconds"])),
            "backward": min(call_seconds(backward, ask["seconds"])) if backward else 0.0,
        }

    return answer


if __name__ == "__main__":
    sys.exit(serve(configure, "ops_torch"))
