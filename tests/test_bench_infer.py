"""`bench infer` on a small made-up file: what it counts, what it prints."""

import json

import numpy as np
import pytest

from tenarai.bench import infer
from tenarai.cli import main

gguf = pytest.importorskip("gguf")


@pytest.fixture
def model_file(tmp_path):
    """A llama of two layers with random float32 and Q8_0 weights, written by the gguf package."""
    path = tmp_path / "small.gguf"
    C, F, V = 64, 96, 20_000
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(F)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    random = np.random.default_rng(0)

    def add(name, *shape):
        value = random.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value + 1)

    add("token_embd.weight", V, C)
    add("output_norm.weight", C)
    for i in range(2):
        for name, shape in {
            "attn_norm": (C,), "attn_q": (C, C), "attn_k": (C // 2, C), "attn_v": (C // 2, C),
            "attn_output": (C, C), "ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C),
            "ffn_down": (C, F),
        }.items():  # fmt: skip
            add(f"blk.{i}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_bytes_a_token(model_file):
    matrices = 20_000 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    norms = 64 + 2 * 2 * 64
    assert infer.bytes_a_token(model_file) == matrices // 32 * 34 + norms * 4


def test_json(model_file, capsys):
    arguments = ["bench", "infer", "-m", str(model_file), "-p", "20", "-n", "3", "--rounds", "1"]
    assert main([*arguments, "--sequences", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for key in ("prompt_tokens_per_s", "decode_tokens_per_s", "fraction_of_limit"):
        assert result[key] > 0
    assert result["speedup_prompt"] is None and result["sequences"] == 2
    assert "limit of writing" in infer.table(result)
