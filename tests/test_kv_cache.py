"""The cache of keys and values: what it keeps, what it gives, and decoding through it."""

import numpy as np
import pytest

from tenarai.infer.batch import Batch
from tenarai.infer.decoder import Decoder
from tenarai.infer.kv_cache import KVCache
from tenarai.models.cache_layer import CacheLayer
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference


def rows(start, T, K=2, D=3):
    """Keys whose every number is the token's place, values the same negated."""
    k = np.repeat(np.arange(start, start + T, dtype=np.float32), K * D).reshape(T, K, D)
    return k, -k


def test_all_tokens_are_given_back_in_order():
    cache = KVCache([CacheLayer(2, 3)], 2, 10)
    for start, T in ((0, 4), (4, 1), (5, 5)):
        cache.make_room(1, T)
        keys, values = cache.append(0, 1, *rows(start, T))
        cache.advance(1, T)
        assert keys.shape == values.shape == (1, start + T, 2, 3)
        assert keys[0, :, 1, 2].tolist() == list(range(start + T))
        assert (values == -keys).all()
    assert cache.lengths.tolist() == [0, 10]
    with pytest.raises(ValueError, match="11 tokens exceed a context of 10"):
        cache.make_room(1, 1)


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("steps", [[1] * 40, [5, 1, 1, 1, 5, 5, 5, 1, 5, 5, 1, 5]])
def test_a_window_keeps_what_its_newest_tokens_see(window, steps):
    cache = KVCache([CacheLayer(2, 3, window)], 1, 1000, rows=5)
    place = 0
    for T in steps:
        cache.make_room(0, T)
        keys, _ = cache.append(0, 0, *rows(place, T))
        cache.advance(0, T)
        place += T
        first = max(0, place - T - window + 1)
        assert keys[0, :, 0, 0].tolist() == list(range(first, place))
    assert cache.keys[0].shape[2] == 2 * window + 5  # and not the context


def test_more_rows_than_the_cache_was_made_for():
    cache = KVCache([CacheLayer(2, 3, 2)], 1, 1000, rows=5)
    with pytest.raises(ValueError, match="12 rows at once, the cache was made for 5"):
        cache.make_room(0, 12)


def test_a_cleared_slot_begins_anew():
    cache = KVCache([CacheLayer(2, 3, 4)], 2, 50)
    for slot in (0, 1):
        cache.append(0, slot, *rows(7, 3))
        cache.advance(slot, 3)
    cache.clear(0)
    assert cache.append(0, 0, *rows(1, 1))[0].shape[1] == 1
    assert cache.append(0, 1, *rows(10, 1))[0].shape[1] == 4


@pytest.fixture(params=["reference", "fast"])
def ops(request):
    if request.param == "reference":
        return reference
    from tenarai.ops.fast import Fast

    return Fast(threads=2)


def tiny(windows=(3, None)):
    config = LlamaConfig(
        vocab_size=37, context=40, layers=2, heads=4, kv_heads=2, head_size=6, width=24,
        hidden=20, rope=Rope(6), windows=windows,
    )  # fmt: skip
    model = Llama(config)
    params = Weights(model.table()).initialise(5)
    params.flat *= 10  # or attention would hardly matter
    return model, params, np.random.default_rng(0).integers(0, 37, (3, 40)).astype(np.int32)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_sequences_that_join_and_leave_get_the_logits_they_get_alone(ops):
    model, params, tokens = tiny()
    expected = model.logits(ops, params, tokens)
    cache = KVCache(model.cache_layers(), 3, 40, rows=9)
    at = [0, 0, 0]
    script = [[(0, 9)], [(0, 1), (1, 4)], [(1, 1), (0, 1), (2, 5)], [(2, 1)], [(1, 9)]]
    script += [[(0, 1), (1, 1), (2, 1)]] * 12
    for parts in script:
        batch = Batch(cache, parts)
        ids = np.concatenate([tokens[s, at[s] : at[s] + n] for s, n in parts])
        got = model.decode(ops, params, ids, batch)
        batch.finish()
        for row, (s, n) in enumerate(parts):
            at[s] += n
            assert relative(got[row], expected[s, at[s] - 1]) < 1e-5, (parts, s)
    assert at == cache.lengths.tolist()


@pytest.mark.parametrize("windows", [(1, 3), (3, None)])
def test_a_decoder_goes_on_as_forward_does(ops, windows):
    # rows=2: the windows' layers move their rows several times while calls are made again
    model, params, tokens = tiny(windows)
    expected = model.logits(ops, params, tokens)
    cache = KVCache(model.cache_layers(), 3, 40, rows=2)
    first = Decoder(ops, model, params, cache, [2])
    for t in range(7):
        assert relative(first([tokens[2, t]])[0], expected[2, t]) < 1e-5
    both = Decoder(ops, model, params, cache, [0, 2])
    for t in range(33):
        logits = both([tokens[0, t], tokens[2, 7 + t]])
        assert relative(logits[0], expected[0, t]) < 1e-5, t
        assert relative(logits[1], expected[2, 7 + t]) < 1e-5, t
    with pytest.raises(ValueError, match="41 tokens exceed a context of 40"):
        both([1, 1])


def test_cache_attention_is_the_references(ops):
    random = np.random.default_rng(1)
    for N, H, K, D in ((1, 4, 2, 5), (3, 3, 1, 16), (2, 6, 6, 33)):
        q = random.normal(size=(N, H, D)).astype(np.float32)
        k, v = (random.normal(size=(N, K, D)).astype(np.float32) for _ in "kv")
        kept = [random.normal(size=(4, K, 70, D)).astype(np.float32) for _ in "kv"]
        ours, theirs = ([a.copy() for a in kept] for _ in "ab")
        slots = random.permutation(4)[:N].astype(np.int32)
        places = random.integers(0, 70, N).astype(np.int32)
        firsts = (places * random.random(N)).astype(np.int32)
        got = ops.cache_attention(q, k, v, *ours, slots, places, firsts, scale=0.3)
        expected = reference.cache_attention(q, k, v, *theirs, slots, places, firsts, scale=0.3)
        assert relative(got, expected) < 1e-5
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_a_row_outside_the_cache_is_refused():
    from tenarai.ops.fast import Fast

    q, kept = np.zeros((1, 1, 4), np.float32), np.zeros((2, 1, 8, 4), np.float32)
    for slot, place, first in ((2, 0, 0), (-1, 0, 0), (0, 8, 0), (0, 3, 4), (0, 3, -1)):
        places = (np.array([x], np.int32) for x in (slot, place, first))
        with pytest.raises(ValueError, match="row 0 is outside the cache"):
            Fast(threads=1).cache_attention(q, q, q, kept, kept.copy(), *places)
