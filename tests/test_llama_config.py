"""config.json of the Llama family: what is refused, and read in its old and its new form."""

import json
from pathlib import Path

import pytest

from tenarai.errors import TenaraiError
from tenarai.models import families

WHERE = Path("config.json")
SMALL = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 37,
    "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip


def config_of(**changes):
    return families.from_hugging_face(SMALL | changes, WHERE).config


def test_defaults_are_transformers_s():
    c = config_of()
    assert (c.kv_heads, c.head_size, c.context, c.norm_eps) == (4, 6, 2048, 1e-6)
    assert c.rope.base == 1e4 and not c.tied and c.windows == () and c.arch == "llama"


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0},
    ],
)  # fmt: skip
def test_old_and_new_form_of_rope(scaling):
    old = config_of(rope_theta=5e5, rope_scaling=scaling)
    new = config_of(rope_parameters={"rope_theta": 5e5} | scaling)
    assert old == new and old.rope.base == 5e5 and old.rope.factor == scaling["factor"]


def test_gemma_in_its_old_form():
    c = config_of(model_type="gemma3_text", rope_theta=1e6, rope_local_base_freq=2e4, head_dim=8,
                  sliding_window_pattern=2, sliding_window=5,
                  rope_scaling={"rope_type": "linear", "factor": 8.0})  # fmt: skip
    assert c.windows == (5, None, 5) and c.tied
    assert (c.rope.base, c.rope.factor, c.rope.scaling) == (1e6, 8.0, "linear")
    assert (c.local_rope.base, c.local_rope.scaling) == (2e4, "none")


def test_windows_of_qwen_only_where_they_are_used():
    off = config_of(model_type="qwen2", use_sliding_window=False, sliding_window=5)
    on = config_of(model_type="qwen2", use_sliding_window=True, sliding_window=5,
                   max_window_layers=2)  # fmt: skip
    assert off.windows == () and on.windows == (None, None, 5) and on.qkv_bias


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "mamba"}, "model_type is 'mamba': the models known are gpt2, llama"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": 1 << 40}, "hidden_size is"),
        ({"hidden_size": 24.0}, "hidden_size is 24.0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "heads = 4 is no multiple of kv_heads = 3"),
        ({"head_dim": 5}, "RoPE turns 5 channels"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"rope_scaling": 3}, "must be JSON objects"),
        ({"rope_scaling": {"rope_type": "mystery"}}, "rope_type 'mystery' is not supported"),
        ({"rope_scaling": {"rope_type": {}}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "short_factor must be a list"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
         "RoPE has 1 short factors, expected 3"),
        ({"rope_theta": 0}, "base is 0.0"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "softcapping = 30.0 is"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4,
          "layer_types": ["full_attention"]}, "layer_types must name"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_in_one_line(changes, message):
    with pytest.raises(TenaraiError, match=message) as error:
        families.from_hugging_face(json.loads(json.dumps(SMALL | changes)), WHERE)
    assert "\n" not in str(error.value) and "config.json" in str(error.value)
