"""Multi-head latent attention: gradients, DeepSeek's own layer, decoding from latents, kernels."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from complex_step import assert_gradients
from tenarai.models.latent_attention import LatentAttention
from tenarai.models.table import Weights
from tenarai.ops import Fast, reference

SMALL = LatentAttention(width=11, heads=3, q_rank=7, kv_rank=6, nope=5, rope=4, value=6)
SHAPES = {
    "low-rank queries": SMALL,
    "full queries": dataclasses.replace(SMALL, q_rank=None),
    "values as wide as keys": dataclasses.replace(SMALL, value=9),
    "values wider than keys": dataclasses.replace(SMALL, value=13, scale=0.7),
    "the other pairing": dataclasses.replace(SMALL, pairing="half", eps=0.1),
}
all_shapes = pytest.mark.parametrize("layer", SHAPES.values(), ids=SHAPES.keys())


def weights(layer: LatentAttention, seed: int = 1, dtype: Any = np.float64) -> Weights:
    """Random: norms' weights around 1, a product's so large that it keeps the size of things."""
    rng = np.random.default_rng(seed)
    w = Weights(layer.table(), dtype)
    for p in layer.table():
        w[p.name][...] = rng.standard_normal(p.shape) * p.shape[-1] ** -0.5
        if len(p.shape) == 1:
            w[p.name][...] = 1 + 0.3 * rng.standard_normal(p.shape)
    return w


def angles(T: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.arange(T)[:, None] * 10000.0 ** (-np.arange(size // 2) / (size // 2))
    return np.cos(a), np.sin(a)


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def gradients(layer: LatentAttention, ops: Any, w: Any, x: Any, dy: Any) -> tuple[Any, dict]:
    cos, sin = (a.astype(x.real.dtype) for a in angles(x.shape[1], layer.rope))
    y, saved = layer.forward(ops, w, x, cos, sin)
    dw = {name: np.zeros_like(a) for name, a in w.items()}
    dx = layer.backward(ops, dy, saved, dw)
    return y, dw | {"x": dx}


@all_shapes
@pytest.mark.parametrize("T", [1, 6])
def test_complex_step(layer: LatentAttention, T: int, rng: np.random.Generator) -> None:
    w = {name: a + 0j for name, a in weights(layer).items()}
    x = rng.standard_normal((2, T, layer.width))
    dy = rng.standard_normal((2, T, layer.width))
    _, grads = gradients(layer, reference, w, x + 0j, dy + 0j)
    cos, sin = angles(T, layer.rope)

    def loss(at: dict[str, np.ndarray]) -> complex:
        return (dy * layer.forward(reference, at, at["x"], cos, sin)[0]).sum()

    inputs = {name: a.real for name, a in w.items()} | {"x": x}
    if T == 1:  # one key's weight is 1 whatever the query: that gradient is 0, and nothing relative
        for name in inputs:
            if name.startswith(("q", "k_rope")):
                assert np.abs(grads[name]).max() < 1e-14
        kept = [n for n in inputs if not n.startswith(("q", "k_rope"))]
        fixed = {n: a + 0j for n, a in inputs.items() if n not in kept}
        subset = {n: inputs[n] for n in kept}
        assert_gradients(lambda at: loss(fixed | at), subset, {n: grads[n] for n in kept}, rng)
        return
    assert_gradients(loss, inputs, grads, rng)


@all_shapes
@pytest.mark.parametrize("isa", [None, "baseline"])
def test_kernels_give_what_the_reference_gives(
    layer: LatentAttention, isa: str | None, rng: np.random.Generator
) -> None:
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
    w32 = weights(layer, dtype=np.float32)
    w = {name: a.astype(np.float64) for name, a in w32.items()}
    x, dy = (rng.standard_normal((2, 33, layer.width)).astype(np.float32) for _ in range(2))
    y, grads = gradients(layer, Fast(threads=2, isa=isa), w32, x, dy)
    exact, exact_grads = gradients(layer, reference, w, *(a.astype(np.float64) for a in (x, dy)))
    assert relative(y, exact) < 2e-5  # as for each op (tests/test_fast_ops.py)
    for name, d in exact_grads.items():
        assert relative(grads[name], d) < 2e-5, name


@all_shapes
@pytest.mark.parametrize("kernels", [False, True], ids=["reference", "kernels"])
def test_decoding_from_latents_gives_what_forward_gives(
    layer: LatentAttention, kernels: bool, rng: np.random.Generator
) -> None:
    """Prompts of two sequences in one batch of rows, then tokens one by one."""
    if kernels:
        pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
    ops, dtype = (Fast(threads=2), np.float32) if kernels else (reference, np.float64)
    B, T, prompt = 2, 9, 4
    w = weights(layer, dtype=dtype)
    x = rng.standard_normal((B, T, layer.width)).astype(dtype)
    cos, sin = (a.astype(dtype) for a in angles(T, layer.rope))
    whole, _ = layer.forward(ops, w, x, cos, sin)
    cache, absorbed, of = layer.new_cache(3, T), layer.absorbed(w), np.array([2, 0], np.int32)
    if not kernels:
        cache.keys = cache.keys.astype(dtype)
    tolerance = 1e-5 if kernels else 1e-13
    assert cache.values is cache.keys  # R + Dr numbers a token, once

    def decode(rows: np.ndarray, slots: Any, positions: Any) -> np.ndarray:
        where = (np.asarray(a, np.int32) for a in (slots, positions))
        return layer.decode(ops, w, absorbed, rows, cos, sin, cache, *where)

    rows = np.ascontiguousarray(x[:, :prompt].reshape(-1, layer.width))
    y = decode(rows, np.repeat(of, prompt), np.tile(np.arange(prompt), B))
    assert relative(y.reshape(B, prompt, -1), whole[:, :prompt]) < tolerance
    for t in range(prompt, T):
        y = decode(np.ascontiguousarray(x[:, t]), of, [t] * B)
        assert relative(y, whole[:, t]) < tolerance
    assert not cache.keys[1].any()


DEEPSEEK = dict(
    hidden_size=48, num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=16,
    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, max_position_embeddings=64,
    num_hidden_layers=1, attn_implementation="eager",
)  # fmt: skip


def deepseek(version: int, q_rank: int | None) -> tuple[Any, Any]:
    """transformers' layer with random weights, and the function that runs it, causal."""
    torch = pytest.importorskip("torch")
    name = f"deepseek_v{version}"
    module = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    config = getattr(module, f"DeepseekV{version}Config")(q_lora_rank=q_rank, **DEEPSEEK)
    torch.manual_seed(3)
    layer = getattr(module, f"DeepseekV{version}Attention")(config, 0)
    for p in layer.parameters():
        with torch.no_grad():
            p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3))
            p.add_(1 if p.ndim == 1 else 0)
    rotary = getattr(module, f"DeepseekV{version}RotaryEmbedding")(config)

    def run(x: Any) -> Any:
        T = x.shape[1]
        mask = torch.full((T, T), float("-inf")).triu(1)[None, None]
        turns = rotary(x, torch.arange(T)[None])
        return layer(hidden_states=x, position_embeddings=turns, attention_mask=mask)[0]

    return layer, run


@pytest.mark.parametrize("version, q_rank", [(2, None), (2, 20), (3, 20)])
def test_against_deepseek(version: int, q_rank: int | None, rng: np.random.Generator) -> None:
    """y, dx and every weight's gradient of transformers' layer, and decoding from latents too."""
    torch = pytest.importorskip("torch")
    theirs, run = deepseek(version, q_rank)
    layer = LatentAttention(
        width=48, heads=4, q_rank=q_rank, kv_rank=16, nope=12, rope=8, value=10, eps=1e-6
    )
    state, grads_of = dict(theirs.named_parameters()), {}
    w = Weights(layer.table())
    for p in layer.table():
        rows = slice(p.fused.begin, p.fused.begin + p.shape[0]) if p.fused else slice(None)
        tensor = state[p.hf.removeprefix("self_attn.")]
        w[p.name][...] = tensor.detach()[rows]
        grads_of[p.name] = (tensor, rows)
    assert {p.hf.removeprefix("self_attn.") for p in layer.table()} == set(state)

    T = 13
    x, dy = (rng.standard_normal((2, T, 48)).astype(np.float32) for _ in range(2))
    x_torch = torch.tensor(x, requires_grad=True)
    y_torch = run(x_torch)
    (y_torch * torch.tensor(dy)).sum().backward()
    y, grads = gradients(layer, reference, w, x, dy)
    # float32 on both sides: measured 1e-6; the other pairing gives 1e-1.
    assert relative(y, y_torch.detach()) < 1e-5
    assert relative(grads["x"], x_torch.grad) < 1e-5
    for name, (tensor, rows) in grads_of.items():
        assert relative(grads[name], tensor.grad[rows]) < 1e-5, name

    cos, sin = (a.astype(np.float32) for a in angles(T, 8))
    cache, slots = layer.new_cache(1, T), np.zeros(T, np.int32)
    positions = np.arange(T, dtype=np.int32)
    row = layer.decode(
        reference, w, layer.absorbed(w), x[0], cos, sin, cache, slots, positions
    )  # fmt: skip
    assert relative(row, y_torch[0].detach()) < 1e-5
