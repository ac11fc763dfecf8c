"""The cache of keys and values: what it keeps, what it gives, and decoding through it."""

import numpy as np
import pytest

from tenarai.infer.batch import Batch
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
        keys, values = cache.append(0, 1, *rows(start, T))
        cache.advance(1, T)
        assert keys.shape == values.shape == (1, start + T, 2, 3)
        assert keys[0, :, 1, 2].tolist() == list(range(start + T))
        assert (values == -keys).all()
    assert cache.lengths.tolist() == [0, 10]
    with pytest.raises(ValueError, match="11 tokens exceed a context of 10"):
        cache.append(0, 1, *rows(10, 1))


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("steps", [[1] * 40, [5, 1, 1, 1, 5, 5, 5, 1, 5, 5, 1, 5]])
def test_a_window_keeps_what_its_newest_tokens_see(window, steps):
    cache = KVCache([CacheLayer(2, 3, window)], 1, 1000, rows=5)
    place = 0
    for T in steps:
        keys, _ = cache.append(0, 0, *rows(place, T))
        cache.advance(0, T)
        place += T
        first = max(0, place - T - window + 1)
        assert keys[0, :, 0, 0].tolist() == list(range(first, place))
    assert cache.keys[0].shape[2] == 2 * window + 5  # and not the context


def test_more_rows_than_the_cache_was_made_for():
    cache = KVCache([CacheLayer(2, 3, 2)], 1, 1000, rows=5)
    with pytest.raises(ValueError, match="12 rows at once, the cache was made for 5"):
        cache.append(0, 0, *rows(0, 12))


def test_a_cleared_slot_begins_anew():
    cache = KVCache([CacheLayer(2, 3, 4)], 2, 50)
    for slot in (0, 1):
        cache.append(0, slot, *rows(7, 3))
        cache.advance(slot, 3)
    cache.clear(0)
    assert cache.append(0, 0, *rows(1, 1))[0].shape[1] == 1
    assert cache.append(0, 1, *rows(10, 1))[0].shape[1] == 4


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_sequences_that_join_and_leave_get_the_logits_they_get_alone(name):
    if name == "fast":
        from tenarai.ops.fast import Fast

        ops = Fast(threads=2)
    else:
        ops = reference
    config = LlamaConfig(
        vocab_size=37, context=40, layers=2, heads=4, kv_heads=2, head_size=6, width=24,
        hidden=20, rope=Rope(6), windows=(3, None),
    )  # fmt: skip
    model = Llama(config)
    params = Weights(model.table()).initialise(5)
    tokens = np.random.default_rng(0).integers(0, 37, (3, 30)).astype(np.int32)
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
            wanted = expected[s, at[s] - 1]
            error = np.abs(got[row] - wanted).max() / np.abs(wanted).max()
            assert error < 1e-5, (parts, s)
    assert at == cache.lengths.tolist()
