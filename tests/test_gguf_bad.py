"""GGUF files that are damaged: an error of one line, little memory. Oddities are let through."""

import os
import struct
import tracemalloc

import pytest

from gguf_bytes import ARRAY, Entry, build, key, save, string, value
from tenarai.errors import TenaraiError
from tenarai.io import gguf

# Bad input: each class has an error of one line


HUGE = 2**64 - 1
W = Entry("w", (4,), 0, bytes(16))
K = key("k", value("uint32", 1))
BAD = {
    "cut in the magic": (b"GG", "is no model"),
    "cut in the header": (build()[:20], "number of keys needs 8 bytes at 16, .*truncated"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1, .*convert the model again"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4, .*update tenarai"),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "version 0"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian, .*turn it round"),
    "big-endian magic": (b"FUGG" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "older than GGUF": (b"tjgg" + bytes(30), "older than GGUF"),
    "huge count of keys": (build(keys=HUGE), "counts 18,446,744,073,709,551,615 keys, 0 bytes"),
    "more keys than there are": (build([K], keys=2), "counts 2 keys|key 2 of 2"),
    "huge count of tensors": (build(count=HUGE), "counts 18,446,744,073,709,551,615 tensors"),
    "2^63 keys": (build([K] * 9, keys=2**63), "9,223,372,036,854,775,808 keys"),
    "more keys than any model": (
        build([key(f"{i:05}", value("uint32", 0)) for i in range(65537)]), "at most 65,536 are"),
    "key's length beyond the file": (
        build([struct.pack("<Q", 10**9) + b"k" * 40]), "key 1 of 1 is 1,000,000,000 bytes long"),
    "key's length just beyond": (
        build([struct.pack("<Q", 60) + b"k" * 50]), "key 1 of 1 needs 60 bytes at 32, .* has 82"),
    "key's length wraps": (build([struct.pack("<Q", HUGE) + b"k" * 20]), "551,615 bytes long"),
    "empty key": (build([key("", value("uint32", 1))]), "key 1 of 1 is empty"),
    "duplicate key": (build([K, K]), "key k stands there twice"),
    "key not UTF-8": (build([key(b"\xff\xfe", value("uint32", 1))]), "not UTF-8"),
    "value type 13": (build([string("k") + struct.pack("<IQ", 13, 0)]), "unknown value type 13"),
    "element type 13": (
        build([string("k") + struct.pack("<IIQ", ARRAY, 13, 0)]), "unknown element type 13"),
    "array of arrays": (
        build([string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 0)]), "array of arrays"),
    "truth of 2": (build([string("k") + struct.pack("<IB", 7, 2)]), "truth value of 2"),
    "truths of 2": (
        build([string("k") + struct.pack("<IIQ4B", ARRAY, 7, 4, 0, 1, 2, 1)]), "truth value of 2"),
    "string beyond the file": (
        build([string("k") + struct.pack("<IQ", 8, 10**12)]), "k needs 1,000,000,000,000 bytes"),
    "string not UTF-8": (build([key("k", value("string", b"\xc3"))]), "k is not UTF-8"),
    "array beyond the file": (
        build([string("k") + struct.pack("<IIQ", ARRAY, 4, 2**61)]), "k, .* of uint32, needs"),
    "array whose bytes wrap": (
        build([string("k") + struct.pack("<IIQ", ARRAY, 10, 2**61 + 1)]), "k, .* of uint64, needs"),
    "strings beyond the file": (
        build([string("k") + struct.pack("<IIQ", ARRAY, 8, HUGE)]), "strings of k, 0 bytes"),
    "last string beyond the file": (
        build([string("k") + struct.pack("<IIQ", ARRAY, 8, 2) + string("a") + b"\xff" * 8]),
        "string 1 of 2 goes beyond"),
    "empty tensor name": (build(tensors=[Entry("", (4,), 0, bytes(16))]), "tensor 1 of 1 has an e"),
    "long tensor name": (build(tensors=[Entry("n" * 65, (4,), 0, bytes(16))]), "65 bytes long"),
    "duplicate tensor": (build(tensors=[W, W]), "tensor w stands there twice"),
    "no dims": (build(tensors=[Entry("w", (), 0, bytes(4))]), "w has 0 dims"),
    "five dims": (build(tensors=[Entry("w", (1,) * 5, 0, bytes(4))]), "w has 5 dims"),
    "a dim of 0": (build(tensors=[Entry("w", (4, 0), 0, b"")]), r"shape \(0, 4\), no dim may be 0"),
    "dims beyond the data": (build(tensors=[Entry("w", (4, 9), 0, bytes(16))]), "w ends at byte"),
    "dims whose product wraps to 0": (
        build(tensors=[Entry("w", (2**32, 2**32), 0, b"")]), "w ends at byte 73,786,976,294"),
    "dims whose product wraps to 4": (
        build(tensors=[Entry("w", (2**62 + 1, 4), 0, bytes(16))]), "w ends at byte 73,786,976,294"),
    "half a block": (build(tensors=[Entry("w", (48, 2), 8, bytes(102))]), "multiple of 32"),
    "unknown type": (build(tensors=[Entry("w", (4,), 77, bytes(16))]), "unknown type number 77"),
    "dropped type": (build(tensors=[Entry("w", (4,), 31, bytes(16))]), "Q4_0_4_4, which no longer"),
    "unaligned offset": (build(tensors=[W._replace(offset=8)], pad=64), "8, no multiple of 32"),
    "offset beyond the file": (build(tensors=[W._replace(offset=2**40)]), "ends at byte 1,099,"),
    "offset that wraps": (build(tensors=[W._replace(offset=2**64 - 32)]), "ends at byte 18,446,"),
    "overlapping tensors": (
        build(tensors=[W, W._replace(name="v", offset=0)], pad=64), "v and w overlap|w and v over"),
    "partly overlapping": (
        build(tensors=[Entry("v", (9,), 0, bytes(36)), W._replace(offset=32)], pad=64),
        "w and v overlap at offset 32"),
    "alignment 0": (build([key("general.alignment", value("uint32", 0))]), "alignment is 0"),
    "alignment 48": (build([key("general.alignment", value("uint32", 48))]), "power of two"),
    "alignment 4": (build([key("general.alignment", value("uint32", 4))]), "power of two from 8"),
    "alignment of another type": (
        build([key("general.alignment", value("uint64", 32))]), "has type uint64, expected uint32"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "an empty file": (b"", "is empty"),
    "another kind": (b'\x10\0\0\0\0\0\0\0{"__metadata__"', "safetensors file, expected a GGUF"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_an_error_of_one_line(tmp_path, name):
    data, said = BAD[name]
    path = save(tmp_path / "bad.gguf", data)
    with pytest.raises(TenaraiError, match=said) as caught:
        gguf.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize("name", BAD)
def test_bad_files_take_no_memory(tmp_path, name):
    """However large the numbers in it: 32 KB for the answer itself, else no more than the file."""
    data, _ = BAD[name]
    path = save(tmp_path / "bad.gguf", data)
    with pytest.raises(TenaraiError):
        gguf.read(path)  # whatever is imported or cached on the way
    assert peak_of(path) < len(data) + (32 << 10)


def peak_of(path):
    """The most that reading a file held at once, in bytes."""
    tracemalloc.start()
    try:
        gguf.read(path)
    except TenaraiError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", ["gpt-2", "phi-3", "starcoder"])
def test_reading_holds_less_than_the_file(shared_data, name):
    path = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    assert peak_of(path) < path.stat().st_size


def test_a_name_in_an_error_is_short_and_moves_no_cursor(tmp_path):
    wild = "\x1b[2Jx\n" * 1000
    data = build([key(wild, value("uint32", 1))] * 2)
    with pytest.raises(TenaraiError, match="twice") as caught:
        gguf.read(save(tmp_path / "m.gguf", data))
    assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(tmp_path)) + 300


def test_strings_that_are_not_utf8_are_told_when_decoded(tmp_path):
    data = build([key("k", value("[string]", ["a", b"\xe7\x8a", "c"]))])
    metadata = gguf.read(save(tmp_path / "m.gguf", data)).metadata
    with pytest.raises(TenaraiError, match=r"m\.gguf: k, string 1, is not UTF-8"):
        metadata["k"]


def test_every_truncation_is_refused(tmp_path):
    """A file that ends anywhere, but for the padding after the last tensor, is refused."""
    pairs = [K, key("s", value("[string]", ["ab", "c"])), key("t", value("string", "text"))]
    data = build(pairs, [W, Entry("v", (32, 2), 8, b"1" * 68)])
    end = len(data.rstrip(b"\0"))
    gguf.parse(data[:end])
    for n in range(end):
        with pytest.raises(TenaraiError) as caught:
            gguf.parse(data[:n])
        assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(TenaraiError, match="no such file"):
        gguf.read(tmp_path / "missing.gguf")
    with pytest.raises(TenaraiError, match="is a folder, expected a GGUF file"):
        gguf.read(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(TenaraiError, match="no ordinary file"):
            gguf.read(tmp_path / "pipe.gguf")


def test_gaps_order_and_trailing_bytes_are_let_through(tmp_path):
    """Offsets need not follow the entries' order, nor each other at once."""
    a, b = W._replace(name="a", offset=64), W._replace(name="b", offset=0)
    file = gguf.parse(build(tensors=[a, b], pad=96) + b"more")
    assert list(file.tensors) == ["a", "b"]
    assert file.tensors["a"].offset - file.tensors["b"].offset == 64


def test_a_file_may_end_with_an_empty_string():
    """Its last 8 bytes are the length 0, with nothing after them."""
    for kind, content in (("string", ""), ("[string]", ["a", ""]), ("[int8]", [])):
        found = gguf.parse(build([key("k", value(kind, content))])).metadata["k"]
        assert len(found) == len(content) and list(found) == list(content)


def test_version_2_is_the_same(tmp_path):
    data = build([K], [W])
    file = gguf.parse(data[:4] + struct.pack("<I", 2) + data[8:])
    assert file.version == 2 and file.metadata["k"] == 1 and list(file.tensors) == ["w"]
