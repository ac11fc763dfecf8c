"""RoPE's angles against transformers' own functions, for every scaling, and by hand."""

import numpy as np
import pytest

from tenarai.models.rope import Rope

SCALINGS = {
    "linear": ({"factor": 4.0}, {"factor": 4.0}),
    "dynamic": ({"factor": 3.0}, {"factor": 3.0, "original_context": 2048}),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 512},
        {"factor": 4.0, "original_context": 512},
    ),
    "yarn, other bounds": (
        {"factor": 8.0, "original_max_position_embeddings": 256, "beta_fast": 16, "beta_slow": 2,
         "attention_factor": 1.7},
        {"factor": 8.0, "original_context": 256, "beta_fast": 16.0, "beta_slow": 2.0,
         "attention_factor": 1.7},
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
        {"factor": 8.0, "original_context": 8192},
    ),
    "longrope": (
        {"short_factor": [1 + i / 50 for i in range(16)], "long_factor": [2.0 + i for i in
         range(16)], "original_max_position_embeddings": 1024},
        {"factor": 2.0, "original_context": 1024, "short": tuple(1 + i / 50 for i in range(16)),
         "long": tuple(2.0 + i for i in range(16))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("context", [700, 2048, 6000])
@pytest.mark.parametrize("name", SCALINGS)
def test_against_transformers(name, context):
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    theirs, ours = SCALINGS[name]
    kind = name.split(",")[0]
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=4, max_position_embeddings=2048,
        rope_parameters={"rope_type": kind, "rope_theta": 50_000.0} | theirs,
    )  # fmt: skip
    theta, m = rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=context)
    got, factor = Rope(32, 50_000.0, kind, **ours).angles(context)
    np.testing.assert_allclose(got, theta.double().numpy(), rtol=2e-6)  # theirs is float32
    assert factor == pytest.approx(float(m), rel=1e-12)


def test_plain_angles_and_tables():
    rope = Rope(4, base=100.0)
    cos, sin = rope.tables(3, 3)
    assert cos.dtype == sin.dtype == np.float32 and cos.flags.c_contiguous
    np.testing.assert_allclose(cos, np.cos([[0, 0], [1, 0.1], [2, 0.2]]), rtol=1e-7)
    np.testing.assert_allclose(sin, np.sin([[0, 0], [1, 0.1], [2, 0.2]]), rtol=1e-6)


def test_far_positions_are_exact():
    """In float32 an angle of 100,000 would be off by 4e-3."""
    cos, _ = Rope(2).tables(100_001, 100_001)
    assert cos[-1, 0] == np.float32(np.cos(100_000.0))


def test_factors_divide_the_frequencies():
    rope = Rope(4, base=100.0, scaling="factors", short=(1.0, 8.0))
    np.testing.assert_allclose(rope.angles(10)[0], [1, 0.1 / 8])
    assert rope.angles(10_000)[1] == 1


def test_long_factors_are_those_of_a_context_above_the_original():
    rope = Rope(4, scaling="longrope", factor=4.0, original_context=8, short=(1.0, 1.0),
                long=(2.0, 2.0))  # fmt: skip
    assert rope.angles(8)[0][0] == 1 and rope.angles(9)[0][0] == 0.5
    assert rope.angles(8)[1] == rope.angles(9)[1] == pytest.approx((1 + 2 / 3) ** 0.5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 3}, "turns 3 channels"),
        ({"size": 0}, "turns 0 channels"),
        ({"scaling": "mystery"}, "'mystery' is unknown"),
        ({"base": 0.0}, "base is 0.0"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"scaling": "longrope", "original_context": 8}, "0 short factors, expected 2"),
        ({"scaling": "factors", "short": (1.0,)}, "1 short factors, expected 2"),
        ({"scaling": "factors", "short": (1.0, 0.0)}, "must be more than 0"),
        ({"scaling": "yarn", "factor": 2.0}, "needs the original context"),
        ({"scaling": "llama3", "original_context": 9, "low": 4.0}, "low and high are 4.0 and 4.0"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Rope(**({"size": 4} | options))
