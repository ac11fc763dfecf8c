"""The reference ops: every gradient by the complex step, dtypes, `out`, and planted errors."""

from typing import Any

import numpy as np
import pytest

import op_cases
from complex_step import TOLERANCE, assert_gradients, gradient_errors
from op_cases import Array, Arrays, Case
from tenarai.ops import reference

CASES = op_cases.small_cases()
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def upstream(y: Any, rng: np.random.Generator) -> Any:
    """A random gradient of y: an array of its shape and dtype, a number for a scalar."""
    if np.ndim(y) == 0:
        return float(rng.standard_normal())
    return np.asarray(rng.standard_normal(y.shape)).astype(y.dtype)


def gradients(case: Case, x: Arrays, dy: Any, saved: Any, rng: np.random.Generator) -> Arrays:
    """All gradients of a case. Those of weights are what is added to random start values."""
    start = {
        name: np.asarray(rng.standard_normal(x[name].shape)).astype(x[name].dtype)
        for name in case.weights
    }
    grads = {name: g.copy() for name, g in start.items()}
    result = case.backward(reference, dy, saved, grads)
    return result | {name: grads[name] - start[name] for name in case.weights}


def complex_gradients(case: Case, rng: np.random.Generator) -> tuple[Any, Arrays]:
    """A random upstream gradient of a case and the gradients for it, all in complex128."""
    x = {name: a.astype(np.complex128) for name, a in case.inputs.items()}
    y, saved = case.forward(reference, x)
    dy = upstream(y, rng)
    return dy, gradients(case, x, dy, saved, rng)


@all_cases
def test_complex_step(case: Case, rng: np.random.Generator) -> None:
    dy, grads = complex_gradients(case, rng)
    assert_gradients(lambda x: case.loss(reference, x, dy), case.inputs, grads, rng)


@all_cases
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_is_kept_and_inputs_too(case: Case, dtype: Any, rng: np.random.Generator) -> None:
    """The same numbers in each dtype, to its precision, and no input is written to."""
    # 2e-5: some hundred roundings of float32 (6e-8 each); the cases are small.
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    x = {name: a.astype(dtype) for name, a in case.inputs.items()}
    before = {name: a.copy() for name, a in x.items()}
    y, saved = case.forward(reference, x)
    exact, exact_saved = case.forward(reference, case.inputs)
    exact_dy = upstream(exact, np.random.default_rng(1))
    dy = upstream(y, np.random.default_rng(1))
    grads = gradients(case, x, dy, saved, np.random.default_rng(2))
    exact_grads = gradients(case, case.inputs, exact_dy, exact_saved, np.random.default_rng(2))
    for name, a in ({"y": y} | grads).items():
        assert a.dtype == dtype, name
        b = np.asarray(({"y": exact} | exact_grads)[name])
        assert np.linalg.norm(a - b) <= tolerance * (1 + np.linalg.norm(b)), name
    for name, a in before.items():
        assert np.array_equal(a, x[name]), name


@all_cases
def test_out_is_where_the_result_goes(case: Case, rng: np.random.Generator) -> None:
    x = case.inputs
    y, saved = case.forward(reference, x)
    dy = upstream(y, rng)
    if case.forward_out:
        out = np.full_like(y, np.nan)
        result, saved = case.forward(reference, x, out=out)
        assert result is out
        assert np.array_equal(out, y)
    if case.backward_out:
        outs = tuple(np.full_like(x[name], np.nan) for name in case.backward_out)
        grads = {name: np.zeros_like(x[name]) for name in case.weights}
        wanted = case.backward(reference, dy, saved, grads)
        out = outs if len(outs) > 1 else outs[0]
        result = case.backward(reference, dy, saved, grads, out=out)
        for name, buffer in zip(case.backward_out, outs, strict=True):
            assert result[name] is buffer
            assert np.array_equal(buffer, wanted[name])


def test_every_op_has_a_case() -> None:
    ops = {name.removesuffix("_forward") for name in dir(reference) if name.endswith("_forward")}
    with_fixed_routing = {"route", "experts"}  # in test_experts.py
    assert ops == {case.name.split("-")[0] for case in CASES} | with_fixed_routing
    assert all(hasattr(reference, op + "_backward") for op in ops)


# The checker must be able to fail: each of these is a mistake that people make.


def layer_norm_without_third_term(dy: Array, saved: Any, grads: Arrays) -> Arrays:
    x, w, mean, rstd = saved
    dx = reference.layer_norm_backward(dy, saved, grads["w"], grads["b"])
    normed = (x - mean) * rstd
    return {"x": dx + rstd * normed * (dy * w * normed).mean(axis=-1, keepdims=True)}


def attention_without_row_sum(dy: Array, saved: Any, grads: Arrays) -> Arrays:
    q, k, v, y, *rest = saved
    saved = (q, k, v, np.zeros_like(y), *rest)  # D = Σ dy·y becomes 0
    return dict(zip("qkv", reference.attention_backward(dy, saved), strict=True))


def attention_of_the_first_head_only(dy: Array, saved: Any, grads: Arrays) -> Arrays:
    q, k, *_ = saved
    dq, dk, dv = reference.attention_backward(dy, saved)
    H, K = q.shape[2], k.shape[2]
    first = np.arange(H) % (H // K) == 0
    _, dk, dv = reference.attention_backward(dy * first[:, None], saved)
    return {"q": dq, "k": dk, "v": dv}


def linear_that_overwrites(dy: Array, saved: Any, grads: Arrays) -> Arrays:
    dw = np.zeros_like(grads["w"])
    dx = reference.linear_backward(dy, saved, dw)
    grads["w"][...] = dw
    return {"x": dx}


def embedding_that_forgets_repeats(dx: Array, saved: Any, grads: Arrays) -> Arrays:
    tokens, _ = saved
    grads["wte"][tokens] += dx
    return {}


def cross_entropy_over_all_rows(dloss: Any, saved: Any, grads: Arrays) -> Arrays:
    logits, targets, lse, _, z_loss = saved
    everywhere = (logits, targets, lse, targets.size, z_loss)
    return {"logits": reference.cross_entropy_backward(dloss, everywhere)}


def gelu_of_the_other_form(dy: Array, saved: Any, grads: Arrays) -> Arrays:
    return {"x": reference.gelu_backward(dy, (saved[0], "none"))}


def rope_turned_forward(dy: Array, saved: Any, grads: Arrays) -> Arrays:
    cos, sin, pairing = saved
    return {"x": reference.rope_forward(dy, cos, sin, pairing=pairing)[0]}


@pytest.mark.parametrize(
    "case, wrong_backward, wrong_inputs",
    [
        (op_cases.norm("layer_norm", (2, 7), 13, False), layer_norm_without_third_term, {"x"}),
        (op_cases.attention(2, 7, 7, 4, 2, 5, True), attention_without_row_sum, {"q", "k"}),
        (op_cases.attention(2, 7, 7, 4, 2, 5, True), attention_of_the_first_head_only, {"k", "v"}),
        (op_cases.linear((2, 7), 13, 5, False, False), linear_that_overwrites, {"w"}),
        (op_cases.embedding(2, 7, 5, 3, False), embedding_that_forgets_repeats, {"wte"}),
        (op_cases.cross_entropy((2, 7), 11, 0.5), cross_entropy_over_all_rows, {"logits"}),
        (op_cases.gelu((2, 7), "tanh"), gelu_of_the_other_form, {"x"}),
        (op_cases.rope(2, 7, 3, 6, "half"), rope_turned_forward, {"x"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_errors_are_caught(
    case: Case, wrong_backward: Any, wrong_inputs: set[str], rng: np.random.Generator
) -> None:
    """Just the wrong gradients are found, and by far: the tolerance is 1e-12."""
    wrong = Case(
        case.name,
        case.inputs,
        case.forward,
        lambda ops, dy, saved, grads: wrong_backward(dy, saved, grads),
        None,
        case.weights,
    )
    dy, grads = complex_gradients(wrong, rng)
    errors = gradient_errors(lambda x: case.loss(reference, x, dy), case.inputs, grads, rng)
    assert {name for name, error in errors.items() if error > TOLERANCE} == wrong_inputs
    assert all(errors[name] > 1e-5 for name in wrong_inputs)
    with pytest.raises(AssertionError, match="relative errors above"):
        assert_gradients(lambda x: case.loss(reference, x, dy), case.inputs, grads, rng)


def test_a_nan_gradient_is_caught(rng: np.random.Generator) -> None:
    case = op_cases.silu((5,))
    dy, grads = complex_gradients(case, rng)
    grads["x"][2] = np.nan
    with pytest.raises(AssertionError, match="relative errors above"):
        assert_gradients(lambda x: case.loss(reference, x, dy), case.inputs, grads, rng)
