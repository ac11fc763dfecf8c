"""The reference ops: their values against loops over scalars, dropout's bits, error messages."""

import doctest
import math
from typing import Any

import numpy as np
import pytest

import op_cases
from op_cases import Array
from tenarai.ops import counted_random as random_stream
from tenarai.ops import reference


@pytest.mark.parametrize("T, S, causal", [(5, 5, True), (2, 6, True), (5, 3, False)])
def test_attention_is_the_loop_over_scalars(
    T: int, S: int, causal: bool, rng: np.random.Generator
) -> None:
    B, H, K, D = 2, 4, 2, 3
    q, k, v = (rng.standard_normal((B, n, h, D)) for n, h in ((T, H), (S, K), (S, K)))
    y, saved = reference.attention_forward(q, k, v, causal=causal)
    lse = saved[4]
    assert lse.shape == (B, H, T)
    for b, t, h in np.ndindex(B, T, H):
        seen = t + S - T + 1 if causal else S
        kv = h // (H // K)
        exponentials = [math.exp(q[b, t, h] @ k[b, s, kv] / math.sqrt(D)) for s in range(seen)]
        total = sum(exponentials)
        expected = sum(e / total * v[b, s, kv] for s, e in enumerate(exponentials))
        np.testing.assert_allclose(y[b, t, h], expected, rtol=1e-13)
        assert lse[b, h, t] == pytest.approx(math.log(total), rel=1e-13)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_to_one_key_is_its_value(causal: bool, rng: np.random.Generator) -> None:
    """p = 1 whatever q and k are, so their gradients are 0: no relative error to speak of."""
    q, dy = rng.standard_normal((2, 2, 1, 4, 5))
    k, v = rng.standard_normal((2, 2, 1, 2, 5))
    y, saved = reference.attention_forward(q, k, v, causal=causal)
    assert np.array_equal(y, np.repeat(v, 2, axis=2))
    dq, dk, dv = reference.attention_backward(dy, saved)
    np.testing.assert_allclose(dq, 0, atol=1e-14)  # a few roundings of numbers of order 1
    np.testing.assert_allclose(dk, 0, atol=1e-14)
    np.testing.assert_allclose(dv, dy.reshape(2, 1, 2, 2, 5).sum(axis=3), rtol=1e-13)


def test_attention_takes_views_of_one_qkv(rng: np.random.Generator) -> None:
    B, T, H, D = 2, 7, 3, 5
    qkv = rng.standard_normal((B, T, 3, H, D))
    dqkv = np.full_like(qkv, np.nan)
    views = [qkv[:, :, i] for i in range(3)]
    outs = (dqkv[:, :, 0], dqkv[:, :, 1], dqkv[:, :, 2])
    y, saved = reference.attention_forward(*views)
    expected, copies = reference.attention_forward(*(view.copy() for view in views))
    assert np.array_equal(y, expected)
    dy = rng.standard_normal(y.shape)
    reference.attention_backward(dy, saved, out=outs)
    for i, d in enumerate(reference.attention_backward(dy, copies)):
        assert np.array_equal(dqkv[:, :, i], d)


def test_softmaxes_survive_large_scores(rng: np.random.Generator) -> None:
    """exp(1000) is beyond float64: the shift by the maximum must be there, and numpy warns."""
    with np.errstate(all="raise", under="ignore"):
        q = 1000 * rng.standard_normal((1, 4, 2, 3))
        y, saved = reference.attention_forward(q, q, q)
        assert np.isfinite(y).all()
        assert all(np.isfinite(d).all() for d in reference.attention_backward(y, saved))
        logits = np.array([[2000.0, -2000.0, 0.0]])
        loss, saved = reference.cross_entropy_forward(logits, np.array([2], np.int32))
        assert loss == 2000
        np.testing.assert_array_equal(
            reference.cross_entropy_backward(np.array(1.0), saved), [[1, 0, -1]]
        )
        assert np.array_equal(reference.silu_forward(np.array([-1e4, 1e4]))[0], [0, 1e4])


@pytest.mark.parametrize("ignored", [0.0, 0.5, 1.0])
def test_cross_entropy_is_the_mean_of_minus_log_p(ignored: float) -> None:
    V = 11
    targets = op_cases._targets("values", (3, 50), V, ignored)
    x, w = op_cases._normal("values", x=(3, 50, 5), w=(V, 5)).values()
    logits = x @ w.T
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    losses = [-math.log(p[b, t, targets[b, t]]) for b, t in np.ndindex(3, 50) if targets[b, t] >= 0]
    expected = np.mean(losses) if losses else 0
    assert reference.cross_entropy_forward(logits, targets)[0] == pytest.approx(expected, rel=1e-13)
    dw, untouched = np.zeros_like(w), np.zeros_like(w)
    loss, saved = reference.linear_cross_entropy_forward(x, w, targets, dw, 0.5)
    assert loss == pytest.approx(expected, rel=1e-13)
    dx = reference.linear_cross_entropy_backward(saved)
    if ignored == 1:
        assert not dx.any() and np.array_equal(dw, untouched)
    assert not dx[targets < 0].any()


def test_linear_cross_entropy_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenarai.ops.reference import linear_cross_entropy as module

    rows = []

    def spy(logits: Array, targets: Array, **settings: Any) -> Any:
        rows.append(len(logits))
        return reference.cross_entropy_forward(logits, targets, **settings)

    monkeypatch.setattr(module, "cross_entropy_forward", spy)
    x, w = np.ones((2, 100, 3)), np.ones((5, 3))
    reference.linear_cross_entropy_forward(x, w, np.zeros((2, 100), np.int32))
    assert rows == [64, 64, 64, 8]


def test_norms_normalise(rng: np.random.Generator) -> None:
    x = 3 * rng.standard_normal((4, 1000)) + 2
    ones, zeros = np.ones(1000), np.zeros(1000)
    y, _ = reference.layer_norm_forward(x, ones, zeros, eps=0)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-13)
    np.testing.assert_allclose(y.std(axis=-1), 1, rtol=1e-13)
    y, _ = reference.rms_norm_forward(x, ones, eps=0)
    np.testing.assert_allclose(np.sqrt((y * y).mean(axis=-1)), 1, rtol=1e-13)


def test_gelu_and_silu_values() -> None:
    x = np.array([-1.0, 0.0, 1.0, 2.0])
    exact = [a * 0.5 * math.erfc(-a / math.sqrt(2)) for a in x]
    np.testing.assert_allclose(reference.gelu_forward(x, approximate="none")[0], exact, atol=1e-15)
    # The approximation is within 5e-4 of the definition, and not the same.
    difference = np.abs(reference.gelu_forward(x)[0] - exact).max()
    assert 1e-5 < difference < 5e-4
    u = [math.sqrt(2 / math.pi) * (a + 0.044715 * a**3) for a in x]
    tanh_form = [0.5 * a * (1 + math.tanh(b)) for a, b in zip(x, u, strict=True)]
    np.testing.assert_allclose(reference.gelu_forward(x)[0], tanh_form, rtol=1e-14)
    sigmoid = [a / (1 + math.exp(-a)) for a in x]
    np.testing.assert_allclose(reference.silu_forward(x)[0], sigmoid, rtol=1e-14)


@pytest.mark.parametrize("pairing", ["half", "adjacent"])
def test_rope_keeps_lengths_and_knows_distances(pairing: str, rng: np.random.Generator) -> None:
    T, D = 9, 6
    angles = np.arange(T)[:, None] * np.array([1.0, 0.3, 0.1])
    q, k = rng.standard_normal((2, 1, 1, 1, D))
    q, k = (np.repeat(x, T, axis=1) for x in (q, k))  # the same vector at each position
    cos, sin = np.cos(angles), np.sin(angles)
    q_t, k_t = (reference.rope_forward(x, cos, sin, pairing=pairing)[0] for x in (q, k))
    np.testing.assert_allclose((q_t**2).sum(-1), (q**2).sum(-1), rtol=1e-13)
    scores = q_t[0, :, 0] @ k_t[0, :, 0].T  # (T, T), constant along its diagonals
    for distance in range(-T + 1, T):
        assert np.ptp(np.diagonal(scores, distance)) < 1e-12
    first, second = (0, D // 2) if pairing == "half" else (0, 1)
    unit = np.zeros((1, T, 1, D))
    unit[..., first] = 1
    turned, _ = reference.rope_forward(unit, cos, sin, pairing=pairing)
    np.testing.assert_allclose(turned[0, :, 0, second], np.sin(angles[:, 0]), atol=1e-15)
    inplace = q.copy()
    reference.rope_forward(inplace, cos, sin, pairing=pairing, out=inplace)
    assert np.array_equal(inplace, q_t)


# Dropout's random numbers.


def test_dropout_bits_are_the_documented_formula() -> None:
    """The formula in Python's unbounded integers: where uint32 wraps, and across 2^32."""
    counted_random = random_stream.counted_random
    word = 0xFFFFFFFF

    def mix(h: int) -> int:
        h ^= h >> 16
        h = h * 0x21F0AAAD & word
        h ^= h >> 15
        h = h * 0xD35A2D97 & word
        return h ^ h >> 15

    def random(seed: int, n: int) -> int:
        s0, s1, n0, n1 = seed & word, seed >> 32 & word, n & word, n >> 32 & word
        k0 = mix(mix(s0 ^ 0x9E3779B9) + n1 & word)
        k1 = mix(mix(s1 ^ 0x85EBCA6B) + k0 & word)
        return mix(mix(n0 ^ k0) ^ k1)

    for seed in (0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF):
        for counter in (0, 5, 2**32 - 3, 2**40 + 1, 2**64 - 3):
            expected = [random(seed, counter + i) for i in range(7)]
            assert counted_random(seed, counter, 7).tolist() == expected
    example = doctest.testmod(random_stream)  # the docstring has numbers to implement against
    assert example.attempted and not example.failed
    assert counted_random(-1, 0, 3).tolist() == counted_random(2**64 - 1, 0, 3).tolist()


def test_dropout_numbers_are_uniform_and_independent() -> None:
    """Means, bits, neighbours and seeds, each within 5 standard deviations of chance."""
    counted_random = random_stream.counted_random
    n = 1 << 20
    one = counted_random(1, 0, n)
    bits = one[:, None] >> np.arange(32, dtype=np.uint32) & 1  # (n, 32)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(n)
    counts = np.bincount(one >> 20, minlength=4096)  # by the 12 bits that decide most
    chi = ((counts - n / 4096) ** 2 / (n / 4096)).sum()
    assert abs(chi - 4095) < 5 * math.sqrt(2 * 4095)

    others = {f"distance {d}": np.roll(one, d) for d in (1, 2, 3, 7, 8, 64, 768, 1024, 65536)}
    others |= {f"seed {s}": counted_random(s, 0, n) for s in (0, 2, 3, 2**32 + 1, 2**63 + 1, -1)}
    others |= {f"counter {c}": counted_random(1, c, n) for c in (n, 2**32, 2**33)}
    centred = one - 2.0**31
    for name, other in others.items():
        correlation = (centred * (other - 2.0**31)).mean() / (2.0**64 / 12)
        assert abs(correlation) < 5 / math.sqrt(n), name
        for p in (0.1, 0.5, 0.9):  # dropped together as often as chance has it
            together = ((one < p * 2**32) & (other < p * 2**32)).mean()
            assert abs(together - p * p) < 5 * math.sqrt(p * p * (1 - p * p) / n), (name, p)
        agreeing = ((one ^ other)[:, None] >> np.arange(32, dtype=np.uint32) & 1).mean(axis=0)
        assert np.abs(agreeing - 0.5).max() < 5 * 0.5 / math.sqrt(n), name


def test_dropout_keeps_scales_and_counts() -> None:
    x = np.ones((50, 1000), np.float32)
    y, saved = reference.dropout_forward(x, 0.25, seed=3, counter=10)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    deviation = math.sqrt(0.25 * 0.75 / x.size)
    assert abs((y == 0).mean() - 0.25) < 5 * deviation
    assert np.array_equal(reference.dropout_backward(x, saved), y)
    later, _ = reference.dropout_forward(x[1:], 0.25, seed=3, counter=10 + 1000)
    assert np.array_equal(later, y[1:])  # a position's number depends on its counter alone
    assert np.array_equal(reference.dropout_forward(x, 0.0, 3, 0)[0], x)


def test_dropout_keeps_from_the_threshold_on() -> None:
    """Kept iff random >= floor(p · 2^32), to the last of the 32 bits."""
    numbers = random_stream.counted_random(3, 10, 1000)
    x = np.ones(1000)
    for i in (0, 17, 999):
        at, above = (float(int(numbers[i]) + j) / 2**32 for j in (0, 1))
        y, _ = reference.dropout_forward(x, at, 3, 10)
        assert np.array_equal(y > 0, numbers >= numbers[i]) and y[i] > 0
        y, _ = reference.dropout_forward(x, at + 0.99 / 2**32, 3, 10)
        assert y[i] > 0
        y, _ = reference.dropout_forward(x, above, 3, 10)
        assert y[i] == 0


# The optimiser.


def test_adamw_is_the_loop_over_scalars(rng: np.random.Generator) -> None:
    lr, b1, b2, eps, decay, scale = 0.01, 0.9, 0.95, 1e-8, 0.1, 0.5
    p = rng.standard_normal(5)
    m, v = np.zeros(5), np.zeros(5)
    q, n, u = p.copy(), [0.0] * 5, [0.0] * 5
    for step in (1, 2, 3):
        g = rng.standard_normal(5)
        before = g.copy()
        reference.adamw_step(
            p, g, m, v, lr=lr, beta1=b1, beta2=b2, eps=eps, weight_decay=decay, step=step,
            grad_scale=scale,
        )  # fmt: skip
        assert np.array_equal(g, before)
        for i in range(5):
            n[i] = b1 * n[i] + (1 - b1) * scale * g[i]
            u[i] = b2 * u[i] + (1 - b2) * (scale * g[i]) ** 2
            update = n[i] / (1 - b1**step) / (math.sqrt(u[i] / (1 - b2**step)) + eps)
            q[i] -= lr * (decay * q[i] + update)
        np.testing.assert_allclose(p, q, rtol=1e-13)


def test_square_sum_is_taken_in_float64() -> None:
    g = np.full(3_000_000, 1e-3, np.float32)
    total = reference.square_sum(g)
    assert isinstance(total, float)
    assert total == pytest.approx(3e6 * float(np.float32(1e-3)) ** 2, rel=1e-12)
    assert reference.square_sum(np.full(10, 1e30, np.float32)) == pytest.approx(1e61)
    assert reference.square_sum(np.zeros(0, np.float32)) == 0


# Errors say what is wrong.


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda o, a: o.gelu_forward(a, approximate="sigmoid"), "approximate is 'sigmoid'"),
        (lambda o, a: o.rope_forward(a, a, a, pairing="odd"), "pairing is 'odd'"),
        (lambda o, a: o.rope_forward(a[..., :1], a, a), "head size 1 is odd"),
        (lambda o, a: o.attention_forward(a[:, :, :3], a[:, :, :2], a[:, :, :2]), "3 query heads"),
        (lambda o, a: o.attention_forward(a, a[:, :1], a[:, :1]), "would see no key"),
        (lambda o, a: o.dropout_forward(a, 1.0, 0, 0), "p is 1.0"),
        (lambda o, a: o.embedding_forward(np.array([[-1]]), a[0, 0]), "tokens from -1 to -1"),
        (lambda o, a: o.embedding_forward(np.array([[9]]), a[0, 0]), "has 0 to 3"),
        (
            lambda o, a: o.embedding_forward(np.array([[1, 1]]), a[0, 0], a[0, 0], start=3),
            "positions 3 to 4, but wpe has 4",
        ),
        (lambda o, a: o.cross_entropy_forward(a[0, 0], np.array([0, 4, 0, 0])), "0 to 4"),
        (lambda o, a: o.cross_entropy_forward(a[0, 0], np.array([0, -2, 0, 0])), "-2 to 0"),
        (lambda o, a: o.linear_cross_entropy_backward((None,)), "given no dw"),
        (lambda o, a: o.residual_forward(a, a, out=np.empty((2, *a.shape))), "out has shape"),
        (
            lambda o, a: o.adamw_step(
                a, a, a, a, lr=1, beta1=0, beta2=0, eps=1, weight_decay=0, step=0, grad_scale=1
            ),
            "step is 0",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_thing(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(reference, np.ones((1, 2, 4, 4)))
