"""The loader: every window once an epoch, the same stream for any ranks, exact resume."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenarai.data import DataError, Loader, Shard
from tenarai.data.permutation import TABLE, Permutation


def shards(*lengths, start=0, dtype=np.uint16):
    """Shards whose tokens are their own positions, so that a window tells where it is from."""
    made = []
    for length in lengths:
        made.append(
            Shard(Path("folder", f"{start}.bin"), np.arange(start, start + length).astype(dtype))
        )
        start += length
    return made


def starts(loader, batches):
    """The first token of each window of some batches, which in these shards is its position."""
    found = []
    for _ in range(batches):
        tokens, targets = loader.next()
        assert (targets == tokens + 1).all()
        assert (tokens == tokens[:, :1] + np.arange(tokens.shape[1])).all()
        found += tokens[:, 0].tolist()
    return found


def test_shapes_and_types():
    loader = Loader(shards(1000), batch=3, context=7)
    for array in loader.next():
        assert array.shape == (3, 7) and array.dtype == np.int32 and array.flags.c_contiguous
    out = np.zeros((3, 7), np.int32), np.zeros((3, 7), np.int32)
    again = Loader(shards(1000), batch=3, context=7)
    given = again.next(out)
    assert given[0] is out[0] and given[1] is out[1]
    assert (out[0] == Loader(shards(1000), 3, 7).next()[0]).all()
    with pytest.raises(ValueError, match="out has shapes"):
        loader.next((out[0][:2], out[1]))


@pytest.mark.parametrize("lengths", [(1000,), (9, 100, 11, 8, 200), (9,), (17, 9)])
def test_an_epoch_has_every_window_once_and_never_crosses_a_shard(lengths):
    T = 8
    data = shards(*lengths)
    loader = Loader(data, batch=1, context=T, seed=3)
    for _ in range(4):
        n = loader.windows
        epoch = loader.epoch
        found = starts(loader, n)
        assert loader.epoch == epoch + 1
        assert len(set(found)) == n
        for shard in data:
            first, end = int(shard.tokens[0]), int(shard.tokens[-1])
            mine = sorted(f for f in found if first <= f <= end)
            if len(shard) <= T:
                assert mine == []
                continue
            offset = mine[0] - first
            assert 0 <= offset < T
            assert mine == list(range(mine[0], end - T + 1, T))  # all that fit, T apart


def test_offsets_and_order_differ_from_epoch_to_epoch_and_seed_to_seed():
    loader = Loader(shards(10_000), batch=1, context=16, seed=1)
    epochs = [starts(loader, loader.windows) for _ in range(8)]
    assert len({min(e) for e in epochs}) > 3
    assert len({tuple(e) for e in epochs}) == 8
    assert all(e != sorted(e) for e in epochs)
    other = Loader(shards(10_000), batch=1, context=16, seed=2)
    assert starts(other, 50) != epochs[0][:50]
    same = Loader(shards(10_000), batch=1, context=16, seed=1)
    assert starts(same, 50) == epochs[0][:50]


def test_every_token_is_seen_in_time():
    loader = Loader(shards(103), batch=1, context=10, seed=0)
    seen = set()
    while loader.epoch < 60:
        seen.update(loader.next()[1].ravel().tolist())
    assert seen == set(range(1, 103))


def test_in_order_for_validation():
    loader = Loader(shards(33, 20), batch=2, context=8, shuffle=False)
    assert (loader.windows, loader.batches) == (6, 3)
    first = starts(loader, 3)
    assert first == [0, 8, 16, 24, 33, 41]
    loader.reset()
    assert loader.epoch == 0
    assert starts(loader, 6) == first * 2


@pytest.mark.parametrize("ranks, batch", [(2, 3), (3, 2), (6, 1)])
def test_ranks_share_the_windows_of_one(ranks, batch):
    data = shards(500, 77)
    one = Loader(data, batch=6, context=8, seed=5)
    many = [Loader(data, batch, 8, seed=5, rank=r, ranks=ranks) for r in range(ranks)]
    for _ in range(40):  # some three epochs; batches reach over their ends
        whole = one.next()
        parts = [loader.next() for loader in many]
        for i in range(2):
            assert (np.concatenate([p[i] for p in parts]) == whole[i]).all()
        assert all(loader.state() == one.state() for loader in many)
    assert one.epoch > 2


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    batch=st.integers(1, 9),
    context=st.integers(1, 12),
    steps=st.integers(0, 60),
    shuffle=st.booleans(),
)
def test_resume_at_any_place_is_the_same_stream(lengths, batch, context, steps, shuffle):
    data = shards(context + 1, *lengths)
    loader = Loader(data, batch, context, seed=9, shuffle=shuffle)
    for _ in range(steps):
        loader.next()
    state = json.loads(json.dumps(loader.state()))
    resumed = Loader(data, batch, context, seed=9, shuffle=shuffle)
    resumed.next()
    resumed.restore(state)
    for _ in range(12):
        for mine, theirs in zip(resumed.next(), loader.next(), strict=True):
            assert (mine == theirs).all()
    assert resumed.state() == loader.state()


def test_the_stream_goes_on_with_another_batch_size():
    data = shards(400)
    loader = Loader(data, 4, 8, seed=1)
    for _ in range(5):
        loader.next()
    smaller = Loader(data, 2, 8, seed=1)
    smaller.restore(loader.state())
    assert starts(smaller, 4) == starts(loader, 2)


def test_this_stream_stays_the_same_between_versions():
    """A saved run must resume to it; if this fails, old runs cannot be continued."""
    loader = Loader(shards(3000, 500), 4, 10, seed=42)
    assert starts(loader, 3) == PINNED_SMALL
    loader = Loader(shards(60_000), 3, 4, seed=42)  # so many windows that they are not in a table
    assert loader.windows > TABLE
    assert starts(loader, 2) == PINNED_LARGE


PINNED_SMALL = [1784, 1414, 384, 2234, 2544, 2524, 3198, 2634, 3408, 764, 74, 674]
PINNED_LARGE = [32374, 26510, 9322, 56510, 46842, 36118]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"context": 9}, "had context 9, this one has 8"),
        ({"seed": 1}, "had seed 1, this one has 0"),
        ({"shuffle": False}, "had shuffle False"),
        ({"data": "0" * 16}, "had data '0000"),
        ({"data": None}, "had data None"),
        ({"index": 10**9}, "does not exist"),
        ({"index": -1}, "does not exist"),
        ({"index": "1"}, "does not exist"),
        ({"index": 1.0}, "does not exist"),
        ({"epoch": -1}, "does not exist"),
        ({"epoch": None}, "does not exist"),
        ({"epoch": True}, "does not exist"),
    ],
)
def test_another_state_is_refused_and_changes_nothing(change, words):
    loader = Loader(shards(1000), 2, 8)
    loader.next()
    before = loader.state()
    with pytest.raises(DataError, match=words):
        loader.restore({**before, **change})
    assert loader.state() == before
    twin = Loader(shards(1000), 2, 8)
    twin.next()
    assert (loader.next()[0] == twin.next()[0]).all()


def test_a_state_that_is_none():
    for state in (None, [], "x", {}):
        with pytest.raises(DataError, match="cannot go on|is missing"):
            Loader(shards(100), 1, 8).restore(state)


@pytest.mark.parametrize(
    "other",
    [
        shards(1000, start=1),
        shards(999),
        shards(500, 500),
        shards(1000, dtype=np.uint32),
        [*shards(1000), *shards(3)],
    ],
)
def test_other_data_is_told_apart(other):
    state = Loader(shards(1000), 1, 8).state()
    with pytest.raises(DataError, match="had data"):
        Loader(other, 1, 8).restore(state)


def test_texts_shorter_than_the_context():
    words = (
        "64 tokens, a context of 64 needs at least 65; take a context of at most 63 or more text"
    )
    with pytest.raises(DataError, match=words):
        Loader(shards(50, 64), 1, 64)
    with pytest.raises(DataError, match="more text"):
        Loader(shards(1), 1, 64)
    with pytest.raises(DataError, match="no token shards"):
        Loader([], 1, 64)
    assert Loader(shards(65), 1, 64).windows == 1


@pytest.mark.parametrize("bad", [{"batch": 0}, {"context": 0}, {"rank": 2}, {"rank": -1}])
def test_impossible_settings(bad):
    with pytest.raises(DataError, match="batch|rank"):
        Loader(shards(100), **{"batch": 1, "context": 8, "ranks": 2, **bad})


def test_tokens_beyond_the_vocabulary():
    Loader(shards(100), 1, 99, vocab_size=100).next()
    with pytest.raises(DataError, match="token 99 in .* folder is beyond the vocabulary of 99"):
        Loader(shards(100), 1, 99, vocab_size=99).next()
    huge = [Shard(Path("x.bin"), np.full(9, 2**32 - 1, np.uint32))]
    with pytest.raises(DataError, match="token 4294967295"):
        Loader(huge, 1, 8, vocab_size=50257).next()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, TABLE, TABLE + 1, 2**13, 2**13 + 1, 10_007])
def test_a_permutation_has_everything_once(n):
    for key in range(3):
        order = Permutation(n, key)(np.arange(n))
        assert sorted(order.tolist()) == list(range(n))
        one_by_one = [int(Permutation(n, key)(np.array([i]))[0]) for i in (0, n - 1)]
        assert one_by_one == [order[0], order[-1]]


@pytest.mark.parametrize("n", [7, 10_007])
def test_a_permutation_is_even(n):
    """Each place gets each value as often: chi-squared over many keys, beyond 6 deviations."""
    bins = 7
    keys = 2000
    places = np.array([0, 1, n // 2, n - 1])
    values = np.array([Permutation(n, key)(places) for key in range(keys)])  # (keys, places)
    for column in values.T:
        counts = np.bincount(column * bins // n, minlength=bins)
        chi = ((counts - keys / bins) ** 2 / (keys / bins)).sum()
        assert chi < (bins - 1) + 6 * np.sqrt(2 * (bins - 1))
    # neighbours must not stay neighbours
    steps = np.abs(np.diff(Permutation(n, 1)(np.arange(n)))) if n > 100 else np.array([n])
    assert np.mean(steps == 1) < 0.01


def test_a_permutation_of_very_many():
    order = Permutation(10**12 + 7, 3)(np.arange(10**6, 10**6 + 5000))
    assert len(set(order.tolist())) == 5000
    assert order.min() >= 0 and order.max() < 10**12 + 7
    assert abs(order.mean() / 1e12 - 0.5) < 0.03
