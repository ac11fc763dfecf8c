"""Gated linear attention and the delta rule: the chunked form, decoding, and other programs'."""

import sys
from typing import Any

import numpy as np
import pytest

import linear_attention_cases
from complex_step import TOLERANCE, gradient_errors
from linear_attention_cases import GATES, inputs
from op_cases import Array, Arrays
from tenarai.ops import reference
from tenarai.ops.reference.linear_attention_chunk import write_backward

OPS = ("gated_linear_attention", "delta_rule")


def arguments(x: Arrays) -> list[Any]:
    return [x["q"], x["k"], x["v"], *([x["beta"]] if "beta" in x else []), x.get("g")]


def call(name: str, x: Arrays, **how: Any) -> tuple[Array, Array]:
    return getattr(reference, name)(*arguments(x), x.get("initial"), **how)[:2]


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def tokens(x: Arrays, t: slice) -> Arrays:
    return {name: a if name == "initial" else a[:, t] for name, a in x.items()}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("T", [1, 64, 100])
def test_chunks_give_what_the_recurrence_gives(op: str, gate: str, T: int) -> None:
    x = inputs(op + gate, 2, T, 2, 6, 5, gate, op == "delta_rule", T != 64)
    exact = call(op + "_recurrent", x)
    for chunk in (1, 7, 16, 64, 1000):
        for mine, theirs in zip(call(op + "_forward", x, chunk=chunk), exact, strict=True):
            assert relative(mine, theirs) < 1e-13, chunk  # some hundred roundings of 1e-16


@pytest.mark.parametrize("op", OPS)
def test_a_gate_a_head_is_the_same_gate_for_all_channels(op: str) -> None:
    x = inputs(op, 2, 20, 2, 6, 5, "head", op == "delta_rule", True)
    wide = x | {"g": np.repeat(x["g"][..., None], 6, axis=-1)}
    for a, b in zip(call(op + "_forward", x), call(op + "_forward", wide), strict=True):
        assert relative(a, b) < 1e-14


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gate", ["head", "channel"])
def test_strong_gates_overflow_nothing(op: str, gate: str) -> None:
    """e^-b of such a chunk would be e^6000; and a gate of 0 forgets all."""
    x = inputs(op + gate, 1, 64, 2, 4, 4, gate, op == "delta_rule", True)
    x["g"] *= 100
    x["g"][:, 30] = -1000  # e^-1000 is 0
    with np.errstate(all="raise", under="ignore"):
        y, S = call(op + "_forward", x, chunk=32)
        saved = getattr(reference, op + "_forward")(*arguments(x), x["initial"], chunk=32)[2]
        d = getattr(reference, op + "_backward")(np.ones_like(y), saved, np.ones_like(S))
    for a, b in zip((y, S), call(op + "_recurrent", x), strict=True):
        assert relative(a, b) < 1e-12  # b - b' of some thousands has three digits less
    assert all(np.isfinite(a).all() for a in d)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gate", GATES)
def test_decode_goes_on_where_the_chunks_end(op: str, gate: str) -> None:
    """A prompt in chunks, then tokens one at a time; the two sequences' states lie crosswise."""
    T, prompt = 12, 7
    x = inputs(op + gate, 2, T, 3, 6, 5, gate, op == "delta_rule", False)
    whole, last = call(op + "_forward", x)
    _, S = call(op + "_forward", tokens(x, slice(0, prompt)), chunk=4)
    states, slots = np.full((3, *S.shape[1:]), np.nan), np.array([2, 0], np.int32)
    states[slots] = S
    for t in range(prompt, T):
        row = {name: a[:, t] for name, a in x.items()}
        y = getattr(reference, op + "_decode")(*arguments(row), states, slots)
        assert relative(y, whole[:, t]) < 1e-13
    assert relative(states[slots], last) < 1e-13
    assert np.isnan(states[1]).all()  # nobody's


@pytest.mark.parametrize("op", OPS)
def test_rows_of_one_sequence_follow_each_other(op: str) -> None:
    x = inputs(op, 1, 5, 2, 4, 3, "head", op == "delta_rule", False)
    whole, last = call(op + "_forward", x)
    states = np.zeros((1, 2, 4, 3))
    row = {name: a[0] for name, a in x.items()}
    y = getattr(reference, op + "_decode")(*arguments(row), states, np.zeros(5, np.int32))
    assert relative(y, whole[0]) < 1e-13
    assert relative(states, last) < 1e-13


def test_the_delta_rule_replaces_what_a_key_had() -> None:
    """β = 1 and keys at right angles: the last value written under a key is what it gives."""
    k = np.eye(3)[[0, 1, 0, 2]].reshape(1, 4, 1, 3)
    v = np.arange(8.0).reshape(1, 4, 1, 2)
    _, S, _ = reference.delta_rule_forward(k, k, v, np.ones((1, 4, 1)))
    np.testing.assert_allclose(S[0, 0], [[4, 5], [2, 3], [6, 7]], atol=1e-15)
    _, S, _ = reference.gated_linear_attention_forward(k, k, v)
    np.testing.assert_allclose(S[0, 0], [[4, 6], [2, 3], [6, 7]], atol=1e-15)  # 0 + 4, 1 + 5


def test_retention_is_a_constant_gate() -> None:
    """y_t = Σ_s γ^(t-s) (q_t·k_s) v_s, as RetNet's parallel form has it."""
    x = inputs("retnet", 1, 9, 2, 4, 3, "none", False, False)
    gamma = np.array([0.9, 0.5])
    g = np.broadcast_to(np.log(gamma), (1, 9, 2))
    y, _, _ = reference.gated_linear_attention_forward(x["q"], x["k"], x["v"], g, chunk=4, scale=1)
    t = np.arange(9)
    for h in range(2):
        decay = np.tril(gamma[h] ** np.maximum(t[:, None] - t, 0))
        exact = ((x["q"][0, :, h] @ x["k"][0, :, h].T) * decay) @ x["v"][0, :, h]
        assert relative(y[0, :, h], exact) < 1e-14


def qwen3_next() -> Any:
    """transformers' functions, which take length-1 keys and queries with this same epsilon."""
    pytest.importorskip("torch")
    return pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")


def test_against_qwen3_next() -> None:
    """Keys and queries to length 1 by an RMS norm whose weight is 1/√D, as in the model."""
    theirs = qwen3_next()
    import torch

    B, T, H, D, Dv, eps = 2, 70, 3, 16, 8, 1e-6
    x = inputs("qwen", B, T, H, D, Dv, "head", True, True)
    x = {name: a.astype(np.float32) for name, a in x.items()}
    t = {name: torch.tensor(a, requires_grad=True) for name, a in x.items()}
    y_torch, S_torch = theirs.torch_chunk_gated_delta_rule(
        t["q"], t["k"], t["v"], t["g"], t["beta"], initial_state=t["initial"],
        output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    dy, dS = (rng.standard_normal(tuple(a.shape)).astype(np.float32) for a in (y_torch, S_torch))
    ((y_torch * torch.tensor(dy)).sum() + (S_torch * torch.tensor(dS)).sum()).backward()

    w = np.full(D, D**-0.5)
    x = {name: a.astype(np.float64) for name, a in x.items()}
    q, q_norm = reference.rms_norm_forward(x["q"], w, eps=eps / D)
    k, k_norm = reference.rms_norm_forward(x["k"], w, eps=eps / D)
    y, S, saved = reference.delta_rule_forward(q, k, x["v"], x["beta"], x["g"], x["initial"])
    dq, dk, dv, dbeta, dg, dinitial = reference.delta_rule_backward(dy, saved, dS)
    dq = reference.rms_norm_backward(dq, q_norm, np.zeros(D))
    dk = reference.rms_norm_backward(dk, k_norm, np.zeros(D))
    # Theirs is float32: the sums of some hundred products are known to about 1e-6.
    assert relative(y_torch.detach(), y) < 1e-5
    assert relative(S_torch.detach(), S) < 1e-5
    mine = {"q": dq, "k": dk, "v": dv, "beta": dbeta, "g": dg, "initial": dinitial}
    for name, d in mine.items():
        assert relative(t[name].grad, d) < 2e-5, name


@pytest.mark.parametrize("op", OPS)
def test_planted_errors_are_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of the gates without what the last state owes them; a solve the wrong way."""
    case = linear_attention_cases.case(2, 7, 3, 5, 4, "channel", op == "delta_rule", True, chunk=4)
    dy = np.random.default_rng(2).standard_normal(2 * 7 * 3 * 4 + 2 * 3 * 5 * 4)

    def wrong_gradients() -> set[str]:
        x = {name: a.astype(np.complex128) for name, a in case.inputs.items()}
        grads = case.backward(reference, dy, case.forward(reference, x)[1], {})
        rng = np.random.default_rng(3)
        errors = gradient_errors(lambda x: case.loss(reference, x, dy), case.inputs, grads, rng)
        return {name for name, error in errors.items() if error > TOLERANCE}

    assert wrong_gradients() == set()
    module = sys.modules[f"tenarai.ops.reference.{op}"]

    def without_end(*args: Array) -> tuple[Array, ...]:
        dk, du, dS0, _ = write_backward(*args)
        return dk, du, dS0, -args[1] * dk

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_backward", without_end)
        assert wrong_gradients() == {"g"}
    if op == "delta_rule":
        with monkeypatch.context() as patch:
            patch.setattr(module, "_solve_transposed", module._solve)
            assert wrong_gradients() == {"k", "v", "beta", "g", "initial"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": (2, 5, 3, 5)},
        {"v": (2, 4, 3, 2)},
        {"g": (2, 5, 3, 3)},
        {"g": (2, 5)},
        {"beta": (2, 5, 3, 1)},
        {"initial": (2, 3, 2, 4)},
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_shapes_that_do_not_fit_are_named(op: str, wrong: dict[str, tuple[int, ...]]) -> None:
    delta = op == "delta_rule"
    if not delta and "beta" in wrong:
        return
    x = inputs(op, 2, 5, 3, 4, 2, "channel", delta, True)
    ((name, shape),) = wrong.items()
    x[name] = np.zeros(shape)
    with pytest.raises(ValueError, match=f"{op}: .*{str(shape)[1:-1]}"):
        call(op + "_forward", x)
