"""The first micro-batch writes gradients where later ones add: the same sums as from zeros."""

import numpy as np
import pytest

from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.gradients import micro_batch
from tenarai.models.llama import Llama
from tenarai.models.llama_config import LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import Fast, reference
from tenarai.ops.gradient import Unwritten

GPT2_MODEL = GPT2(GPT2Config(vocab_size=23, context=11, layers=2, heads=3, width=48))
LLAMAS = [
    Llama(
        LlamaConfig(
            vocab_size=23,
            context=11,
            layers=2,
            heads=2,
            kv_heads=1,
            head_size=8,
            width=16,
            hidden=24,
            rope=Rope(8),
            tied=tied,
        )  # fmt: skip
    )
    for tied in (True, False)
]
MODELS = {"gpt2": GPT2_MODEL, "llama, tied": LLAMAS[0], "llama, a head of its own": LLAMAS[1]}


@pytest.fixture(params=["reference", "fast"])
def ops(request):
    if request.param == "reference":
        return reference
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
    return Fast(threads=2)


def batches(model, rng, n=2):
    V = model.config.vocab_size
    return [rng.integers(0, V, (2, 2, 7)).astype(np.int32) for _ in range(n)]


def add(ops, model, params, batch, grads):
    _, saved = model.forward(ops, params, batch[0], batch[1], grads)
    model.backward(ops, params, saved, grads)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_whatever_stood_there_before_is_gone(ops, rng, name, accumulate):
    model = MODELS[name]
    params = Weights(model.table()).initialise(3)
    zeros, grads = Weights(model.table()), Weights(model.table())
    for p in grads.table:
        grads[p.name][...] = np.nan
    for i, batch in enumerate(batches(model, rng, accumulate)):
        add(ops, model, params, batch, zeros)
        with micro_batch(grads, i) as target:
            add(ops, model, params, batch, target)
    for p in grads.table:
        assert np.array_equal(grads[p.name], zeros[p.name]), p.name
        assert np.any(grads[p.name]), p.name
    assert np.array_equal(grads.flat, zeros.flat)  # what lies between them is still zero


def test_what_no_one_asks_for_is_zero():
    grads = Weights(GPT2_MODEL.table())
    grads.flat[...] = 1
    with micro_batch(grads, 0) as first:
        assert isinstance(first["wte.weight"], Unwritten)
        first.scope("h.0.")["mlp.c_fc.weight"].array[...] = 5
        assert first["wte.weight"] is grads["wte.weight"]  # the second time it holds something
        assert first.scope("h.0.")["mlp.c_fc.weight"] is grads["h.0.mlp.c_fc.weight"]
    assert np.all(grads["wte.weight"] == 1) and np.all(grads["h.0.mlp.c_fc.weight"] == 5)
    for name in ("h.1.mlp.c_fc.weight", "wpe.weight", "ln_f.weight"):
        assert not np.any(grads[name]), name


def test_the_second_micro_batch_adds_to_plain_arrays():
    grads = Weights(GPT2_MODEL.table())
    with micro_batch(grads, 1) as second:
        assert second is grads


@pytest.mark.parametrize("rows", [0, 1, 3, 40, 700])
def test_ops_write_an_unwritten_gradient_whole(ops, rng, monkeypatch, rows):
    """Also of no rows, of more than one block of a product's sum has, and of several of logits."""
    monkeypatch.setattr("tenarai.ops.fast_loss.LOGITS_BYTES", 4 * 64 * 64)
    x, w, dy = (
        rng.standard_normal(s).astype(np.float32) for s in ((rows, 96), (64, 96), (rows, 64))
    )
    targets = rng.integers(0, 64, rows).astype(np.int32)
    tokens = rng.integers(0, 64, (1, rows)).astype(np.int32)
    calls = {
        "linear": lambda dw: ops.linear_backward(dy, ops.linear_forward(x, w)[1], dw),
        "gelu_linear": lambda dw: ops.gelu_linear_backward(
            dy, ops.gelu_linear_forward(x, w)[1], dw
        ),
        "linear_cross_entropy": lambda dw: ops.linear_cross_entropy_forward(x, w, targets, dw),
        "embedding": lambda dw: ops.embedding_backward(
            x[None], ops.embedding_forward(tokens, w)[1], dw
        ),
    }
    for name, call in calls.items():
        zeros = np.zeros_like(w)
        call(zeros)
        for shift in (0, 1):  # on a 64-byte boundary, and not
            memory = np.full(w.size + 32, np.nan, np.float32)
            start = -memory.ctypes.data % 64 // 4 + shift
            dw = memory[start : start + w.size].reshape(w.shape)
            call(Unwritten(dw))
            assert np.array_equal(dw, zeros), name
            memory[start : start + w.size] = np.nan
            assert np.all(np.isnan(memory)), name
