"""Files worth keeping: whole or not at all, whatever happens in the middle."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from tenarai.errors import TenaraiError
from tenarai.io import atomic
from tenarai.io.atomic import WriteError, atomic_write, make_folder


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]


def test_bytes_and_text_are_written(tmp_path):
    with atomic_write(tmp_path / "b") as f:
        f.write(b"\x00\xff")
        f.seek(0)
        f.write(b"\x01")
    assert (tmp_path / "b").read_bytes() == b"\x01\xff"
    with atomic_write(tmp_path / "t", "w") as f:
        f.write("吾輩は\n猫である")
    assert (tmp_path / "t").read_bytes() == "吾輩は\n猫である".encode()
    assert leftovers(tmp_path) == []


def test_the_target_is_old_until_the_block_ends(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with atomic_write(target) as f:
        f.write(b"new")
        f.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), OSError("of the caller")])
def test_an_error_in_the_block_changes_nothing_and_passes(tmp_path, error):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, atomic_write(target) as f:
        f.write(b"new")
        raise error
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_permissions_of_old_and_new_files(tmp_path):
    target = tmp_path / "file"
    mask = os.umask(0o022)
    try:
        with atomic_write(target) as f:
            f.write(b"1")
        assert target.stat().st_mode & 0o777 == 0o644
        target.chmod(0o600)
        with atomic_write(target) as f:
            f.write(b"2")
        assert target.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(mask)


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as f:
        f.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing/file", "does not exist"),
        ("plain/file", "is a file, not a folder"),
        ("folder", "is a folder"),
        ("n" * 300, "too long"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, words):
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=words) as caught, atomic_write(tmp_path / name):
        pytest.fail("the block must not run")
    assert name in str(caught.value) and isinstance(caught.value, TenaraiError)
    assert leftovers(tmp_path) == []


def test_no_permission(tmp_path, monkeypatch):
    def refuse(path, *rest):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic.os, "open", refuse)
    with pytest.raises(WriteError, match="no permission"), atomic_write(tmp_path / "file"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    "number, words", [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "disk")]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late(tmp_path, monkeypatch, number, words, call):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(WriteError, match=words), atomic_write(target) as f:
        f.write(b"new")
    assert target.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_file_beyond_the_limit_of_the_system(tmp_path):
    resource = pytest.importorskip("resource")
    target = tmp_path / "file"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WriteError, match="limit for files"), atomic_write(target) as f:
            f.write(bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


KILLED = """
import sys
from tenarai.io.atomic import atomic_write
with atomic_write(sys.argv[1]) as f:
    for i in range(10_000_000):
        f.write(b"new" * 1000)
        f.flush()
        print(i, flush=True)
"""


def test_kill_in_the_middle_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    for lines in (1, 7):
        child = subprocess.Popen([sys.executable, "-c", KILLED, target], stdout=subprocess.PIPE)
        for _ in range(lines):
            assert child.stdout.readline()
        time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert target.read_bytes() == b"old"
        assert len(leftovers(tmp_path)) == 1
        with atomic_write(target) as f:
            f.write(b"old")
        assert leftovers(tmp_path) == []


def test_the_temporary_file_of_a_living_writer_is_left_alone(tmp_path):
    with atomic_write(tmp_path / "file") as first:
        first.write(b"1")
        with atomic_write(tmp_path / "file") as second:
            second.write(b"2")
        first.write(b"1")
    assert (tmp_path / "file").read_bytes() == b"11"


def test_make_folder(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "plain").write_bytes(b"")
    for path in ("plain", "plain/below"):
        with pytest.raises(WriteError, match="is a file, not a folder"):
            make_folder(tmp_path / path)
