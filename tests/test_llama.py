"""The Llama family: against `transformers`, gradients by the complex step, decoding."""

import copy
import dataclasses

import numpy as np
import pytest

import tenarai
from complex_step import gradient_errors
from tenarai.api import Model
from tenarai.config import Optimiser
from tenarai.models import exchange
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.train.optim import AdamW

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


def relative(a, b):
    norm = np.linalg.norm(b.astype(np.float64))
    return np.linalg.norm(a.astype(np.float64) - b) / norm if norm else np.abs(a).max()


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """(transformers' model, the folder that it was saved in)."""
    kind, options = CASES[request.param]
    model, folder = peer_model(kind, options), tmp_path_factory.mktemp("hf") / "model"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(params=["reference", "fast"])
def ops(request):
    if request.param == "reference":
        return reference
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")
    from tenarai.ops.fast import Fast

    return Fast(threads=2)


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


# The gradient

ODD = {
    "vocab_size": 23, "context": 11, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 6,
    "width": 15, "hidden": 13, "rope": Rope(6, base=50.0),
}  # fmt: skip
OPTIONS = {
    "plain": {},
    "adjacent pairs": {"pairing": "adjacent"},
    "biases, tied": {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "tied": True},
    "gemma": {
        "arch": "gemma3", "qk_norm": True, "norms_after": True, "gate": "gelu", "tied": True,
        "embedding_scale": 3.9, "attention_scale": 0.3, "windows": (3, None),
        "local_rope": Rope(6, base=7.0),
    },
    "part of a head turns, window of 1": {"rope": Rope(4), "windows": (1, 4)},
    "attention factor": {
        "rope": Rope(6, scaling="yarn", factor=4.0, original_context=8, base=50.0), "kv_heads": 1,
    },
    "experts": {"arch": "mixtral", "experts": 3, "experts_per_token": 2},
    "experts and a shared one, weights as they are": {
        "arch": "qwen3moe", "qk_norm": True, "experts": 3, "experts_per_token": 2,
        "normalise_experts": False, "shared_hidden": 9, "tied": True,
    },
}  # fmt: skip


def random_weights(model, rng, dtype=np.float64):
    """Every weight random, biases and norms too: 0 and 1 would hide errors."""
    params = Weights(model.table(), dtype)
    for p in params.table:
        params[p.name][...] = p.mean + 0.3 * rng.standard_normal(p.shape)
    return params


def our_batch(rng, model, B, T):
    tokens, targets = rng.integers(0, model.config.vocab_size, (2, B, T)).astype(np.int32)
    targets[0, T // 2] = -1
    return tokens, targets


def loss_and_grads(ops, model, params, tokens, targets):
    grads = Weights(params.table, params.flat.dtype)
    loss, saved = model.forward(ops, params, tokens, targets, grads)
    model.backward(ops, params, saved, grads)
    return loss, grads


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_by_the_complex_step(rng, options, recompute):
    model = Llama(LlamaConfig(**(ODD | OPTIONS[options])), recompute)
    params = random_weights(model, rng)
    tokens, targets = our_batch(rng, model, 2, 7)
    loss, grads = loss_and_grads(reference, model, params, tokens, targets)

    def f(inputs):
        point = Weights(params.table, np.complex128)
        for name, value in inputs.items():
            point[name][...] = value
        return model.forward(reference, point, tokens, targets)[0]

    assert abs(f(params).real - loss) < 1e-12 * loss
    errors = gradient_errors(f, params, grads, rng, directions=1)
    still = ("h.0.attn.q", "h.0.attn.k") if options.endswith("of 1") else ()  # one key: p is 1
    errors = {n: e for n, e in errors.items() if not n.startswith(still)} if still else errors
    assert max(errors.values()) < 1e-10, errors
    assert all(np.linalg.norm(grads[n]) > 0 for n in errors), "a gradient is all zeros"


@pytest.mark.parametrize("options", OPTIONS)
def test_kernels_against_the_reference(rng, ops, options):
    model = Llama(LlamaConfig(**(ODD | OPTIONS[options])))
    params = random_weights(model, rng, np.float32)
    wide = Weights(params.table, np.float64)
    wide.flat[...] = params.flat
    tokens, targets = our_batch(rng, model, 3, 11)
    loss, grads = loss_and_grads(ops, model, params, tokens, targets)
    exact, expected = loss_and_grads(reference, model, wide, tokens, targets)
    assert abs(loss - exact) < 2e-6 * exact
    still = "h.0.attn." if options.endswith("of 1") else None
    errors = {
        n: relative(grads[n], expected[n])
        for n in grads
        if still is None or not n.startswith((still + "q", still + "k"))
    }
    assert max(errors.values()) < 2e-5, {n: e for n, e in errors.items() if e >= 2e-5}


# Decoding


class Batch:
    """The contract of docs/design.md kept plainly: every sequence's keys and values in lists."""

    def __init__(self, layers):
        self.layers = layers
        self.kept = [{} for _ in layers]  # of each layer: sequence → [(k, v), ...]

    def rows(self, sequences, positions, outputs):
        self.sequences = sequences
        self.positions = np.array(positions, np.int32)
        self.outputs = np.array(outputs, np.int32)

    def attention(self, ops, i, q, k, v, *, scale=None):
        y = np.empty(q.shape, q.dtype)
        for row, sequence in enumerate(self.sequences):
            past = self.kept[i].setdefault(sequence, [])
            past.append((k[row].copy(), v[row].copy()))
            keys, values = (np.stack(x)[None] for x in zip(*past, strict=True))
            window = self.layers[i].window
            one = np.ascontiguousarray(q[row])[None, None]
            y[row] = ops.attention_forward(one, keys, values, scale=scale, window=window)[0]
        return y

    def wanted(self, ops, x):
        return np.ascontiguousarray(x[self.outputs])


@pytest.mark.parametrize("options", OPTIONS)
def test_decode_gives_the_logits_of_forward(rng, ops, options):
    model = Llama(LlamaConfig(**(ODD | OPTIONS[options])))
    params = random_weights(model, rng, np.float32)
    tokens, _ = our_batch(rng, model, 2, 9)
    expected = model.logits(ops, params, tokens)
    cache = Batch(model.cache_layers())
    place = {0: 0, 1: 0}
    # rows of two sequences side by side, one or several at a time, outputs of some
    for sequences in ([0, 0, 0, 1], [1], [0, 1], [1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]):
        positions, ids = [], []
        for s in sequences:
            positions.append(place[s])
            ids.append(tokens[s, place[s]])
            place[s] += 1
        outputs = list(range(0, len(sequences), 2))
        cache.rows(sequences, positions, outputs)
        got = model.decode(ops, params, np.array(ids, np.int32), cache)
        wanted = np.stack([expected[sequences[r], positions[r]] for r in outputs])
        assert got.shape == wanted.shape and relative(got, wanted) < 1e-5
    assert place == {0: 9, 1: 9}


def test_cache_layers():
    model = Llama(LlamaConfig(**(ODD | OPTIONS["gemma"])))
    assert [(c.heads, c.head_size, c.window) for c in model.cache_layers()] == [
        (2, 6, 3), (2, 6, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 3}, "heads = 3 is no multiple of kv_heads = 2"),
        ({"width": 0}, "width is 0"),
        ({"rope": Rope(8)}, "turns 8 channels of a head of 6"),
        ({"windows": (1,)}, "1 windows for 2 layers"),
        ({"windows": (1, 0)}, "expected 1 or more"),
        ({"gate": "relu"}, "gate is 'relu'"),
        ({"arch": "mamba"}, "arch is 'mamba'"),
        ({"pairing": "adjacent", "rope": Rope(4)}, "it must turn all"),
    ],
)
def test_configs_that_cannot_be(change, message):
    config = LlamaConfig(**ODD)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_as_a_checkpoint_it_is_the_same_bits(rng, tmp_path):
    for options in OPTIONS.values():
        model = Llama(LlamaConfig(**(ODD | options)))
        opened = Model(model, random_weights(model, rng, np.float32), ops=reference)
        opened.save(tmp_path / "m.tenarai")
        again = tenarai.load(tmp_path / "m.tenarai", ops=reference)
        assert again.config == model.config
        np.testing.assert_array_equal(again.params.flat, opened.params.flat)


def test_llm_c_cannot_hold_it(rng, tmp_path):
    model = Llama(LlamaConfig(**ODD))
    opened = Model(model, random_weights(model, rng, np.float32), ops=reference)
    with pytest.raises(tenarai.TenaraiError, match="holds GPT-2 only, this is a Llama"):
        opened.save(tmp_path / "m.bin", target="llmc")


def test_flops_are_those_that_gpt2_counts():
    """6 a weight that multiplies, 12·H·D a key that a query sees."""
    model = Llama(LlamaConfig(**(ODD | {"windows": (3, None)})))
    weights = sum(p.size for p in model.table() if p.name != "wte.weight")
    assert model.flops_per_token(9) == 6 * weights + 12 * 24 * (3 + 9)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", ["plain", "gemma", "experts"])
def test_a_step_in_an_arena_has_the_same_bits(rng, options, recompute):
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")
    from tenarai.ops import Arena, Fast

    model = Llama(LlamaConfig(**(ODD | OPTIONS[options])), recompute)
    params = random_weights(model, rng, np.float32)
    tokens, targets = our_batch(rng, model, 2, 9)
    loss, grads = loss_and_grads(Fast(threads=2), model, params, tokens, targets)
    ops = Fast(threads=2, arena=Arena())
    plan = ops.arena.plan(lambda: loss_and_grads(ops, model, params, tokens, targets))
    ops.arena.allocate(plan)
    for _ in range(2):
        with ops.arena.use(plan):
            again, grads_again = loss_and_grads(ops, model, params, tokens, targets)
        assert again == loss
        np.testing.assert_array_equal(grads_again.flat, grads.flat)
