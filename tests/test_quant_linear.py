"""Products with quantised weights: every format, few rows and many, on every instruction set."""

from functools import cache

import numpy as np
import pytest

from tenarai.ops.fast import Fast, available_isas
from tenarai.quant import ACTIVATIONS, FORMATS, QuantTensor

gguf = pytest.importorskip("gguf")

# Where float16 numbers stand in a block; all other bytes may be anything.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}  # fmt: skip
BLOCKS = sorted(HALVES)
FLOATS = ["F32", "F16", "BF16"]
ROWS = (1, 2, 3, 4, 7, 8, 9, 33)
WIDTHS = {32: (32, 96, 256, 576), 256: (256, 768), 1: (5, 64, 259)}

fast = cache(Fast)


def weight(name: str, O: int, I: int, seed: int = 0) -> tuple[QuantTensor, np.ndarray]:
    """Random blocks at an odd address, and what gguf says they mean, in float64."""
    format = FORMATS[name]
    rng = np.random.default_rng(seed)
    if name in FLOATS:
        w = rng.standard_normal((O, I)).astype(np.float32)
        data = {
            "F32": lambda: w.view(np.uint8),
            "F16": lambda: w.astype(np.float16).view(np.uint8),
            "BF16": lambda: np.ascontiguousarray(w.view(np.uint8).reshape(O, I, 4)[..., 2:]),
        }[name]().reshape(O, -1)
    else:
        blocks = rng.integers(0, 256, (O, I // format.block, format.bytes), np.uint8)
        for at in HALVES[name]:
            scales = rng.uniform(-0.1, 0.1, blocks.shape[:2]).astype(np.float16)
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
        data = blocks.reshape(O, -1)
    room = np.empty(data.size + 1, np.uint8)
    at_odd = room[1:].reshape(data.shape)
    at_odd[...] = data
    kind = gguf.GGMLQuantizationType[name]
    values = gguf.quants.dequantize(data, kind).astype(np.float64)
    return QuantTensor(format, (O, I), at_odd), values.reshape(O, I)


def inputs(M: int, I: int, O: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x with outliers, a bias, a residual."""
    rng = np.random.default_rng(M)
    x = rng.standard_normal((M, I)).astype(np.float32)
    x[rng.random((M, I)) < 0.01] *= 50
    b = rng.standard_normal(O).astype(np.float32)
    return x, b, rng.standard_normal((M, O)).astype(np.float32)


def float_bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What float32 sums may be off: a few last places of the sum of magnitudes."""
    return 2e-6 * (np.abs(x) @ np.abs(w).T) + 1e-6


def largest(x: np.ndarray, block: int) -> np.ndarray:
    """Of each element's block in its row."""
    most = [np.abs(x[:, i : i + block]).max(axis=1) for i in range(0, x.shape[1], block)]
    return np.repeat(np.stack(most, axis=1), block, axis=1)[:, : x.shape[1]]


def rounding_bound(x: np.ndarray, w: np.ndarray, bytes_of_w: bool = False) -> np.ndarray:
    """What activations rounded to 8 bits a block of 32 may change, at worst: half a step each; and
    weights rounded to bytes too, with a scale for 128."""
    step = largest(x, 32) / 127
    bound = step / 2 @ np.abs(w).T
    if bytes_of_w:
        w_step = largest(w, 128) / 126 + largest(w, 256) / 2000
        bound += (np.abs(x) + step / 2) @ w_step.T / 2
    return bound


def bfloat_bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What rounding both to bfloat16 may change, at worst: each by 2^-8 of its size."""
    return ((1 + 2**-8) ** 2 - 1) * (np.abs(x) @ np.abs(w).T)


def bytes_bound(isa: str, x: np.ndarray, w: np.ndarray, k_format: bool) -> np.ndarray:
    """Of activations="bytes". With AMX many rows are bfloat16."""
    if isa == "amx" and len(x) > 8:
        return bfloat_bound(x, w)
    return rounding_bound(x, w, k_format)


def cases(names):
    return [
        pytest.param(isa, name, id=f"{isa}-{name}") for isa in available_isas() for name in names
    ]


@pytest.mark.parametrize("isa, name", cases(BLOCKS + FLOATS))
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_forward_is_the_product_with_the_expanded_weight(isa, name, activations):
    ops = fast(2, isa, None, activations)
    for I in WIDTHS[FORMATS[name].block]:
        for O in (1, 37):
            q, w = weight(name, O, I)
            for M in ROWS:
                x, b, residual = inputs(M, I, O)
                expected = x.astype(np.float64) @ w.T + b + residual
                y, _ = ops.linear_forward(x, q, b, residual)
                bound = float_bound(x, w)
                if activations == "words" and name in BLOCKS:
                    bound += rounding_bound(x, w)
                if activations == "bytes" and name in BLOCKS:
                    bound += bytes_bound(isa, x, w, FORMATS[name].block == 256)
                assert (np.abs(y - expected) <= bound).all(), (I, O, M)


@pytest.mark.parametrize("isa, name", cases(BLOCKS))
def test_few_rows_are_rounded_finer_than_bytes(isa, name):
    """Up to eight rows keep 13 bits a group of 256: within a sixteenth of what 8 bits would do."""
    ops = fast(1, isa)
    I = 768
    q, w = weight(name, 37, I)
    x, _, _ = inputs(8, I, 37)
    step = np.repeat(np.abs(x.reshape(8, -1, 256)).max(axis=2) / 8191, 256, axis=1)
    y, _ = ops.linear_forward(x, q)
    bound = float_bound(x, w) + step / 2 @ np.abs(w).T
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= bound).all()


@pytest.mark.parametrize("isa, name", cases(["Q8_0", "Q4_1", "Q5_0"]))
def test_in_bytes_an_outlier_leaves_its_neighbours_their_bits(isa, name):
    """One of 32 activations is larger by a thousand: the others are rounded as if it were not. (In
    bfloat16 every number has its own bits.)"""
    ops = fast(1, isa, None, "bytes")
    q, w = weight(name, 37, 576)
    x = np.random.default_rng(1).uniform(-1, 1, (33, 576)).astype(np.float32)
    rest = x.copy()
    for m in range(33):
        for i in range(0, 576, 32):
            x[m, i + (m + i // 32) % 32] *= 1000
            rest[m, i + (m + i // 32) % 32] = 0
    y, _ = ops.linear_forward(x, q)
    bound = float_bound(x, w) + (bfloat_bound(x, w) if isa == "amx" else rounding_bound(rest, w))
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= bound).all()


@pytest.mark.parametrize("isa, name", cases(["Q4_K", "Q6_K", "Q4_1"]))
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_rows_have_the_same_bits_alone_in_company_and_on_any_threads(isa, name, activations):
    q, _ = weight(name, 110, 768)
    x, _, _ = inputs(8, 768, 110)
    together, _ = fast(2, isa, None, activations).linear_forward(x, q)
    for ops in (fast(1, isa, None, activations), fast(3, isa, None, activations)):
        np.testing.assert_array_equal(ops.linear_forward(x, q)[0], together)
        for m in range(8):
            alone, _ = ops.linear_forward(x[m : m + 1], q)
            np.testing.assert_array_equal(alone[0], together[m])


@pytest.mark.parametrize("isa, name", cases(["Q5_K", "Q6_K", "Q4_1"]))
@pytest.mark.parametrize("activations", ["words", "bytes"])
def test_prompts_longer_than_what_is_rounded_at_a_time(isa, name, activations):
    """More rows, inputs and outputs than any block: the product, and a row has the same bits among
    others and on any threads."""
    M, I, O = 1024 + 41, 1280, 600
    ops = fast(2, isa, None, activations)
    q, w = weight(name, O, I)
    x, b, residual = inputs(M, I, O)
    y, _ = ops.linear_forward(x, q, b, residual)
    expected = x.astype(np.float64) @ w.T + b + residual
    if activations == "bytes":
        bound = bytes_bound(isa, x, w, FORMATS[name].block == 256)
    else:
        bound = largest(x, 256) / 1023 / 2 @ np.abs(w).T  # 11 bits with Q6_K, others more
    assert (np.abs(y - expected) <= float_bound(x, w) + bound).all()
    for threads in (1, 3):
        again, _ = fast(threads, isa, None, activations).linear_forward(x, q, b, residual)
        np.testing.assert_array_equal(again, y)
    for first, rows in ((0, 9), (7, 16), (1000, 40), (1040, 25)):
        at = slice(first, first + rows)
        some, _ = ops.linear_forward(x[at], q, b, residual[at])
        np.testing.assert_array_equal(some, y[at])


@pytest.mark.parametrize("isa", available_isas())
def test_what_is_not_a_number_stays_in_its_row_and_column(isa):
    q, _ = weight("Q4_K", 70, 512)
    broken = q.data.copy()
    broken[50, 144 : 144 + 2] = np.array([np.nan], np.float16).view(np.uint8)
    x, _, _ = inputs(45, 512, 70)
    x[41, 511] = np.nan
    y, _ = fast(2, isa, None, "bytes").linear_forward(x, QuantTensor(q.format, q.shape, broken))
    expected = np.zeros((45, 70), bool)
    expected[41] = expected[:, 50] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


def rounds_gradients(isa: str, name: str, activations: str) -> bool:
    """Whether dx = dy w is made of whole numbers: elsewhere it is float32."""
    return isa in ("avx512vnni", "amx") and name in BLOCKS and activations != "float32"


def backward_bound(dy: np.ndarray, w: np.ndarray, activations: str, isa: str) -> np.ndarray:
    """What rounding may change, at worst: half a step each. dy has a scale for 32 outputs, w
    (O, I) one for 128 outputs of each input; with AMX both have one for 512, and the products of
    their lower digits, 128 steps each, are left out."""
    amx = isa == "amx"
    most = 32639 if amx else 127 if activations == "bytes" else 8191
    step = largest(dy, 512 if amx else 32) / most
    w_step = largest(np.ascontiguousarray(w.T), 512 if amx else 128).T / most
    left_out = 128**2 * step @ w_step if amx else 0
    return step / 2 @ np.abs(w) + (np.abs(dy) + step / 2) @ w_step / 2 + left_out


@pytest.mark.parametrize("isa, name", cases(BLOCKS + FLOATS))
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_backward_is_the_product_with_the_expanded_weight(isa, name, activations):
    ops = fast(2, isa, None, activations)
    for I in WIDTHS[FORMATS[name].block]:
        for O in (1, 37, 300):
            q, w = weight(name, O, I)
            for M in (1, 9, 33):
                x, dy = inputs(M, I, O)[0], inputs(M, O, 1)[0]
                _, saved = ops.linear_forward(x, q)
                db = np.ones(O, np.float32)
                dx = ops.linear_backward(dy, saved, None, db)
                bound = float_bound(dy, w.T)
                if rounds_gradients(isa, name, activations):
                    bound += backward_bound(dy, w, activations, isa)
                assert (np.abs(dx - dy.astype(np.float64) @ w) <= bound).all(), (I, O, M)
                sums = 1 + dy.astype(np.float64).sum(axis=0)
                np.testing.assert_allclose(db, sums, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=name):
        ops.linear_backward(dy, saved, np.zeros((O, I), np.float32))


@pytest.mark.parametrize("isa, name", cases(["Q4_K", "Q4_1"]))
@pytest.mark.parametrize("activations", ["words", "bytes"])
def test_gradients_of_many_rows_and_outputs(isa, name, activations):
    """More than are rounded at a time: the errors stay those of random roundings, and a row has the
    same bits on any threads, and alone or in company (with AMX fewer than 16 are float32)."""
    O, M, I = 8192 + 300, 1024 + 40, 512
    q, w = weight(name, O, I)
    x, dy = np.zeros((M, I), np.float32), inputs(M, O, 1)[0]
    dx = fast(2, isa, None, activations).linear_backward(dy, (x, q, "off"), None)
    rows = [0, 500, 1023, 1024, 1063]
    exact = dy[rows].astype(np.float64) @ w
    # dy has outliers. With AMX both are words of 16 bits, beside an outlier for 512.
    most = 6e-4 if isa == "amx" else {"words": 4e-4, "bytes": 2.5e-2}[activations]
    assert np.linalg.norm(dx[rows] - exact) < most * np.linalg.norm(exact)
    if not rounds_gradients(isa, name, activations):
        return
    for threads in (1, 3):
        ops = fast(threads, isa, None, activations)
        np.testing.assert_array_equal(ops.linear_backward(dy, (x, q, "off"), None), dx)
    for m in rows:
        first = min(m, M - 20) if isa == "amx" else m
        at = slice(first, first + (20 if isa == "amx" else 1))
        alone = ops.linear_backward(dy[at], (x[at], q, "off"), None)
        np.testing.assert_array_equal(alone[m - first], dx[m])


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_gradients_that_are_not_numbers_zero_or_tiny(activations):
    ops = fast(2, None, None, activations)
    q, w = weight("Q4_K", 300, 512)
    x, dy = np.zeros((9, 512), np.float32), inputs(9, 300, 1)[0]
    dy[4, 290] = np.nan
    dx = ops.linear_backward(dy, (x, q, "off"), None)
    assert np.isnan(dx[4]).all() and np.isfinite(np.delete(dx, 4, axis=0)).all()
    for value in (0.0, 1e-40):
        dx = ops.linear_backward(np.full_like(dy, value), (x, q, "off"), None)
        np.testing.assert_allclose(dx, 0, atol=1e-30)
    broken = q.data.copy()
    broken[7, 144 : 144 + 2] = np.array([np.nan], np.float16).view(np.uint8)  # inputs 256 to 511
    q = QuantTensor(q.format, q.shape, broken)
    dx = ops.linear_backward(np.ones_like(dy), (x, q, "off"), None)
    assert np.isfinite(dx[:, :256]).all() and np.isnan(dx[:, 256:]).all()


@pytest.mark.parametrize("isa", available_isas())
def test_backward_with_seven_products(isa):
    ops = Fast(2, isa, None, "float32")
    q, w = weight("Q4_K", 700, 256)
    x, _, _ = inputs(128, 256, 700)
    dy = inputs(128, 700, 1)[0]
    _, saved = ops.linear_forward(x, q)
    plain = ops.linear_backward(dy, saved, None)
    ops.products = "fast"
    dx = ops.linear_backward(dy, saved, None)
    assert not np.array_equal(dx, plain)
    # of its own tile's roundings, two or three times a plain product's
    exact = dy.astype(np.float64) @ w
    assert np.abs(dx - exact).max() < 3e-6 * np.abs(exact).max()


@pytest.mark.parametrize("isa", available_isas())
def test_gelu_linear_takes_a_quantised_weight(isa):
    ops = fast(1, isa, None, "float32")
    q, w = weight("Q5_1", 20, 64)
    x, b, residual = inputs(3, 64, 20)
    dy = inputs(3, 20, 1)[0]
    wide = w.astype(np.float32)
    y, saved = ops.gelu_linear_forward(x, q, b, residual)
    expected, expected_saved = ops.gelu_linear_forward(x, wide, b, residual)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    dx = ops.gelu_linear_backward(dy, saved, None)
    dw = np.zeros_like(wide)
    expected = ops.gelu_linear_backward(dy, expected_saved, dw)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activations", ["bytes", "words"])
@pytest.mark.parametrize("M", [1, 4, 33])
def test_what_is_not_a_number_is_not_hidden(bad, M, activations):
    q, _ = weight("Q4_K", 17, 512)
    x, _, _ = inputs(M, 512, 17)
    x[M // 2, 300] = bad
    y, _ = fast(2, None, None, activations).linear_forward(x, q)
    assert not np.isfinite(y[M // 2]).any()
    assert np.isfinite(np.delete(y, M // 2, axis=0)).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q4_1"])
def test_zeros_and_tiny_activations(name):
    q, w = weight(name, 17, 512)
    for x in (np.zeros((2, 512), np.float32), np.full((2, 512), 1e-40, np.float32)):
        for activations in ACTIVATIONS:
            y, _ = fast(2, None, None, activations).linear_forward(x, q)
            np.testing.assert_allclose(y, 0, atol=1e-30)


def test_shapes_that_do_not_fit_are_refused():
    q, _ = weight("Q4_K", 4, 256)
    machine = fast(1).machine
    y, x = np.zeros((2, 4), np.float32), np.zeros((2, 256), np.float32)
    call = lambda y, x, data, number: machine.quant_linear_forward(  # noqa: E731
        y, x, data, number, None, None, "words"
    )
    call(y, x, q.data, 12)
    back = lambda dx, dy, data, number, kind: machine.quant_linear_backward(  # noqa: E731
        dx, np.zeros((machine.EXPANDED_ROWS, 256), np.float32), dy, data, number, "plain", kind
    )
    back(x, y, q.data, 12, "bytes")
    for args in [
        (x, y, q.data, 14, "bytes"),
        (x, y, q.data[:3], 12, "bytes"),
        (x[:1], y, q.data, 12, "words"),
        (x, y, q.data, 12, "nibbles"),
    ]:
        with pytest.raises(ValueError):
            back(*args)
    for args in [
        (y, x, q.data, 14),  # another format's number
        (y, x, q.data, 99),
        (y, x, q.data[:3], 12),
        (y, x[:, :255].copy(), q.data, 12),
        (y, x[:1], q.data, 12),
    ]:
        with pytest.raises(ValueError):
            call(*args)
