"""Checkpoints: what was written comes back; whatever else comes is one clear error."""

import errno
import hashlib
import json
import os
import random
import struct

import numpy as np
import pytest

from tenarai.io import atomic, checkpoint, checkpoint_folder, digest
from tenarai.io.checkpoint import Checkpoint, CheckpointError, write_checkpoint


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    return {
        "weights/a": rng.normal(size=(3, 5)).astype(np.float32),
        "weights/名": rng.normal(size=7).astype(np.float32),
        "empty": np.zeros((0, 4), np.int32),
        "scalar": np.array(5, np.int64),
        "bytes": rng.integers(0, 256, 1001).astype(np.uint8),
    }


@pytest.fixture
def path(tmp_path, arrays):
    path = tmp_path / "step-00000007.tenarai"
    assert write_checkpoint(path, arrays, {"step": 7, "text": "日本"}) == path.stat().st_size
    return path


def test_comes_back(path, arrays):
    with Checkpoint(path) as c:
        assert c.meta == {"step": 7, "text": "日本"}
        for name, array in arrays.items():
            got = c.read(name)
            assert got.dtype == array.dtype and np.array_equal(got, array)
            assert c.entries[name].offset % 64 == 0
        out = np.empty((3, 5), np.float32)
        assert c.read("weights/a", out) is out and np.array_equal(out, arrays["weights/a"])
        with pytest.raises(CheckpointError, match=r"\(3, 5\).*expected \(5, 3\)"):
            c.read("weights/a", np.empty((5, 3), np.float32))
        with pytest.raises(CheckpointError, match="holds no nothing"):
            c.read("nothing")


def test_more_than_one_block(tmp_path, monkeypatch):
    for module in (checkpoint, digest):
        monkeypatch.setattr(module, "BLOCK", 1000)
    big = np.arange(12345, dtype=np.float32)
    write_checkpoint(tmp_path / "c", {"big": big}, {})
    with Checkpoint(tmp_path / "c") as c:
        assert np.array_equal(c.read("big"), big)
    raw = bytearray((tmp_path / "c").read_bytes())
    raw[20000:22000] = raw[22000:24000]
    (tmp_path / "c").write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum"):
        Checkpoint(tmp_path / "c")


def test_any_changed_byte_is_found(path):
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=path.name):
            Checkpoint(path)


def test_any_truncation_is_found(path):
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=path.name):
            Checkpoint(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="checksum"):
        Checkpoint(path)


def sealed(document, tail=b""):
    """A file with this header and a right digest: what an attacker would make."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    body = struct.pack("<8sII", b"tenarai\0", 1, len(text)) + text + tail
    block = hashlib.blake2b(body, digest_size=32).digest()
    return body + hashlib.blake2b(block, digest_size=32).digest()


def entry(**changes):
    return {"name": "a", "dtype": "float32", "shape": [4], "offset": 256} | changes


def test_sealed_is_what_the_program_reads(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(sealed({"meta": {}, "arrays": [entry()]}, b"\0" * 1000))
    assert Checkpoint(path).read("a").shape == (4,)


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        [],
        {"meta": [], "arrays": []},
        {"meta": {}, "arrays": {}, "x": 1} | {"arrays": [entry(), entry()]},
        *(
            {"meta": {}, "arrays": [entry(**change)]}
            for change in [
                {"shape": [2**40, 2**40]},
                {"shape": [2**62]},
                {"shape": [-4]},
                {"shape": [4.0]},
                {"shape": [True]},
                {"shape": "44"},
                {"shape": [1] * 40},
                {"shape": [10_000]},
                {"offset": -1},
                {"offset": 0},
                {"offset": 2**70},
                {"offset": None},
                {"offset": 5000},
                {"dtype": "object"},
                {"dtype": "O"},
                {"dtype": []},
                {"name": 3},
            ]
        ),
    ],
    ids=lambda d: str(d)[-60:],
)
def test_crafted_header(tmp_path, document):
    path = tmp_path / "crafted"
    path.write_bytes(sealed(document, b"\0" * 1000))
    with pytest.raises(CheckpointError, match="crafted"):
        Checkpoint(path)


def test_fuzz(path):
    """Random damage that keeps a right digest: an error or arrays, never anything else."""
    rng = random.Random(5)
    good = path.read_bytes()[:-32]
    for _ in range(500):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            bad[rng.randrange(8, 1200)] = rng.randrange(256)
        block = hashlib.blake2b(bad, digest_size=32).digest()
        path.write_bytes(bad + hashlib.blake2b(block, digest_size=32).digest())
        try:
            with Checkpoint(path) as c:
                for name in c.entries:
                    c.read(name)
        except CheckpointError as error:
            assert path.name in str(error)


def test_other_files(tmp_path):
    for content in [b"", b"<html>", b"GGUF", b"tena"]:
        path = tmp_path / "f"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(path)):
            Checkpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        Checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError):
        Checkpoint(tmp_path)


def test_full_disk_leaves_the_old_file(path, arrays, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(atomic.WriteError, match="disk is full"):
        write_checkpoint(path, arrays, {"step": 8})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_newest_skips_the_broken(tmp_path, arrays):
    for step in (5, 10, 100):
        write_checkpoint(checkpoint_folder.checkpoint_path(tmp_path, step), arrays, {"step": step})
    (tmp_path / "step-x.tenarai").write_bytes(b"")
    newest = checkpoint_folder.checkpoint_path(tmp_path, 100)
    newest.write_bytes(newest.read_bytes()[:-1])
    found, errors = checkpoint_folder.newest_checkpoint(tmp_path)
    assert found is not None and found.meta["step"] == 10
    assert len(errors) == 1 and newest.name in str(errors[0])


def test_prune_keeps_the_newest_and_the_spared(tmp_path, arrays):
    for step in range(0, 70, 10):
        write_checkpoint(checkpoint_folder.checkpoint_path(tmp_path, step), arrays, {"step": step})
    checkpoint_folder.prune_checkpoints(tmp_path, 2, [20])
    steps = [meta["step"] for _, meta in checkpoint_folder.checkpoint_metas(tmp_path)]
    assert steps == [60, 50, 20]


def test_unsupported_arrays(tmp_path):
    for array in (np.zeros(3, complex), np.zeros((4, 4), np.float32).T[:2]):
        with pytest.raises(ValueError, match="x"):
            write_checkpoint(tmp_path / "c", {"x": array}, {})
    assert not list(tmp_path.iterdir())
