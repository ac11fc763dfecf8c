"""Our side of `bench ops`: one op of the kernels a request (see `peer.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops import Fast
from .peer import Answer, serve
from .timing import call_seconds

Call = Callable[[], Any]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def linear(ops: Fast, M: int, I: int, O: int) -> tuple[Call, Call]:
    return _linear(ops.linear_forward, ops.linear_backward, M, I, O)


def gelu_linear(ops: Fast, M: int, I: int, O: int) -> tuple[Call, Call]:
    return _linear(ops.gelu_linear_forward, ops.gelu_linear_backward, M, I, O)


def _linear(forward: Callable, backward: Callable, M: int, I: int, O: int) -> tuple[Call, Call]:
    x, w, b, dy = random(M, I), random(O, I), random(O), random(M, O)
    y, dx, dw, db = np.zeros((M, O), np.float32), np.zeros_like(x), np.zeros_like(w), random(O)
    _, saved = forward(x, w, b, out=y)
    return lambda: forward(x, w, b, out=y), lambda: backward(dy, saved, dw, db, out=dx)


def attention(ops: Fast, B: int, T: int, H: int, D: int) -> tuple[Call, Call]:
    qkv, dy, y = random(B, T, 3, H, D), random(B, T, H, D), random(B, T, H, D)
    dqkv = np.zeros_like(qkv)
    q, k, v = (qkv[:, :, i] for i in range(3))
    out = tuple(dqkv[:, :, i] for i in range(3))
    _, saved = ops.attention_forward(q, k, v, out=y)
    return (
        lambda: ops.attention_forward(q, k, v, out=y),
        lambda: ops.attention_backward(dy, saved, out=out),
    )


def gated_linear_attention(ops: Fast, B: int, T: int, H: int, D: int) -> tuple[Call, Call]:
    q, k, v, g, _ = _linear_attention(B, T, H, D)
    y, _, saved = ops.gated_linear_attention_forward(q, k, v, g)
    return (
        lambda: ops.gated_linear_attention_forward(q, k, v, g, out=y),
        lambda: ops.gated_linear_attention_backward(v, saved),
    )


def delta_rule(ops: Fast, B: int, T: int, H: int, D: int) -> tuple[Call, Call]:
    q, k, v, g, beta = _linear_attention(B, T, H, D)
    y, _, saved = ops.delta_rule_forward(q, k, v, beta, g)
    return (
        lambda: ops.delta_rule_forward(q, k, v, beta, g, out=y),
        lambda: ops.delta_rule_backward(v, saved),
    )


def _linear_attention(B: int, T: int, H: int, D: int) -> list[np.ndarray]:
    """q, k of length 1, v, and a gate and a beta a head and token."""
    q, k, v = random(3, B, T, H, D)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return [q, k, v, -0.1 * random(B, T, H) ** 2, 1 / (1 + np.exp(random(B, T, H)))]


def layer_norm(ops: Fast, M: int, C: int) -> tuple[Call, Call]:
    x, w, b, dy = random(M, C), random(C), random(C), random(M, C)
    y, dx, dw, db = np.zeros_like(x), np.zeros_like(x), np.zeros_like(w), np.zeros_like(b)
    _, saved = ops.layer_norm_forward(x, w, b, out=y)
    return (
        lambda: ops.layer_norm_forward(x, w, b, out=y),
        lambda: ops.layer_norm_backward(dy, saved, dw, db, out=dx),
    )


def gelu(ops: Fast, M: int, C: int) -> tuple[Call, Call]:
    x, dy = random(M, C), random(M, C)
    y, dx = np.zeros_like(x), np.zeros_like(x)
    _, saved = ops.gelu_forward(x, out=y)
    return lambda: ops.gelu_forward(x, out=y), lambda: ops.gelu_backward(dy, saved, out=dx)


def linear_cross_entropy(ops: Fast, M: int, I: int, O: int) -> tuple[Call, None]:
    x, w, dw = random(M, I), random(O, I) * np.float32(0.02), np.zeros((O, I), np.float32)
    targets = np.random.default_rng(0).integers(0, O, M).astype(np.int32)
    return lambda: ops.linear_cross_entropy_forward(x, w, targets, dw), None


def adamw(ops: Fast, M: int) -> tuple[Call, None]:
    p, g, m, v = random(M), random(M), np.zeros(M, np.float32), np.zeros(M, np.float32)
    settings = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    return lambda: ops.adamw_step(p, g, m, v, **settings, step=1, grad_scale=1.0), None


OPS: dict[str, Callable[..., tuple[Call, Call | None]]] = {
    op.__name__: op
    for op in (linear, gelu_linear, attention, gated_linear_attention, delta_rule)
    + (layer_norm, gelu, linear_cross_entropy, adamw)
}


def kernels(request: dict[str, Any]) -> Fast:
    return Fast(request["threads"], isa=request["isa"], products=request["products"])


def configure(request: dict[str, Any]) -> Answer:
    """{"threads", "products", "isa"}; then {"op", "shape", "seconds"} each."""
    ops = kernels(request)

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        forward, backward = OPS[ask["op"]](ops, **ask["shape"])
        return {
            "forward": min(call_seconds(forward, ask["seconds"])),
            "backward": min(call_seconds(backward, ask["seconds"])) if backward else 0.0,
        }

    return answer


if __name__ == "__main__":
    sys.exit(serve(configure, "ops_ours"))
