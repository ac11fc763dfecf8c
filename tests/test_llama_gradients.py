"""The Llama family's gradient by the complex step, kernels against the reference, decoding."""

import dataclasses

import numpy as np
import pytest

import tenarai
from complex_step import gradient_errors
from tenarai.api import Model
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference

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


def relative(a, b):
    norm = np.linalg.norm(b.astype(np.float64))
    return np.linalg.norm(a.astype(np.float64) - b) / norm if norm else np.abs(a).max()


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
