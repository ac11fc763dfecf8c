"""Quantised weights back to float32: our plain code, the `gguf` package and the kernels agree in
every bit, on random bytes (every scale, minimum and level that a file can hold)."""

import numpy as np
import pytest

from tenarai.ops import fast, reference
from tenarai.quant import FORMATS, QuantTensor, dequantize

ISAS = fast.available_isas()
BLOCKS = [f for f in FORMATS.values() if f.block > 1]


def random_tensor(format, rows, width, seed=0, finite=True):
    """Random bytes; where `finite`, no scale or float is infinite, NaN or rounds to infinity."""
    rng = np.random.default_rng(seed)
    n = format.row_bytes(width)
    data = rng.integers(0, 256, (rows, n), dtype=np.uint8)
    with np.errstate(all="ignore"):
        while finite:
            w = dequantize(data, format).reshape(rows, -1, format.block)
            bad = ~np.isfinite(w).all(axis=-1)
            if not bad.any():
                break
            blocks = data.reshape(rows, -1, format.bytes)
            blocks[bad] = rng.integers(0, 256, (bad.sum(), format.bytes), dtype=np.uint8)
    return QuantTensor(format, (rows, width), data)


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf")


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_the_size_of_a_block_is_that_of_the_gguf_package(gguf, format):
    number = gguf.GGMLQuantizationType[format.name]
    assert format.number == number
    assert (format.block, format.bytes) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize(
    "format", [f for f in FORMATS.values() if f.name != "Q8_K"], ids=lambda f: f.name
)
def test_plain_code_gives_the_bits_of_the_gguf_package(gguf, format):
    w = random_tensor(format, 60, 3 * max(format.block, 20))
    theirs = gguf.quants.dequantize(w.data, gguf.GGMLQuantizationType(format.number))
    assert np.array_equal(bits(w.dequantize()), bits(theirs.reshape(w.shape)))


def test_q8_k_by_its_formula():  # the gguf package has none
    w = random_tensor(FORMATS["Q8_K"], 4, 512)
    blocks = w.data.reshape(8, 292)
    d, q = blocks[:, :4].copy().view("<f4"), blocks[:, 4:260].view(np.int8)
    assert np.array_equal(bits(w.dequantize()), bits((d * q).reshape(4, 512)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_kernels_give_the_bits_of_the_plain_code(format, isa):
    for rows, blocks in [(1, 1), (7, 3), (40, 5)]:
        w = random_tensor(format, rows, blocks * format.block, seed=rows)
        want = w.dequantize()
        for threads in (1, 3):
            out = np.full(want.size + 2, 7, np.float32)  # with a guard on either side
            got = fast.Fast(threads, isa).dequantize(w, out=out[1:-1].reshape(want.shape))
            assert np.array_equal(bits(got), bits(want))
            assert out[0] == out[-1] == 7


@pytest.mark.parametrize("isa", ISAS)
def test_bytes_may_start_anywhere(isa):
    for format in FORMATS.values():
        w = random_tensor(format, 3, 256)
        raw = np.empty(w.data.size + 1, np.uint8)
        raw[1:] = w.data.reshape(-1)
        odd = QuantTensor(format, w.shape, raw[1:].reshape(w.data.shape))
        assert np.array_equal(bits(fast.Fast(1, isa).dequantize(odd)), bits(w.dequantize()))


@pytest.mark.parametrize("isa", ISAS)
def test_every_float16_and_bfloat16(isa):
    every = np.arange(65536, dtype="<u2").reshape(256, 256)
    for name in ("F16", "BF16"):
        w = QuantTensor(FORMATS[name], every.shape, every.view(np.uint8))
        want, got = w.dequantize(), fast.Fast(1, isa).dequantize(w)
        number = ~np.isnan(want)
        assert np.array_equal(np.isnan(got), ~number)
        assert np.array_equal(bits(got[number]), bits(want[number]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_embedding_of_a_quantised_matrix(format, isa):
    rng = np.random.default_rng(1)
    wte = random_tensor(format, 11, max(format.block, 20))
    wpe = rng.standard_normal((9, wte.shape[1]), dtype=np.float32)
    tokens = rng.integers(0, 11, (2, 5), dtype=np.int32)
    ops = fast.Fast(2, isa)
    for positions in (None, wpe):
        want, _ = reference.embedding_forward(tokens, wte.dequantize(), positions, start=3)
        for implementation in (reference, ops):
            got, _ = implementation.embedding_forward(tokens, wte, positions, start=3)
            assert np.array_equal(bits(got), bits(want))


def test_embedding_refuses_tokens_outside_the_vocabulary():
    wte = random_tensor(FORMATS["Q4_0"], 4, 32)
    for ops in (reference, fast.Fast(1)):
        with pytest.raises(ValueError, match="vocabulary"):
            ops.embedding_forward(np.array([[4]], np.int32), wte)


def test_rows_are_a_view():
    w = random_tensor(FORMATS["Q6_K"], 6, 256)
    part = w[2:5]
    assert part.shape == (3, 256) and np.shares_memory(part.data, w.data)
    assert np.array_equal(bits(part.dequantize()), bits(w.dequantize()[2:5]))


def test_what_does_not_fit_is_refused():
    q4 = FORMATS["Q4_K"]
    with pytest.raises(ValueError, match="no multiple of 256"):
        q4.row_bytes(300)
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(2, 144\)"):
        QuantTensor(q4, (2, 256), np.zeros((2, 143), np.uint8))
    with pytest.raises(ValueError, match="multiples of 144"):
        dequantize(np.zeros((2, 143), np.uint8), q4)
    machine = fast.Fast(1).machine
    with pytest.raises(ValueError, match="not known"):
        machine.dequantize(np.zeros((2, 256), np.float32), np.zeros((2, 144), np.uint8), 99)
    with pytest.raises(ValueError, match="bytes of a row"):
        machine.dequantize(np.zeros((2, 256), np.float32), np.zeros((2, 143), np.uint8), 12)
    with pytest.raises(ValueError, match="no multiple of 256"):
        machine.dequantize(np.zeros((2, 255), np.float32), np.zeros((2, 144), np.uint8), 12)
