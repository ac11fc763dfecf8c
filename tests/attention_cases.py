"""Attention with options drawn at random: shapes, inputs, and the same function in PyTorch.

`test_attention.py` checks the reference by the complex step and against autograd, the kernels
against the reference, on these.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tenarai.ops.attention_options import AttentionOptions, alibi_slopes, document_starts

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """q, k, v and perhaps sinks, all float64, and the options."""

    name: str
    inputs: Arrays
    options: AttentionOptions

    def forward(self, ops: Any, x: Arrays, **out: Any) -> tuple[Array, Any]:
        return ops.attention_forward(*(x[n] for n in self.inputs), options=self.options, **out)

    def backward(self, ops: Any, dy: Array, saved: Any, **out: Any) -> Arrays:
        """Gradients by name; the sinks' are added to an array of ones, which are taken off."""
        dsinks = np.ones(dy.shape[2], dy.dtype) if "sinks" in self.inputs else None
        grads = dict(zip("qkv", ops.attention_backward(dy, saved, dsinks, **out), strict=True))
        return grads if dsinks is None else grads | {"sinks": dsinks - 1}


def case(
    rng: np.random.Generator,
    name: str,
    shape: tuple[int, int, int, int, int, int],
    sinks: bool = False,
    **options: Any,
) -> Case:
    """Of shape B, T, S, H, K, D."""
    B, T, S, H, K, D = shape
    sizes = {"q": (B, T, H, D), "k": (B, S, K, D), "v": (B, S, K, D)}
    sizes |= {"sinks": (H,)} if sinks else {}
    inputs = {n: rng.standard_normal(size) for n, size in sizes.items()}
    inputs = {n: a.astype(np.float32).astype(np.float64) for n, a in inputs.items()}
    return Case(f"{name}-{'-'.join(map(str, shape))}", inputs, AttentionOptions(**options))


def documents(rng: np.random.Generator, B: int, S: int) -> Array:
    """Documents of 1 key and more, packed in rows."""
    most = int(rng.choice([1, 3, 40, 200]))
    ids = [np.repeat(np.arange(S), rng.integers(1, most + 1, S))[:S] for _ in range(B)]
    return document_starts(np.array(ids))


def drawn(seed: int, sizes: tuple[int, ...], heads: tuple[int, ...]) -> Case:
    """A case of random options, T and S among `sizes`, head size D among `heads`."""
    rng = np.random.default_rng(seed)

    def flip(share: float) -> bool:
        return bool(rng.random() < share)

    B, K, D = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.choice(heads))
    H, (T, S) = K * int(rng.integers(1, 4)), (int(n) for n in rng.choice(sizes, 2))
    o: dict[str, Any] = {"causal": flip(0.6)}
    if flip(0.4):
        o["window"] = int(rng.choice([1, 2, 5, 40, 64, 100]))
    if flip(0.4):
        o["documents"] = True
    if any(o.values()):
        T, S = sorted((T, S))
        T = S if flip(0.6) else T
    if "documents" in o:
        o["documents"] = documents(rng, B, S)
    if flip(0.4):
        each = rng.integers(0, S + 3, B).astype(np.int32)
        o["prefix"] = each if flip(0.5) else int(each[0])
    if flip(0.3):
        o["lengths"] = rng.integers(0, S + 1, B).astype(np.int32)
    if flip(0.4):
        o["soft_cap"] = float(rng.choice([0.5, 2.0, 50.0]))
    if flip(0.3):
        o["alibi"] = alibi_slopes(H)
    if flip(0.5):
        o["scale"] = float(rng.uniform(-1, 1))
    sinks = flip(0.4)
    o["off_by_one"] = not sinks and flip(0.3)
    return case(rng, f"drawn-{seed}", (B, T, S, H, K, D), sinks, **o)


def torch_attention(c: Case, x: dict[str, Any]) -> Any:
    """y by PyTorch: the mask place by place, the sink as one more key."""
    import torch

    o, (q, k, v) = c.options, (x[n].transpose(1, 2) for n in "qkv")  # (B, heads, T or S, D)
    (B, H, T, D), S = q.shape, k.shape[2]
    k, v = (t.repeat_interleave(H // k.shape[1], dim=1) for t in (k, v))
    mask = torch.zeros(B, 1, T, S, dtype=torch.bool)
    prefix = np.broadcast_to(o.prefix, B)
    for b, t, s in np.ndindex(B, T, S):
        at = t + S - T
        begin = 0 if o.documents is None else o.documents[b, at]
        near = (not o.causal or s <= at) and (o.window is None or abs(at - s) < o.window)
        same = o.documents is None or o.documents[b, s] == begin
        there = o.lengths is None or s < o.lengths[b]
        mask[b, 0, t, s] = bool(same and there and (near or s - begin < prefix[b]))
    distance = (torch.arange(T)[:, None] + S - T - torch.arange(S)).abs()
    bias = torch.zeros(H, 1, 1) if o.alibi is None else torch.tensor(-o.alibi[:, None, None])
    bias = (bias.double() * distance).masked_fill(~mask, -torch.inf)  # (B, H, T, S)
    sees = mask.any(dim=-1, keepdim=True)  # PyTorch's softmax over nothing is nan
    bias = torch.where(sees, bias, 0.0)
    scale = D**-0.5 if o.scale is None else o.scale
    if o.soft_cap is None and not o.off_by_one and "sinks" not in x:
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        return torch.where(sees, y, 0.0).transpose(1, 2)
    a = scale * (q @ k.transpose(-1, -2))
    a = a if o.soft_cap is None else o.soft_cap * torch.tanh(a / o.soft_cap)
    a = torch.where(sees, a + bias, -torch.inf)
    sinks = x.get("sinks", torch.zeros(H, dtype=a.dtype) if o.off_by_one else None)
    if sinks is None:
        return (torch.where(sees, torch.softmax(torch.where(sees, a, 0.0), dim=-1), 0.0) @ v
                ).transpose(1, 2)  # fmt: skip
    a = torch.cat([a, sinks[None, :, None, None].expand(B, H, T, 1)], dim=-1)
    return (torch.softmax(a, dim=-1)[..., :S] @ v).transpose(1, 2)
