"""Token shards in llm.c's format: what is written is read, and no lie of a header is believed."""

import errno
import random
import struct

import numpy as np
import pytest

from tenarai.data import DataError, ShardWriter, open_shard
from tenarai.io import atomic
from tenarai.io.atomic import WriteError


def shard_bytes(tokens, magic=20240520, version=1, count=None, dtype="<u2"):
    """Written here from the format's description, not with the code under test."""
    count = len(tokens) if count is None else count
    header = struct.pack("<3i", magic, version, count) + bytes(1012)
    return header + np.asarray(tokens, dtype).tobytes()


def test_both_formats_are_read(tmp_path):
    (tmp_path / "a.bin").write_bytes(shard_bytes([1, 2, 65535]))
    (tmp_path / "b.bin").write_bytes(shard_bytes([1, 100_000], 20240801, 7, dtype="<u4"))
    assert open_shard(tmp_path / "a.bin").tokens.tolist() == [1, 2, 65535]
    shard = open_shard(tmp_path / "b.bin")
    assert shard.tokens.tolist() == [1, 100_000]
    assert len(shard) == 2
    with pytest.raises(ValueError):
        shard.tokens[0] = 1  # a map of somebody's file


@pytest.mark.parametrize(
    "vocab_size, magic", [(256, 20240520), (65536, 20240520), (65537, 20240801)]
)
def test_written_bytes(tmp_path, vocab_size, magic):
    tokens = [0, 5, vocab_size - 1]
    with ShardWriter(tmp_path, "train", vocab_size) as writer:
        writer.append(np.array(tokens))
    version, dtype = (1, "<u2") if magic == 20240520 else (7, "<u4")
    (path,) = writer.paths
    assert path.name == "train_000000.bin"
    assert path.read_bytes() == shard_bytes(tokens, magic, version, dtype=dtype)


@pytest.mark.parametrize("parts", [[10], [3, 3, 4], [4, 4], [9, 0, 1], [1] * 12])
def test_shards_are_split_at_the_size(tmp_path, parts):
    with ShardWriter(tmp_path, "val", 100, shard_tokens=4) as writer:
        for i, n in enumerate(parts):
            writer.append([10 * i % 100] * n)
    shards = [open_shard(p) for p in writer.paths]
    assert [len(s) for s in shards[:-1]] == [4] * (len(shards) - 1)
    assert 0 < len(shards[-1]) <= 4
    everything = np.concatenate([s.tokens for s in shards]).tolist()
    assert everything == sum(([10 * i % 100] * n for i, n in enumerate(parts)), [])
    assert writer.count == sum(parts)


def test_nothing_written_is_no_shard(tmp_path):
    with ShardWriter(tmp_path, "val", 100) as writer:
        writer.append([])
    assert writer.paths == [] and list(tmp_path.iterdir()) == []


GOOD = shard_bytes([1, 2, 3])


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "its header alone has 1024"),
        (GOOD[:1023], "its header alone has 1024"),
        (GOOD[:1024], "cut off: 3 tokens need 1030 bytes, 6 are missing"),
        (GOOD[:-1], "1 are missing"),
        (GOOD + b"x", "1 bytes more"),
        (GOOD + b"xy", "2 bytes more"),
        (shard_bytes([1], magic=20240522), "no token shard: it starts with 20240522"),
        (b"<!DOCTYPE html>" + bytes(2000), "no token shard"),
        (shard_bytes([1], version=2), "version 2, 20240520 goes with 1"),
        (shard_bytes([1], magic=20240801, version=1), "version 1, 20240801 goes with 7"),
        (shard_bytes([], count=0), "says that it has 0 tokens"),
        (shard_bytes([1], count=-1), "says that it has -1 tokens"),
        (shard_bytes([1], count=-(2**31)), "says that it has -2147483648 tokens"),
        (shard_bytes([1], count=2**31 - 1), "4294967292 are missing"),
        (shard_bytes([1, 2], magic=20240801, version=7), "4 are missing"),
    ],
)
def test_a_bad_shard_is_one_clear_error(tmp_path, data, words):
    path = tmp_path / "train_x.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        open_shard(path)
    assert str(path) in str(caught.value)


def test_no_such_shard(tmp_path):
    with pytest.raises(DataError, match="cannot read the shard"):
        open_shard(tmp_path / "none.bin")
    with pytest.raises(DataError, match="cannot read the shard"):
        open_shard(tmp_path)


def test_fuzzed_headers_are_refused_or_harmless(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "x.bin"
    refused = 0
    for _ in range(500):
        data = bytearray(GOOD)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(12)] = rng.randrange(256)
        path.write_bytes(bytes(data))
        try:
            assert open_shard(path).tokens.tolist() == [1, 2, 3]
        except DataError:
            refused += 1
    assert refused > 400


@pytest.mark.parametrize("bad", [100, -1, 1 << 40])
def test_a_token_beyond_the_vocabulary_is_not_written(tmp_path, bad):
    with (
        pytest.raises(DataError, match=f"token {bad} is not in the vocabulary of 100"),
        ShardWriter(tmp_path, "train", 100) as writer,
    ):
        writer.append([1, bad, 2])
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_size(tmp_path):
    for size in (0, -1, 2**31):
        with pytest.raises(DataError, match="a shard has 1 to"):
            ShardWriter(tmp_path, "train", 100, size)


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(WriteError, match="disk is full"),
        ShardWriter(tmp_path, "t", 9, 4) as writer,
    ):
        writer.append([1] * 4)
        monkeypatch.setattr(atomic.os, "fsync", full)
        writer.append([2] * 6)
    assert [p.name for p in tmp_path.iterdir()] == ["t_000000.bin"]
    assert open_shard(tmp_path / "t_000000.bin").tokens.tolist() == [1] * 4


def test_an_error_in_the_block_drops_the_open_shard(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path, "t", 9, 4) as writer:
        writer.append([1] * 6)
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["t_000000.bin"]
