"""Weights into blocks: what is lost, beside what llama.cpp's quantisers lose; odd inputs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast
from tenarai.quant import FORMATS, QuantTensor

ISAS = fast.available_isas()
BLOCKS = [f for f in FORMATS.values() if f.block > 1]
SCRIPT = Path(__file__).parent / "goldens" / "quantisation_errors.py"


def load_goldens():
    spec = importlib.util.spec_from_file_location("quantisation_errors", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, json.loads(module.GOLDENS.read_text())


goldens, THEIRS = load_goldens()
SAMPLES = goldens.samples()


def names(f):
    return f.name


@pytest.mark.parametrize("format", BLOCKS, ids=names)
def test_no_more_is_lost_than_by_llama_cpp(format):
    # The bar is 2 % above it; where the search is right we are below it everywhere, and half a
    # percent is what another instruction set's rounding or another NumPy's numbers may change.
    ops = fast.Fast(2)
    for name, (x, importance) in SAMPLES.items():
        ours = goldens.relative_error(ops.quantize(x, format, importance), x, importance)
        assert 0.3 * THEIRS[format.name][name] < ours < 1.005 * THEIRS[format.name][name], name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", BLOCKS, ids=names)
def test_every_instruction_set_loses_as_little(format, isa):
    x = np.ascontiguousarray(SAMPLES["student4"][0][:8])
    best = goldens.relative_error(fast.Fast(1).quantize(x, format), x, None)
    ours = goldens.relative_error(fast.Fast(1, isa).quantize(x, format), x, None)
    assert ours == pytest.approx(best, rel=2e-3)  # another rounding may take another way


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", BLOCKS, ids=names)
def test_the_same_bytes_for_any_number_of_threads_and_any_address(format, isa):
    x = SAMPLES["normal"][0][:13, : 2 * format.block]
    moved = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    moved[...] = x
    one = fast.Fast(1, isa).quantize(np.ascontiguousarray(x), format)
    three = fast.Fast(3, isa).quantize(moved, format)
    assert np.array_equal(one.data, three.data)


def odd_rows(width):
    rng = np.random.default_rng(3)
    spike = np.zeros(width)
    spike[width // 3] = -3.0
    rows = {
        "zeros": np.zeros(width),
        "ones": np.ones(width),
        "negative": np.full(width, -0.7),
        "spike": spike,
        "two values": rng.choice([-1.0, 2.0], width),
        "ramp": np.linspace(-1, 1, width),
        "large": rng.standard_normal(width).clip(-3, 3) * 2e4,
        "tiny": rng.standard_normal(width) * 1e-30,
        "below float16": rng.standard_normal(width) * 1e-7,
    }
    return {name: row.astype(np.float32)[None] for name, row in rows.items()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", BLOCKS, ids=names)
def test_odd_rows(format, isa):
    """Finite, and never worse than zeros would be; what the levels can say exactly is exact."""
    ops = fast.Fast(1, isa)
    for name, x in odd_rows(256).items():
        w = ops.quantize(x, format).dequantize()
        assert np.isfinite(w).all(), name
        assert ((w - x).astype(float) ** 2).sum() <= 1.0001 * (x.astype(float) ** 2).sum(), name
    for name in ("zeros", "ones", "negative", "spike"):
        if name == "spike" and format.name.startswith("IQ4"):
            continue  # its levels lack 0
        x = odd_rows(256)[name]
        error = np.abs(ops.quantize(x, format).dequantize() - x).max()
        assert error <= 2e-3 * np.abs(x).max(), name  # twice a float16's rounding


@pytest.mark.parametrize("format", BLOCKS, ids=names)
def test_importance_moves_the_error_to_what_matters_less(format):
    x = SAMPLES["normal"][0]
    importance = np.where(np.arange(x.shape[1]) % 4 == 0, 30.0, 1.0).astype(np.float32)
    ops = fast.Fast(2)
    off = (ops.quantize(x, format).dequantize() - x) ** 2
    weighted = (ops.quantize(x, format, importance).dequantize() - x) ** 2
    # An 8-bit group has little choice: one scale for all.
    assert weighted[:, ::4].mean() < (0.99 if format.bits > 8 else 0.95) * off[:, ::4].mean()
    ones = np.ones_like(importance)
    assert np.array_equal(ops.quantize(x, format, ones).data, ops.quantize(x, format).data)


@pytest.mark.parametrize("isa", ISAS)
def test_float_formats_round_to_the_nearest(isa):
    rng = np.random.default_rng(4)
    x = np.exp(rng.uniform(-30, 11, (7, 1001))) * rng.choice([-1, 1], (7, 1001))
    every = np.arange(0x7C00, dtype="<u2").view("<f2").astype(np.float32)
    ties = (every[:-1] + every[1:]) / 2  # to even
    ops = fast.Fast(1, isa)
    for values in (x.astype(np.float32), every[None], ties[None]):
        half = ops.quantize(values, FORMATS["F16"]).data
        assert np.array_equal(half.view("<u2"), values.astype("<f2").view("<u2"))
        bits = values.view(np.uint32).astype(np.uint64)
        brain = ops.quantize(values, FORMATS["BF16"]).data.view("<u2")
        assert np.array_equal(brain, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
        assert np.array_equal(ops.quantize(values, FORMATS["F32"]).data.view("<f4"), values)


def test_what_cannot_be_stored_is_refused():
    ops, q4 = fast.Fast(1), FORMATS["Q4_K"]
    x = np.zeros((3, 256), np.float32)
    for bad in (np.nan, np.inf, -1e5):
        x[1, 7] = bad
        with pytest.raises(ValueError, match="weight 7 of row 1"):
            ops.quantize(x, q4)
    assert isinstance(ops.quantize(x, FORMATS["BF16"]), QuantTensor)  # −1e5 is one
    x[1, 7] = 0
    with pytest.raises(ValueError, match="no multiple of 256"):
        ops.quantize(x[:, :128].copy(), q4)
    with pytest.raises(ValueError, match="importance"):
        ops.quantize(x, q4, np.ones(255, np.float32))
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="importance of column 255"):
            ops.quantize(x, q4, np.append(np.ones(255, np.float32), np.float32(bad)))
