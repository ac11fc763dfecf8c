"""The Python API: what `tenarai.load` opens and refuses, and what the model does."""

import json
import struct

import numpy as np
import pytest

import tenarai
from tenarai import tokenizers
from tenarai.api import Model
from tenarai.errors import TenaraiError, TenaraiWarning
from tenarai.io import llmc
from tenarai.io.checkpoint import write_checkpoint
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights
from tenarai.ops import reference

CONFIG = GPT2Config(vocab_size=300, context=16, layers=2, heads=2, width=12)


def new_model(config=CONFIG, tokenizer=None, seed=0):
    model = GPT2(config)
    params, rng = Weights(model.table()), np.random.default_rng(seed)
    for p in params.table:
        params[p.name][...] = p.mean + 0.3 * rng.standard_normal(p.shape)
    return Model(model, params, tokenizer, ops=reference)


def load(path):
    return tenarai.load(path, ops=reference)


def bpe():
    return tokenizers.train_bpe(["the cat sat on the mat, the cat sat on the hat"] * 9, 270)


# Opening and saving


@pytest.mark.parametrize("target", ["folder", "m.bin", "m.tenarai", "v1.5"])
def test_save_and_load_give_the_same_bits(tmp_path, target):
    model = new_model()
    assert model.save(tmp_path / target) == []
    again = load(tmp_path / target)
    assert again.config == model.config and again.tokenizer is None
    np.testing.assert_array_equal(again.params.flat, model.params.flat)


def test_bfloat16_of_llm_c_is_near(tmp_path):
    model = new_model()
    model.save(tmp_path / "m.bin", "bfloat16")
    again = load(tmp_path / "m.bin")
    # 8 bits of significand, rounded: half of 2^-8 at most
    np.testing.assert_allclose(again.params.flat, model.params.flat, rtol=2**-8, atol=0)
    with pytest.raises(TenaraiError, match="only .* llm.c's file can"):
        model.save(tmp_path / "m.tenarai", "bfloat16")


@pytest.mark.parametrize("target", ["folder", "m.bin"])
def test_a_model_without_biases_is_written_with_zeros(tmp_path, target):
    model = new_model(GPT2Config(**vars(CONFIG) | {"bias": False}))
    model.save(tmp_path / target)
    again = load(tmp_path / target)
    assert again.config.bias and not again.params["h.1.mlp.c_fc.bias"].any()
    tokens = np.arange(10)[None]
    np.testing.assert_allclose(again.logits(tokens), model.logits(tokens), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("option, value", [("gelu", "none"), ("norm_eps", 1e-6)])
def test_llm_c_refuses_what_it_would_compute_differently(tmp_path, option, value):
    model = new_model(GPT2Config(**vars(CONFIG) | {option: value}))
    with pytest.raises(TenaraiError, match=option):
        model.save(tmp_path / "m.bin")
    model.save(tmp_path / "folder")
    assert getattr(load(tmp_path / "folder").config, option) == value


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt"])
def test_formats_that_cannot_be_written(tmp_path, name):
    with pytest.raises(TenaraiError, match="cannot be written"):
        new_model().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_tokenizers_travel_with_the_model(tmp_path):
    text = "the cat sat"
    for tokenizer in (bpe(), tokenizers.ByteTokenizer(), tokenizers.CharTokenizer.of_text(text)):
        model = new_model(tokenizer=tokenizer)
        for target in (f"{tokenizer.name}-folder", f"{tokenizer.name}.tenarai"):
            left_out = model.save(tmp_path / target)
            again = load(tmp_path / target).tokenizer
            assert again.encode(text) == tokenizer.encode(text)
            assert again.eot == tokenizer.eot
            plain = isinstance(tokenizer, tokenizers.HFTokenizer) or target.endswith(".tenarai")
            assert bool(left_out) != plain
        assert "tokenizer" in model.save(tmp_path / "m.bin")[0]


def test_transformers_reads_the_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = bpe()
    new_model(tokenizer=ours).save(tmp_path / "m")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in ("the cat sat", "吾輩は猫である", " on  the\n mat"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.eot and ours.eot is not None
    assert theirs.model_max_length == CONFIG.context
    assert json.loads((tmp_path / "m" / "config.json").read_text())["eos_token_id"] == ours.eot


BAD = {
    "missing": (None, "no such file"),
    "empty.bin": (b"", "is empty"),
    "page.bin": (b"\n <!DOCTYPE html><html>" + bytes(2000), "web page"),
    "page2.bin": (b"<html><head>" + b" " * 2000, "web page"),
    "model.gguf": (b"GGUF\3\0\0\0" + bytes(100), "general.architecture"),
    "gguf.bin": (b"GGUF\3\0\0\0" + bytes(100), "general.architecture"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "pickle.bin": (b"\x80\x02}q\x00.", "any program"),
    "zip.pt": (b"PK\x03\x04" + b"archive/data.pkl", "any program"),
    "noise.bin": (bytes(range(256)) * 20, "no model that can be read"),
    "text.txt": ("吾輩は猫である".encode(), "no model that can be read"),
    "shard.bin": (struct.pack("<256i", 20240520, *[1] * 255), "shard of tokens"),
    "tokenizer.bin": (struct.pack("<256i", 20240328, *[1] * 255), "tokenizer"),
    "weights.safetensors": (struct.pack("<Q", 2) + b"{}", "name the folder"),
    "short.tenarai": (b"tenarai\0\1", "cut off"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_model_is_said_in_one_line(tmp_path, name):
    content, words = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TenaraiError, match=words) as caught:
        load(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(TenaraiError, match="no model in this folder: expected config.json"):
        load(tmp_path)


def test_a_run_gives_its_newest_whole_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (5, 20, 100):
        new_model(seed=step, tokenizer=bpe()).save(folder / f"step-{step:08d}.tenarai")
    damaged = folder / "step-00000100.tenarai"
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    with pytest.warns(TenaraiWarning, match="checksum.*step-00000020.tenarai is used"):
        for path in (tmp_path / "run", folder):
            model = load(path)
            np.testing.assert_array_equal(model.params.flat, new_model(seed=20).params.flat)
            assert model.tokenizer.encode("the cat") == bpe().encode("the cat")
    with pytest.raises(TenaraiError, match="checksum"):
        load(damaged)


META = {"model": vars(CONFIG)}


@pytest.mark.parametrize(
    "meta, words",
    [
        ({}, "does not describe"),
        ({"model": 3}, "does not describe"),
        ({"model": vars(CONFIG) | {"experts": 8}}, "does not describe"),
        ({"model": vars(CONFIG) | {"heads": "2"}}, "heads"),
        ({"model": vars(CONFIG) | {"heads": True}}, "heads"),
        ({"model": vars(CONFIG) | {"heads": 5}}, "does not divide"),
        ({"model": vars(CONFIG) | {"layers": 10**8}}, "layers"),
        ({"model": vars(CONFIG) | {"vocab_size": 10**30}}, "vocab_size"),
        ({"model": vars(CONFIG) | {"vocab_size": 10**9}}, "wte.weight has shape"),
        ({"model": vars(CONFIG) | {"layers": 1}}, r"h\.1\.ln_1\.weight of shape"),
        ({"model": vars(CONFIG) | {"layers": 3}}, r"h\.2.*missing"),
    ],
)
def test_a_checkpoint_that_contradicts_itself(tmp_path, meta, words):
    arrays = {f"weights/{n}": a for n, a in new_model().params.items()}
    write_checkpoint(tmp_path / "m.tenarai", arrays, meta)
    with pytest.raises(TenaraiError, match=words):
        load(tmp_path / "m.tenarai")


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b"\xff", b"{}"])
def test_a_checkpoint_with_a_damaged_tokenizer(tmp_path, document):
    arrays = {f"weights/{n}": a for n, a in new_model().params.items()}
    arrays["tokenizer"] = np.frombuffer(document, np.uint8)
    write_checkpoint(tmp_path / "m.tenarai", arrays, META)
    with pytest.raises(TenaraiError):
        load(tmp_path / "m.tenarai")


def test_the_tokenizer_of_llm_c_beside_its_model(tmp_path):
    new_model().save(tmp_path / "m.bin")
    (tmp_path / "tokenizer.json").write_text("not one, and not asked for")
    assert load(tmp_path / "m.bin").tokenizer is None
    assert llmc.read_header(tmp_path / "m.bin")[0].padded_vocab_size == 384


# Using it


def test_lists_arrays_and_single_sequences(rng):
    model = new_model()
    ids = rng.integers(0, 300, (3, 7))
    logits = model.logits(ids)
    assert logits.shape == (3, 7, 300) and logits.dtype == np.float32
    for other in (ids.tolist(), ids.astype(np.uint16), ids.astype(np.int32)[:, ::1]):
        np.testing.assert_array_equal(model.logits(other), logits)
    assert model.logits(ids[1]).shape == (7, 300)
    np.testing.assert_allclose(model.logits(ids[1]), logits[1], rtol=1e-4, atol=1e-5)
    one, grads = model.loss_and_grads(ids[0], ids[1])
    two, _ = model.loss_and_grads(ids[:1].tolist(), ids[1:2].tolist())
    assert one == two and grads["transformer.h.0.attn.c_attn.weight"].shape == (12, 36)


def test_ignored_targets_of_both_kinds(rng):
    model = new_model()
    tokens, targets = rng.integers(0, 300, (2, 2, 7))
    part, _ = model.loss_and_grads(tokens[:1, :4], targets[:1, :4])
    for ignored in (-1, -100):
        masked = np.full_like(targets, ignored)
        masked[0, :4] = targets[0, :4]
        loss, grads = model.loss_and_grads(tokens, masked)
        assert abs(loss - part) < 1e-6 * part  # another shape of product, another rounding
        assert np.isfinite([np.linalg.norm(g) for g in grads.values()]).all()
    loss, grads = model.loss_and_grads(tokens, np.full_like(targets, -100))
    assert loss == 0 and not any(g.any() for g in grads.values())


def test_gradients_are_the_callers_own(rng):
    model = new_model()
    tokens, targets = rng.integers(0, 300, (2, 2, 7))
    _, first = model.loss_and_grads(tokens, targets)
    kept = {n: g.copy() for n, g in first.items()}
    model.loss_and_grads(targets, tokens)
    for name, g in first.items():
        np.testing.assert_array_equal(g, kept[name])


@pytest.mark.parametrize(
    "tokens, words",
    [
        ([[0, 300]], "hold 300, ids of this model are 0 to 299"),
        ([[0, -1]], "hold -1"),
        ([[0.0, 1.0]], "whole numbers"),
        ([["a"]], "whole numbers"),
        ([[True]], "whole numbers"),
        ([[1, 2], [3]], "rows of one length"),
        ([], "whole numbers|not empty"),
        (np.zeros((0, 3), int), "not empty"),
        (np.zeros((2, 2, 2), int), "expected"),
        (5, "expected"),
        ([[0] * 17], "context is 16"),
    ],
)
def test_bad_tokens(tokens, words):
    model = new_model()
    with pytest.raises(TenaraiError, match=words):
        model.logits(tokens)
    with pytest.raises(TenaraiError, match=words):
        model.loss_and_grads(tokens, [[1]])


@pytest.mark.parametrize("targets, words", [([[1]], "one target a token"), ([[1, -2]], "hold -2")])
def test_bad_targets(targets, words):
    with pytest.raises(TenaraiError, match=words):
        new_model().loss_and_grads([[1, 2]], targets)


def test_generate_in_every_form():
    model = new_model(tokenizer=tokenizers.ByteTokenizer(), config=byte_config())
    text = model.generate("cat", max_tokens=40, seed=3)
    ids = model.generate("cat", max_tokens=40, seed=3, return_tokens=True)
    assert isinstance(text, str) and len(ids) == 40 and all(isinstance(i, int) for i in ids)
    assert model.tokenizer.decode(ids) == text
    assert "".join(model.generate("cat", max_tokens=40, seed=3, stream=True)) == text
    assert list(model.generate("cat", 40, seed=3, stream=True, return_tokens=True)) == ids
    assert model.generate(model.tokenizer.encode("cat"), 40, seed=3) == text
    assert model.generate("cat", max_tokens=40, seed=4) != text
    assert model.generate("cat", max_tokens=0) == ""
    assert model.generate("", max_tokens=3, return_tokens=True)


def byte_config():
    return GPT2Config(**vars(CONFIG) | {"vocab_size": 256})


def test_greedy_generation_follows_the_logits():
    model = new_model()
    ids = [5, 6, 7]
    got = model.generate(ids, max_tokens=8, temperature=0, return_tokens=True)
    for token in got:
        assert token == int(model.logits(ids)[-1].argmax())
        ids.append(token)


def test_generation_ends_before_the_end_of_a_text():
    model = new_model(tokenizer=bpe())
    model.params["wte.weight"][...] = 0
    model.params["wte.weight"][model.tokenizer.eot] = 1
    model.params["ln_f.bias"][...] = 1
    assert model.generate("the cat", max_tokens=9, temperature=0) == ""


@pytest.mark.parametrize(
    "options, words",
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"prompt": [300]}, "300"),
        ({"prompt": [1.5]}, "whole numbers"),
        ({"prompt": []}, "empty|whole"),
    ],
)
def test_bad_requests(options, words):
    model = new_model(tokenizer=bpe())
    with pytest.raises(TenaraiError, match=words):
        model.generate(**{"prompt": "the", "max_tokens": 2} | options)


def test_a_model_without_tokenizer_says_so():
    model = new_model()
    for options in ({"prompt": "text", "return_tokens": True}, {"prompt": [1, 2]}):
        with pytest.raises(TenaraiError, match="without a tokenizer"):
            model.generate(**options)
    assert len(model.generate([1, 2], 3, return_tokens=True)) == 3


def test_opening_needs_no_compiled_core(tmp_path):
    new_model().save(tmp_path / "m")
    model = tenarai.load(tmp_path / "m")  # the kernels would be made at the first use
    assert "300" in repr(model) and "2 layers" in repr(model)


def test_names_of_the_package():
    assert callable(tenarai.load) and callable(tenarai.train)
    assert tenarai.TenaraiError is TenaraiError and tenarai.Model is Model
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = tenarai.lode
