"""Attention to a KV cache: the kernel against the reference, and that against whole attention."""

import numpy as np
import pytest

from tenarai.infer.kv_cache import KVCache
from tenarai.models.cache_layer import CacheLayer
from tenarai.ops import reference
from tenarai.ops.attention_options import alibi_slopes
from tenarai.ops.fast import Fast, available_isas

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")

# float32 sums of up to some hundred products of standard normal numbers
TOLERANCE = 3e-6


def near(got, want, tolerance=TOLERANCE):
    scale = np.abs(want).max()
    error = np.abs(got - want).max()
    assert error <= tolerance * scale, f"{error / scale:.1e}"


def layer(K, D, window, dtype, slots=3, context=200, rows=80):
    return KVCache([CacheLayer(K, D, window)], slots, context, rows, dtype).layers[0]


def heads(rng, N, H, D, gap=3):
    """(N, H, D), a view with gaps between its rows."""
    return rng.standard_normal((N, H, D + gap)).astype(np.float32)[..., 1 : D + 1]


def rows(parts):
    """slots and positions of parts (slot, first position, count)."""
    slots = np.concatenate([np.full(n, slot) for slot, _, n in parts])
    positions = np.concatenate([np.arange(at, at + n) for _, at, n in parts])
    return slots.astype(np.int32), positions.astype(np.int32)


# prompts, one token of each, several of one and one of another, a second turn
STEPS = [
    [(0, 0, 1)],
    [(1, 0, 70), (0, 1, 2)],
    [(0, 3, 1), (1, 70, 1)],
    [(2, 0, 3), (1, 71, 4), (0, 4, 1)],
    [(0, 5, 66), (2, 3, 1)],
    [(1, 75, 1), (2, 4, 1), (0, 71, 1)],
    [(1, 76, 80)],
    [(1, 156, 1)],
]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("H, K, D", [(1, 1, 1), (4, 2, 17), (9, 3, 64), (3, 3, 33), (10, 1, 16)])
def test_against_the_reference(rng, isa, dtype, window, H, K, D):
    ops = Fast(threads=2, isa=isa)
    fast, plain = layer(K, D, window, dtype), layer(K, D, window, dtype)
    for step in STEPS:
        slots, positions = rows(step)
        q, k, v = (heads(rng, len(slots), n, D) for n in (H, K, K))
        scale = None if D > 1 else 0.7
        want = reference.cache_attention(q, k, v, plain, slots, positions, scale=scale)
        got = ops.cache_attention(q, k, v, fast, slots, positions, scale=scale)
        for a, b in zip(fast.arrays(), plain.arrays(), strict=True):
            if dtype == "int8" and a.dtype == np.int8:  # a tie may fall to either side
                assert np.abs(a.astype(int) - b).max() <= 1
                a[...] = b
            else:
                near(a.astype(np.float64), b.astype(np.float64), 1e-7)
        if dtype == "int8":
            got = ops.cache_attention(q, k, v, fast, slots, positions, scale=scale)
            near(got, want, 1e-2)
        else:
            near(got, want)


@pytest.mark.parametrize("dtype", ["float16", "int8", "float32"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_keys_divided_among_threads(rng, threads, dtype):
    """Few heads, many keys: cuts go through a head's keys; any thread count gives the same sums."""
    K, G, D, S = 1, 3, 40, 1500
    ops = Fast(threads=threads)
    store = layer(K, D, None, dtype, slots=1, context=S + 1, rows=S)
    slots, positions = rows([(0, 0, S)])
    fill = heads(rng, S, K, D)
    ops.cache_attention(heads(rng, S, G, D), fill, -fill, store, slots, positions)
    q, k, v = heads(rng, 1, G, D), heads(rng, 1, K, D), heads(rng, 1, K, D)
    last = (np.zeros(1, np.int32), np.full(1, S, np.int32))
    got = ops.cache_attention(5 * q, k, v, store, *last)
    near(got, reference.cache_attention(5 * q, k, v, store, *last))


HOW = [
    {"soft_cap": 2.0},
    {"alibi": alibi_slopes(6)},
    {"sinks": np.linspace(-1, 4, 6).astype(np.float32)},
    {"off_by_one": True, "scale": 0.1},
    {"soft_cap": 5.0, "alibi": alibi_slopes(6), "sinks": np.ones(6, np.float32)},
]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(how))
def test_options_against_the_reference(rng, isa, threads, how):
    """One row and panels of 70 of each of 6 heads over 2, keys divided among threads or not."""
    ops, (H, K, D) = Fast(threads=threads, isa=isa), (6, 2, 20)
    fast, plain = layer(K, D, 50, "float32"), layer(K, D, 50, "float32")
    for step in STEPS:
        slots, positions = rows(step)
        q, k, v = (heads(rng, len(slots), n, D) for n in (H, K, K))
        want = reference.cache_attention(q, k, v, plain, slots, positions, **how)
        near(ops.cache_attention(q, k, v, fast, slots, positions, **how), want)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("how", [{}, *HOW], ids=lambda how: "-".join(how))
def test_decode_is_attention_over_the_whole_sequence(rng, window, how):
    T, H, K, D = 90, 6, 2, 12
    q, k, v = (rng.standard_normal((1, T, n, D)).astype(np.float32) for n in (H, K, K))
    want, _ = reference.attention_forward(
        *(x.astype(np.float64) for x in (q, k, v)), window=window, **how
    )
    for ops in (reference, Fast(threads=2)):
        store = layer(K, D, window, "float32", slots=1, context=T, rows=70)
        for at, n in ((0, 70), (70, 1), (71, 1), (72, 9), (81, 9)):
            part, where = slice(at, at + n), rows([(0, at, n)])
            y = ops.cache_attention(q[0, part], k[0, part], v[0, part], store, *where, **how)
            near(y, want[0, part], 2e-6)


@pytest.mark.parametrize("mask", [{"causal": False}, {"prefix": 2}, {"window": 3}])
def test_masks_of_its_own_are_refused(rng, mask):
    q, at = heads(rng, 1, 2, 8), (np.zeros(1, np.int32), np.zeros(1, np.int32))
    for ops in (Fast(threads=1), reference):
        with pytest.raises(ValueError, match="its window is that of the layer"):
            ops.cache_attention(q, q, q, layer(2, 8, None, "float16"), *at, **mask)


@pytest.mark.parametrize("window", [None, 7])
def test_the_reference_is_attention_over_the_whole_sequence(rng, window):
    T, H, K, D = 30, 4, 2, 6
    q, k, v = (rng.standard_normal((1, T, n, D)) for n in (H, K, K))
    want, _ = reference.attention_forward(q, k, v, window=window)
    store = layer(K, D, window, "float32", slots=1, context=T, rows=9)
    for at, n in ((0, 9), (9, 1), (10, 1), (11, 9), (20, 9), (29, 1)):
        slots, positions = rows([(0, at, n)])
        part = slice(at, at + n)
        y = reference.cache_attention(q[0, part], k[0, part], v[0, part], store, slots, positions)
        near(y, want[0, part], 1e-6)  # the cache is float32


def test_a_window_keeps_only_its_window():
    assert layer(2, 8, 16, "float16", context=1000, rows=10).capacity == 26
    assert layer(2, 8, None, "float16", context=1000, rows=10).capacity == 1000


@pytest.mark.parametrize(
    "parts, said",
    [
        ([(3, 0, 1)], "sequence 3 of row 0"),
        ([(-1, 0, 1)], "sequence -1"),
        ([(0, 200, 1)], "position 200 of row 0 is outside the cache of 200"),
        ([(0, 0, 1), (1, -1, 1)], "position -1 of row 1"),
    ],
)
def test_rows_outside_the_cache_are_refused(rng, parts, said):
    store = layer(2, 8, None, "float16")
    slots, positions = rows(parts)
    q, k = heads(rng, len(slots), 4, 8), heads(rng, len(slots), 2, 8)
    with pytest.raises(ValueError, match=said):
        Fast(threads=1).cache_attention(q, k, k, store, slots, positions)
    assert not store.keys.any()


def test_more_rows_than_a_ring_holds_are_refused(rng):
    store = layer(1, 8, 5, "float16", rows=10)  # 15 rows
    slots, positions = rows([(0, 10, 12)])
    q = heads(rng, 12, 1, 8)
    for ops in (Fast(threads=1), reference):
        with pytest.raises(ValueError, match="outside the cache of 15"):
            ops.cache_attention(q, q, q, store, slots, positions)
