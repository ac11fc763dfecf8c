"""The verbs `data` and `tokenize`: what they print, for people and as JSON, and their errors."""

import json

import pytest
from click.testing import CliRunner

from tenarai.cli.data import data
from tenarai.cli.tokenize import tokenize
from tenarai.errors import TenaraiError

TEXT = "the quick brown fox; 吾輩は猫である。\n" * 100


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT.encode("cp932"))
    return str(tmp_path / "text.txt")


def run(command, *arguments, **options):
    return CliRunner().invoke(command, list(map(str, arguments)), **options)


def test_help_has_three_examples():
    for command, name in ((data, "data"), (tokenize, "tokenize")):
        assert run(command, "--help").output.count(f"\n    tenarai {name} ") == 3


def test_data_for_people(text, tmp_path):
    result = run(data, text, "--out", tmp_path / "out", "--vocab", 300)
    assert result.exit_code == 0
    assert "1 text, 3,000 characters, Shift_JIS" in result.stdout
    assert "validation" in result.stdout and str(tmp_path / "out") in result.stdout
    assert "read as Shift_JIS" in result.stderr
    again = run(data, tmp_path / "out")
    assert again.stdout == result.stdout


def test_data_as_json(text, tmp_path):
    result = run(data, text, "--out", tmp_path / "out", "--tokenizer", "byte", "--json")
    document = json.loads(result.stdout)
    assert document["folder"] == str(tmp_path / "out")
    assert (document["vocab_size"], document["eot"], document["tokenizer"]) == (256, None, "byte")
    assert document["train_tokens"] + document["val_tokens"] == len(TEXT.encode())
    assert document["sources"][0]["encodings"] == ["Shift_JIS"]
    described = run(data, tmp_path / "out", "--json")
    assert json.loads(described.stdout) == document


def test_list():
    names = [row["name"] for row in json.loads(run(data, "--list", "--json").stdout)]
    assert names[:2] == ["pydoc", "shakespeare"]
    output = run(data, "--list").stdout
    assert "CC BY" in output and "needs no network" in output


def test_data_wrong_usage_and_errors(tmp_path, text):
    assert run(data).exit_code == 2
    assert run(data, text, "--vocab", "many").exit_code == 2
    made = run(data, text, "--out", tmp_path / "out", "--tokenizer", "byte")
    assert made.exit_code == 0
    assert run(data, tmp_path / "out", "--out", tmp_path / "more").exit_code == 2
    (tmp_path / "binary").write_bytes(b"\0\1")
    result = run(data, tmp_path / "binary")
    assert isinstance(result.exception, TenaraiError) and result.stdout == ""


def test_tokenize(text, tmp_path):
    run(data, text, "--out", tmp_path / "out", "--vocab", 320)
    people = run(tokenize, "-m", tmp_path / "out", "the 猫é")
    assert people.exit_code == 0
    assert "'the'" in people.stdout and "bytes e7" in people.stdout and "bytes c3" in people.stdout
    document = json.loads(run(tokenize, "-m", tmp_path / "out", "the 猫é", "--json").stdout)
    assert document["text"] == "the 猫é"
    assert document["count"] == len(document["ids"]) == len(document["pieces"])
    assert bytes.fromhex("".join(document["bytes"])).decode() == "the 猫é"
    ids = " ".join(map(str, document["ids"]))
    assert run(tokenize, "-m", tmp_path / "out", "--decode", ids).stdout == "the 猫é\n"
    assert run(tokenize, "-m", tmp_path / "out", "--decode", str(document["ids"])).exit_code == 0
    piped = run(tokenize, "-m", tmp_path / "out", "-", "--json", input="猫".encode("utf-16"))
    assert json.loads(piped.stdout)["text"] == "猫"


def test_tokenize_wrong_usage_and_errors(text, tmp_path):
    run(data, text, "--out", tmp_path / "out", "--tokenizer", "byte")
    assert run(tokenize, "text").exit_code == 2
    for ids in ("a b", "256", "-1"):
        assert run(tokenize, "-m", tmp_path / "out", "--decode", "--", ids).exit_code == 2
    result = run(tokenize, "-m", tmp_path / "none", "text")
    assert isinstance(result.exception, TenaraiError) and result.stdout == ""
