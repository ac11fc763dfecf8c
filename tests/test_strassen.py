"""Products with seven multiplications for eight: as near to the truth as the others, off unless
asked for, the same bits for any number of threads."""

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast
from tenarai.ops.gradient import Unwritten

M, I, O = 1040, 382, 766  # several blocks of each dim, in each product with a rest

# As in test_fast_ops.py. Measured: 5e-7 to 9e-7, 1.4 times those of the plain product.
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=fast.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"x": (M, I), "w": (O, I), "b": (O,), "residual": (M, O), "dy": (M, O), "dw": (O, I)}
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Of NaN; its first element begins a cache line, so that it may be written past the caches."""
    memory = np.full(int(np.prod(shape)) + 16, np.nan, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + int(np.prod(shape))].reshape(shape)


def results(ops: fast.Fast, a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    y, saved = ops.linear_forward(a["x"], a["w"], a["b"], a["residual"])
    dw, db = a["dw"].copy(), np.zeros(O, np.float32)
    dx = ops.linear_backward(a["dy"], saved, dw, db)
    written = aligned((O, I - 14))  # rows of whole vectors
    narrow = np.ascontiguousarray(a["x"][:, : I - 14]), np.ascontiguousarray(a["w"][:, : I - 14])
    ops.linear_backward(a["dy"], (*narrow, "off"), Unwritten(written))
    return {"y": y, "dx": dx, "dw": dw, "db": db, "written": written}


def test_as_near_to_the_truth_as_others(isa: str, arrays: dict[str, np.ndarray]) -> None:
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    dw = a["dy"].T @ a["x"]
    truth = {
        "y": a["x"] @ a["w"].T + a["b"] + a["residual"],
        "dx": a["dy"] @ a["w"],
        "dw": dw + a["dw"],
        "db": a["dy"].sum(axis=0),
        "written": dw[:, : I - 14],
    }
    for name, got in results(fast.Fast(2, isa, strassen=True), arrays).items():
        error = np.abs(got - truth[name]).max() / np.abs(truth[name]).max()
        assert error < TOLERANCE, (name, error)


def test_the_same_bits_for_any_number_of_threads(isa: str, arrays: dict[str, np.ndarray]) -> None:
    first = results(fast.Fast(1, isa, strassen=True), arrays)
    plain = results(fast.Fast(1, isa), arrays)
    for name, got in first.items():
        assert not np.array_equal(got, plain[name]), f"{name} is that of the plain product"
    for threads in (2, 3):
        for name, got in results(fast.Fast(threads, isa, strassen=True), arrays).items():
            assert np.array_equal(got, first[name]), (threads, name)


def test_a_few_rows_are_multiplied_as_ever(isa: str, arrays: dict[str, np.ndarray]) -> None:
    x, w = arrays["x"][:63], arrays["w"]
    y, _ = fast.Fast(1, isa, strassen=True).linear_forward(x, w)
    assert np.array_equal(y, fast.Fast(1, isa).linear_forward(x, w)[0])
