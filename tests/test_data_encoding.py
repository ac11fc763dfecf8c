"""Text files of many encodings: read rightly, named, or refused."""

import codecs
import os

import pytest

from tenarai.data import DataError, read_paths
from tenarai.data.encoding import decode

JAPANESE = "吾輩は猫である。名前はまだ無い。\nどこで生れたかとんと見当がつかぬ。\n"
ENGLISH = "The cat sat on the mat.\n"


@pytest.mark.parametrize(
    "codec, label",
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8 with mark"),
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("cp932", "Shift_JIS"),
        ("euc_jp", "EUC-JP"),
    ],
)
def test_japanese_in_every_encoding(codec, label):
    for text in (JAPANESE, "abc " * 100 + JAPANESE, "猫が好き"):
        assert decode(text.encode(codec), "x") == (text, label)


def test_utf16_of_both_orders():
    for mark, codec in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        assert decode(mark + JAPANESE.encode(codec), "x") == (JAPANESE, "UTF-16")
        assert decode(JAPANESE.encode(codec), "x", codec) == (JAPANESE, codec)


def test_a_novel_in_every_encoding(shared_data):
    text = (shared_data / "text" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
    text = text.replace("\u2014", "\u2015")  # the dash that Shift_JIS and EUC-JP have
    for codec, label in (("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16")):
        kept = text.encode(codec).decode(codec)  # CP932 has other code points for 〜 and −
        assert len(kept) == len(text)
        assert decode(text.encode(codec), "x") == (kept, label)


def test_newlines_become_one_kind():
    assert decode(b"a\r\nb\rc\n", "x")[0] == "a\nb\nc\n"


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "no text in it"),
        (b" \n\t ", "no text in it"),
        (codecs.BOM_UTF8, "no text in it"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "binary file .a zero byte at 7."),
        (JAPANESE.encode("utf-16-le"), "UTF-16 without its mark|no text|not UTF-8"),
        (ENGLISH.encode("utf-16-le"), "UTF-16 without its mark"),
        (codecs.BOM_UTF16_LE + b"a\0b", "broken at byte 4"),
        ("Müller, Café, señor, naïve".encode("latin-1"), "not UTF-8 .byte 1 is 0xFC."),
        ("é".encode("latin-1") + b"a", "not UTF-8 .byte 0 is 0xE9."),  # valid CP932, no kana
        (JAPANESE.encode()[:-2], "not UTF-8"),
        (JAPANESE.encode("cp932") + b"\xff", "not UTF-8"),
        (b"\x01\x02\x03\x04\x05\x06 text", "control characters"),
    ],
)
def test_what_is_no_text_is_refused(data, words):
    with pytest.raises(DataError, match=words) as caught:
        decode(data, "the-file")
    assert "the-file" in str(caught.value)


def test_random_bytes_are_never_text(rng):
    for n in (300, 1000, 100_000):
        for _ in range(20):
            with pytest.raises(DataError):
                decode(rng.integers(1, 256, n, dtype="uint8").tobytes(), "x")


def test_an_encoding_that_is_given():
    assert decode("Müller".encode("latin-1"), "x", "latin-1") == ("Müller", "latin-1")
    for encoding in ("klingon", "ascii", "hex"):
        with pytest.raises(DataError, match=f"cannot be read as {encoding}"):
            decode(b"\xfcx", "x", encoding)


def test_files_and_folders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.md").write_text(ENGLISH)
    (tmp_path / "a.txt").write_bytes(JAPANESE.encode("cp932"))
    (tmp_path / "c.bin").write_bytes(b"\0")
    (tmp_path / ".hidden.txt").write_bytes(b"\0")
    documents = read_paths([tmp_path, tmp_path / "a.txt"])
    assert [(d.name, d.text, d.encoding) for d in documents] == [
        (str(tmp_path / "a.txt"), JAPANESE, "Shift_JIS"),
        (str(tmp_path / "b" / "one.md"), ENGLISH, "UTF-8"),
        (str(tmp_path / "a.txt"), JAPANESE, "Shift_JIS"),
    ]


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_paths([tmp_path / "none.txt"])
    with pytest.raises(DataError, match="below the folder"):
        read_paths([tmp_path])
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_paths([os.devnull])
