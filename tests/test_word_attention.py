"""Attention in words: off by what 12 bits a number lose and no more, with every option; weights far
below the greatest count; float32 for few queries or without words. With AMX it is of 24 bits, and
nothing that stands out makes its neighbours coarse."""

import numpy as np
import pytest

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast, fast_attention, reference

NAMES = ("y", "dq", "dk", "dv")
# Relative to the norm, of normal numbers: measured 3e-4 to 6e-4. a is off by 3e-4 of its size, and
# so is p; da is a difference.
TOLERANCE = {"avx512vnni": 8e-4, "amx": 5e-6}

WORDS = [isa for isa in fast.available_isas() if isa in TOLERANCE]


@pytest.fixture(params=WORDS or [pytest.param("", marks=pytest.mark.skip("no AVX-512 VNNI"))])
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def for_few_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only where they pay, so that the cases can be small."""
    monkeypatch.setattr(fast_attention, "PAYS_WITH_AMX", 0)


def norm_error(got: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def inputs(B: int, T: int, S: int, H: int, K: int, D: int) -> list[np.ndarray]:
    """q, k, v, dy."""
    shapes = ((B, T, H, D), (B, S, K, D), (B, S, K, D), (B, T, H, D))
    return [normal(shape, seed) for seed, shape in enumerate(shapes)]


def results(ops, q, k, v, dy, **options) -> dict[str, np.ndarray]:
    y, saved = ops.attention_forward(q, k, v, **options)
    return dict(zip(NAMES, (y, *ops.attention_backward(dy, saved)), strict=True))


def truths(*arrays: np.ndarray, **options) -> dict[str, np.ndarray]:
    return results(reference, *(a.astype(np.float64) for a in arrays), **options)


def words(isa: str, threads: int = 2) -> fast.Fast:
    return fast.Fast(threads, isa, products="words")


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 64, 64, 1, 1, 64), {}),
        ((2, 127, 127, 4, 2, 33), {}),
        ((1, 200, 333, 3, 1, 96), {}),
        ((1, 300, 300, 2, 2, 17), {"window": 70}),
        ((1, 150, 150, 2, 2, 128), {"causal": False}),
        ((1, 90, 100, 2, 1, 256), {}),
        ((1, 70, 70, 1, 1, 277), {}),
        ((2, 100, 130, 2, 1, 64), {"soft_cap": 20.0, "lengths": np.array([130, 101])}),
        ((1, 130, 130, 4, 2, 40), {"alibi": np.array([0.5, 0.25, 0.1, 0.05])}),
        ((1, 130, 130, 2, 2, 40), {"off_by_one": True, "prefix": 37}),
    ],
)
def test_off_by_what_the_rounding_loses(isa: str, shape, options) -> None:
    arrays = inputs(*shape)
    want = truths(*arrays, **options)
    plain = results(fast.Fast(2, isa), *arrays, **options)
    for name, got in results(words(isa), *arrays, **options).items():
        assert norm_error(got, want[name]) < TOLERANCE[isa], name
        assert not np.array_equal(got, plain[name]), name


@pytest.mark.parametrize("T", [640, 633, 47])
def test_small_weights_beside_a_great_one(isa: str, T: int) -> None:
    """Most of each query's weight on the first key, as where a model has nothing to say: its steps
    would lose the 63 others of its tile. Nor may lanes past the last query count (633, 47)."""
    D = 64
    q, k, v, dy = inputs(1, T, T, 1, 1, D)
    q[:] = 1
    k[:, 1:] *= 0.1
    k[:, 0] = (np.log(2 * T) + 0.5) / np.sqrt(D)  # 3.3 T times the weight of one of the others
    v[:, 0] = 0  # what is left is theirs
    dy[:] = normal((D,))
    want = truths(q, k, v, dy)
    for name, got in results(words(isa), q, k, v, dy).items():
        rest = slice(1 if name in ("dk", "dv") else 32, None)
        assert norm_error(got[:, rest], want[name][:, rest]) < 1.5e-3, name


def test_nearly_all_weight_on_one_key(isa: str) -> None:
    """dq and dk are small differences then: off by a part of what is subtracted, no more."""
    T, D = 256, 64
    q, _, v, dy = inputs(1, T, T, 1, 1, D)
    k = q * np.float32(np.sqrt(20 / np.sqrt(D)))
    want = truths(k, k, v, dy)
    got = results(words(isa), k, k, v, dy)
    assert norm_error(got["y"], want["y"]) < TOLERANCE[isa]
    assert norm_error(got["dv"], want["dv"]) < TOLERANCE[isa]
    sizes = [np.linalg.norm(a, axis=-1) for a in (dy, v, k)]
    for name in ("dq", "dk"):
        error = np.linalg.norm(got[name] - want[name], axis=-1)
        assert (error < 1e-3 * np.prod(sizes, axis=0) / np.sqrt(D)).all(), name


def test_sums_at_their_limit(isa: str) -> None:
    """128 products of the greatest words fit 32 bits; wider heads take several sums."""
    for D in (128, 129, 256):
        q, k, v, dy = (np.ones_like(a) for a in inputs(1, 64, 64, 1, 1, D))
        k[:, 1::2], v[:, ::2] = -1, -1
        q *= 0.1
        got, want = results(words(isa), q, k, v, dy), truths(q, k, v, dy)
        for name in NAMES:
            assert norm_error(got[name], want[name]) < TOLERANCE[isa], (D, name)


def test_the_same_bits_twice(isa: str) -> None:
    arrays = inputs(1, 300, 300, 3, 3, 48)
    for threads in (1, 2, 3):
        first = results(words(isa, threads), *arrays)
        for name, got in results(words(isa, threads), *arrays).items():
            assert np.array_equal(got, first[name]), (threads, name)


def test_few_queries_stay_float32(isa: str) -> None:
    arrays = inputs(1, 31, 100, 2, 1, 32)
    plain = results(fast.Fast(2, isa), *arrays)
    for name, got in results(words(isa), *arrays).items():
        assert np.array_equal(got, plain[name]), name


@pytest.mark.skipif("amx" not in WORDS, reason="no AMX")
@pytest.mark.parametrize("times", [1e3, 1e37])
@pytest.mark.parametrize("where", ["v", "k", "q", "dy"])
def test_one_that_stands_out(where: str, times: float) -> None:
    """A row far above the others: what has nothing to do with it is as exact as ever, though it
    shares its tile."""
    T, at = 256, 40
    arrays = dict(zip(("q", "k", "v", "dy"), inputs(1, T, T, 1, 1, 64), strict=True))
    arrays[where][:, at] *= times
    got = results(fast.Fast(2, "amx", products="fast"), *arrays.values())
    want = truths(*arrays.values())
    # Queries before a key do not see it, nor do keys behind a query.
    free = slice(1, at) if where in ("v", "k") else slice(at + 1, None)
    for name in ("y", "dq") if where in ("v", "k") else ("dk", "dv"):
        error = np.linalg.norm(got[name] - want[name], axis=-1)[0, free]
        size = np.linalg.norm(want[name], axis=-1)[0, free]
        assert (error < 2e-5 * size).all(), (name, (error / size).max())


@pytest.mark.parametrize("products", ["plain", "fast", "words"])
@pytest.mark.parametrize("told", ["amx", "avx512vnni"])
def test_with_amx_where_many_keys_are_seen(monkeypatch, told: str, products: str) -> None:
    """What the kernels are asked for, on any CPU: in both passes plain where few are seen."""
    monkeypatch.undo()
    least = fast_attention.PAYS_WITH_AMX
    asked = []

    class Told(fast.Fast):
        isa = told

        def _run(self, name, *arguments):
            asked.append((name, arguments[-1]))
            return super()._run(name, *arguments)

    ops = Told(2, products=products)
    few = least - 1
    for T, S, window, many in (
        (least, least, None, True),
        (few, few, None, False),
        (least, few, None, False),
        (few, least, None, False),
        (least, least, few, False),
    ):
        results(ops, *inputs(1, T, S, 1, 1, 8), window=window, causal=window is not None)
        expected = products if many or told != "amx" else "plain"
        assert asked == [(f"attention_{way}", expected) for way in ("forward", "backward")]
        asked.clear()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_seen(isa: str, bad: float) -> None:
    q, k, v, dy = inputs(1, 100, 100, 1, 1, 32)
    v[0, 70, 0, 3] = bad
    y = results(words(isa), q, k, v, dy)["y"]
    assert not np.isfinite(y[0, 70:, 0, 3]).any()
    assert np.isfinite(y[0, :64]).all()  # of the tiles before
    assert np.isfinite(np.delete(y, 3, axis=3)).all()
    q[0, 70] = bad
    y = results(words(isa), q, k, normal(v.shape), dy)["y"]
    assert not np.isfinite(y[0, 70]).any() and np.isfinite(y[0, :64]).all()


def test_nothing_to_see(isa: str) -> None:
    """Rows of no length: y is 0, and so is every gradient."""
    arrays = inputs(2, 70, 70, 1, 1, 16)
    got = results(words(isa), *arrays, lengths=np.array([0, 70]))
    assert not any(array[0].any() for array in got.values())
    assert all(array[1].any() for array in got.values())


@pytest.mark.parametrize("none", [i for i in fast.available_isas() if i not in WORDS])
def test_float32_where_there_are_no_words(none: str) -> None:
    arrays = inputs(1, 100, 100, 2, 1, 32)
    plain = results(fast.Fast(2, none), *arrays)
    for name, got in results(fast.Fast(2, none, products="words"), *arrays).items():
        assert np.array_equal(got, plain[name]), name
