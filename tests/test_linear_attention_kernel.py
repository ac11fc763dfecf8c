"""The kernels of linear attention against the reference, on every instruction set."""

from typing import Any

import numpy as np
import pytest

import linear_attention_cases
from linear_attention_cases import GATES, inputs
from op_cases import Array, Arrays, Case
from tenarai.ops import reference

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast

TOLERANCE = 2e-5  # as for every kernel: tests/test_fast_ops.py says why
CASES = linear_attention_cases.odd_cases()
OPS = ("gated_linear_attention", "delta_rule")


@pytest.fixture(scope="module", params=[(isa, n) for isa in fast.available_isas() for n in (1, 2)])
def ops(request: pytest.FixtureRequest) -> fast.Fast:
    isa, threads = request.param
    return fast.Fast(threads=threads, isa=isa)


def misaligned(a: Array) -> Array:
    """A float32 copy that starts 4 bytes after a multiple of 64."""
    memory = np.empty(4 * a.size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + 4
    b = memory[start : start + 4 * a.size].view(np.float32).reshape(a.shape)
    b[...] = a
    return b


def relative(a: Any, b: Any) -> float:
    assert a.shape == b.shape and a.dtype == np.float32
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def both(ops: Any, case: Case, prepare: Any) -> tuple[tuple[Array, Arrays], tuple[Array, Arrays]]:
    """y with the last state, and all gradients: by `ops`, and by the reference in float64."""
    x = {name: prepare(a.astype(np.float32)) for name, a in case.inputs.items()}
    exact_x = {name: a.astype(np.float64) for name, a in x.items()}
    exact, exact_saved = case.forward(reference, exact_x)
    dy = np.random.default_rng(5).standard_normal(exact.shape).astype(np.float32)
    y, saved = case.forward(ops, x)
    return (y, case.backward(ops, dy, saved, {})), (
        exact, case.backward(reference, dy.astype(np.float64), exact_saved, {}),
    )  # fmt: skip


@pytest.mark.parametrize("prepare", [np.ascontiguousarray, misaligned])
def test_against_the_reference(ops: fast.Fast, prepare: Any) -> None:
    for case in CASES:
        (y, grads), (exact, exact_grads) = both(ops, case, prepare)
        errors = {"y": relative(y, exact)}
        errors |= {name: relative(grads[name], d) for name, d in exact_grads.items()}
        assert max(errors.values()) < TOLERANCE, (case.name, errors)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gate", ["head", "channel"])
def test_strong_gates_overflow_nothing(ops: fast.Fast, op: str, gate: str) -> None:
    """e^-b of such chunks would be e^6000."""
    case = linear_attention_cases.case(1, 130, 2, 20, 8, gate, op == "delta_rule", True)
    case.inputs["g"] *= 50
    case.inputs["g"][:, [3, 70]] = -1000  # e^-1000 is 0
    (y, grads), (exact, exact_grads) = both(ops, case, np.ascontiguousarray)
    assert relative(y, exact) < TOLERANCE
    for name, d in exact_grads.items():
        # What a forgotten state or a gate so strong gives is lost in the others' rounding.
        assert np.abs(grads[name] - d).max() < TOLERANCE * np.abs(d).max(), name


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_and_out(ops: fast.Fast, op: str) -> None:
    """Also from two runs and with another number of threads: a head is one thread's."""
    case = linear_attention_cases.case(2, 70, 3, 20, 24, "head", op == "delta_rule", True)
    one = fast.Fast(threads=1, isa=ops.isa)
    runs = [both(o, case, np.ascontiguousarray)[0] for o in (ops, ops, one)]
    for y, grads in runs[1:]:
        assert np.array_equal(y, runs[0][0])
        assert all(np.array_equal(grads[name], d) for name, d in runs[0][1].items())
    x = {name: a.astype(np.float32) for name, a in case.inputs.items()}
    out = np.full_like(x["v"], np.nan)
    y, _, _ = getattr(ops, op + "_forward")(*arguments(x), x["initial"], out=out)
    assert y is out and np.array_equal(y.reshape(-1), runs[0][0][: y.size])


def arguments(x: Arrays) -> list[Any]:
    return [x["q"], x["k"], x["v"], *([x["beta"]] if "beta" in x else []), x.get("g")]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("D, Dv", [(5, 3), (32, 48), (19, 33)])
def test_decode(ops: fast.Fast, op: str, gate: str, D: int, Dv: int) -> None:
    """A prompt by the chunks, then a token at a time; slots crosswise; several rows of one slot."""
    T, prompt = 9, 5
    x = inputs(op + gate, 2, T, 3, D, Dv, gate, op == "delta_rule", False)
    x = {name: a.astype(np.float32) for name, a in x.items()}
    exact = {name: a.astype(np.float64) for name, a in x.items()}
    whole, last = getattr(reference, op + "_recurrent")(*arguments(exact))
    start = {name: np.ascontiguousarray(a[:, :prompt]) for name, a in x.items()}
    _, S, _ = getattr(ops, op + "_forward")(*arguments(start))
    states, slots = np.full((3, *S.shape[1:]), np.nan, np.float32), np.array([2, 0], np.int32)
    states[slots] = S
    for t in range(prompt, T - 2):
        row = {name: misaligned(a[:, t]) for name, a in x.items()}
        y = getattr(ops, op + "_decode")(*arguments(row), states, slots)
        assert relative(y, whole[:, t]) < TOLERANCE
    rows = {name: a[:, T - 2 :].reshape(4, *a.shape[2:]) for name, a in x.items()}
    y = getattr(ops, op + "_decode")(*arguments(rows), states, np.repeat(slots, 2))
    assert relative(y, whole[:, T - 2 :].reshape(y.shape)) < TOLERANCE
    assert relative(states[slots], last) < TOLERANCE
    assert np.isnan(states[1]).all()


def test_no_token_leaves_the_state(ops: fast.Fast) -> None:
    empty, S = np.zeros((1, 0, 2, 4), np.float32), np.ones((1, 2, 4, 4), np.float32)
    y, last, saved = ops.gated_linear_attention_forward(empty, empty, empty, None, S)
    assert y.size == 0 and np.array_equal(last, S)
    assert np.array_equal(ops.gated_linear_attention_backward(y, saved, 2 * S)[4], 2 * S)


def test_nan_stays_nan(ops: fast.Fast) -> None:
    for name in ("q", "k", "v", "beta", "g"):
        for gate in ("head", "channel"):
            x = inputs("nan", 1, 20, 2, 5, 4, gate, True, False)
            x = {key: a.astype(np.float32) for key, a in x.items()}
            x[name][0, 17, 1] = np.nan
            y, last, _ = ops.delta_rule_forward(*arguments(x))
            assert np.isnan(y[0, 17:, 1]).all() if name != "q" else np.isnan(y[0, 17, 1]).all()
            assert not np.isnan(y[:, :, 0]).any()
            assert name == "q" or np.isnan(last[0, 1]).any()


def a(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def ids(*values: int) -> Array:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    "call",
    [
        lambda o: o.gated_linear_attention_forward(a(1, 2, 3, 4), a(1, 2, 3, 5), a(1, 2, 3, 4)),
        lambda o: o.gated_linear_attention_forward(a(1, 2, 3, 4), a(1, 2, 3, 4), a(1, 3, 2, 4)),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 4)] * 3, a(1, 2, 4)),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 4)] * 3, a(1, 2, 3, 1)),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 4)] * 3, a(6)),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 4)] * 3, None, a(1, 3, 4, 5)),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 8)[..., ::2]] * 3),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 4).astype(np.float64)] * 3),
        lambda o: o.gated_linear_attention_forward(*[a(1, 2, 3, 4)] * 3, out=a(1, 2, 3, 5)),
        lambda o: o.delta_rule_forward(*[a(1, 2, 3, 4)] * 3, a(1, 2, 4)),
        lambda o: o.delta_rule_backward(
            a(1, 2, 3, 5), o.delta_rule_forward(*[a(1, 2, 3, 4)] * 3, a(1, 2, 3))[2]
        ),
        lambda o: o.delta_rule_backward(
            a(1, 2, 3, 4), o.delta_rule_forward(*[a(1, 2, 3, 4)] * 3, a(1, 2, 3))[2], a(1, 3, 4)
        ),
        lambda o: o.delta_rule_decode(*[a(2, 3, 4)] * 3, a(2, 3), None, a(2, 3, 4, 4), ids(0, 2)),
        lambda o: o.delta_rule_decode(*[a(2, 3, 4)] * 3, a(2, 3), None, a(2, 3, 4, 4), ids(-1, 0)),
        lambda o: o.delta_rule_decode(*[a(2, 3, 4)] * 3, a(2, 3), None, a(2, 3, 4, 4), ids(0)),
        lambda o: o.delta_rule_decode(*[a(2, 3, 4)] * 3, a(2, 3), None, a(2, 3, 4, 5), ids(0, 1)),
        lambda o: o.delta_rule_decode(*[a(2, 3, 4)] * 3, a(2, 3), a(3), a(2, 3, 4, 4), ids(0, 1)),
    ],
)
def test_wrong_arrays_are_refused(ops: fast.Fast, call: Any) -> None:
    """A kernel has no bounds checks: what does not fit must not reach it."""
    with pytest.raises((ValueError, TypeError)):
        call(ops)


def test_the_check_can_fail(ops: fast.Fast) -> None:
    """Gates' gradients of the last token forgotten; a state that is not passed on."""
    case = linear_attention_cases.case(1, 70, 2, 20, 8, "head", True, True)
    (y, grads), (exact, exact_grads) = both(ops, case, np.ascontiguousarray)
    grads["g"][:, -1] = 0
    assert relative(grads["g"], exact_grads["g"]) > 100 * TOLERANCE
    half = {name: a[:, :64] if name != "initial" else a for name, a in case.inputs.items()}
    short = reference.delta_rule_recurrent(*arguments(half), half["initial"])[1]
    assert relative(y[-short.size :], short.reshape(-1)) > 100 * TOLERANCE
