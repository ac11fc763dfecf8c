"""`tenarai inspect` on GGUF files: metadata, types, sizes, bits a weight."""

import json

import pytest
from click.testing import CliRunner

from gguf_bytes import Entry, build, key, value
from tenarai.cli.inspect import inspect
from tenarai.errors import TenaraiError
from tenarai.files import describe
from tenarai.io.named_models import MODELS


def run(*arguments):
    result = CliRunner().invoke(inspect, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def path(tmp_path):
    """A file of one Q8_0, one Q4_K, two F32 tensors and one of a type that is not computed with."""
    pairs = [
        key("general.architecture", value("string", "llama")),
        key("wild", value("string", "\x1b[2J")),
        key("long", value("string", "x" * 500)),
        key("infinite", value("float32", float("-inf"))),
        key("numbers", value("[int32]", list(range(20)))),
        key("few", value("[bool]", [True, False])),
        key("none", value("[string]", [])),
        key("tokenizer.ggml.model", value("string", "llama")),
        key("tokenizer.ggml.tokens", value("[string]", [f"t{i}" for i in range(1234)])),
    ]
    tensors = [
        Entry("q8", (32, 4), 8, bytes(4 * 34)),
        Entry("q4", (256, 3), 12, bytes(3 * 144)),
        Entry("norm", (30,), 0, bytes(120)),
        Entry("\x1b[31mred", (2,), 0, bytes(8)),
        Entry("iq", (256,), 19, bytes(50)),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(build(pairs, tensors))
    return path


def test_as_json(path):
    found = json.loads(run(path, "--json"), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert found == json.loads(json.dumps(describe(path)))
    assert (found["kind"], found["version"], found["parts"]) == ("GGUF file", 3, [str(path)])
    assert found["tokenizer"] == "llama, 1,234 tokens"
    metadata = found["metadata"]
    assert metadata["general.architecture"] == {"type": "string", "value": "llama"}
    assert metadata["infinite"] == {"type": "float32", "value": "-inf"}
    assert metadata["numbers"] == {"type": "[int32]", "length": 20, "first": list(range(8))}
    assert metadata["few"] == {"type": "[bool]", "length": 2, "first": [True, False]}
    assert metadata["none"] == {"type": "[string]", "length": 0, "first": []}
    assert len(metadata["long"]["value"]) == 500
    assert metadata["tokenizer.ggml.tokens"]["first"][-1] == "t7"
    rows = {t["name"]: (t["dtype"], t["shape"], t["bytes"]) for t in found["tensors"]}
    assert rows["q8"] == ("Q8_0", [4, 32], 136) and rows["iq"] == ("IQ1_S", [256], 50)
    assert rows["q4"] == ("Q4_K", [3, 256], 432)
    assert list(found["types"]) == ["Q4_K", "Q8_0", "F32", "IQ1_S"]
    q4 = {"tensors": 1, "numbers": 768, "bytes": 432, "bits_per_weight": 4.5}
    assert found["types"]["Q4_K"] == q4
    assert found["types"]["F32"]["bits_per_weight"] == 32
    assert (found["numbers"], found["bytes"]) == (1184, 746)
    assert found["bits_per_weight"] == pytest.approx(8 * 746 / 1184)


def test_for_people(path):
    text = run(path)
    assert text.splitlines()[0] == f"{path}: GGUF file, version 3"
    assert "20: 0, 1, 2, 3, 4, 5, 6, 7, ..." in text and "2: True, False\n" in text
    assert "x" * 80 + "..." in text and "x" * 81 not in text
    assert "\x1b" not in text and r"\x1b[31mred" in text
    assert "4.50 bits a weight" in text and "5.04 bits a weight" in text  # of Q4_K, of all
    assert "2 tensors" in text and "1 tensor " in text
    assert max(map(len, text.splitlines()[1:])) < 160


def test_a_file_of_a_vocabulary_alone(shared_data):
    path = shared_data / "gguf-vocab" / "ggml-vocab-phi-3.gguf"
    text = run(path)
    assert "tokenizer: llama (default), 32,064 tokens" in text
    assert text.endswith("0 tensors, 0 numbers, 0.0 MB\n")
    found = json.loads(run(path, "--json"))
    assert (found["tensors"], found["types"], found["bits_per_weight"]) == ([], {}, None)


def test_a_model_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(TenaraiError, match="`tenarai pull smollm2`"):
        run("smollm2")
    monkeypatch.undo()
    if not MODELS["smollm2"].is_here():
        pytest.skip("smollm2 was not pulled")
    found = json.loads(run("smollm2", "--json"))
    assert found["numbers"] == 134_515_008 and round(found["bits_per_weight"], 2) == 5.74


def test_parts_are_told(tmp_path):
    for i in range(2):
        pairs = [key("split.no", value("uint16", i)), key("split.count", value("uint16", 2))]
        data = build(pairs, [Entry(f"w{i}", (4,), 0, bytes(16))])
        (tmp_path / f"m-{i + 1:05}-of-00002.gguf").write_bytes(data)
    text = run(tmp_path / "m-00002-of-00002.gguf")
    assert "parts: 2, " in text and "w0" in text and "w1" in text
