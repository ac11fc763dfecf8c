"""The kernels against the reference, on every instruction set that this CPU runs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import op_cases
from fast_cases import (
    CASES,
    TOLERANCE,
    expected,
    float32_case,
    misaligned,
    relative,
    start_values,
    upstream,
)
from op_cases import Array
from tenarai.ops import reference

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast

THREADS = (1, 2, 3)


@pytest.fixture(
    scope="module",
    params=[(isa, threads) for isa in fast.available_isas() for threads in THREADS],
    ids=lambda param: f"{param[0]}-{param[1]}threads",
)
def ops(request: pytest.FixtureRequest) -> Iterator[fast.Fast]:
    isa, threads = request.param
    machine = fast.Fast(threads=threads, isa=isa)
    assert (machine.isa, machine.threads) == (isa, threads)
    yield machine


def check(ops: fast.Fast, index: tuple[str, int], prepare: Any) -> None:
    case = CASES[index[0]][index[1]]
    y_expected, grads_expected = expected(index)
    x = {name: prepare(a) for name, a in case.inputs.items()}
    start = start_values(case, grads_expected)
    grads = {name: prepare(a) for name, a in start.items()}
    y, saved = case.forward(ops, x)
    assert np.ndim(y) == 0 or y.dtype == np.float32
    dy = upstream(case, y)
    dy = prepare(dy) if np.ndim(dy) else dy
    activations = case.backward(ops, dy, saved, grads)

    results = {"y": (y, y_expected)}
    results |= {name: (d, grads_expected[name]) for name, d in activations.items()}
    for name, d in grads.items():
        results[name] = (d.astype(np.float64) - start[name], grads_expected[name])
    errors = {name: relative(a, b) for name, (a, b) in results.items() if np.size(b)}
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"{case.name}: relative errors {wrong} (all: {errors})"
    for name, a in case.inputs.items():
        assert np.array_equal(x[name], a), f"{case.name} wrote to its input {name}"


def as_float32(a: Array) -> Array:
    return np.array(a, np.float32)


@pytest.mark.parametrize("number", range(len(CASES["odd"])), ids=lambda i: CASES["odd"][i].name)
def test_odd_sizes(ops: fast.Fast, number: int) -> None:
    check(ops, ("odd", number), as_float32)


def test_short_and_misaligned(ops: fast.Fast) -> None:
    failures = []
    for number in range(len(CASES["short"])):
        try:
            check(ops, ("short", number), misaligned)
        except AssertionError as failure:
            failures.append(str(failure).splitlines()[0])
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("number", range(len(CASES["odd"])), ids=lambda i: CASES["odd"][i].name)
def test_out_and_the_same_bits(ops: fast.Fast, number: int) -> None:
    """`out` is where the result goes, written whole, and a second run gives the same bits."""
    case = CASES["odd"][number]
    x = {name: as_float32(a) for name, a in case.inputs.items()}
    y, saved = case.forward(ops, x)
    first = np.array(y)
    out = {"out": np.full_like(y, np.nan)} if case.forward_out else {}
    again, saved_again = case.forward(ops, x, **out)
    assert again is out.get("out", again)
    assert np.array_equal(again, first)

    dy = upstream(case, y)
    start = start_values(case, expected(("odd", number))[1])
    grads, grads_again = ({n: a.copy() for n, a in start.items()} for _ in range(2))
    activations = case.backward(ops, dy, saved, grads)
    firsts = {name: d.copy() for name, d in activations.items()}
    buffers = tuple(np.full_like(x[name], np.nan) for name in case.backward_out)
    out = {"out": buffers if len(buffers) > 1 else buffers[0]} if buffers else {}
    activations = case.backward(ops, dy, saved_again, grads_again, **out)
    for name, buffer in zip(case.backward_out, buffers, strict=True):
        assert activations[name] is buffer, name
    for name, d in firsts.items():
        assert np.array_equal(activations[name], d), name
    for name, d in grads.items():
        assert np.array_equal(grads_again[name], d), name


def test_attention_in_views_of_one_qkv(ops: fast.Fast, rng: np.random.Generator) -> None:
    B, T, H, D = 2, 33, 3, 13
    qkv = rng.standard_normal((B, T, 3, H, D)).astype(np.float32)
    dqkv = np.full_like(qkv, np.nan)
    dy = rng.standard_normal((B, T, H, D)).astype(np.float32)
    y, saved = ops.attention_forward(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    ops.attention_backward(dy, saved, out=(dqkv[:, :, 0], dqkv[:, :, 1], dqkv[:, :, 2]))
    q, k, v = (qkv[:, :, i].astype(np.float64) for i in range(3))
    exact, saved = reference.attention_forward(q, k, v)
    assert relative(y, exact) < TOLERANCE
    for i, d in enumerate(reference.attention_backward(dy.astype(np.float64), saved)):
        assert relative(dqkv[:, :, i], d) < TOLERANCE


def test_rope_in_views_and_in_place(ops: fast.Fast, rng: np.random.Generator) -> None:
    B, T, H, D = 2, 7, 3, 10
    qkv = rng.standard_normal((B, T, 3, H, D)).astype(np.float32)
    angles = rng.standard_normal((T, D // 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    for pairing in ("half", "adjacent"):
        turned = qkv.copy()
        view = turned[:, :, 1]
        ops.rope_forward(view, cos, sin, pairing=pairing, out=view)
        exact, _ = reference.rope_forward(qkv[:, :, 1], cos, sin, pairing=pairing)
        assert relative(turned[:, :, 1], exact) < TOLERANCE
        assert np.array_equal(turned[:, :, ::2], qkv[:, :, ::2])


def test_attention_to_one_key_is_its_value(ops: fast.Fast, rng: np.random.Generator) -> None:
    q, dy = rng.standard_normal((2, 2, 1, 4, 5)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 1, 2, 5)).astype(np.float32)
    one_key_is_its_value(ops, q, k, v, dy)


def test_rows_of_any_sequences(ops: fast.Fast, rng: np.random.Generator) -> None:
    """In decoding each row has a position of its own, in tables for the whole context."""
    N, H, D, C, V, context = 5, 3, 10, 13, 11, 40
    x = rng.standard_normal((N, H, D)).astype(np.float32)
    cos, sin = rng.standard_normal((2, context, D // 2)).astype(np.float32)
    wte, wpe = (rng.standard_normal((n, C)).astype(np.float32) for n in (V, context))
    at = np.array([39, 0, 7, 7, 3], np.int32)
    tokens = rng.integers(0, V, N).astype(np.int32)
    for pairing in ("half", "adjacent"):
        y, _ = ops.rope_forward(x, cos, sin, positions=at, pairing=pairing)
        exact, _ = reference.rope_forward(x[None], cos[at], sin[at], pairing=pairing)
        assert relative(y, exact[0]) < TOLERANCE
    y, _ = ops.embedding_forward(tokens, wte, wpe, positions=at)
    assert relative(y, wte[tokens] + wpe[at]) < TOLERANCE


@pytest.mark.parametrize("T", [3, 127, 200])
def test_attention_in_a_window_of_one(ops: fast.Fast, T: int, rng: np.random.Generator) -> None:
    q, dy = rng.standard_normal((2, 2, T, 4, 5)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, T, 2, 5)).astype(np.float32)
    one_key_is_its_value(ops, q, k, v, dy, window=1)


def one_key_is_its_value(ops: fast.Fast, q: Array, k: Array, v: Array, dy: Array, **how) -> None:
    """p = 1 whatever q and k are, so their gradients are 0: no relative error to speak of."""
    y, saved = ops.attention_forward(q, k, v, **how)
    dq, dk, dv = ops.attention_backward(dy, saved)
    np.testing.assert_allclose(y, np.repeat(v, 2, axis=2), rtol=1e-6)
    np.testing.assert_allclose(dq, 0, atol=1e-5)  # some roundings of numbers of order 1
    np.testing.assert_allclose(dk, 0, atol=1e-5)
    grouped = dy.reshape(*v.shape[:3], 2, 5).sum(axis=3)
    np.testing.assert_allclose(dv, grouped, rtol=1e-5, atol=1e-6)


def test_softmaxes_survive_large_scores(ops: fast.Fast, rng: np.random.Generator) -> None:
    q = 100 * rng.standard_normal((1, 33, 2, 16)).astype(np.float32)
    y, saved = ops.attention_forward(q, q, q)
    exact, _ = reference.attention_forward(*[q.astype(np.float64)] * 3)
    # Scores of 1e4 in float32 are known to 1e-3, and so are the exponentials.
    assert relative(y, exact) < 1e-2
    assert all(np.isfinite(d).all() for d in ops.attention_backward(y, saved))
    logits = np.array([[2000.0, -2000.0, 0.0]], np.float32)
    loss, saved = ops.cross_entropy_forward(logits, np.array([2], np.int32))
    assert loss == 2000
    np.testing.assert_allclose(ops.cross_entropy_backward(1.0, saved), [[1, 0, -1]], atol=1e-30)


def test_activations_at_extremes(ops: fast.Fast) -> None:
    """Where exp and tanh of float32 end: no nan, no infinity, and the right values."""
    x = np.array([0, 1e-30, 1e-4, 5, 9, 15, 20, 87, 88.5, 89, 104, 1e4, 1e9], np.float32)
    x = np.concatenate([x, -x])
    exact = x.astype(np.float64)
    ones = np.ones_like(x)
    forms = {
        "tanh": (lambda o, a: o.gelu_forward(a), "gelu_backward"),
        "none": (lambda o, a: o.gelu_forward(a, approximate="none"), "gelu_backward"),
        "silu": (lambda o, a: o.silu_forward(a), "silu_backward"),
    }
    for name, (forward, backward) in forms.items():
        (y, saved), (y_exact, saved_exact) = forward(ops, x), forward(reference, exact)
        dx = getattr(ops, backward)(ones, saved)
        dx_exact = getattr(reference, backward)(ones.astype(np.float64), saved_exact)
        # 1 + tanh and 1 + erf are known to 6e-8, so y to 6e-8 of x; x from 15 on is far out.
        bound = 1e-6 * np.minimum(np.abs(exact), 15) + 1e-6 * np.abs(y_exact)
        assert (np.abs(y - y_exact) <= bound).all(), (name, y, y_exact)
        np.testing.assert_allclose(dx, dx_exact, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF])
def test_nan_stays_nan(ops: fast.Fast, rng: np.random.Generator, bits: int) -> None:
    """A diverged run is noticed by its loss, so no kernel may lose a nan, whatever its lower bits:
    an exponent made by shifting may push one out of the way."""
    x = rng.standard_normal((1, 37, 2, 20)).astype(np.float32)
    x[0, 30, 1, 3] = np.array(bits, np.uint32).view(np.float32)
    flat = x.reshape(37, 40)  # the nan in row 30, place 23
    ones, w = np.ones(40, np.float32), np.ones((5, 40), np.float32)
    for y, places in (
        (ops.gelu_forward(flat)[0], (30, 23)),
        (ops.gelu_forward(flat, approximate="none")[0], (30, 23)),
        (ops.silu_forward(flat)[0], (30, 23)),
        (ops.layer_norm_forward(flat, ones, ones)[0], 30),
        (ops.rms_norm_forward(flat, ones)[0], 30),
        (ops.linear_forward(flat, w)[0], 30),
        (ops.gelu_linear_forward(flat, w)[0], 30),
    ):
        assert np.isnan(y[places]).all()
        assert not np.isnan(y[:30]).any()
    # Earlier queries may have it too: their weight of a hidden nan is 0, and 0 · nan is nan.
    assert np.isnan(ops.attention_forward(x, x, x)[0][0, 30:, 1]).all()
    targets = np.zeros(37, np.int32)
    assert np.isnan(ops.cross_entropy_forward(flat, targets)[0])
    assert np.isnan(ops.linear_cross_entropy_forward(flat, w, targets)[0])
    assert np.isnan(ops.square_sum(flat.reshape(-1)))


@pytest.mark.parametrize("blocks", [1, 3])
def test_linear_cross_entropy_in_blocks(
    ops: fast.Fast, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = float32_case(op_cases.linear_cross_entropy((3, 50), 37, 101, 0.3))
    if blocks > 1:
        monkeypatch.setattr(
            "tenarai.ops.fast_loss.LOGITS_BYTES", 64 * 4 * 101
        )  # 64 of the 150 rows at a time
    x = {name: as_float32(a) for name, a in case.inputs.items()}
    grads = {"w": np.zeros_like(x["w"])}
    loss, saved = case.forward(ops, x)
    dx = case.backward(ops, 0.5, saved, grads)["x"]
    exact_grads = {"w": np.zeros_like(case.inputs["w"])}
    exact, saved = case.forward(reference, case.inputs)
    exact_dx = case.backward(reference, 0.5, saved, exact_grads)["x"]
    assert relative(loss, exact) < TOLERANCE
    assert relative(dx, exact_dx) < TOLERANCE
    assert relative(grads["w"], exact_grads["w"]) < TOLERANCE


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_dropout_has_the_same_bits(ops: fast.Fast, p: float, rng: np.random.Generator) -> None:
    x = rng.standard_normal(100_003).astype(np.float32)
    for seed in (0, 1, 2**32 + 1, 2**63 + 12345):
        for counter in (0, 7, 2**32 - 50_001, 2**45 + 3):
            y, saved = ops.dropout_forward(x, p, seed, counter)
            exact, _ = reference.dropout_forward(x, p, seed, counter)
            assert np.array_equal(y, exact), (seed, counter)
            assert np.array_equal(ops.dropout_backward(x, saved), exact)


@pytest.mark.parametrize("n", [1, 7, 31, 1000, 70_001])
def test_adamw_and_square_sum(ops: fast.Fast, n: int, rng: np.random.Generator) -> None:
    p, g, m = (misaligned(rng.standard_normal(n)) for _ in range(3))
    v = misaligned(rng.random(n))
    exact = [a.astype(np.float64) for a in (p, g, m, v)]
    settings: dict[str, Any] = dict(
        lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=0.7
    )
    before = p.copy()
    for step in (3, 4, 5):
        ops.adamw_step(p, g, m, v, step=step, **settings)
        reference.adamw_step(*exact, step=step, **settings)
    for a, b in zip((p, g, m, v), exact, strict=True):
        assert relative(a, b) < TOLERANCE
    assert relative(p - before, exact[0] - before) < 1e-4  # p is rounded: 6e-8 of 1 on 1e-2
    assert ops.square_sum(g) == pytest.approx(reference.square_sum(g), rel=1e-6)


def a(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def ids(*values: int) -> Array:
    return np.array([values], np.int32)


@pytest.mark.parametrize(
    "call",
    [
        lambda o: o.linear_forward(a(2, 3), a(5, 4)),
        lambda o: o.linear_forward(a(2, 3), a(5, 3), a(4)),
        lambda o: o.linear_forward(a(2, 3), a(5, 3), out=a(2, 4)),
        lambda o: o.linear_forward(a(2, 3).astype(np.float64), a(5, 3)),
        lambda o: o.linear_forward(a(3, 2).T, a(5, 3)),
        lambda o: o.linear_backward(a(2, 5), o.linear_forward(a(2, 3), a(5, 3))[1], a(5, 4)),
        lambda o: o.gelu_forward(a(3), approximate="sigmoid"),
        lambda o: o.layer_norm_forward(a(2, 3), a(2), a(3)),
        lambda o: o.rms_norm_forward(a(2, 3), a(4)),
        lambda o: o.embedding_forward(ids(0, 5), a(5, 3)),
        lambda o: o.embedding_forward(ids(0, -1), a(5, 3)),
        lambda o: o.embedding_forward(ids(0, 1), a(5, 3), a(4, 3), start=3),
        lambda o: o.embedding_forward(ids(0, 1).astype(np.int64), a(5, 3)),
        lambda o: o.rope_forward(a(1, 2, 1, 3), a(2, 1), a(2, 1)),
        lambda o: o.rope_forward(a(1, 2, 1, 4), a(1, 2), a(2, 2)),
        lambda o: o.rope_forward(a(2, 1, 4), a(3, 2), a(3, 2), positions=ids(0, 3)[0]),
        lambda o: o.rope_forward(a(2, 1, 4), a(3, 2), a(3, 2), positions=ids(0, -1)[0]),
        lambda o: o.rope_forward(a(2, 1, 4), a(3, 2), a(3, 2), positions=ids(0, 1, 2)[0]),
        lambda o: o.rope_forward(a(2, 1, 4), a(3, 2), a(2, 2), positions=ids(0, 1)[0]),
        lambda o: o.embedding_forward(ids(0, 1)[0], a(5, 3), a(4, 3), positions=ids(0, 4)[0]),
        lambda o: o.embedding_forward(ids(0, 1)[0], a(5, 3), a(4, 3), positions=ids(-1, 3)[0]),
        lambda o: o.geglu_forward(a(2, 3), a(2, 2)),
        lambda o: o.attention_forward(*[a(1, 2, 2, 4)] * 3, window=0),
        lambda o: o.attention_forward(a(1, 2, 3, 4), a(1, 2, 2, 4), a(1, 2, 2, 4)),
        lambda o: o.attention_forward(a(1, 3, 2, 4), a(1, 2, 2, 4), a(1, 2, 2, 4)),
        lambda o: o.attention_forward(a(1, 2, 2, 4), a(1, 2, 2, 4), a(1, 3, 2, 4)),
        lambda o: o.attention_forward(*[a(1, 2, 2, 8)[..., ::2]] * 3),
        lambda o: o.cross_entropy_forward(a(1, 2, 3), ids(0, 3)),
        lambda o: o.cross_entropy_forward(a(1, 2, 3), ids(0, 1, 2)),
        lambda o: o.linear_cross_entropy_forward(a(1, 2, 3), a(4, 3), ids(0, 4)),
        lambda o: o.adamw_step(
            a(3), a(4), a(3), a(3),
            lr=1, beta1=0, beta2=0, eps=1, weight_decay=0, step=1, grad_scale=1,
        ),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused(ops: fast.Fast, call: Any) -> None:
    """A kernel has no bounds checks: what does not fit must not reach it."""
    with pytest.raises((ValueError, TypeError)):
        call(ops)


def test_the_check_can_fail(ops: fast.Fast) -> None:
    """A kernel that leaves out the last element of its rows, and one that overwrites dw."""

    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return getattr(ops, name)

        def rms_norm_forward(self, x: Array, w: Array, *, eps: float) -> Any:
            y, saved = ops.rms_norm_forward(x, w, eps=eps)
            y[..., -1] = 0
            return y, saved

        def linear_backward(self, dy: Array, saved: Any, dw: Array, db: Any) -> Array:
            dw[...] = 0
            return ops.linear_backward(dy, saved, dw, db)

    names = ("rms_norm", "linear-")
    for number, case in enumerate(CASES["odd"]):
        if case.name.startswith(names):
            with pytest.raises(AssertionError, match="relative errors"):
                check(Wrong(), ("odd", number), as_float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [-2, -100, 5])
def test_a_target_that_is_neither_a_token_nor_ignored_is_refused(target):
    logits, targets = np.zeros((2, 5), np.float32), np.array([1, target], np.int32)
    with pytest.raises(ValueError, match=f"target {target} at place 1"):
        fast.Fast(threads=1).cross_entropy_forward(logits, targets)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_a_share_to_drop_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match="dropout: p = "):
        fast.Fast(threads=1).dropout_forward(np.ones(3, np.float32), p, 1, 0)
