"""The cache of keys and values: what it keeps, what it gives, and decoding through it."""

import mmap
import sys

import numpy as np
import pytest

from tenarai.errors import TenaraiError
from tenarai.infer.batch import Batch
from tenarai.infer.decoder import Decoder
from tenarai.infer.kv_cache import KVCache, cache_bytes
from tenarai.models.cache_layer import CacheLayer
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference


def test_dtypes_and_sizes():
    layers = [CacheLayer(2, 16), CacheLayer(1, 8, 10)]
    for dtype, item, scale in (("float16", 2, 0), ("float32", 4, 0), ("int8", 1, 4)):
        cache = KVCache(layers, 3, 100, 20, dtype)
        wanted = 3 * 2 * (100 * 2 * (16 * item + scale) + 30 * (8 * item + scale))
        assert cache.nbytes == cache_bytes(layers, 3, 100, 20, dtype) == wanted
    with pytest.raises(TenaraiError, match="float8"):
        KVCache(layers, 1, 10, dtype="float8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_taken_as_rows_are_written():
    """Not all of it with the first token, as where a head's rows begin in huge pages."""

    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    before = resident()
    cache = KVCache([CacheLayer(64, 64)], 1, 8192)  # a head's rows are 1 MiB
    for array in cache.layers[0].arrays():
        array[:, :, :2] = 1
    assert cache.nbytes == 128 << 20 and resident() - before < 16 << 20


@pytest.mark.parametrize("bits", [48, 70])  # more than can be mapped; than can be counted
def test_too_little_memory_is_a_memory_error(bits):
    with pytest.raises(MemoryError, match="bytes of keys or values"):
        KVCache([CacheLayer(1 << 20, 1 << bits - 40)], 1, 1 << 20)


def test_a_batch_places_its_rows():
    cache = KVCache([CacheLayer(1, 4)], 3, 20, rows=8)
    batch = Batch(cache, [(2, 3), (0, 1)])
    assert batch.slots.tolist() == [2, 2, 2, 0] and batch.positions.tolist() == [0, 1, 2, 0]
    assert batch.outputs.tolist() == [2, 3]
    address = batch.positions.ctypes.data
    batch.finish()
    batch.set([(0, 1), (2, 3)], [0, 2])
    assert batch.slots.tolist() == [0, 2, 2, 2] and batch.positions.tolist() == [1, 3, 4, 5]
    assert batch.outputs.tolist() == [0, 2] and batch.positions.ctypes.data == address
    for parts in ([(0, 5)], [(0, 9)], [(0, 1)]):
        with pytest.raises(ValueError, match="this batch is of 4, the cache takes 8"):
            batch.set(parts)
    with pytest.raises(ValueError, match="9 rows"):
        Batch(cache, [(1, 9)])
    cache.lengths[1] = 18
    with pytest.raises(ValueError, match="21 tokens exceed a context of 20"):
        Batch(cache, [(1, 3)])


def test_cutting_keeps_what_a_window_still_has():
    cache = KVCache([CacheLayer(1, 4), CacheLayer(1, 4, 10)], 1, 100, rows=5)  # a ring of 15
    cache.advance(0, 30)  # rows 15 to 29 are there
    assert cache.cut(0, 24) == 24 == cache.lengths[0]  # the next token sees 15 to 24
    cache.advance(0, 1)
    assert cache.cut(0, 23) == 0 == cache.lengths[0]  # 14 is gone
    cache.advance(0, 8)
    assert cache.cut(0, 3) == 3
    with pytest.raises(ValueError, match="has 3 tokens, not 4"):
        cache.cut(0, 4)


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
    params.flat *= 10  # or attention would hardly matter; it also magnifies rounding
    return model, params, np.random.default_rng(0).integers(0, 37, (3, 40)).astype(np.int32)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_sequences_that_join_and_leave_get_the_logits_they_get_alone(ops):
    model, params, tokens = tiny()
    expected = model.logits(ops, params, tokens)
    cache = KVCache(model.cache_layers(), 3, 40, rows=9, dtype="float32")
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
            assert relative(got[row], expected[s, at[s] - 1]) < 3e-5, (parts, s)
    assert at == cache.lengths.tolist()


@pytest.mark.parametrize("windows", [(1, 3), (3, None)])
def test_a_decoder_goes_on_as_forward_does(ops, windows):
    # rows=2: the windows' rings wrap several times while calls are made again
    model, params, tokens = tiny(windows)
    expected = model.logits(ops, params, tokens)
    cache = KVCache(model.cache_layers(), 3, 40, rows=2, dtype="float32")
    first = Decoder(ops, model, params, cache, [2])
    for t in range(7):
        assert relative(first([tokens[2, t]])[0], expected[2, t]) < 3e-5
    both = Decoder(ops, model, params, cache, [0, 2])
    for t in range(33):
        logits = both([tokens[0, t], tokens[2, 7 + t]])
        assert relative(logits[0], expected[0, t]) < 3e-5, t
        assert relative(logits[1], expected[2, 7 + t]) < 3e-5, t
    with pytest.raises(ValueError, match="41 tokens exceed a context of 40"):
        both([1, 1])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_calls_made_again_give_the_same_bits(dtype):
    from tenarai.ops.fast import Fast

    ops = Fast(threads=2)
    model, params, tokens = tiny()
    caches = [KVCache(model.cache_layers(), 3, 40, 3, dtype) for _ in "ab"]
    for slots in ([2], [0, 2], [1, 0, 2], [1]):  # sequences join, and leave
        decoder = Decoder(ops, model, params, caches[0], slots)
        for t in range(8):
            ids = tokens[slots, t]
            batch = Batch(caches[1], [(slot, 1) for slot in slots])
            wanted = model.decode(ops, params, ids, batch)
            batch.finish()
            assert decoder(ids).tobytes() == wanted.tobytes(), (slots, t)
