"""The Llama family against `transformers`: logits, gradients, steps of training, files."""

import copy

import numpy as np
import pytest

import tenarai
from tenarai.config import Optimiser
from tenarai.models import exchange
from tenarai.ops import reference
from tenarai.train.optim import AdamW
from test_llama_gradients import loss_and_grads, relative

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 2.0, 5.0],
    "original_max_position_embeddings": 8, "rope_theta": 1e4,
}  # fmt: skip
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 10, "sliding_window": 4, "num_hidden_layers": 3}
GEMMA["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
CASES = {
    "llama": ("Llama", {}),
    "llama, biases, tied": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama 3 scaling, one key head": (
        "Llama",
        {"rope_parameters": LLAMA3, "num_key_value_heads": 1, "head_dim": 10},
    ),
    "mistral, window": ("Mistral", {"sliding_window": 5}),
    "phi3, window": ("Phi3", {"sliding_window": 6}),
    "phi3, half of a head turns": (
        "Phi3",
        {"hidden_size": 32, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default",
                                                "partial_rotary_factor": 0.5}},
    ),
    "phi3, long": (
        "Phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 8},
    ),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows from layer 1": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 14}),
    "qwen3, biases": ("Qwen3", {"head_dim": 6, "attention_bias": True}),
    "gemma3": ("Gemma3", GEMMA),
    "gemma3, stretched": (
        "Gemma3",
        GEMMA | {"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ),
}  # fmt: skip


def peer_model(kind, options, seed=0):
    """A random model of transformers whose biases and norms are random too."""
    torch.manual_seed(seed)
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, name)(**(SMALL | options), attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch(V=61, B=3, T=13, seed=0):
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, V, (2, B, T))
    targets[0, 2] = targets[-1, -1] = -100
    return tokens, targets


def peer_logits(peer, tokens):
    with torch.no_grad():
        return peer(torch.from_numpy(tokens)).logits.numpy()


def peer_grads(peer, tokens, targets):
    peer.zero_grad()
    logits = peer(torch.from_numpy(tokens)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-100
    )
    loss.backward()
    return loss.item(), {n: p.grad.numpy().copy() for n, p in peer.named_parameters()}


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """(transformers' model, the folder that it was saved in)."""
    kind, options = CASES[request.param]
    model, folder = peer_model(kind, options), tmp_path_factory.mktemp("hf") / "model"
    model.save_pretrained(folder)
    return model, folder


# Against transformers. Where a "long" text begins is asked of the context here, of the text there:
# 13 tokens are more than 8 and the context of 64 is too.


def test_logits(saved, ops):
    peer, folder = saved
    tokens, _ = batch()
    got = tenarai.load(folder, ops=ops).logits(tokens)
    expected = peer_logits(peer, tokens)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert relative(got, expected) < 1e-5  # float32 through a few layers


def test_loss_and_every_gradient(saved, ops):
    peer, folder = saved
    tokens, targets = batch()
    expected_loss, expected = peer_grads(peer, tokens, targets)
    loss, grads = tenarai.load(folder, ops=ops).loss_and_grads(tokens, targets)
    assert isinstance(loss, float) and abs(loss - expected_loss) < 1e-5 * expected_loss
    assert set(grads) == set(expected)
    for name, g in expected.items():
        assert grads[name].dtype == np.float32 and grads[name].shape == g.shape, name
        assert relative(grads[name], g) < 1e-4, name


def test_two_steps_of_training(saved, ops):
    """AdamW from the same weights: what it takes away is what PyTorch's takes. eps keeps elements
    whose gradient is rounding noise from moving by the whole learning rate."""
    peer, folder = saved
    peer = copy.deepcopy(peer)
    tokens, targets = batch()
    model = tenarai.load(folder, ops=ops)
    how = Optimiser(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.1)
    parts = [[p for p in peer.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    theirs = torch.optim.AdamW(
        [{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}],
        lr=how.lr, betas=(how.beta1, how.beta2), eps=how.eps, weight_decay=how.weight_decay,
    )  # fmt: skip
    before = {n: p.detach().numpy().copy() for n, p in peer.named_parameters()}
    ours = AdamW(model.params.table, how)
    start = exchange.in_hugging_face_layout(model.params, model.model)
    start = {name: value.copy() for name, value in start.items()}
    for step in (1, 2):
        peer_grads(peer, tokens, targets)
        theirs.step()
        _, grads = loss_and_grads(
            model.ops, model.model, model.params, tokens.astype(np.int32),
            np.where(targets < 0, -1, targets).astype(np.int32),
        )  # fmt: skip
        ours.step(model.ops, model.params, grads, lr=how.lr, step=step, grad_scale=1.0)
    after = exchange.in_hugging_face_layout(model.params, model.model)
    for name, p in peer.named_parameters():
        moved = p.detach().numpy() - before[name]
        assert relative(after[name] - start[name], moved) < 1e-3, name


def test_written_again_it_is_the_same_model(saved, tmp_path):
    peer, folder = saved
    model = tenarai.load(folder, ops=reference)
    model.save(tmp_path / "again")
    again = tenarai.load(tmp_path / "again", ops=reference)
    assert again.config == model.config
    for name, value in model.params.items():
        # Gemma's norms lie in files less 1, which costs a rounding
        np.testing.assert_allclose(again.params[name], value, rtol=0, atol=1e-7)
    theirs = type(peer).from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    tokens, _ = batch()
    assert relative(peer_logits(theirs, tokens), peer_logits(peer, tokens)) < 1e-6


def test_sharded_files(tmp_path):
    peer = peer_model("Phi3", {})
    peer.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    tokens, _ = batch()
    got = tenarai.load(tmp_path / "model", ops=reference).logits(tokens)
    assert relative(got, peer_logits(peer, tokens)) < 1e-5
