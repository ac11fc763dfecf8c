"""Tokenizers from GGUF metadata and SentencePiece's files, against ids that others made."""

import json
from pathlib import Path

import numpy as np
import pytest

from real_models import real
from tenarai.errors import TenaraiError
from tenarai.io import gguf
from tenarai.tokenizers import TokenizerError, from_gguf, load
from tenarai.tokenizers.sentencepiece_files import from_llama2c, from_model
from tenarai.tokenizers.vocabulary import PREFIX
from token_cases import GOLDEN_TEXTS, random_texts, small_vocabulary, streamed, vectors

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "tokens.json").read_text("utf-8"))
NAMES = ["phi-3", "gpt-2", "starcoder"]


@pytest.fixture(scope="module")
def vocabularies(shared_data):
    folder = shared_data / "gguf-vocab"
    return {name: load(folder / f"ggml-vocab-{name}.gguf") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_vectors(shared_data, vocabularies, name):
    for text, ids in vectors(shared_data, name):
        assert vocabularies[name].encode(text) == ids, text
        assert vocabularies[name].decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_over_every_split(vocabularies, name):
    tokenizer = vocabularies[name]
    for text in random_texts(100, seed=3):
        ids = tokenizer.encode(text)
        whole = tokenizer.decode(ids)
        assert streamed(tokenizer, ids) == whole
        stream, shown = tokenizer.stream(start=True), ""
        for i in ids:  # what was shown is never taken back, and never half a character
            shown += stream.push(i)
            assert whole.startswith(shown)


@pytest.fixture(scope="module")
def library(shared_data):
    """gpt-2 and starcoder by the tokenizers library's own parts."""
    tokenizers = pytest.importorskip("tokenizers")

    def build(name):
        metadata = gguf.read(shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf").metadata
        names, pairs = metadata[PREFIX + "tokens"], metadata[PREFIX + "merges"]
        merges = [tuple(pair.split(" ")) for pair in pairs]
        ids = {token: i for i, token in enumerate(names)}
        made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
        cuts = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if name == "starcoder":
            cuts.insert(0, tokenizers.pre_tokenizers.Digits(individual_digits=True))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(cuts)
        return made

    return build


@pytest.mark.parametrize("name", ["gpt-2", "starcoder"])
def test_random_texts_against_the_tokenizers_library(vocabularies, library, name):
    theirs = library(name)
    for text in random_texts(1000):
        assert vocabularies[name].encode(text) == theirs.encode(text).ids, text


@pytest.fixture(scope="module")
def sentencepiece(shared_data):
    library = pytest.importorskip("sentencepiece")
    return library.SentencePieceProcessor(str(shared_data / "tokenizer" / "llama2_tokenizer.model"))


@pytest.fixture(scope="module")
def llama2(shared_data):
    return load(shared_data / "tokenizer" / "llama2_tokenizer.model")


@pytest.mark.parametrize("source", ["phi-3", "llama2_tokenizer.model", "llama2c_tokenizer.bin"])
def test_random_texts_against_sentencepiece(shared_data, vocabularies, sentencepiece, source):
    """Phi-3's vocabulary is Llama 2's with more special tokens, which plain text never becomes;
    but in its file `</s>` is a piece of the user's, to be found in any text."""
    tokenizer = vocabularies.get(source) or load(shared_data / "tokenizer" / source)
    texts = [t for t in random_texts(1600, seed=1) if source != "phi-3" or "</s>" not in t]
    assert len(texts) >= 1000
    for text in texts:
        assert tokenizer.encode(text) == sentencepiece.encode(text), text


# What llama.cpp makes otherwise: Qwen's own tokenizer composes letters and accents first (NFC);
# Gemma's file has `</s>` as a piece of the user's, which SentencePiece finds in any text.
OTHERWISE = {"pre qwen2": [12], "pre deepseek-r1-qwen": [12], "gemma3-270m": [15]}


@pytest.mark.parametrize("key", sorted(k for k in GOLDENS if k.startswith("pre ")))
def test_each_way_to_cut_words_against_llama_cpp(key):
    tokens, merges = small_vocabulary()
    metadata = {"model": "gpt2", "pre": key[4:], "tokens": tokens, "merges": merges}
    tokenizer = from_gguf({PREFIX + k: v for k, v in metadata.items()})
    ours = [tokenizer.encode(text) for text in GOLDEN_TEXTS]
    differ = [i for i, ids in enumerate(GOLDENS[key]) if ours[i] != ids]
    assert differ == OTHERWISE.get(key, [])


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_real_models_against_llama_cpp(name):
    path = real(name)
    tokenizer = load(path)
    ours = [tokenizer.encode(text) for text in GOLDEN_TEXTS]
    differ = [i for i, ids in enumerate(GOLDENS[name]) if ours[i] != ids]
    assert differ == OTHERWISE.get(name, [])
    special = "<|im_start|>user\nHello<|im_end|>\n<start_of_turn>model\n  Hi<end_of_turn>\n"
    assert tokenizer.encode(special, parse_special=True) == GOLDENS[name + " special"]


# Special tokens


def small(**changes):
    """A vocabulary of SentencePiece's kind: three special tokens, the bytes, a few pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "ab"]
    tokens += ["▁a", "<|end|>"]
    types = [2, 3, 3] + [6] * 256 + [1] * 5 + [3]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": np.arange(0, -len(tokens), -1, dtype=np.float32),
        "token_type": np.array(types, np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    metadata |= changes
    return {PREFIX + key: value for key, value in metadata.items() if value is not None}


def test_special_tokens_only_where_asked_for():
    tokenizer = from_gguf(small())
    assert tokenizer.encode("<|end|>", parse_special=True) == [264]
    assert 264 not in tokenizer.encode("<|end|>") and 2 not in tokenizer.encode("</s>")
    assert tokenizer.decode(tokenizer.encode("a<|end|>")) == "a<|end|>"
    assert tokenizer.end_tokens == {2, 264} and tokenizer.bos == 1


def test_bytes_where_no_piece_is():
    tokenizer = from_gguf(small())
    assert tokenizer.encode("猫") == [259, *(3 + b for b in "猫".encode())]
    assert tokenizer.encode("ab") == [259, 262]  # "▁a" + "b" has the lower scores
    assert from_gguf(small(add_space_prefix=False)).encode("ab") == [262]


TOKENS = small()[PREFIX + "tokens"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": "bert"}, "bert"),
        ({"model": 3}, "expected a string"),
        ({"tokens": []}, "has no tokens"),
        ({"tokens": [1, 2]}, "not a list of strings"),
        ({"tokens": np.arange(3)}, "not a list of strings"),
        ({"tokens": [*TOKENS[:-1], "ab"]}, "are both 'ab'"),
        ({"tokens": [*TOKENS[:-1], "x" * 5000]}, "has 5,000 characters"),
        ({"tokens": [*TOKENS[:-1], "\ud800"]}, "not Unicode"),
        ({"scores": np.zeros(3, np.float32)}, "has 3 entries for 265 tokens"),
        ({"scores": ["a"] * len(TOKENS)}, "floating-point"),
        ({"scores": np.arange(len(TOKENS))}, "floating-point"),
        ({"scores": np.full(len(TOKENS), np.nan, np.float32)}, "expected a number"),
        ({"scores": None}, "scores"),
        ({"token_type": np.ones(4, np.int32)}, "has 4 entries"),
        ({"token_type": np.full(len(TOKENS), 9)}, "has the type 9"),
        ({"token_type": np.full(len(TOKENS), 6)}, "typed a byte but named no such"),
        ({"token_type": "all"}, "whole numbers"),
        ({"bos_token_id": 99999}, "expected an id from 0 to 264"),
        ({"eos_token_id": -7}, "expected an id from 0 to 264"),
        ({"eos_token_id": "two"}, "expected an id from 0 to 264"),
        ({"add_space_prefix": 2}, "expected true or false"),
    ],
)
def test_bad_metadata_is_one_clear_error(changes, words):
    with pytest.raises(TokenizerError) as error:
        from_gguf(small(**changes)).encode("ab")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("merges", [["a"], ["a b c d"], ["no such"], [" "], "a b", [7], None])
def test_bad_merges_are_one_clear_error(merges):
    tokens, _ = small_vocabulary()
    metadata = {PREFIX + "model": "gpt2", PREFIX + "pre": "gpt-2", PREFIX + "tokens": tokens}
    if merges is not None:
        metadata[PREFIX + "merges"] = merges
    with pytest.raises(TokenizerError) as error:
        from_gguf(metadata)
    assert "merge" in str(error.value) and "\n" not in str(error.value)


# SentencePiece's .model and llama2.c's tokenizer.bin


def test_damaged_sentencepiece_files(shared_data, llama2):
    folder = shared_data / "tokenizer"
    for read, name in (
        (from_model, "llama2_tokenizer.model"),
        (from_llama2c, "llama2c_tokenizer.bin"),
    ):
        data = (folder / name).read_bytes()
        for cut in (0, 1, 5, 11, 1000, len(data) // 2 + 1):
            with pytest.raises(TenaraiError) as error:
                read(data[:cut])
            assert "\n" not in str(error.value)
        rng = np.random.default_rng(0)
        for _ in range(100):
            changed = bytearray(data[:3000])
            changed[rng.integers(len(changed))] = rng.integers(256)
            try:
                read(bytes(changed))
            except TenaraiError as error:
                assert "\n" not in str(error)


def test_llama2s_specials(llama2):
    assert (llama2.bos, llama2.eos) == (1, 2)
    assert llama2.with_bos(llama2.encode("Hi")) == [1, *llama2.encode("Hi")]
