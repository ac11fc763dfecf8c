"""Tokenizer files that are not what they seem: a clear error that names the file, whatever they
hold. (Those within GGUF files: test_gguf_bad.py.)"""

import json
import random
import struct

import pytest

from tenarai.tokenizers import TokenizerError, byte_level_bpe, load, train_bpe

BPE = train_bpe(["the cat sat, the cat's hat; 吾輩は猫である。\n" * 30], 400)


def changed(path, value):
    """A good document with one part replaced; `path` like "model.vocab"."""
    document = json.loads(json.dumps(BPE.to_json()))
    *parents, last = path.split(".")
    inner = document
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is not JSON"),
        ("<!DOCTYPE html><html>", "a web page"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "holds a list, not an object"),
        ("{}", "no `model` part"),
        ('{"model": {"type": "BPE"}}', "no vocabulary"),
        ('{"tenarai_tokenizer": 7, "type": "byte"}', "version 7"),
        ('{"tenarai_tokenizer": 1, "type": "quantum"}', "'quantum'"),
        ('{"tenarai_tokenizer": 1, "type": "char", "characters": []}', "at least one"),
        ('{"tenarai_tokenizer": 1, "type": "char", "characters": ["a", "a"]}', "each once"),
        ('{"tenarai_tokenizer": 1, "type": "char", "characters": ["ab"]}', "single characters"),
        ('{"tenarai_tokenizer": 1, "type": "char", "characters": [1]}', "not all strings"),
        ('{"tenarai_tokenizer": 1, "type": "char", "characters": ["\\ud800"]}', "surrogate"),
        (changed("model.vocab", {}), "no tokens"),
        (changed("model.vocab", {"a": -1}), "expected 0 to"),
        (changed("model.vocab", {"a": 4_000_000_000}), "expected 0 to"),
        (changed("model.vocab", {"a": True}), "expected 0 to"),
        (changed("model.vocab", {"a": 0, "b": 0}), "same id"),
        (changed("model.merges", ["a b c"]), "list of pairs"),
        (changed("model.merges", [["a", "zzz"]]), "merge 1 needs 'zzz'"),
        (changed("model.type", "Nonsense"), "tokenizers library says"),
        (changed("decoder", "ByteLevel"), "`decoder` is not an object"),
        (changed("added_tokens", [{"content": "x", "id": 1 << 40}]), "expected 0 to"),
    ],
)
def test_a_bad_tokenizer_json_is_one_clear_error(tmp_path, content, words):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_no_file_and_no_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match="no such file"):
        load(tmp_path / "none.json")
    with pytest.raises(TokenizerError, match="no tokenizer in the folder"):
        load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(TokenizerError, match="no such file"):
        load(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(TokenizerError, match="line 1 of merges.txt"):
        load(tmp_path)
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(TokenizerError, match="merge 1 needs 'ab'"):
        load(tmp_path)


def small_bin(pieces, magic=20240328, version=2, count=None, eot=None):
    count = len(pieces) if count is None else count
    eot = len(pieces) - 1 if eot is None else eot
    header = struct.pack("<256i", magic, version, count, eot, *[0] * 252)
    return header + b"".join(bytes([len(p)]) + p for p in pieces)


BYTES = [bytes([b]) for b in range(256)]
GOOD_BIN = small_bin([*BYTES, b"ab", b"abc", b"<|endoftext|>"])


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "too few"),
        (GOOD_BIN[:1000], "too few"),
        (GOOD_BIN[:-1], "damaged at token 258"),
        (GOOD_BIN + b"x", "1 bytes follow"),
        (small_bin(BYTES + [b"ab"], magic=1), "it starts with 1"),
        (small_bin(BYTES + [b"ab"], version=3), "version 3"),
        (small_bin(BYTES + [b"ab"], version=1), "end of text 50256 cannot be"),
        (small_bin(BYTES + [b"ab"], count=1 << 30), "cannot be"),
        (small_bin(BYTES + [b"ab"], count=-1), "cannot be"),
        (small_bin(BYTES + [b"ab"], eot=257), "cannot be"),
        (small_bin([*BYTES, b"", b"ab"]), "damaged at token 256"),
        (small_bin([*BYTES, b"a", b"ab"]), "are the same"),
        (small_bin([*BYTES, b"abc", b"ab"]), "no merge"),
    ],
)
def test_a_bad_llmc_tokenizer_is_one_clear_error(tmp_path, data, words):
    path = tmp_path / "gpt2_tokenizer.bin"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_good_llmc_tokenizer(tmp_path):
    path = tmp_path / "gpt2_tokenizer.bin"
    path.write_bytes(GOOD_BIN)
    tokenizer = load(path)
    assert tokenizer.encode("abcab猫") == [257, 256, *"猫".encode()]
    assert tokenizer.eot == 258


def test_fuzzed_files_give_only_our_error(tmp_path):
    rng = random.Random(0)
    refused = 0
    good = {
        "tokenizer.json": json.dumps(train_bpe(["abcabc"], 258).to_json()).encode(),
        "gpt2_tokenizer.bin": GOOD_BIN,
    }
    for name, data in good.items():
        path = tmp_path / name
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged[: rng.choice([len(data), rng.randrange(len(data))])])
            try:
                tokenizer = load(path)
                tokenizer.decode(range(-1, 300))
                tokenizer.encode("abc\n")
            except TokenizerError:
                refused += 1
    assert refused > 200


def test_byte_level_bpe_refuses_foreign_merges():
    with pytest.raises(TokenizerError, match="same model"):
        byte_level_bpe({"a": 0, "b": 1}, [("a", "b")])
