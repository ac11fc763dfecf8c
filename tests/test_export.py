"""Models from one kind of file into another: types, shards, tokenizers, what a kind cannot hold."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import tenarai
from tenarai import tokenizers
from tenarai.api import Model
from tenarai.cli.convert import convert
from tenarai.errors import TenaraiError
from tenarai.io import gguf
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.tokenizers import gguf_out, hf_files
from test_llama2c import vocabulary
from token_cases import GOLDEN_TEXTS, small_vocabulary, vectors


def new_model(tokenizer, **changes):
    size = {"vocab_size": tokenizer.vocab_size, "context": 16, "width": 64, "hidden": 96}
    heads = {"layers": 3, "heads": 4, "kv_heads": 2, "head_size": 16, "rope": Rope(16)}
    model = Llama(LlamaConfig(**size | heads | changes))
    params = Weights(model.table()).initialise(3)
    params.flat *= 4
    return Model(model, params, tokenizer, ops=reference)


@pytest.fixture
def pieces(tmp_path):
    """A small vocabulary of SentencePiece's kind."""
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary())
    return tokenizers.load(tmp_path / "tokenizer.bin")


def run(*arguments, code=0):
    result = CliRunner().invoke(convert, [str(a) for a in arguments])
    if code:
        assert isinstance(result.exception, TenaraiError | SystemExit)
        return str(result.exception) + result.output
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def test_around_all_kinds(tmp_path, pieces):
    model = new_model(pieces)
    tokens = np.array(model.tokenizer.encode("ab あ ab c!"))
    expected = model.logits(tokens)
    model.save(tmp_path / "a.tenarai")
    path = tmp_path / "a.tenarai"
    for i, name in enumerate(["m.gguf", "hf", "m.bin", "x", "n.gguf", "z.tenarai", "q.gguf"]):
        target = tmp_path / str(i) / name
        target.parent.mkdir()
        assert "left out" not in run(path, target)
        again = tenarai.load(target, ops=reference)
        assert again.tokenizer.encode("ab あ ab c!") == tokens.tolist(), target
        assert again.tokenizer.with_bos([5]) == [1, 5] and again.tokenizer.end_tokens == {2}
        np.testing.assert_allclose(again.logits(tokens), expected, rtol=1e-4, atol=1e-4)
        path = target


def test_types(tmp_path, pieces):
    model = new_model(pieces)
    model.save(tmp_path / "m.tenarai")
    for kind, tolerance in (("F32", 1e-6), ("F16", 2e-3), ("bfloat16", 2e-2)):
        run(tmp_path / "m.tenarai", tmp_path / kind, "--type", kind)
        again = tenarai.load(tmp_path / kind, ops=reference)
        np.testing.assert_allclose(again.params["norm.weight"], model.params["norm.weight"])
        error = np.abs(again.params.flat - model.params.flat) / np.abs(model.params.flat).max()
        assert error.max() < tolerance
    config = json.loads((tmp_path / "bfloat16" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    run(tmp_path / "m.tenarai", tmp_path / "q.gguf", "--type", "q8_0", "--json")
    file = gguf.read(tmp_path / "q.gguf")
    kinds = {n: t.format.name for n, t in file.tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.0.attn_norm.weight"] == "F32"
    assert file.metadata["general.file_type"] == 7
    assert file.metadata["general.quantization_version"] == 2
    # quantised once: kept as it is, made float again, but not rounded a second time
    run(tmp_path / "q.gguf", tmp_path / "q2.gguf")
    same = gguf.read(tmp_path / "q2.gguf")
    assert same.metadata["general.file_type"] == 7
    for name, tensor in file.tensors.items():
        np.testing.assert_array_equal(tensor.raw(), same.tensors[name].raw())
    run(tmp_path / "q.gguf", tmp_path / "f.gguf", "--type", "F16")
    assert gguf.read(tmp_path / "f.gguf").metadata["general.file_type"] == 1
    assert "rounding twice" in run(tmp_path / "q.gguf", tmp_path / "g.gguf", "--type=Q4_0", code=1)
    assert not (tmp_path / "g.gguf").exists()
    message = run(tmp_path / "q.gguf", tmp_path / "g", "--type=Q4_0", code=1)
    assert "only a GGUF file can" in message and "F32, F16, BF16" in message


def test_shards(tmp_path, pieces):
    model = new_model(pieces)
    model.save(tmp_path / "m.tenarai")
    folder = tmp_path / "hf"
    run(tmp_path / "m.tenarai", folder, "--shard-size", "100KB")
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((folder / name).stat().st_size < 102_000 for name in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.params.count
    again = tenarai.load(folder, ops=reference)
    np.testing.assert_array_equal(again.params.flat, model.params.flat)
    (folder / files[1]).rename(folder / "elsewhere")
    with pytest.raises(TenaraiError, match=files[1]):
        tenarai.load(folder)
    # one file over several: nothing of the old model stays
    assert "exists" in run(tmp_path / "m.tenarai", folder, code=1)
    run(tmp_path / "m.tenarai", folder, "--force")
    names = {p.name for p in folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "elsewhere",
                     "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert "no size" in run(tmp_path / "m.tenarai", tmp_path / "x", "--shard-size", "big", code=2)
    message = run(tmp_path / "m.tenarai", tmp_path / "x.gguf", "--shard-size", "1GB", code=1)
    assert "only a Hugging Face folder" in message


def test_a_write_that_fails_leaves_the_old_folder(tmp_path, pieces):
    model = new_model(pieces)
    model.save(tmp_path / "hf")
    before = {p.name: p.read_bytes() for p in (tmp_path / "hf").iterdir()}
    other = new_model(pieces)
    other.params.flat[:] = 1e6
    with pytest.raises(TenaraiError, match="beyond float16"):
        other.save(tmp_path / "hf", "F16")
    assert {p.name: p.read_bytes() for p in (tmp_path / "hf").iterdir()} == before


def test_a_folders_own_files_go_along(tmp_path, pieces):
    model = new_model(pieces)
    model.save(tmp_path / "a")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    settings |= {"chat_template": template, "ours": 7}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    run(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text()) == settings
    run(tmp_path / "b", tmp_path / "m.gguf")
    assert gguf.read(tmp_path / "m.gguf").metadata["tokenizer.chat_template"] == template
    run(tmp_path / "m.gguf", tmp_path / "c")
    again = json.loads((tmp_path / "c" / "tokenizer_config.json").read_text())
    assert again["chat_template"] == template and again["eos_token"] == "</s>"
    assert again["model_max_length"] == 16 and again["unk_token"] == "<unk>"


def test_another_tokenizer(tmp_path, pieces):
    model = new_model(tokenizers.ByteTokenizer(), vocab_size=300)
    model.save(tmp_path / "m.tenarai")
    run(tmp_path / "m.tenarai", tmp_path / "m.gguf", "--tokenizer", tmp_path / "tokenizer.bin")
    again = tenarai.load(tmp_path / "m.gguf", ops=reference)
    assert again.tokenizer.encode("ab c") == pieces.encode("ab c")
    assert len(again.metadata["tokenizer.ggml.tokens"]) == 300  # llama.cpp counts them


def test_to_names_the_kind(tmp_path, pieces):
    new_model(pieces).save(tmp_path / "m.tenarai")
    run(tmp_path / "m.tenarai", tmp_path / "model", "--to", "gguf")
    assert (tmp_path / "model").read_bytes()[:4] == b"GGUF"
    assert "cannot be written" in run(tmp_path / "m.tenarai", tmp_path / "m.safetensors", code=1)
    assert "GPT-2 only" in run(tmp_path / "m.tenarai", tmp_path / "m.bin", "--to=llmc", code=1)
    with pytest.raises(TenaraiError, match="no such kind"):
        new_model(pieces).save(tmp_path / "x", target="onnx")


# Tokenizers, against the libraries that read the files


def opened(tokenizer):
    """The tokenizer of tokenizer.json as the `tokenizers` library has it."""
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer.from_str(json.dumps(hf_files.document_of(tokenizer)))
    theirs.encode_special_tokens = True  # names of special tokens are text
    return theirs


def byte_level(pre, **more):
    tokens, merges = small_vocabulary()
    prefix = "tokenizer.ggml."
    types = np.array([3 if t == "<|endoftext|>" else 1 for t in tokens], np.int32)
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": types}
    end = tokens.index("<|endoftext|>")
    values |= {"eos_token_id": end, "bos_token_id": end} | more
    return tokenizers.from_gguf({prefix + key: value for key, value in values.items()})


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "default"])
def test_byte_level_documents(pre):
    ours = byte_level(pre)
    theirs = opened(ours)
    for text in GOLDEN_TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    assert theirs.encode("a").ids == ours.with_bos(ours.encode("a"))
    if pre != "default":  # and back into GGUF's words
        again = tokenizers.from_document(hf_files.document_of(ours))
        made = tokenizers.from_gguf(gguf_out.to_gguf(again))
        assert [made.encode(t) for t in GOLDEN_TEXTS] == [ours.encode(t) for t in GOLDEN_TEXTS]


def test_pieces_documents(pieces):
    theirs = opened(pieces)
    for text in ["ab", " ab  あ", "a b c!\n", "", "  ", "é<s>"]:
        ids = pieces.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=False) == pieces.decode(ids)
    assert theirs.encode("ab").ids == pieces.with_bos(pieces.encode("ab"))


@pytest.mark.parametrize("name", ["phi-3", "gpt-2", "starcoder"])
def test_published_vocabularies(shared_data, name):
    ours = tokenizers.load(shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf")
    theirs = opened(ours)
    text = (shared_data / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8")[:50_000]
    for line in [text, *(t for t, _ in vectors(shared_data, name))]:
        assert theirs.encode(line, add_special_tokens=False).ids == ours.encode(line), line[:50]


def test_transformers_opens_the_folder(tmp_path, pieces):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = new_model(pieces)
    model.save(tmp_path / "hf", shard_size=100_000)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = theirs.encode("ab あ ab c!")
    assert ids == pieces.with_bos(pieces.encode("ab あ ab c!"))
    assert theirs.bos_token == "<s>" and theirs.eos_token == "</s>"
    assert (peer.generation_config.bos_token_id, peer.generation_config.eos_token_id) == (1, 2)
    with torch.no_grad():
        expected = peer(torch.tensor([ids])).logits.numpy()[0]
    np.testing.assert_allclose(model.logits(np.array(ids)), expected, rtol=1e-4, atol=1e-4)
