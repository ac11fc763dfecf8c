"""Attention with all of its options: the reference by the complex step and against PyTorch's
autograd, the options' meaning place by place, and what is refused."""

from typing import Any

import numpy as np
import pytest

from attention_cases import Array, Arrays, Case, case, drawn, torch_attention
from complex_step import assert_gradients, gradient_errors
from tenarai.models.rope import SCALINGS, Rope
from tenarai.ops import reference
from tenarai.ops.attention_options import AttentionOptions, alibi_slopes, document_starts

RNG = np.random.default_rng(11)
EDGES = [
    case(RNG, "one", (2, 1, 1, 2, 1, 3), sinks=True, soft_cap=1.5),
    case(RNG, "window-of-one", (1, 6, 6, 2, 2, 3), sinks=True, window=1),
    case(RNG, "one-key-documents", (1, 5, 5, 2, 1, 3), documents=np.arange(5)[None], prefix=3,
         off_by_one=True),
    case(RNG, "cross", (2, 7, 3, 4, 2, 5), causal=False, soft_cap=2.0),
    case(RNG, "padded", (2, 3, 7, 2, 1, 5), causal=False, lengths=np.array([4, 0], np.int32)),
    case(RNG, "both-sides", (1, 8, 8, 1, 1, 4), causal=False, window=3, alibi=np.array([0.5])),
    case(RNG, "prefix-far-behind", (1, 9, 9, 2, 1, 4), window=2, prefix=3, sinks=True),
]  # fmt: skip
CASES = EDGES + [drawn(seed, (1, 2, 5, 7, 9), (1, 3, 5, 8)) for seed in range(60)]
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def gradients(c: Case, rng: np.random.Generator) -> tuple[Array, Arrays]:
    x = {name: a.astype(np.complex128) for name, a in c.inputs.items()}
    y, saved = c.forward(reference, x)
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    return dy, c.backward(reference, dy, saved)


@all_cases
def test_complex_step(case: Case, rng: np.random.Generator) -> None:
    dy, grads = gradients(case, rng)
    assert_gradients(  # floor: with one key to see, the gradients of q and k are 0
        lambda x: (dy * case.forward(reference, x)[0]).sum(), case.inputs, grads, rng, floor=0.1
    )


@all_cases
def test_against_autograd(case: Case, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    y, saved = case.forward(reference, case.inputs)
    dy = rng.standard_normal(y.shape)
    grads = case.backward(reference, dy, saved)
    x = {name: torch.tensor(a, requires_grad=True) for name, a in case.inputs.items()}
    wanted = torch_attention(case, x)
    (wanted * torch.tensor(dy)).sum().backward()
    pairs = {"y": (y, wanted.detach())}
    for name, g in grads.items():
        other = x[name].grad
        pairs[name] = (g, torch.zeros_like(x[name]) if other is None else other)
    for name, (a, b) in pairs.items():  # both float64: other formulas, other orders of sums
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-10, err_msg=name)


@all_cases
def test_float32_stays_float32(case: Case, rng: np.random.Generator) -> None:
    y, saved = case.forward(reference, {n: a.astype(np.float32) for n, a in case.inputs.items()})
    dy = rng.standard_normal(y.shape).astype(np.float32)
    results = {"y": y} | case.backward(reference, dy, saved)
    assert {a.dtype for a in results.values()} == {np.dtype(np.float32)}


def weights(c: Case) -> Array:
    """p (B, H, T, S): what y is when v holds rows of the identity."""
    B, S, K = c.inputs["k"].shape[:3]
    v = np.broadcast_to(np.eye(S)[None, :, None], (B, S, K, S))
    o = AttentionOptions.of(c.options, {"scale": c.options.scale_for(c.inputs["q"].shape[-1])})
    q, k = (np.pad(c.inputs[n], [(0, 0)] * 3 + [(0, S)]) for n in "qk")
    v = np.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - S)])
    y, _ = reference.attention_forward(q, k, v, c.inputs.get("sinks"), options=o)
    return y[..., :S].transpose(0, 2, 1, 3)


@pytest.mark.parametrize(
    "options, seen",
    [
        ({}, ["1000", "1100", "1110", "1111"]),
        ({"causal": False}, ["1111"] * 4),
        ({"window": 2}, ["1000", "1100", "0110", "0011"]),
        ({"window": 1}, ["1000", "0100", "0010", "0001"]),
        ({"window": 2, "causal": False}, ["1100", "1110", "0111", "0011"]),
        ({"prefix": 3}, ["1110", "1110", "1110", "1111"]),
        ({"prefix": 1, "window": 1}, ["1000", "1100", "1010", "1001"]),
        ({"documents": [[0, 1, 1, 3]]}, ["1000", "0100", "0110", "0001"]),
        ({"documents": [[0, 1, 1, 3]], "causal": False}, ["1000", "0110", "0110", "0001"]),
        ({"documents": [[0, 1, 1, 1]], "prefix": 2}, ["1000", "0110", "0110", "0111"]),
        ({"lengths": [2]}, ["1000", "1100", "1100", "1100"]),
        ({"lengths": [2], "window": 2}, ["1000", "1100", "0100", "0000"]),
        ({"lengths": [2], "causal": False}, ["1100"] * 4),
    ],
)
def test_who_sees_whom(options: dict[str, Any], seen: list[str], rng: np.random.Generator) -> None:
    options = {n: np.array(a, np.int32) if isinstance(a, list) else a for n, a in options.items()}
    p = weights(case(rng, "seen", (1, 4, 4, 2, 1, 3), **options))
    wanted = np.array([[c == "1" for c in row] for row in seen])
    assert np.array_equal(p[0, 1] > 0, wanted)
    assert np.allclose(p.sum(axis=-1), wanted.any(axis=-1))


def test_packed_documents_are_as_alone(rng: np.random.Generator) -> None:
    """Three documents in one row give what each gives in a row of its own."""
    packed = case(rng, "packed", (1, 9, 9, 2, 1, 4), window=3, prefix=2, sinks=True,
                  documents=document_starts(np.array([[5, 5, 5, 5, 1, 7, 7, 7, 7]])))  # fmt: skip
    y, saved = packed.forward(reference, packed.inputs)
    dy = rng.standard_normal(y.shape)
    together = packed.backward(reference, dy, saved)
    dsinks = np.zeros(2)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        q, k, v = (packed.inputs[n][:, part] for n in "qkv")
        sinks = packed.inputs["sinks"]
        alone, saved = reference.attention_forward(q, k, v, sinks, window=3, prefix=2)
        np.testing.assert_allclose(alone, y[:, part], rtol=1e-13)
        grads = reference.attention_backward(dy[:, part], saved, dsinks)
        for name, g in zip("qkv", grads, strict=True):
            np.testing.assert_allclose(g, together[name][:, part], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(dsinks, together["sinks"], rtol=1e-12)


def test_off_by_one_is_a_sink_at_0(rng: np.random.Generator) -> None:
    c = case(rng, "off", (1, 5, 5, 2, 1, 4), off_by_one=True)
    p = weights(c)
    assert (p.sum(axis=-1) < 1).all()
    sunk, _ = reference.attention_forward(*c.inputs.values(), np.zeros(2))
    np.testing.assert_array_equal(sunk, c.forward(reference, c.inputs)[0])


def test_soft_cap_bounds_the_odds(rng: np.random.Generator) -> None:
    """Scores within ±c: no probability is more than exp(2c) times another."""
    c = case(rng, "cap", (1, 6, 6, 1, 1, 4), causal=False, soft_cap=0.25, scale=1000.0)
    p = weights(c)
    odds = (p.max(axis=-1) / p.min(axis=-1)).max()
    assert 1.5 < odds <= np.exp(0.5) * (1 + 1e-12)


def test_alibi_slopes() -> None:
    np.testing.assert_array_equal(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16)[:3], 2.0 ** np.array([-0.5, -1, -1.5]), rtol=1e-7)
    twelve = alibi_slopes(12)  # 8 of 8, and the first, third, ... of 16
    np.testing.assert_array_equal(twelve[:8], alibi_slopes(8))
    np.testing.assert_array_equal(twelve[8:], alibi_slopes(16)[:8:2])
    assert len(alibi_slopes(1)) == 1


FACTORS = {"short": (1.0, 1.1, 1.2, 1.3), "long": (1.0, 2.0, 3.0, 4.0)}


@pytest.mark.parametrize("pairing", ["half", "adjacent"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_of_every_scaling_turns_back(
    scaling: str, pairing: str, rng: np.random.Generator
) -> None:
    """The backward is the rotation by the negative angle, times the same attention factor."""
    size, T = 8, 6
    how = Rope(size, scaling=scaling, factor=4.0, original_context=16, **FACTORS)
    theta, factor = how.angles(64)
    turns = np.arange(T)[:, None] * theta
    cos, sin = factor * np.cos(turns), factor * np.sin(turns)
    x, dy = rng.standard_normal((2, 2, T, 3, size))
    _, saved = reference.rope_forward(x, cos, sin, pairing=pairing)
    dx = reference.rope_backward(dy, saved)
    back, _ = reference.rope_forward(dy, cos, -sin, pairing=pairing)
    np.testing.assert_allclose(dx, back, rtol=1e-14)
    assert_gradients(
        lambda x: (dy * reference.rope_forward(x["x"], cos, sin, pairing=pairing)[0]).sum(),
        {"x": x}, {"x": dx}, rng,
    )  # fmt: skip


# What is planted is found.


def without_sink(dy: Array, saved: Any, c: Case) -> Arrays:
    q, k, v, y, lse, sinks, o = saved
    return c.backward(reference, dy, (q, k, v, y, lse, sinks + 0.1, o))


def without_slope_of_the_cap(dy: Array, saved: Any, c: Case) -> Arrays:
    *rest, o = saved
    raw = AttentionOptions.of(o, {"soft_cap": 1e9})
    return c.backward(reference, dy, (*rest, raw))


def without_documents(dy: Array, saved: Any, c: Case) -> Arrays:
    *rest, o = saved
    return c.backward(reference, dy, (*rest, AttentionOptions.of(o, {"documents": None})))


@pytest.mark.parametrize(
    "wrong, options, inputs",
    [
        (without_sink, {"sinks": True}, {"sinks"}),
        (without_slope_of_the_cap, {"soft_cap": 1.0}, {"q", "k", "v"}),
        (without_documents, {"documents": np.array([[0, 0, 2, 2, 2]])}, {"q", "k", "v"}),
    ],
)
def test_planted_errors_are_found(
    wrong: Any, options: dict[str, Any], inputs: set[str], rng: np.random.Generator
) -> None:
    c = case(rng, "wrong", (1, 5, 5, 2, 1, 3), **options)
    x = {name: a.astype(np.complex128) for name, a in c.inputs.items()}
    y, saved = c.forward(reference, x)
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    errors = gradient_errors(
        lambda x: (dy * c.forward(reference, x)[0]).sum(), c.inputs, wrong(dy, saved, c), rng
    )
    assert {name for name, error in errors.items() if error > 1e-3} == inputs


@pytest.mark.parametrize(
    "options, said",
    [
        ({"window": 0}, "window is 0"),
        ({"prefix": -1}, "prefix is -1"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"alibi": np.ones(3)}, r"alibi has shape \(3,\), expected \(2,\)"),
        ({"documents": np.zeros((1, 3), np.int32)}, "documents has shape"),
        ({"documents": np.array([[0, 0, 1, 1]])}, "must hold, for each key"),
        ({"documents": np.array([[0, 1, 0, 0]])}, "must hold, for each key"),
        ({"lengths": np.array([5])}, r"lengths \[5\] are not all from 0 to 4"),
        ({"lengths": np.array([-1])}, "are not all from 0 to 4"),
        ({"sinks": True, "off_by_one": True}, "off_by_one is a sink fixed at 0"),
        ({"prefix": np.array([1, 2])}, "prefix has shape"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        c = case(np.random.default_rng(0), "bad", (1, 4, 4, 2, 1, 3), **options)
        c.forward(reference, c.inputs)


def test_an_unknown_option_is_named(rng: np.random.Generator) -> None:
    q = rng.standard_normal((1, 4, 2, 3))
    with pytest.raises(TypeError, match="no option softcap"):
        reference.attention_forward(q, q, q, softcap=50.0)
