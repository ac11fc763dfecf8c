"""`tenarai convert` and `tenarai inspect`, as they are typed."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from tenarai.cli.convert import convert
from tenarai.cli.inspect import inspect
from tenarai.errors import TenaraiError
from tenarai.io.checkpoint import write_checkpoint
from tenarai.models.gpt2 import GPT2Config
from tenarai.tokenizers import ByteTokenizer
from test_api import bpe, load, new_model


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def model():
    return new_model(tokenizer=bpe())


@pytest.fixture
def checkpoint(tmp_path, model):
    """What a run would leave: weights, the optimiser's moments, the tokenizer, a step."""
    arrays = {f"weights/{n}": a for n, a in model.params.items()}
    arrays |= {f"adam_m/{n}": a for n, a in model.params.items()}
    document = json.dumps(model.tokenizer.to_json()).encode()
    arrays["tokenizer"] = np.frombuffer(document, np.uint8)
    meta = {"kind": "training", "step": 7, "model": vars(model.config)}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007.tenarai", arrays, meta)
    return tmp_path / "run"


def test_a_round_through_all_formats_is_the_same_bits(tmp_path, model, checkpoint):
    path = checkpoint
    for target in ("hf", "a.bin", "b.tenarai", "hf2"):
        output = run(convert, path, tmp_path / target)
        assert output.startswith(f"wrote {tmp_path / target}\n")
        path = tmp_path / target
        again = load(path)
        assert again.config == model.config
        np.testing.assert_array_equal(again.params.flat, model.params.flat)


def test_it_says_what_the_target_cannot_hold(tmp_path, model, checkpoint):
    assert "left out: the optimiser's state" in run(convert, checkpoint, tmp_path / "hf")
    output = run(convert, checkpoint, tmp_path / "m.bin")
    assert "left out: the tokenizer" in output and "left out: the optimiser" in output
    assert "left out" not in run(convert, tmp_path / "hf", tmp_path / "m.tenarai")
    new_model(GPT2Config(**vars(model.config) | {"vocab_size": 256}), ByteTokenizer()).save(
        tmp_path / "byte.tenarai"
    )
    assert "byte tokenizer" in run(convert, tmp_path / "byte.tenarai", tmp_path / "byte")


def test_nothing_is_overwritten_unasked(tmp_path, model):
    model.save(tmp_path / "hf")
    for target in ("m.bin", "folder"):
        run(convert, tmp_path / "hf", tmp_path / target)
        with pytest.raises(TenaraiError, match="exists"):
            run(convert, tmp_path / "hf", tmp_path / target)
        run(convert, tmp_path / "hf", tmp_path / target, "--force")
    with pytest.raises(TenaraiError, match="source itself"):
        run(convert, tmp_path / "hf", tmp_path / "hf", "--force")
    (tmp_path / "empty").mkdir()
    run(convert, tmp_path / "hf", tmp_path / "empty")


def test_bfloat16(tmp_path, model):
    model.save(tmp_path / "hf")
    run(convert, tmp_path / "hf", tmp_path / "m.bin", "--dtype", "bfloat16")
    found = json.loads(run(inspect, tmp_path / "m.bin", "--json"))
    assert {t["dtype"] for t in found["tensors"]} == {"bfloat16"}
    assert found["bytes"] == 2 * found["numbers"]
    assert (tmp_path / "m.bin").stat().st_size == 1024 + found["bytes"]


def test_inspect_tells_the_same_of_every_format(tmp_path, model, checkpoint):
    count = sum(a.size for a in model.params.values())
    for target in ("hf", "m.bin", "m.tenarai"):
        run(convert, checkpoint, tmp_path / target)
        found = json.loads(run(inspect, tmp_path / target, "--json"))
        weights = [t for t in found["tensors"] if t["name"] != "tokenizer"]
        size = sum(int(np.prod(t["shape"])) for t in weights)
        padding = (384 - 300) * 12 if target == "m.bin" else 0
        assert size == count + padding
        assert all(t["bytes"] == 4 * np.prod(t["shape"]) for t in weights)
        assert ("tokens>" in (found["tokenizer"] or "")) == (target != "m.bin")
        text = run(inspect, tmp_path / target)
        for row in weights:
            assert row["name"] in text and str(tuple(row["shape"])) in text


def test_inspect_a_run(checkpoint):
    found = json.loads(run(inspect, checkpoint, "--json"))
    assert found["kind"] == "tenarai checkpoint of a run" and found["run"]["step"] == 7
    assert found["config"]["layers"] == 2 and found["path"].endswith("step-00000007.tenarai")
    assert "adam_m/wte.weight" in {t["name"] for t in found["tensors"]}
    assert "step" in run(inspect, checkpoint)


def test_inspect_shows_models_that_cannot_be_loaded(tmp_path, model):
    model.save(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "odd": "a\x1b[31mred"}))
    text = run(inspect, tmp_path / "hf")
    assert "llama" in text and "\x1b" not in text
    file = json.loads(run(inspect, tmp_path / "hf" / "model.safetensors", "--json"))
    assert file["kind"] == "safetensors file" and len(file["tensors"]) == 28


@pytest.mark.parametrize("command", [convert, inspect])
def test_help_shows_three_examples(command):
    lines = run(command, "--help").splitlines()
    assert sum(line.strip().startswith(f"tenarai {command.name} ") for line in lines) == 3
