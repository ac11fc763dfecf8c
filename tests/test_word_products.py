"""Products in words: off by what 12 bits a number lose (16 with AMX) and no more, each element by
its own row and column, the same bits for any number of threads; fast where there are no words."""

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from products import NARROW, inputs, results, truths
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights
from tenarai.ops import fast

# Relative to the norm of the product, of normal numbers: measured 2.6e-4. Both factors are off by
# up to half of the 4095th part of the largest of 128. With AMX it is the 32,639th part of the
# largest of 512: measured 7e-5.
TOLERANCE = {"avx2": 3.5e-4, "avx512vnni": 3.5e-4, "amx": 1e-4}
BLOCK = {"avx2": 128, "avx512vnni": 128, "amx": 512}
# Rows, columns and ks from which on words are taken.
LEAST = {"avx2": (32, 8, 64), "avx512vnni": (32, 16, 64), "amx": (16, 16, 32)}
EXACT = 1e-6  # what stays float32

WORDS = [isa for isa in fast.available_isas() if fast.Fast(1, isa).has_words]


def norm_error(got: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


@pytest.fixture(params=WORDS)
def words(request: pytest.FixtureRequest) -> Iterator[fast.Fast]:
    yield fast.Fast(2, request.param, products="words")


@pytest.mark.parametrize(
    ("M", "I", "O"),
    [(1040, 382, 766), (700, 1025, 50), (33, 64, 17), (64, 600, 131), (1500, 130, 96)],
)
def test_off_by_what_the_rounding_loses(words: fast.Fast, M: int, I: int, O: int) -> None:
    a = inputs(M, I, O)
    sizes = {"y": (M, O, I), "dx": (M, I, O), "dw": (O, I, M), "written": (O, I - NARROW, M)}
    least = LEAST[words.isa]
    for name, got in results(words, a).items():
        error = norm_error(got, truths(a)[name])
        size = sizes.get(name, (0, 0, 0))  # db is a sum
        if all(n >= low for n, low in zip(size, least, strict=True)):
            assert 1e-5 < error < TOLERANCE[words.isa], (name, error)
        else:
            assert error < EXACT, (name, error)


def test_the_same_bits_for_any_number_of_threads(words: fast.Fast) -> None:
    a = inputs(1040, 382, 766)
    first = results(fast.Fast(1, words.isa, products="words"), a)
    for threads in (2, 3, 4):
        for name, got in results(fast.Fast(threads, words.isa, products="words"), a).items():
            assert np.array_equal(got, first[name]), (threads, name)


def test_a_row_is_its_own_affair(words: fast.Fast) -> None:
    a = inputs(300, 382, 200)
    y, _ = words.linear_forward(a["x"], a["w"])
    loud = a["x"].copy()
    loud[::2] *= 1e20
    assert np.array_equal(words.linear_forward(loud, a["w"])[0][1::2], y[1::2])
    some, _ = words.linear_forward(np.ascontiguousarray(a["x"][41:141]), a["w"])
    assert np.array_equal(some, y[41:141])


def test_numbers_of_every_size(words: fast.Fast) -> None:
    """Blocks have scales of their own: rows and columns of 1e-12 are as exact as those of 1e12."""
    a = inputs(200, 500, 96)
    sizes = 10.0 ** np.linspace(-12, 12, 200, dtype=np.float64)
    x = (a["x"] * sizes[:, None]).astype(np.float32)
    y, _ = words.linear_forward(x, a["w"])
    truth = x.astype(np.float64) @ a["w"].astype(np.float64).T
    errors = np.linalg.norm(y - truth, axis=1) / np.linalg.norm(truth, axis=1)
    assert errors.max() < 2 * TOLERANCE[words.isa]
    assert not words.linear_forward(np.zeros_like(x), a["w"])[0].any()
    assert not words.linear_forward(np.full_like(x, 1e-38), a["w"])[0].any()  # below 1e-30: none
    huge, _ = words.linear_forward(np.full_like(x, 3e38), np.full_like(a["w"], 1e-38))
    np.testing.assert_allclose(huge, 0, atol=1e-30)


def test_one_number_far_above_the_others(words: fast.Fast) -> None:
    """It makes the steps of its block, and of no other, coarse: at worst the others are lost, each
    half a step, beside it."""
    block = BLOCK[words.isa]
    a = inputs(64, 3 * block, 96)
    a["x"][:, 7] = 1e4
    y, _ = words.linear_forward(a["x"], a["w"])
    truth = a["x"].astype(np.float64) @ a["w"].astype(np.float64).T
    assert norm_error(y, truth) < 1e-3
    rest = a["w"].copy()
    rest[:, :block] = 0  # what the other blocks give
    y, _ = words.linear_forward(a["x"], rest)
    assert (
        norm_error(y, a["x"].astype(np.float64) @ rest.astype(np.float64).T) < TOLERANCE[words.isa]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen(words: fast.Fast, bad: float) -> None:
    a = inputs(100, 300, 100)
    a["x"][5, 290] = bad
    y, saved = words.linear_forward(a["x"], a["w"])
    assert not np.isfinite(y[5]).any() and np.isfinite(np.delete(y, 5, axis=0)).all()
    dw = np.zeros_like(a["w"])
    dx = words.linear_backward(a["dy"], saved, dw)
    assert np.isfinite(dx).all()
    assert not np.isfinite(dw[:, 290]).any() and np.isfinite(np.delete(dw, 290, axis=1)).all()


def test_small_products_stay_float32(words: fast.Fast) -> None:
    rows, columns, depth = LEAST[words.isa]
    for M, I, O in ((rows - 1, 64, 64), (64, depth - 1, 64), (64, 64, columns - 1)):
        a = inputs(M, I, O)
        y, _ = words.linear_forward(a["x"], a["w"])
        plain, _ = fast.Fast(2, words.isa).linear_forward(a["x"], a["w"])
        assert np.array_equal(y, plain), (M, I, O)


def test_gradients_of_a_model(words: fast.Fast) -> None:
    """Two layers of GPT-2: what 1e-4 of a product comes to in every gradient."""
    model = GPT2(GPT2Config(vocab_size=300, context=64, layers=2, heads=4, width=128))
    table = model.table()
    params = Weights(table).initialise(1)
    tokens, targets = np.random.default_rng(2).integers(0, 300, (2, 2, 64)).astype(np.int32)

    def gradients(ops: fast.Fast) -> tuple[float, Weights]:
        grads = Weights(table)
        loss, saved = model.forward(ops, params, tokens, targets, grads)
        model.backward(ops, params, saved, grads)
        return loss, grads

    loss, grads = gradients(fast.Fast(2, words.isa))
    near, rounded = gradients(words)
    assert abs(near - loss) < 1e-5 * loss
    errors = {name: norm_error(rounded[name], grad) for name, grad in grads.items()}
    # Measured: 4e-4 to 7e-4, with AMX 1.4e-4.
    assert 1e-5 < max(errors.values()) < (3e-4 if words.isa == "amx" else 1.5e-3), errors


@pytest.mark.parametrize("isa", [i for i in fast.available_isas() if i not in WORDS])
def test_fast_where_there_are_none(isa: str) -> None:
    a = inputs(256, 382, 192)
    want = results(fast.Fast(2, isa, products="fast"), a)
    for name, got in results(fast.Fast(2, isa, products="words"), a).items():
        assert np.array_equal(got, want[name]), name


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="products = 'int8'"):
        fast.Fast(1, products="int8")


def test_it_is_said_how_products_are_made() -> None:
    assert fast.Fast(1, "baseline", products="words").how.endswith(
        "in float32 (words need AVX2, AMX, or AVX-512 with VNNI)"
    )
    assert fast.Fast(1, "baseline", products="fast").how == "1 threads, baseline"
    for isa in WORDS:
        assert fast.Fast(2, isa, products="words").how == f"2 threads, {isa}, products in words"
        assert fast.Fast(2, isa, products="fast").how == f"2 threads, {isa}"
