"""Adapters: gradients by the complex step, over quantised weights, and against PEFT."""

from dataclasses import replace

import numpy as np
import pytest

from complex_step import TOLERANCE, gradient_errors
from tenarai.errors import TenaraiError
from tenarai.finetune.base import Tuned
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.lora import Adapted, AdapterGradients, LoraConfig, adapter_table, chosen_layers
from tenarai.models.rope import Rope
from tenarai.models.table import FileWeights, Weights
from tenarai.ops import Arena, Fast, reference
from tenarai.ops.gradient import FROZEN
from tenarai.ops.lora import LoraWeight, Tuning
from tenarai.quant import FORMATS

LLAMA = LlamaConfig(
    vocab_size=31, context=16, layers=2, heads=4, kv_heads=2, head_size=8, width=32, hidden=64,
    rope=Rope(8), qkv_bias=True, tied=True,
)  # fmt: skip
MIXTURE = replace(LLAMA, experts=4, experts_per_token=2, shared_hidden=16, arch="qwen3moe")
MODELS = {
    "mixture of experts": (Llama(MIXTURE), "all"),
    "llama, all": (Llama(LLAMA), "all"),
    "llama, recomputed": (Llama(LLAMA, recompute=True), "attn.q,attn.v,mlp"),
    "gpt2, all": (GPT2(GPT2Config(31, 16, 2, 4, 32)), "all"),
}


def setup(model, layers, rng, dtype=np.float64, dropout=0.3):
    """Base and adapter, neither of them at its start, and a batch of which some targets count."""
    base = Weights(model.table(), dtype).initialise(1)
    base.flat[:] += 0.2 * rng.normal(size=base.flat.shape)
    config = LoraConfig(3, 5.0, dropout, layers)
    adapter = Weights(adapter_table(chosen_layers(model.table(), layers), 3), dtype).initialise(2)
    adapter.flat[:] += 0.3 * rng.normal(size=adapter.flat.shape)
    tokens = rng.integers(0, 31, (2, 9)).astype(np.int32)
    targets = rng.integers(0, 31, (2, 9)).astype(np.int32)
    targets[:, :4] = -1
    return base, adapter, config, tokens, targets


def step(ops, model, base, adapter, config, tokens, targets):
    """Loss, and the adapter's gradients."""
    ops, grads = Tuning(ops), Weights(adapter.table, adapter.flat.dtype)
    ops.seed = 5
    params = Adapted(base, adapter, config)
    wanted = AdapterGradients(grads, frozenset(params))
    loss, saved = model.forward(ops, params, tokens, targets, wanted)
    model.backward(ops, params, saved, wanted)
    return loss, grads


@pytest.mark.parametrize("name", MODELS)
def test_gradients_by_the_complex_step_and_the_kernels(name, rng):
    model, layers = MODELS[name]
    base, adapter, config, tokens, targets = setup(model, layers, rng)
    loss, grads = step(reference, model, base, adapter, config, tokens, targets)
    complex_base = Weights(model.table(), np.complex128)
    complex_base.flat[:] = base.flat

    def f(point):
        ops = Tuning(reference)
        ops.seed = 5
        return model.forward(ops, Adapted(complex_base, point, config), tokens, targets)[0]

    errors = gradient_errors(f, dict(adapter), dict(grads), rng)
    assert max(errors.values()) < TOLERANCE, errors

    base32, adapter32 = Weights(model.table()), Weights(adapter.table)
    base32.flat[:], adapter32.flat[:] = base.flat, adapter.flat
    fast_loss, fast = step(Fast(2), model, base32, adapter32, config, tokens, targets)
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    # float32, some 60 roundings deep
    np.testing.assert_allclose(fast.flat, grads.flat, atol=2e-5 * abs(grads.flat).max())


@pytest.mark.parametrize("kind", ["reference", "fast"])
def test_over_a_quantised_base_gradients_are_those_of_its_expanded_weights(kind, rng):
    ops = reference if kind == "reference" else Fast(2, activations="float32")
    model = Llama(LLAMA)
    base, adapter, config, tokens, targets = setup(model, "all", rng, np.float32)
    fast, names = Fast(1), iter(["Q8_0", "Q4_1", "Q5_0", "Q4_0"] * 20)
    quantised, expanded = {}, Weights(model.table())
    for p in model.table():
        w = base[p.name]
        if w.ndim == 2:
            w = fast.quantize(w, FORMATS[next(names)])
            expanded[p.name][...] = w.dequantize()
        else:
            expanded[p.name][...] = w
        quantised[p.name] = w
    file = FileWeights(model.table(), quantised)
    loss, grads = step(ops, model, file, adapter, config, tokens, targets)
    other_loss, other = step(ops, model, expanded, adapter, config, tokens, targets)
    assert loss == pytest.approx(other_loss, rel=1e-6)
    # the same products in another order
    np.testing.assert_allclose(grads.flat, other.flat, atol=1e-5 * abs(other.flat).max())


def test_only_the_adapter_has_gradients(rng):
    model = Llama(LLAMA)
    base, adapter, config, tokens, targets = setup(model, "attn.q", rng, np.float32)
    grads = Weights(adapter.table)
    wanted = AdapterGradients(grads, frozenset(Adapted(base, adapter, config)))
    for p in model.table():
        found = wanted[p.name]
        if p.name.endswith("attn.q.weight"):
            assert found.a is grads[p.name.replace(".weight", ".lora_a")]
        else:
            assert found is FROZEN
    before = base.flat.copy()
    step(Fast(2), model, base, adapter, config, tokens, targets)
    assert np.array_equal(base.flat, before)
    tuned = Tuned(model, Adapted(base, adapter, config), adapter, config)
    assert tuned.trained.count == 2 * 3 * (32 + 32)


def test_a_frozen_head_makes_no_logits_of_rows_that_do_not_count(rng):
    x, w = rng.normal(size=(2, 9, 8)).astype(np.float32), rng.normal(size=(5, 8)).astype(np.float32)
    targets = rng.integers(-2, 5, (2, 9)).astype(np.int32).clip(-1)
    ops, dw = Fast(2), np.zeros_like(w)
    loss, saved = ops.linear_cross_entropy_forward(x, w, targets, FROZEN, 0.5)
    other, whole = ops.linear_cross_entropy_forward(x, w, targets, dw, 0.5)
    assert loss == pytest.approx(other, rel=1e-6)
    dx = ops.linear_cross_entropy_backward(saved)
    np.testing.assert_allclose(dx, ops.linear_cross_entropy_backward(whole), atol=1e-6)
    assert not dx[targets < 0].any() and dx[targets >= 0].all()


@pytest.mark.parametrize("answers", [3, 40, 64])
def test_a_plan_holds_for_any_number_of_targets(answers, rng, monkeypatch):
    """Logits come in blocks of rows that count: more, or fewer, than when the step was planned."""
    monkeypatch.setattr("tenarai.ops.fast_loss.LOGITS_BYTES", 4 * 31 * 64)
    model = Llama(replace(LLAMA, context=64))
    base, adapter, config, _, _ = setup(model, "all", rng, np.float32, dropout=0.0)
    base = FileWeights(model.table(), dict(base) | {
        "wte.weight": Fast(1).quantize(base["wte.weight"], FORMATS["Q8_0"])
    })  # fmt: skip
    tokens = rng.integers(0, 31, (3, 64)).astype(np.int32)
    targets = rng.integers(0, 31, (3, 64)).astype(np.int32)
    arena = Arena()
    ops = Fast(2, arena=arena, activations="float32")

    def run():
        return step(ops, model, base, adapter, config, tokens, targets)

    plan = arena.plan(lambda: run()[0])
    arena.allocate(plan)
    targets[:, answers:] = -1
    with arena.use(plan):
        loss, grads = run()
    other, wanted = step(reference, model, base, adapter, config, tokens, targets)
    assert loss == pytest.approx(other, rel=1e-5)
    np.testing.assert_allclose(grads.flat, wanted.flat, atol=3e-5 * abs(wanted.flat).max())


def test_an_adapter_at_its_start_changes_nothing_and_a_merged_one_is_the_sum(rng):
    model = Llama(LLAMA)
    base, adapter, config, tokens, _ = setup(model, "all", rng, np.float32)
    ops = Tuning(Fast(2))
    adapted = Adapted(base, adapter, config)
    merged = adapted.expanded()
    weights = Weights(model.table())
    for name in weights:
        weights[name][...] = merged[name]
    got = model.logits(ops, adapted, tokens)
    np.testing.assert_allclose(got, model.logits(ops, weights, tokens), atol=2e-5)
    assert abs(got - model.logits(ops, base, tokens)).max() > 0.1
    start = Weights(adapter.table).initialise(3)
    same = model.logits(ops, Adapted(base, start, config), tokens)
    np.testing.assert_array_equal(same, model.logits(ops, base, tokens))


def test_layers_that_do_not_exist_are_named():
    with pytest.raises(TenaraiError, match=r"'attn\.w'.*attn\.q"):
        chosen_layers(Llama(LLAMA).table(), "attn.q,attn.w")
    with pytest.raises(TenaraiError, match="no layer is named"):
        chosen_layers(Llama(LLAMA).table(), " ,")
    with pytest.raises(ValueError, match="adapter of shapes"):
        LoraWeight(np.zeros((4, 6)), np.zeros((2, 6)), np.zeros((5, 2)), 1.0)
