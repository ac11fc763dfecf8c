"""What test_fast_ops compares: odd and short shapes of op_cases, and the reference's answers."""

import dataclasses
import functools
from typing import Any

import numpy as np

import op_cases
from op_cases import Array, Arrays, Case
from tenarai.ops import reference

# The kernels compute in float32, the reference here in float64 from the same float32 inputs, so
# the difference is the kernels' own rounding: 6e-8 an operation, which grows like the root of
# the length of a sum (some hundreds here: about 1e-6), and a few units in the last place of their
# exp and tanh. 2e-5 leaves a factor of ten; a lost element of a row is 1e-2 or more.
TOLERANCE = 2e-5


def odd_cases() -> list[Case]:
    """Every op and option, T = 1, 7, 33, 127, widths that are no multiple of a vector.

    The last width gives each op more than 3 · 8192 numbers, enough for three threads to share.
    """
    cases = []
    for T, I, O in ((1, 37, 21), (7, 70, 5), (33, 13, 131), (127, 139, 259)):
        cases += [op_cases.linear((2, T), I, O, *bias) for bias in ((True, True), (False, False))]
        cases += [op_cases.linear((2, T), I, O, T % 2 > 0, True, g) for g in ("tanh", "none")]
        cases += [op_cases.norm("layer_norm", (2, T), O, T > 7)]
        cases += [op_cases.norm("rms_norm", (2, T), O, T > 7)]
        cases += [op_cases.gelu((2, T, I), g) for g in ("tanh", "none")]
        cases += [op_cases.silu((2, T, I)), op_cases.scale((2, T, I), 25.3)]
        cases += [op_cases.gated(op, (2, T, I)) for op in ("swiglu", "geglu")]
        cases += [op_cases.residual((2, T, I))]
        cases += [op_cases.embedding(3, T, I, 11, T > 1, start=T % 5)]
        cases += [op_cases.rope(2, T, 3, 2 * O, p) for p in ("half", "adjacent")]
        cases += [op_cases.dropout((2, T, I), 0.3, 2**40 + 5, 2**32 - 9)]
        cases += [op_cases.cross_entropy((2, T), O + 300, ignored) for ignored in (0.0, 0.4)]
        cases += [op_cases.linear_cross_entropy((2, T), I, O, ignored) for ignored in (0.0, 0.4)]
    for T, S in ((1, 7), (7, 7), (33, 33), (127, 127), (33, 127), (1, 127)):
        for H, K, D in ((3, 3, 13), (4, 2, 64), (4, 1, 37)):
            cases += [op_cases.attention(2, T, S, H, K, D, causal) for causal in (True, False)]
    # Windows of part of a tile of 64, of whole ones, wider than all; panels whose window
    # begins in the middle of a tile (S - T no multiple of 64); few queries, many threads.
    for T, S in ((1, 300), (3, 127), (33, 33), (127, 127), (100, 230), (300, 300)):
        for window in (2, 5, 40, 64, 65, 128, 200, 1000):
            cases += [op_cases.attention(1, T, S, 4, 2, 13, True, window=window)]
    # Several blocks of the matrix product in each of its dims.
    cases += [op_cases.linear((1, 517), 1031, 771, True, True)]
    cases += [op_cases.linear((1, 517), 1031, 387, True, True, g) for g in ("tanh", "none")]
    cases += [op_cases.linear_cross_entropy((517,), 387, 1031, 0.2)]
    cases += [op_cases.attention(1, 33, 7, 2, 1, 16, False, 0.7)]  # more queries than keys
    cases += [op_cases.attention(1, 300, 300, 2, 1, 19, True)]  # several tiles of any size
    cases += [
        op_cases.cross_entropy((2, 7), 5, 1.0),
        op_cases.linear_cross_entropy((9,), 3, 5, 1.0),
    ]
    return cases


def short_cases() -> list[Case]:
    """Every length below two vectors of the widest instruction set, 32 floats, and a bit more."""
    cases = []
    for n in range(1, 36):
        # Spread 1: far down the tail 1 + tanh has few digits, which one number cannot hide.
        cases += [op_cases.gelu((n,), g, 1.0) for g in ("tanh", "none")]
        cases += [op_cases.silu((n,)), op_cases.residual((n,)), op_cases.scale((n,), 3.0)]
        cases += [op_cases.gated(op, (n,)) for op in ("swiglu", "geglu")]
        cases += [op_cases.dropout((n,), 0.4, 7, 2**32 - n // 2)]
        # eps 0.3: with C below 3 a small one leaves nothing of dx but rounding.
        cases += [op_cases.norm(op, (3,), n, True, 0.3) for op in ("layer_norm", "rms_norm")]
        cases += [op_cases.linear((3,), n, 5, True, True), op_cases.linear((3,), 5, n, True, True)]
        cases += [op_cases.linear((n,), 3, 5, True, True)]
        cases += [op_cases.linear((3,), n, n, True, False, "tanh")]
        cases += [op_cases.embedding(2, 3, n, 5, True), op_cases.rope(1, 3, 2, 2 * n, "half")]
        cases += [op_cases.rope(1, 3, 2, 2 * n, "adjacent")]
        cases += [op_cases.attention(1, 5, 6, 2, 1, n, True)]
        cases += [op_cases.attention(1, n, n + 1, 2, 2, 4, True)]
        cases += [op_cases.attention(1, n, n + 70, 2, 1, 4, True, window=2 + n // 2)]
        cases += [op_cases.cross_entropy((3,), n + 1, 0.3)]
        cases += [op_cases.linear_cross_entropy((4,), n, n + 1, 0.3)]
        cases += [op_cases.linear_cross_entropy((4,), n, n + 1, 0.3, 0.2)]
    return cases


def misaligned(a: Array) -> Array:
    """A float32 copy that starts 4 bytes after a multiple of 64."""
    memory = np.empty(4 * a.size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + 4
    b = memory[start : start + 4 * a.size].view(np.float32).reshape(a.shape)
    b[...] = a
    return b


def upstream(case: Case, y: Any) -> Any:
    """A random gradient of y in float32, the same at every call; a number for a scalar."""
    dy = op_cases._normal(case.name + "upstream", dy=np.shape(y))["dy"]
    return np.asarray(dy, np.float32) if np.ndim(y) else float(np.float32(dy))


def start_values(case: Case, grads: Arrays) -> Arrays:
    """What stands in the gradients of the weights before the op adds to them.

    Random, and of the size of what is added: adding to much more would cost its last digits.
    """
    start = {}
    for name in case.weights:
        size = float(np.sqrt(np.mean(grads[name] ** 2))) or 1.0
        a = op_cases._normal(case.name + "start", **{name: grads[name].shape})[name]
        start[name] = np.asarray(size * a, np.float32)
    return start


def float32_case(case: Case) -> Case:
    """The case with its numbers rounded to float32, so that both sides compute from the same."""
    inputs = {name: a.astype(np.float32).astype(np.float64) for name, a in case.inputs.items()}
    return dataclasses.replace(case, inputs=inputs)


@functools.cache
def expected(index: tuple[str, int]) -> tuple[Any, Arrays]:
    """y and all gradients by the reference in float64; of weights, what is to be added."""
    case = CASES[index[0]][index[1]]
    y, saved = case.forward(reference, case.inputs)
    dy = upstream(case, y)
    dy = dy.astype(np.float64) if np.ndim(dy) else dy
    grads = {name: np.zeros_like(case.inputs[name]) for name in case.weights}
    return y, grads | case.backward(reference, dy, saved, grads)


def relative(a: Any, b: Any) -> float:
    """Norm of the difference over the norm of b; what is to be 0 must be."""
    difference = float(np.linalg.norm(np.asarray(a, np.float64) - b))
    if not np.any(b):
        return np.inf if difference > 0 else difference  # a nan stays one
    return difference / float(np.linalg.norm(b))


CASES = {
    "odd": [float32_case(case) for case in odd_cases()],
    "short": [float32_case(case) for case in short_cases()],
}
