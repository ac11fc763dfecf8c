"""GGUF files that are written here, opened by llama.cpp: its logits. Skipped where it is absent."""

import numpy as np
import pytest

import tenarai
from tenarai.api import Model
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.tokenizers import ByteTokenizer
from test_llama import CASES, peer_model
from test_llama_gradients import relative

llama_cpp = pytest.importorskip("llama_cpp")
TOKENS = np.random.default_rng(0).integers(0, 256, 20)
# Windows are left out where it has none (arch llama, Phi-3) or fixes which layers have one.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 2.0}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "num_hidden_layers": 7}
MORE = {
    "llama, yarn": ("Llama", {"rope_parameters": YARN | {"rope_theta": 500.0}}),
    "llama, linear": ("Llama", {"rope_parameters": LINEAR | {"rope_theta": 500.0}}),
    "gemma3": ("Gemma3", GEMMA),
}
ALL = CASES | MORE
NAMES = [
    "llama",
    "llama, biases, tied",
    "llama 3 scaling, one key head",
    "phi3, half of a head turns",
    "phi3, long",
    "qwen2, tied",
    "qwen3",
    *MORE,
]


def their_logits(path, tokens):
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False, n_threads=2,
        flash_attn=False, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    model.eval(tokens.tolist())
    logits = np.array(model.scores[: len(tokens)])
    model.close()
    return logits


@pytest.mark.parametrize("name", NAMES)
def test_the_family_in_llama_cpp(tmp_path, name):
    kind, options = ALL[name]
    peer_model(kind, options | {"vocab_size": 256}).save_pretrained(tmp_path / "hf")
    model = tenarai.load(tmp_path / "hf", ops=reference)
    whole = Model(model.model, model.params, ByteTokenizer(), ops=reference)
    assert whole.save(tmp_path / "m.gguf") == []
    # float32 on both sides; the order of sums differs
    assert relative(their_logits(tmp_path / "m.gguf", TOKENS), model.logits(TOKENS)) < 1e-3


def test_gpt2_in_llama_cpp(tmp_path):
    model = GPT2(GPT2Config(vocab_size=256, context=64, layers=2, heads=2, width=32))
    params = Weights(model.table()).initialise(1)
    params.flat *= 8
    whole = Model(model, params, ByteTokenizer(), ops=reference)
    whole.save(tmp_path / "m.gguf")
    assert relative(their_logits(tmp_path / "m.gguf", TOKENS), whole.logits(TOKENS)) < 1e-3
