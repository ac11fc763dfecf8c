"""Models in GGUF files, written here by the `gguf` package, against `transformers`; real ones."""

import re
import time

import numpy as np
import pytest

import tenarai
from real_models import real
from tenarai.io import gguf as our_gguf
from tenarai.models.gguf_config import model_of
from tenarai.models.gguf_exchange import read_gguf
from tenarai.ops import reference
from tenarai.quant import QuantTensor
from test_llama import CASES, batch, peer_logits, peer_model
from test_llama_gradients import relative

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Hugging Face's name → GGUF's, within a layer
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def their_name(name, arch):
    if name in WHOLE:
        return WHOLE[name]
    layer, rest, kind = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)", name).groups()
    names = LAYER | (GEMMA_NORMS if arch == "gemma3" else NORMS)
    return f"blk.{layer}.{names[rest]}.{kind}"


def interleaved(w, heads):
    """Rows for halves → rows for neighbours: row 2i is the old i, row 2i + 1 the old i + D/2."""
    D = len(w) // heads
    order = [h * D + i // 2 + (i % 2) * (D // 2) for h in range(heads) for i in range(D)]
    return w[order]


def llama3_factors(p, size):
    """Llama 3.1's published rule, as a divisor of each frequency."""
    theta = p["rope_theta"] ** (-np.arange(0, size, 2) / size)
    length = 2 * np.pi / theta
    L, low, high, s = (
        p[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
                       "factor")
    )  # fmt: skip
    smooth = (L / length - low) / (high - low)
    between = 1 / ((1 - smooth) / s + smooth)
    factors = np.where(length < L / high, 1.0, np.where(length > L / low, s, between))
    return factors.astype(np.float32)


def write_gguf(path, peer, matrix_type=np.float32):
    """What llama.cpp's converter writes for the model, by the `gguf` package."""
    c, arch = (
        peer.config,
        {"mistral": "llama", "gemma3_text": "gemma3"}.get(
            peer.config.model_type, peer.config.model_type
        ),
    )
    D = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_key_length(D)
    w.add_value_length(D)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters
    if arch == "gemma3":
        local, rope = rope["sliding_attention"], rope["full_attention"]
        assert local["rope_theta"] == 1e4  # which the format does not say
        w.add_sliding_window_pattern([t == "sliding_attention" for t in c.layer_types])
        w.add_float32("gemma3.attention.scale", c.query_pre_attn_scalar**-0.5)
    elif any(t == "sliding_attention" for t in getattr(c, "layer_types", None) or []):
        w.add_sliding_window_pattern([t == "sliding_attention" for t in c.layer_types])
    if getattr(c, "sliding_window", None):
        w.add_sliding_window(c.sliding_window)
    R = int(D * rope.get("partial_rotary_factor", 1.0))
    w.add_rope_dimension_count(R)
    w.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if kind == "longrope":
        L = rope["original_max_position_embeddings"]
        s = c.max_position_embeddings / L
        w.add_rope_scaling_orig_ctx_len(L)
        w.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(s) / np.log(L))))
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], np.float32)
            w.add_tensor(f"rope_factors_{name}.weight", factors)
    if kind == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(rope, R))
    tied = c.tie_word_embeddings
    for name, p in peer.state_dict().items():
        value = p.numpy().copy()
        if name == "lm_head.weight" and tied:
            continue
        if arch == "llama" and ".q_proj." in name:
            value = interleaved(value, c.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            value = interleaved(value, c.num_key_value_heads)
        if arch == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        value = value.astype(matrix_type if value.ndim == 2 else np.float32)
        w.add_tensor(their_name(name, arch), value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.fixture(params=CASES)
def case(request):
    return peer_model(*CASES[request.param])


@pytest.fixture(params=["reference", "fast"])
def ops(request):
    if request.param == "reference":
        return reference
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")
    from tenarai.ops.fast import Fast

    return Fast(threads=2)


def test_logits_of_converted_models(case, ops, tmp_path):
    write_gguf(tmp_path / "m.gguf", case)
    tokens, _ = batch()
    model = tenarai.load(tmp_path / "m.gguf", ops=ops)
    assert relative(model.logits(tokens), peer_logits(case, tokens)) < 1e-5
    assert model.config.pairing == (
        "adjacent" if case.config.model_type in ("llama", "mistral") else "half"
    )
    assert model.tokenizer is None


def test_nothing_is_copied(case, tmp_path):
    write_gguf(tmp_path / "m.gguf", case, np.float16)
    file = our_gguf.read(tmp_path / "m.gguf")
    model, params = read_gguf(file)
    for p in model.table():
        w = params[p.name]
        assert isinstance(w, QuantTensor) == (len(p.shape) == 2), p.name
        data = w.data if isinstance(w, QuantTensor) else w
        assert w.shape == p.shape and not data.flags.owndata and not data.flags.writeable
    assert set(params.scope("h.1.")) == {
        p.name.removeprefix("h.1.") for p in model.table() if p.name.startswith("h.1.")
    }


def test_gradients_of_float32_files_have_hugging_face_s_layout(tmp_path):
    peer = peer_model(*CASES["llama, biases, tied"])
    write_gguf(tmp_path / "m.gguf", peer)
    peer.save_pretrained(tmp_path / "m")
    tokens, targets = batch()
    loss, grads = tenarai.load(tmp_path / "m.gguf", ops=reference).loss_and_grads(tokens, targets)
    exact, expected = tenarai.load(tmp_path / "m", ops=reference).loss_and_grads(tokens, targets)
    assert abs(loss - exact) < 1e-6 * exact and set(grads) == set(expected)
    for name, g in expected.items():
        assert relative(grads[name], g) < 1e-5, name


def test_quantised_weights_have_no_gradients(tmp_path):
    write_gguf(tmp_path / "m.gguf", peer_model(*CASES["qwen3"]), np.float16)
    model = tenarai.load(tmp_path / "m.gguf", ops=reference)
    with pytest.raises(tenarai.TenaraiError, match="is quantised, and such weights have no grad"):
        model.loss_and_grads(*batch())


def test_context(tmp_path):
    """Phi-3's short factors are those of a context within the original one."""
    peer = peer_model(*CASES["phi3, long"])
    write_gguf(tmp_path / "m.gguf", peer)
    tokens, _ = batch(T=7)  # transformers asks the text's length: 7 is within 8
    expected = peer_logits(peer, tokens)
    short = tenarai.load(tmp_path / "m.gguf", ops=reference, context=8)
    long = tenarai.load(tmp_path / "m.gguf", ops=reference)
    assert relative(short.logits(tokens), expected) < 1e-5
    assert relative(long.logits(tokens), expected) > 1e-3
    for context in (0, 65):
        with pytest.raises(tenarai.TenaraiError, match="this model's is 1 to 64"):
            tenarai.load(tmp_path / "m.gguf", ops=reference, context=context)


# Files that do not fit. Each is a whole file with one thing changed.


def changed(path, drop=(), add=(), keys=()):
    """A small Qwen 3's file without the tensors `drop`, with others, and keys set."""
    peer = peer_model(*CASES["qwen3"])
    write_gguf(path, peer)
    file = our_gguf.read(path)
    tensors = {n: t.float32().copy() for n, t in file.tensors.items() if n not in drop}
    metadata = dict(file.metadata.items()) | dict(keys)
    types = dict(file.metadata.types)
    w = gguf.GGUFWriter(path.with_name("changed.gguf"), metadata.pop("general.architecture"))
    for key, value in metadata.items():
        if value is None:
            continue
        kind = types.get(key, "uint32") if not isinstance(value, str) else "string"
        {"string": w.add_string, "uint32": w.add_uint32, "float32": w.add_float32}[kind](key, value)
    for name, value in (tensors | dict(add)).items():
        w.add_tensor(name, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path.with_name("changed.gguf")


ROW = np.zeros((3, 24), np.float32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"drop": ["blk.1.attn_q.weight"]}, r"layer 1: attn_q.weight of shape \(56, 24\) is missi"),
        ({"add": {"blk.1.attn_q.weight": ROW}},
         r"layer 1: attn_q.weight has shape \(3, 24\), the model expects \(56, 24\): is this file"),
        ({"add": {"blk.1.attn_x.weight": ROW}}, "layer 1: attn_x.weight of shape .* has no place"),
        ({"drop": ["token_embd.weight"]}, "has no matrix token_embd.weight"),
        ({"keys": {"general.architecture": "mamba"}}, "'mamba': those known are llama, phi3"),
        ({"keys": {"qwen3.block_count": None}}, "has no qwen3.block_count"),
        ({"keys": {"qwen3.block_count": 0}}, "qwen3.block_count is 0, expected 1 to"),
        ({"keys": {"qwen3.block_count": 4_000_000_000}}, "expected 1 to 10000"),
        ({"keys": {"qwen3.block_count": "2"}}, "qwen3.block_count has type string"),
        ({"keys": {"qwen3.attention.head_count_kv": 3}}, "is no multiple of kv_heads = 3"),
        ({"keys": {"qwen3.attention.value_length": 8}}, "values of another size than keys"),
        ({"keys": {"qwen3.expert_count": 8}}, "a mixture of 8 experts in a qwen3"),
        ({"keys": {"qwen3.rope.dimension_count": 13}}, "RoPE turns 13 channels"),
        ({"keys": {"qwen3.rope.dimension_count": 300}}, "RoPE turns 300 channels of a head of 14"),
        ({"keys": {"qwen3.rope.scaling.type": "longrope"}}, "'longrope' without its factors"),
        ({"keys": {"qwen3.rope.freq_base": 0.0}}, "qwen3.rope.freq_base is 0.0"),
        ({"add": {"rope_freqs.weight": ROW[0]}}, "RoPE has 24 short factors, expected 7"),
        ({"keys": {"qwen3.context_length": 0}}, "qwen3.context_length is 0"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, change, message):
    path = changed(tmp_path / "m.gguf", **change)
    with pytest.raises(tenarai.TenaraiError, match=message) as error:
        tenarai.load(path, ops=reference)
    assert "\n" not in str(error.value)


def test_an_unchanged_file_fits(tmp_path):
    assert tenarai.load(changed(tmp_path / "m.gguf"), ops=reference).config.layers == 2


def test_gpt2(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=20, n_layer=2, n_head=4)
    peer = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    names = {
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm", "lm_head": "output", "ln_1": "attn_norm",
        "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    w.add_context_length(24)
    w.add_embedding_length(20)
    w.add_block_count(2)
    w.add_head_count(4)
    w.add_layer_norm_eps(1e-5)
    for name, p in peer.state_dict().items():
        value, (stem, kind) = p.numpy(), name.rsplit(".", 1)
        layer = re.match(r"transformer\.h\.(\d+)\.(.*)", stem)
        theirs = f"blk.{layer[1]}.{names[layer[2]]}" if layer else names[stem]
        if layer and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        w.add_tensor(f"{theirs}.{kind}", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    tokens, _ = batch()
    got = tenarai.load(tmp_path / "m.gguf", ops=reference).logits(tokens)
    assert relative(got, peer_logits(peer, tokens)) < 1e-5


# Real files


def test_opening_is_a_map():
    path = real("smollm2")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model, params = read_gguf(our_gguf.read(path))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1, times
    assert (model.config.heads, model.config.kv_heads, model.config.tied) == (9, 3, True)
    assert params["wte.weight"].format.name == "Q8_0"


def test_the_real_gemma_s_numbers():
    c = model_of(our_gguf.read(real("gemma3-270m"))).config
    assert (c.layers, c.width, c.heads, c.kv_heads, c.head_size) == (18, 640, 4, 1, 256)
    assert [i for i in range(18) if c.window_of(i) is None] == [5, 11, 17]
    assert c.window_of(0) == 512 and c.rope_of(0).base == 1e4 and c.rope_of(5).base == 1e6
    assert c.attention_scale == 1 / 16 and c.tied
