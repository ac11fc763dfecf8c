"""The whole GPT-2: gradient by the complex step, decoding, and the kernels against NumPy."""

import numpy as np
import pytest

from complex_step import gradient_errors
from tenarai.infer.batch import Batch
from tenarai.infer.kv_cache import KVCache
from tenarai.models.gpt2 import GPT2, Dropout, GPT2Config
from tenarai.models.table import Weights
from tenarai.ops import reference

ODD = {"vocab_size": 23, "context": 11, "layers": 2, "heads": 3, "width": 15}


def random_weights(model, rng, dtype=np.float64):
    """Every weight random, biases and norms too: 0 and 1 would hide errors."""
    params = Weights(model.table(), dtype)
    for p in params.table:
        params[p.name][...] = p.mean + 0.3 * rng.standard_normal(p.shape)
    return params


def cast(params, dtype):
    out = Weights(params.table, dtype)
    out.flat[...] = params.flat
    return out


def batch(rng, model, B, T):
    tokens = rng.integers(0, model.config.vocab_size, (B, T)).astype(np.int32)
    targets = rng.integers(0, model.config.vocab_size, (B, T)).astype(np.int32)
    if B * T > 3:
        targets[0, T // 2] = -1
    return tokens, targets


def loss_and_grads(ops, model, params, tokens, targets, dropout=None):
    grads = Weights(params.table, params.flat.dtype)
    loss, saved = model.forward(ops, params, tokens, targets, grads, dropout)
    model.backward(ops, params, saved, grads)
    return loss, grads


def relative(a, b):
    norm = np.linalg.norm(b.astype(np.float64))
    return np.linalg.norm(a.astype(np.float64) - b) / norm if norm else np.abs(a).max()


CASES = {
    "plain": ({}, 2, 7),
    "whole context": ({}, 1, 11),
    "one token": ({}, 3, 1),
    "exact gelu, no bias": ({"gelu": "none", "bias": False}, 2, 5),
    "dropout": ({"dropout": 0.25}, 2, 7),
    "one head, other epsilon": ({"heads": 1, "norm_eps": 1e-3, "layers": 3}, 2, 5),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_by_the_complex_step(rng, case, recompute):
    options, B, T = CASES[case]
    model = GPT2(GPT2Config(**(ODD | options)), recompute)
    params = random_weights(model, rng)
    tokens, targets = batch(rng, model, B, T)
    dropout = Dropout(seed=5, draw=3) if model.config.dropout else None
    loss, grads = loss_and_grads(reference, model, params, tokens, targets, dropout)

    def f(inputs):
        point = Weights(params.table, np.complex128)
        for name, value in inputs.items():
            point[name][...] = value
        return model.forward(reference, point, tokens, targets, None, dropout)[0]

    assert abs(f(params).real - loss) < 1e-12 * loss
    errors = gradient_errors(f, params, grads, rng, directions=1)
    # 2 or 3 layers deep, some 100 ops of float64 in a row: 1e-13 is what they come to
    assert max(errors.values()) < 1e-10, errors
    assert all(np.linalg.norm(grads[name]) > 0 for name in grads), "a gradient is all zeros"


@pytest.mark.parametrize("dropout", [None, Dropout(seed=1, draw=2)])
def test_recomputing_changes_no_bit(rng, dropout):
    config = GPT2Config(**ODD, dropout=0.0 if dropout is None else 0.3)
    params = random_weights(GPT2(config), rng, np.float32)
    tokens, targets = batch(rng, GPT2(config), 2, 9)
    results = [
        loss_and_grads(reference, GPT2(config, recompute), params, tokens, targets, dropout)
        for recompute in (False, True)
    ]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1].flat, results[1][1].flat)


def test_gradients_are_added_to_what_is_there(rng):
    model = GPT2(GPT2Config(**ODD))
    params = random_weights(model, rng)
    first, second = batch(rng, model, 2, 7), batch(rng, model, 1, 5)
    both = Weights(params.table, np.float64)
    for tokens, targets in (first, second):
        _, saved = model.forward(reference, params, tokens, targets, both)
        model.backward(reference, params, saved, both)
    parts = [loss_and_grads(reference, model, params, *b)[1].flat for b in (first, second)]
    np.testing.assert_allclose(both.flat, parts[0] + parts[1], rtol=1e-12, atol=1e-14)


def test_no_token_sees_a_later_one(rng):
    model = GPT2(GPT2Config(**ODD))
    params = random_weights(model, rng)
    tokens, _ = batch(rng, model, 1, 9)
    changed = tokens.copy()
    changed[0, 5:] = (changed[0, 5:] + 1) % model.config.vocab_size
    a, b = (model.logits(reference, params, t) for t in (tokens, changed))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] != b[:, 5:]).any(axis=-1).all()


def fast(threads=2):
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")
    from tenarai.ops.fast import Fast

    return Fast(threads=threads)


ALL_OPS = [pytest.param(lambda: reference, id="reference"), pytest.param(fast, id="fast")]


def new_cache(model, B):
    return KVCache(model.cache_layers(), B, model.config.context, dtype="float32")


def decode(ops, model, params, tokens, cache):
    """Logits (B, V) after tokens (B, T), which follow those in the cache."""
    rows = Batch(cache, [(slot, tokens.shape[1]) for slot in range(len(tokens))])
    logits = model.decode(ops, params, tokens.reshape(-1), rows)
    rows.finish()
    return logits


# float32 through two layers: logits agree to a few units of the last place of their largest
LOGITS_TOLERANCE = 1e-5


@pytest.mark.parametrize("make_ops", ALL_OPS)
@pytest.mark.parametrize("steps", [[1] * 9, [9], [4, 1, 3, 1]], ids=["singly", "at once", "mixed"])
def test_decode_gives_the_logits_of_forward(rng, make_ops, steps):
    ops, model = make_ops(), GPT2(GPT2Config(**ODD))
    params = random_weights(model, rng, np.float32)
    tokens, _ = batch(rng, model, 2, 9)
    logits = model.logits(ops, params, tokens)
    cache, at = new_cache(model, 2), 0
    for n in steps:
        part = np.ascontiguousarray(tokens[:, at : at + n])
        at += n
        got = decode(ops, model, params, part, cache)
        assert got.shape == (2, model.config.vocab_size)
        assert relative(got, logits[:, at - 1]) < LOGITS_TOLERANCE
    assert cache.lengths.tolist() == [9, 9]


@pytest.mark.parametrize("make_ops", ALL_OPS)
def test_a_sequence_in_a_batch_is_the_same_alone(rng, make_ops):
    ops, model = make_ops(), GPT2(GPT2Config(**ODD))
    params = random_weights(model, rng, np.float32)
    tokens, _ = batch(rng, model, 4, 10)
    together = model.logits(ops, params, tokens)
    cache = new_cache(model, 4)
    decoded = decode(ops, model, params, tokens, cache)
    for i in range(4):
        one = np.ascontiguousarray(tokens[i : i + 1])
        assert relative(together[i], model.logits(ops, params, one)[0]) < LOGITS_TOLERANCE
        alone = decode(ops, model, params, one, new_cache(model, 1))
        assert relative(decoded[i], alone[0]) < LOGITS_TOLERANCE


@pytest.mark.parametrize("T", [1, 7, 33, 127])
@pytest.mark.parametrize("width, heads", [(36, 3), (50, 5), (64, 4)])
def test_kernels_against_the_reference(rng, T, width, heads):
    ops = fast()
    model = GPT2(GPT2Config(vocab_size=131, context=128, layers=2, heads=heads, width=width))
    params = random_weights(model, rng, np.float32)
    tokens, targets = batch(rng, model, 3, T)
    loss, grads = loss_and_grads(ops, model, params, tokens, targets)
    # the reference in float64, so that only the kernels' rounding counts
    exact, expected = loss_and_grads(reference, model, cast(params, np.float64), tokens, targets)
    assert abs(loss - exact) < 2e-6 * exact
    errors = {name: relative(grads[name], expected[name]) for name in grads}
    assert max(errors.values()) < 2e-5, {n: e for n, e in errors.items() if e >= 2e-5}


@pytest.mark.parametrize("options", [{"bias": False}, {"gelu": "none"}, {"dropout": 0.2}])
def test_kernels_against_the_reference_with_other_settings(rng, options):
    ops, model = fast(), GPT2(GPT2Config(**(ODD | options)))
    params = random_weights(model, rng, np.float32)
    tokens, targets = batch(rng, model, 2, 9)
    drop = Dropout(seed=9, draw=1) if "dropout" in options else None
    loss, grads = loss_and_grads(ops, model, params, tokens, targets, drop)
    wide = cast(params, np.float64)
    exact, expected = loss_and_grads(reference, model, wide, tokens, targets, drop)
    assert abs(loss - exact) < 2e-6 * exact
    assert max(relative(grads[name], expected[name]) for name in grads) < 2e-5
