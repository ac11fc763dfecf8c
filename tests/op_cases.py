"""Every op with every option, as cases that several checks share.

A case holds an op's inputs and says how to call its forward, its backward, and the same
function in PyTorch. `test_reference_ops` checks it by the complex step, `test_reference_torch`
against autograd, `test_fast_ops` the kernels against the reference.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One op with its options and inputs.

    forward(ops, x, **out) → y, saved        x: the inputs by name
    backward(ops, dy, saved, grads, **out) → gradients by name, without those of `weights`,
                                             which are added to the arrays of `grads`
    torch(x) → y                             None where PyTorch has no such function
    """

    name: str
    inputs: Arrays
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Arrays]
    torch: Callable[[dict[str, Any]], Any] | None
    weights: tuple[str, ...] = ()
    # A gradient that reaches an input by a path around the op: the loss has Σ bypass·input too.
    bypass: Arrays = field(default_factory=dict)
    forward_out: bool = False
    backward_out: tuple[str, ...] = ()  # the inputs whose gradients `out` takes

    def loss(self, ops: Any, x: Arrays, dy: Any) -> complex:
        """Σ dy·y + Σ bypass·input, whose gradient is what `backward` gives for dy."""
        y, _ = self.forward(ops, x)
        return (dy * y).sum() + sum((g * x[name]).sum() for name, g in self.bypass.items())


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _normal(name: str, **shapes: tuple[int, ...]) -> Arrays:
    """Standard normal inputs: among them no weight is 0 or 1."""
    rng = _rng(name)
    return {key: rng.standard_normal(shape) for key, shape in shapes.items()}


def linear(
    lead: tuple[int, ...], I: int, O: int, bias: bool, residual: bool, gelu: str | None = None
) -> Case:
    op = "linear" if gelu is None else "gelu_linear"
    options = {} if gelu is None else {"approximate": gelu}
    name = f"{op}-{lead}-{I}-{O}" + "-bias" * bias + "-residual" * residual + f"-{gelu}"
    inputs = _normal(name, x=(*lead, I), w=(O, I))
    inputs |= _normal(name + "b", b=(O,)) if bias else {}
    inputs |= _normal(name + "r", residual=(*lead, O)) if residual else {}

    def forward(ops: Any, x: Arrays, **out: Any) -> tuple[Any, Any]:
        f = getattr(ops, op + "_forward")
        return f(x["x"], x["w"], x.get("b"), x.get("residual"), **options, **out)

    def backward(ops: Any, dy: Array, saved: Any, grads: Arrays, **out: Any) -> Arrays:
        dx = getattr(ops, op + "_backward")(dy, saved, grads["w"], grads.get("b"), **out)
        return {"x": dx} | ({"residual": dy} if residual else {})

    def torch_forward(x: dict[str, Any]) -> Any:
        from torch.nn import functional as F

        a = x["x"] if gelu is None else F.gelu(x["x"], approximate=gelu)
        return F.linear(a, x["w"], x.get("b")) + x.get("residual", 0)

    weights = ("w", "b") if bias else ("w",)
    return Case(name, inputs, forward, backward, torch_forward, weights, {}, True, ("x",))


def gelu(shape: tuple[int, ...], approximate: str, spread: float = 3.0) -> Case:
    """By default well into both tails."""
    name = f"gelu-{shape}-{approximate}"

    def torch_forward(x: dict[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.gelu(x["x"], approximate=approximate)

    return Case(
        name,
        {"x": spread * _normal(name, x=shape)["x"]},
        lambda ops, x, **out: ops.gelu_forward(x["x"], approximate=approximate, **out),
        lambda ops, dy, saved, grads, **out: {"x": ops.gelu_backward(dy, saved, **out)},
        torch_forward,
        forward_out=True,
        backward_out=("x",),
    )


def silu(shape: tuple[int, ...]) -> Case:
    name = f"silu-{shape}"

    def torch_forward(x: dict[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.silu(x["x"])

    return Case(
        name,
        {"x": 5 * _normal(name, x=shape)["x"]},
        lambda ops, x: ops.silu_forward(x["x"]),
        lambda ops, dy, saved, grads: {"x": ops.silu_backward(dy, saved)},
        torch_forward,
    )


def gated(op: str, shape: tuple[int, ...]) -> Case:
    """swiglu or geglu."""
    name = f"{op}-{shape}"

    def backward(ops: Any, dy: Array, saved: Any, grads: Arrays) -> Arrays:
        dgate, dup = getattr(ops, op + "_backward")(dy, saved)
        return {"gate": dgate, "up": dup}

    def torch_forward(x: dict[str, Any]) -> Any:
        from torch.nn import functional as F

        gate = F.silu(x["gate"]) if op == "swiglu" else F.gelu(x["gate"], approximate="tanh")
        return gate * x["up"]

    return Case(
        name,
        _normal(name, gate=shape, up=shape),
        lambda ops, x: getattr(ops, op + "_forward")(x["gate"], x["up"]),
        backward,
        torch_forward,
    )


def scale(shape: tuple[int, ...], factor: float) -> Case:
    name = f"scale-{shape}-{factor}"
    return Case(
        name,
        _normal(name, x=shape),
        lambda ops, x, **out: ops.scale_forward(x["x"], factor, **out),
        lambda ops, dy, saved, grads, **out: {"x": ops.scale_backward(dy, saved, **out)},
        lambda x: factor * x["x"],
        forward_out=True,
        backward_out=("x",),
    )


def embedding(B: int, T: int, C: int, V: int, positions: bool, start: int = 0) -> Case:
    name = f"embedding-{B}-{T}-{C}-{V}" + f"-positions-from-{start}" * positions
    tokens = _rng(name).integers(0, V, (B, T)).astype(np.int32)
    inputs = _normal(name, wte=(V, C))
    inputs |= _normal(name + "p", wpe=(T + start + 2, C)) if positions else {}

    def forward(ops: Any, x: Arrays, **out: Any) -> tuple[Any, Any]:
        return ops.embedding_forward(tokens, x["wte"], x.get("wpe"), start=start, **out)

    def backward(ops: Any, dx: Array, saved: Any, grads: Arrays) -> Arrays:
        ops.embedding_backward(dx, saved, grads["wte"], grads.get("wpe"))
        return {}

    def torch_forward(x: dict[str, Any]) -> Any:
        import torch

        y = torch.nn.functional.embedding(torch.from_numpy(tokens), x["wte"])
        return y + x["wpe"][start : start + T] if positions else y

    return Case(name, inputs, forward, backward, torch_forward, tuple(inputs), {}, True)


def norm(op: str, lead: tuple[int, ...], C: int, dresidual: bool, eps: float = 1e-5) -> Case:
    name = f"{op}-{lead}-{C}-eps-{eps}" + "-dresidual" * dresidual
    inputs = _normal(name, x=(*lead, C), w=(C,))
    inputs["x"] += 0.5  # a mean that is not 0
    if op == "layer_norm":
        inputs |= _normal(name + "b", b=(C,))
    weights = tuple(n for n in ("w", "b") if n in inputs)
    bypass = {"x": _normal(name + "r", x=(*lead, C))["x"]} if dresidual else {}

    def forward(ops: Any, x: Arrays, **out: Any) -> tuple[Any, Any]:
        return getattr(ops, op + "_forward")(x["x"], *(x[n] for n in weights), eps=eps, **out)

    def backward(ops: Any, dy: Array, saved: Any, grads: Arrays, **out: Any) -> Arrays:
        around = bypass["x"].astype(dy.dtype) if dresidual else None
        f = getattr(ops, op + "_backward")
        return {"x": f(dy, saved, *(grads[n] for n in weights), around, **out)}

    def torch_forward(x: dict[str, Any]) -> Any:
        from torch.nn import functional as F

        f = getattr(F, op)
        return f(x["x"], (C,), x["w"], *([x["b"]] if "b" in x else []), eps=eps)

    return Case(name, inputs, forward, backward, torch_forward, weights, bypass, True, ("x",))


def rope(B: int, T: int, H: int, D: int, pairing: str) -> Case:
    name = f"rope-{B}-{T}-{H}-{D}-{pairing}"
    angles = np.arange(T)[:, None] * 10000.0 ** (-np.arange(D // 2) / (D // 2)) + 0.3
    cos, sin = np.cos(angles), np.sin(angles)  # (T, D/2)

    def forward(ops: Any, x: Arrays, **out: Any) -> tuple[Any, Any]:
        real = x["x"].real.dtype
        return ops.rope_forward(x["x"], cos.astype(real), sin.astype(real), pairing=pairing, **out)

    def torch_forward(x: dict[str, Any]) -> Any:
        """The pairs as complex numbers, multiplied by exp(iθ)."""
        import torch

        split = (2, D // 2) if pairing == "half" else (D // 2, 2)
        pairs = x["x"].reshape(B, T, H, *split)
        pairs = pairs.transpose(-1, -2) if pairing == "half" else pairs
        turned = torch.view_as_complex(pairs.contiguous())
        turned = turned * torch.from_numpy(np.exp(1j * angles))[:, None, :]
        y = torch.view_as_real(turned)
        return (y.transpose(-1, -2) if pairing == "half" else y).reshape(B, T, H, D)

    return Case(
        name,
        _normal(name, x=(B, T, H, D)),
        forward,
        lambda ops, dy, saved, grads, **out: {"x": ops.rope_backward(dy, saved, **out)},
        torch_forward,
        forward_out=True,
        backward_out=("x",),
    )


def attention(
    B: int,
    T: int,
    S: int,
    H: int,
    K: int,
    D: int,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
) -> Case:
    name = f"attention-B{B}-T{T}-S{S}-H{H}-K{K}-D{D}-{'causal' if causal else 'full'}-{scale}"
    name += f"-window-{window}" if window else ""
    options: dict[str, Any] = {"scale": scale, "causal": causal, "window": window}

    def forward(ops: Any, x: Arrays, **out: Any) -> tuple[Any, Any]:
        return ops.attention_forward(x["q"], x["k"], x["v"], **options, **out)

    def backward(ops: Any, dy: Array, saved: Any, grads: Arrays, **out: Any) -> Arrays:
        return dict(zip("qkv", ops.attention_backward(dy, saved, **out), strict=True))

    def torch_forward(x: dict[str, Any]) -> Any:
        import torch

        q, k, v = (t.transpose(1, 2) for t in (x["q"], x["k"], x["v"]))
        k, v = (t.repeat_interleave(H // K, dim=1) for t in (k, v))
        mask = torch.ones(T, S, dtype=torch.bool)
        mask = mask.tril(S - T) if causal else mask
        mask = mask.triu(S - T - window + 1) if window else mask
        f = torch.nn.functional.scaled_dot_product_attention
        return f(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)

    return Case(
        name,
        _normal(name, q=(B, T, H, D), k=(B, S, K, D), v=(B, S, K, D)),
        forward,
        backward,
        torch_forward,
        forward_out=True,
        backward_out=("q", "k", "v"),
    )


def residual(shape: tuple[int, ...]) -> Case:
    name = f"residual-{shape}"
    return Case(
        name,
        _normal(name, x=shape, y=shape),
        lambda ops, x, **out: ops.residual_forward(x["x"], x["y"], **out),
        lambda ops, dy, saved, grads: dict(
            zip("xy", ops.residual_backward(dy, saved), strict=True)
        ),
        lambda x: x["x"] + x["y"],
        forward_out=True,
    )


def dropout(shape: tuple[int, ...], p: float, seed: int, counter: int) -> Case:
    name = f"dropout-{shape}-{p}-{seed}-{counter}"
    return Case(
        name,
        _normal(name, x=shape),
        lambda ops, x, **out: ops.dropout_forward(x["x"], p, seed, counter, **out),
        lambda ops, dy, saved, grads, **out: {"x": ops.dropout_backward(dy, saved, **out)},
        None,  # PyTorch draws other numbers
        forward_out=True,
        backward_out=("x",),
    )


def _targets(name: str, lead: tuple[int, ...], V: int, ignored: float) -> Array:
    """Targets of which about the part `ignored` is -1: at 0 none is, at 1 all are."""
    rng = _rng(name)
    targets = rng.integers(0, V, lead)
    return np.where(rng.random(lead) < ignored, -1, targets).astype(np.int32)


def _torch_cross_entropy(logits: Any, targets: Array, z_loss: float) -> Any:
    import torch

    rows = torch.from_numpy(targets.reshape(-1).astype(np.int64))
    if (targets < 0).all():
        return logits.sum() * 0  # PyTorch's mean over nothing is nan
    flat = logits.reshape(-1, logits.shape[-1])
    lse = torch.logsumexp(flat, dim=-1)[rows >= 0]
    loss = torch.nn.functional.cross_entropy(flat, rows, ignore_index=-1)
    return loss + z_loss * (lse**2).mean()


def cross_entropy(lead: tuple[int, ...], V: int, ignored: float, z_loss: float = 0.0) -> Case:
    name = f"cross_entropy-{lead}-{V}-ignored-{ignored}-z-{z_loss}"
    targets = _targets(name, lead, V, ignored)
    return Case(
        name,
        _normal(name, logits=(*lead, V)),
        lambda ops, x: ops.cross_entropy_forward(x["logits"], targets, z_loss=z_loss),
        lambda ops, dy, saved, grads, **out: {
            "logits": ops.cross_entropy_backward(dy, saved, **out)
        },
        lambda x: _torch_cross_entropy(x["logits"], targets, z_loss),
        backward_out=("logits",),
    )


def linear_cross_entropy(
    lead: tuple[int, ...], C: int, V: int, ignored: float, z_loss: float = 0.0
) -> Case:
    name = f"linear_cross_entropy-{lead}-{C}-{V}-ignored-{ignored}-z-{z_loss}"
    targets = _targets(name, lead, V, ignored)

    def forward(ops: Any, x: Arrays) -> tuple[Any, Any]:
        loss, _ = ops.linear_cross_entropy_forward(x["x"], x["w"], targets, z_loss=z_loss)
        return loss, (x["x"], x["w"])

    def backward(ops: Any, dloss: Any, saved: Any, grads: Arrays) -> Arrays:
        x, w = saved
        _, saved = ops.linear_cross_entropy_forward(x, w, targets, grads["w"], dloss, z_loss=z_loss)
        return {"x": ops.linear_cross_entropy_backward(saved)}

    def torch_forward(x: dict[str, Any]) -> Any:
        return _torch_cross_entropy(x["x"] @ x["w"].T, targets, z_loss)

    inputs = _normal(name, x=(*lead, C), w=(V, C))
    return Case(name, inputs, forward, backward, torch_forward, ("w",))


def small_cases() -> list[Case]:
    """Every op, every option, sized for the complex step: T = 1 and 7, C a multiple of nothing."""
    from linear_attention_cases import small_cases as linear_attention_cases

    both = (False, True)
    cases = [linear((2, 7), 13, 5, b, r) for b in both for r in both]
    cases += [linear((2, 7), 13, 5, b, r, g) for b in both for r in both for g in ("tanh", "none")]
    cases += [linear((), 3, 11, True, False), linear((2, 1), 1, 3, True, True)]
    cases += [gelu(shape, a) for shape in ((2, 7, 13), (5,)) for a in ("tanh", "none")]
    cases += [silu((2, 7, 13)), silu((5,)), scale((2, 7, 13), -1.7)]
    cases += [gated(op, (2, 7, 11)) for op in ("swiglu", "geglu")]
    cases += [embedding(2, 7, 5, 3, False), embedding(3, 1, 13, 50, True)]
    cases += [embedding(2, 7, 5, 3, True, start=4)]
    for op in ("layer_norm", "rms_norm"):
        cases += [norm(op, (2, 7), 13, r, eps) for r in both for eps in (1e-5, 0.3)]
        cases += [norm(op, (), 5, True), norm(op, (1, 1), 37, False)]
    cases += [rope(2, T, 3, 6, p) for T in (1, 7) for p in ("half", "adjacent")]
    for K in (4, 2, 1):  # groups of 1, 2 and 4 query heads
        for T, S in ((7, 7), (1, 7), (3, 8)):  # T = S = 1 has a test of its own
            cases += [attention(2, T, S, 4, K, 5, causal) for causal in both]
    cases += [attention(1, 7, 3, 2, 1, 3, causal=False), attention(1, 5, 9, 6, 2, 7, True, 0.7)]
    for T, S in ((7, 7), (1, 7), (3, 8)):
        cases += [attention(2, T, S, 4, 2, 5, True, window=w) for w in (2, 3, 8, 100)]
    cases += [residual((2, 7, 13))]
    cases += [dropout((2, 7, 13), p, 5, 2**32 - 9) for p in (0.0, 0.3, 0.9)]
    cases += [cross_entropy((2, 7), 11, ignored) for ignored in (0.0, 0.5, 1.0)]
    cases += [cross_entropy((5,), 1, 0.0)]
    # 150 rows are two blocks of 64 and a part.
    cases += [linear_cross_entropy((3, 50), 5, 11, ignored) for ignored in (0.0, 0.5, 1.0)]
    cases += [linear_cross_entropy((2, 1), 13, 7, 0.0)]
    cases += [cross_entropy((2, 7), 11, 0.3, 0.7), linear_cross_entropy((3, 50), 5, 11, 0.3, 0.7)]
    return cases + linear_attention_cases()
