"""Tokenizers: round trips, streams, files of ours and of others, and hostile files."""

import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenarai.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    TokenizerError,
    byte_level_bpe,
    load,
    train_bpe,
)
from tenarai.tokenizers.base import CHUNK

MIXED = (
    "the cat sat, the cat's hat; 吾輩は猫である。名前はまだ無い。\n\n  two\tspaces 🐈‍⬛ é\r\n" * 30
)
BPE = train_bpe([MIXED], 400)
WORDS = CharTokenizer.of_text(MIXED)


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return "".join(map(stream.push, ids)) + stream.flush()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_unicode_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert streamed(tokenizer, ids) == text


@given(text=st.text(alphabet=WORDS.characters))
def test_its_own_characters_come_back(text):
    ids = WORDS.encode(text)
    assert len(ids) == len(text)
    assert WORDS.decode(ids) == streamed(WORDS, ids) == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(-3, 410)))
def test_any_ids_decode_and_a_stream_says_the_same(ids):
    for tokenizer in (ByteTokenizer(), BPE, WORDS):
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_a_stream_never_gives_half_a_character():
    for tokenizer in (ByteTokenizer(), train_bpe(["x"], 257)):
        stream, given = tokenizer.stream(), []
        for i in tokenizer.encode("a猫🐈"):
            given.append(stream.push(i))
        assert given == ["a", "", "", "猫", "", "", "", "🐈"]
        assert stream.flush() == ""
        stream.push(tokenizer.encode("猫")[0])
        assert stream.flush() == "\ufffd"
        assert stream.push(tokenizer.encode("b")[0]) == "b"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WORDS, BPE], ids=["byte", "char", "bpe"])
def test_save_and_load(tmp_path, tokenizer):
    path = tokenizer.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    for opened in (load(path), load(tmp_path)):
        assert opened.encode(MIXED) == tokenizer.encode(MIXED)
        assert (opened.name, opened.vocab_size, opened.eot) == (
            tokenizer.name,
            tokenizer.vocab_size,
            tokenizer.eot,
        )


def test_bpe_joins_and_has_an_end_of_text():
    assert 300 < BPE.vocab_size <= 400
    assert len(BPE.encode(MIXED)) < 0.5 * len(MIXED.encode())
    assert BPE.decode([BPE.eot]) == "<|endoftext|>"
    # in a text its name is only letters: nobody can end a text by writing it
    assert BPE.eot not in BPE.encode("a<|endoftext|>b")
    assert BPE.decode(BPE.encode("a<|endoftext|>b")) == "a<|endoftext|>b"


def test_training_again_gives_the_same_file(shared_data):
    path = shared_data / "text" / "wagahaiwa_nekodearu.txt"
    program = (
        "import sys, json, hashlib; from tenarai.tokenizers import train_bpe;"
        "text = open(sys.argv[1], encoding='utf-8').read();"
        "print(hashlib.sha256(json.dumps(train_bpe([text], 1000).to_json()).encode()).hexdigest())"
    )
    digests = {subprocess.check_output([sys.executable, "-c", program, path]) for _ in range(3)}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wagahaiwa_nekodearu.txt"])
def test_a_long_text_in_pieces_is_the_text_in_one(shared_data, name):
    text = (shared_data / "text" / name).read_text(encoding="utf-8")
    for tokenizer in (train_bpe([text[:200_000]], 1000), CharTokenizer.of_text(text)):
        chunks = list(tokenizer.encode_chunks(text, progress=True))
        assert len(chunks) > 1 and all(c.dtype == np.int32 for c in chunks)
        assert np.concatenate(chunks).tolist() == tokenizer.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab1'., \n\t\u3000猫\u0301s", max_size=200), size=st.integers(1, 20))
def test_cuts_change_nothing(text, size):
    from tenarai.tokenizers.bpe import cut

    parts = list(cut(text, size))
    assert "".join(parts) == text
    assert sum((BPE.encode(part) for part in parts), []) == BPE.encode(text)


def test_a_text_without_a_place_to_cut():
    text = "猫" * (CHUNK + 10)
    assert np.concatenate(list(BPE.encode_chunks(text))).tolist() == BPE.encode(text)
    assert [len(c) for c in WORDS.encode_chunks(text)] == [CHUNK, 10]


def test_what_cannot_be_encoded():
    with pytest.raises(TokenizerError, match=r"'Ω' \(U\+03A9\) is not among the"):
        WORDS.encode("catΩ")
    for tokenizer in (ByteTokenizer(), BPE, WORDS):
        with pytest.raises(TokenizerError, match="character 2 of the text is U\\+D83D, half"):
            tokenizer.encode("ca\ud83d")
    for size in (0, 256, 1 << 30):
        with pytest.raises(TokenizerError, match=f"a vocabulary of {size} is impossible"):
            train_bpe(["text"], size)
    with pytest.raises(TokenizerError, match="empty text"):
        CharTokenizer.of_text("")


# GPT-2's own vocabulary, from files that others made


@pytest.fixture(scope="module")
def gpt2_parts(shared_data):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(shared_data / "gguf-vocab" / "ggml-vocab-gpt-2.gguf")
    strings = {
        key: [bytes(field.parts[i]).decode() for i in field.data]
        for key in ("tokens", "merges")
        for field in [reader.fields[f"tokenizer.ggml.{key}"]]
    }
    return strings["tokens"], strings["merges"]


@pytest.fixture(scope="module")
def gpt2_folder(gpt2_parts, tmp_path_factory):
    tokens, merges = gpt2_parts
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def gpt2_bin(gpt2_parts, tmp_path_factory):
    from tenarai.tokenizers.byte_letters import bytes_of

    pieces = [bytes_of(token) for token in gpt2_parts[0]]
    path = tmp_path_factory.mktemp("llmc") / "gpt2_tokenizer.bin"
    header = struct.pack("<256i", 20240328, 2, len(pieces), 50256, *[0] * 252)
    path.write_bytes(header + b"".join(bytes([len(p)]) + p for p in pieces))
    return path


@pytest.fixture(scope="module")
def vectors(shared_data):
    base = shared_data / "gguf-vocab" / "ggml-vocab-gpt-2.gguf"
    inputs = base.with_name(base.name + ".inp").read_bytes().decode()
    outputs = base.with_name(base.name + ".out").read_text().split("\n")
    texts = inputs.split("\n__ggml_vocab_test__\n")
    pairs = [(t, [int(i) for i in o.split()]) for t, o in zip(texts, outputs, strict=False)]
    assert len(pairs) > 40
    return pairs


@pytest.mark.parametrize("source", ["folder", "vocab.json", "bin", "saved"])
def test_gpt2_vectors(request, tmp_path, vectors, source):
    folder = request.getfixturevalue("gpt2_folder")
    if source == "bin":
        tokenizer = load(request.getfixturevalue("gpt2_bin"))
    elif source == "saved":
        tokenizer = load(load(folder).save(tmp_path))
    else:
        tokenizer = load(folder if source == "folder" else folder / "vocab.json")
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    for text, ids in vectors:
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == streamed(tokenizer, ids) == text


# Other people's tokenizer.json


def metaspace_document():
    """A small Llama-like tokenizer: spaces as ▁, bytes as a fallback."""
    letters = ["<unk>", "</s>", "▁", *(f"<0x{b:02X}>" for b in range(256)), "a", "b", "▁a", "ab"]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "dropout": 0.5,
            "unk_token": "<unk>",
            "vocab": {piece: i for i, piece in enumerate(letters)},
            "merges": ["▁ a", "a b"],
        },
    }


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab 猫🐈x\n"))
def test_a_tokenizer_with_byte_fallback(text):
    from tenarai.tokenizers import HFTokenizer

    tokenizer = HFTokenizer(metaspace_document())
    ids = tokenizer.encode(text)
    assert tokenizer.eot == 1
    assert tokenizer.decode(ids) == text
    stream, pieces = tokenizer.stream(), []
    for i in ids:
        pieces.append(stream.push(i))
        assert "\ufffd" not in pieces[-1]
    assert "".join(pieces) + stream.flush() == text
    assert np.concatenate(list(tokenizer.encode_chunks(text))).tolist() == ids


def test_the_end_of_text_of_a_model_folder_survives_saving(tmp_path):
    document = BPE.to_json()
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "a"}}')
    opened = load(tmp_path)
    assert opened.eot == BPE.encode("a")[0]
    (tmp_path / "other").mkdir()
    again = load(opened.save(tmp_path / "other"))
    assert (again.eot, again.encode(MIXED)) == (opened.eot, BPE.encode(MIXED))
    # one that the vocabulary does not have changes nothing
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<nowhere>"}')
    assert load(tmp_path).eot == BPE.eot


def test_a_saved_bpe_is_a_file_of_the_tokenizers_library(tmp_path):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(BPE.save(tmp_path)))
    assert theirs.encode(MIXED).ids == BPE.encode(MIXED)


# Files that are not what they seem


def changed(path, value):
    """BPE's document with one part replaced; `path` like "model.vocab"."""
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
