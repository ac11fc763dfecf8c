"""Tokenizers: round trips, streams, files of ours and of others, and hostile files."""

import json
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
