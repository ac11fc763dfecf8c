"""Real GGUF models against `transformers` in float32 on the dequantised weights: the truth.

SmolLM2-135M-Instruct Q4_1 (llama) and Gemma-3-270M Q4_K_M (gemma3, with a text longer than its
window of 512). Both have to be there: `tenarai pull smollm2`, `tenarai pull gemma3-270m`.
"""

import functools
import re

import numpy as np
import pytest

import tenarai
from conftest import ROOT
from tenarai.api import Model
from tenarai.io import gguf as our_gguf
from tenarai.models.gguf_exchange import read_gguf
from tenarai.models.pairing import to_half
from tenarai.models.table import FileWeights
from tenarai.quant import QuantTensor
from test_llama_gguf import LAYER, WHOLE, real

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")

NAMES = ["smollm2", "gemma3-270m"]
TOKENS = {"smollm2": 300, "gemma3-270m": 700}  # 700 is more than Gemma's window


def dequantised(tensor):
    """A tensor of a file in float32, by the `gguf` package."""
    kind = gguf.GGMLQuantizationType[tensor.format.name]
    return gguf.quants.dequantize(tensor.raw(), kind).reshape(tensor.shape).astype(np.float32)


def text(file, count):
    """Token ids of prose: the words of a page of the docs that are one token each. (1, count)"""
    words = re.findall(r"[A-Za-z]+", (ROOT / "docs" / "attention-backward.md").read_text("utf-8"))
    numbers = {piece: i for i, piece in enumerate(file.metadata["tokenizer.ggml.tokens"])}
    ids = [numbers[mark + w] for w in words for mark in "Ġ▁" if mark + w in numbers]
    assert len(ids) >= count
    return np.array([ids[:count]], np.int32)


@functools.cache
def truth(name):
    """(tokens, logits (T, V) of transformers in float32)."""
    file = our_gguf.read(real(name))
    arch = file.metadata["general.architecture"]
    get = lambda key: file.metadata[f"{arch}.{key}"]  # noqa: E731
    common = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    if arch == "llama":
        rope = {"rope_type": "default", "rope_theta": get("rope.freq_base")}
        config = transformers.LlamaConfig(**common, rope_parameters=rope)
        kind = transformers.LlamaForCausalLM
    else:
        config = transformers.Gemma3TextConfig(
            **common, head_dim=256, query_pre_attn_scalar=256, sliding_window=512
        )  # the pattern of layers and the two bases of RoPE are its defaults
        kind = transformers.Gemma3ForCausalLM
    peer, state = kind(config), {}
    for ours, tensor in file.tensors.items():
        theirs = hugging_face_name(ours, arch)
        value = dequantised(tensor)
        if arch == "llama" and ".attn_q." in ours:
            value = to_half(value, common["num_attention_heads"])
        if arch == "llama" and ".attn_k." in ours:
            value = to_half(value, common["num_key_value_heads"])
        if arch == "gemma3" and ours.endswith("norm.weight"):
            value = value - 1
        state[theirs] = torch.from_numpy(value.copy())
    missing, extra = peer.load_state_dict(state, strict=False)
    assert (missing, extra) == (["lm_head.weight"], [])  # which is the embedding
    peer.tie_weights()
    peer.eval()
    tokens = text(file, TOKENS[name])
    with torch.no_grad():
        logits = peer(torch.from_numpy(tokens).long()).logits[0].numpy()
    return tokens, logits


def hugging_face_name(name, arch):
    whole = {ours: theirs for theirs, ours in WHOLE.items()}
    if name in whole:
        return whole[name]
    _, layer, stem, kind = name.split(".")
    back = {ours: theirs for theirs, ours in LAYER.items() if theirs != "mlp.gate_up_proj"}
    if arch == "gemma3":
        back |= {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    else:
        back["ffn_norm"] = "post_attention_layernorm"
    return f"model.layers.{layer}.{back[stem]}.{kind}"


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def perplexity(logits, tokens):
    rows = log_softmax(logits[:-1])
    return float(np.exp(-rows[np.arange(len(rows)), tokens[0, 1:]].mean()))


def compare(name, logits):
    """First-token log-probabilities of the truth's top 20, and perplexity."""
    tokens, expected = truth(name)
    a, b = log_softmax(logits[-1]), log_softmax(expected[-1])
    top = np.argsort(b)[-20:]
    assert np.abs(a[top] - b[top]).max() < 0.02
    assert perplexity(logits, tokens) == pytest.approx(perplexity(expected, tokens), rel=5e-4)
    # At every position, not the last alone: float32 sums in another order.
    assert np.abs(logits - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_expanded_weights(name):
    """The architecture and the exchange, without our own arithmetic of quantised weights."""
    file = our_gguf.read(real(name))
    model, params = read_gguf(file)
    groups = {p.name: file.tensors[p.gguf] for p in model.table()}
    weights = {n: dequantised(groups[n]) if isinstance(w, QuantTensor) else w
               for n, w in params.items()}  # fmt: skip
    opened = Model(model, FileWeights(model.table(), weights))
    tokens, expected = truth(name)
    logits = opened.logits(tokens)[0]
    compare(name, logits)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_quantised_weights_with_float_activations(name):
    model = tenarai.load(real(name), activations="float32", threads=2)
    tokens, expected = truth(name)
    logits = model.logits(tokens)[0]
    compare(name, logits)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-4


# Of activations: the largest error of the perplexity and of the logits, relative. Words are the
# default, and keep the perplexity within 0.5 %; bytes do not on the second model's text (1.4 %).
ROUNDED = {"words": (5e-3, 1e-2), "bytes": (2e-2, 0.07)}


@pytest.mark.parametrize("activations", ROUNDED)
@pytest.mark.parametrize("name", NAMES)
def test_quantised_weights_with_rounded_activations(name, activations):
    model = tenarai.load(real(name), threads=2, activations=activations)
    tokens, expected = truth(name)
    logits = model.logits(tokens)[0]
    off_perplexity, off_logits = ROUNDED[activations]
    wanted = perplexity(expected, tokens)
    assert perplexity(logits, tokens) == pytest.approx(wanted, rel=off_perplexity)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < off_logits
