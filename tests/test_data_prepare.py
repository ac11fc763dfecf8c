"""From texts to a dataset folder and back: contents, reuse, provenance, damage."""

import errno
import json
import shutil
import sys

import numpy as np
import pytest

from tenarai import data
from tenarai.data import DataError, Loader, ShardWriter, open_dataset, prepare
from tenarai.data import prepare as prepare_function
from tenarai.io import atomic
from tenarai.io.atomic import WriteError
from tenarai.tokenizers import TokenizerError, load, train_bpe

TEXT = "".join(f"Line {i}: the quick brown fox, 吾輩は猫である。\n" for i in range(200))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def decoded(dataset, split):
    ids = np.concatenate([s.tokens for s in getattr(dataset, split)]).tolist()
    return dataset.tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_the_text_is_in_the_dataset(text, tmp_path, tokenizer):
    dataset = prepare([text], tmp_path / "out", tokenizer, 400, val_fraction=0.2)
    assert decoded(dataset, "train") == TEXT[: int(0.8 * len(TEXT))]
    assert decoded(dataset, "val") == TEXT[int(0.8 * len(TEXT)) :]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"dataset.json", "tokenizer.json", "train_000000.bin", "val_000000.bin"}
    again = open_dataset(tmp_path / "out")
    assert (again.train_tokens, again.vocab_size) == (dataset.train_tokens, dataset.vocab_size)
    assert again.bytes == 2 * (again.train_tokens + again.val_tokens)
    tokens, _ = Loader(dataset.train, 4, 16, vocab_size=dataset.vocab_size).next()
    assert dataset.tokenizer.decode(tokens[0]).strip("\ufffd") in TEXT


def test_nanogpts_split_and_characters(shared_data, tmp_path):
    path = shared_data / "text" / "tinyshakespeare.txt"
    dataset = prepare([str(path)], tmp_path / "out", "char")
    assert (dataset.vocab_size, dataset.train_tokens, dataset.val_tokens) == (65, 1003854, 111540)


def test_what_is_written_down(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_bytes("吾輩は猫である。\n".encode("cp932"))
    dataset = prepare([text, str(other), "pydoc"], None, "bpe", 300)
    mine, theirs, pydoc = dataset.info["sources"]
    assert (mine["encodings"], mine["characters"]) == (["UTF-8"], len(TEXT))
    assert (theirs["encodings"], theirs["documents"]) == (["Shift_JIS"], 1)
    assert (pydoc["name"], pydoc["licence"]) == ("pydoc", "PSF-2.0")
    assert dataset.info["train"]["tokens"] == dataset.train_tokens
    assert dataset.folder.parent == tmp_path / "cache" / "tenarai" / "datasets"


def test_texts_are_separated_by_the_end_of_text(tmp_path):
    for name, words in (("a", "one two\n" * 50), ("b", "three\n" * 50), ("c", "four\n" * 50)):
        (tmp_path / f"{name}.txt").write_text(words)
    dataset = prepare([str(tmp_path)], tmp_path / "out", "bpe", 300, val_fraction=0.1)
    tokens = dataset.train[0].tokens.tolist()
    assert tokens.count(dataset.tokenizer.eot) == 2
    assert "one two\n<|endoftext|>three\n" in decoded(dataset, "train")


def test_an_encoding_other_than_utf8_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(TEXT.encode("cp932"))
    prepare([str(tmp_path / "a.txt")], None, "byte")
    captured = capsys.readouterr()
    assert "a.txt: read as Shift_JIS" in captured.err and captured.out == ""


def test_the_same_inputs_are_prepared_once(text, tmp_path, monkeypatch):
    first = prepare([text], None, "bpe", 300)
    times = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
    with monkeypatch.context() as patch:  # nothing is even begun the second time
        patch.setattr(sys.modules[prepare_function.__module__], "_write", None)
        again = prepare([text], None, "bpe", 300)
    assert {p: p.stat().st_mtime_ns for p in again.folder.iterdir()} == times
    others = [
        prepare([text], None, "bpe", 301),
        prepare([text], None, "char"),
        prepare([text], None, "bpe", 300, val_fraction=0.2),
        prepare([text, text], None, "bpe", 300),
    ]
    (tmp_path / "text.txt").write_text(TEXT + "more\n", encoding="utf-8")
    others.append(prepare([text], None, "bpe", 300))
    assert len({d.folder for d in [first, *others]}) == 6


def test_the_same_inputs_give_the_same_bytes(text, tmp_path):
    folders = [prepare([text], tmp_path / name, "bpe", 300).folder for name in ("a", "b")]
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_other_settings_replace_a_dataset_but_nothing_else(text, tmp_path):
    prepare([text], tmp_path / "out", "bpe", 300)
    assert prepare([text], tmp_path / "out", "byte").vocab_size == 256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    prepare([text], tmp_path / "out", "byte")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("years of work")
    with pytest.raises(DataError, match="has other things in it"):
        prepare([text], tmp_path / "mine", "byte")
    assert (tmp_path / "mine" / "thesis.doc").exists()


@pytest.mark.parametrize("file", ["train_000000.bin", "tokenizer.json", "dataset.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_damaged_dataset_is_noticed_and_made_again(text, tmp_path, capsys, file, damage):
    folder = prepare([text], tmp_path / "out", "bpe", 300).folder
    path = folder / file
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = good.replace(b"0", b"1", 1) if file.endswith("json") else good[:-1] + b"~"
        path.write_bytes(good[:-20] if damage == "short" else changed)
    if (file, damage) == ("dataset.json", "missing"):  # then it is like anybody's shards
        assert open_dataset(folder).info == {}
        with pytest.raises(DataError, match="has other things in it"):
            prepare([text], tmp_path / "out", "bpe", 300)
        return
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    assert str(folder) in str(caught.value)
    prepare([text], tmp_path / "out", "bpe", 300)
    assert path.read_bytes() == good
    assert "again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"vocab_size": "300"},
        {"train": []},
        {"val": {"shards": [{"file": "../../etc/passwd", "tokens": 1, "sha256": ""}]}},
        {"val": {"shards": [{"file": "val_000000.bin", "tokens": 7, "sha256": ""}]}},
        {"val": {"shards": 5}},
        {"vocab_size": 299},
    ],
)
def test_a_strange_description_is_refused(text, tmp_path, change):
    folder = prepare([text], tmp_path / "out", "bpe", 300).folder
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(DataError, match="again"):
        open_dataset(folder)


def test_bad_inputs(text, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\0")
    with pytest.raises(DataError, match=r"empty\.txt has no text"):
        prepare([str(tmp_path / "empty.txt")])
    with pytest.raises(DataError, match=r"binary\.txt is a binary file"):
        prepare([text, str(tmp_path / "binary.txt")])
    with pytest.raises(DataError, match="no such file or named text: nothing"):
        prepare(["nothing"])
    with pytest.raises(DataError, match="no text named"):
        prepare([])
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(DataError, match="validation part"):
            prepare([text], val_fraction=fraction)
    with pytest.raises(DataError, match="a shard has"):
        prepare([text], shard_tokens=0)
    with pytest.raises(TokenizerError, match="vocabulary of 100 is impossible"):
        prepare([text], None, "bpe", 100)
    with pytest.raises(TokenizerError, match="no such file"):
        prepare([text], None, "klingon")
    with pytest.raises(DataError, match="GPT-2's vocabulary is not at hand"):
        prepare([text], None, "gpt2")


def test_a_short_text_is_told_by_the_loader(tmp_path):
    (tmp_path / "short.txt").write_text("hello world")
    dataset = prepare([str(tmp_path / "short.txt")], None, "byte")
    with pytest.raises(DataError, match="has 9 tokens, a context of 64 needs at least 65"):
        Loader(dataset.train, 1, 64)


def test_places_that_cannot_be_written(text, tmp_path, monkeypatch):
    for out in ("text.txt", "text.txt/below"):
        with pytest.raises(WriteError, match="is a file, not a folder"):
            prepare([text], tmp_path / out, "byte")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    old = prepare([text], tmp_path / "out", "byte").folder
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(WriteError, match="disk is full"):
        prepare([text], tmp_path / "out", "char")
    monkeypatch.undo()
    assert open_dataset(old).vocab_size == 256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]


def test_two_at_once_make_one(text, tmp_path, monkeypatch):
    """Another process finishes the same dataset while this one is at work."""
    module = sys.modules[prepare_function.__module__]
    encode = module._encode
    inner = []

    def slow(*arguments):
        if not inner:
            inner.append(1)
            inner.append(prepare([text], tmp_path / "out", "byte"))
            inner.append((tmp_path / "out").stat().st_ino)
        return encode(*arguments)

    monkeypatch.setattr(module, "_encode", slow)
    dataset = prepare([text], tmp_path / "out", "byte")
    assert decoded(dataset, "val") == decoded(inner[1], "val")
    assert (tmp_path / "out").stat().st_ino == inner[2]  # the first one's stays in use
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]


def test_small_shards(text, tmp_path):
    dataset = prepare([text], tmp_path / "out", "byte", shard_tokens=1000)
    assert len(dataset.train) > 5 and len(dataset.train[0]) == 1000
    assert len(dataset.info["train"]["shards"]) == len(dataset.train)


# Shards that others made


def foreign(folder, train, val, vocab_size=50257):
    folder.mkdir(exist_ok=True)
    for name, ids in (("fineweb_train", train), ("fineweb_val", val)):
        with ShardWriter(folder, name, vocab_size) as writer:
            writer.append(ids)
    return folder


def test_foreign_shards_without_a_vocabulary(tmp_path):
    folder = foreign(tmp_path / "llmc", [464, 50256], [1, 2, 3])
    dataset = data.load(folder)
    assert (dataset.vocab_size, dataset.tokenizer.name, dataset.tokenizer.eot) == (
        50257,
        "ids",
        50256,
    )
    assert dataset.tokenizer.decode([464, 3290]) == "464 3290 "
    assert dataset.tokenizer.encode(" 464 3290\n") == [464, 3290]
    with pytest.raises(TokenizerError, match="not at hand"):
        dataset.tokenizer.encode("hello")
    dataset.tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert (again.name, again.vocab_size, again.eot) == ("ids", 50257, 50256)
    stream = again.stream()
    assert stream.push(464) + stream.push(1) + stream.flush() == again.decode([464, 1])
    asked = data.load(folder, "gpt2")  # as the presets do; its files are not at hand
    assert (asked.vocab_size, asked.tokenizer.name) == (50257, "ids")
    wide = foreign(tmp_path / "llama", [464, 128000], [1], 128256)
    assert data.load(wide).vocab_size == 128256
    odd = foreign(tmp_path / "odd", [60000], [1], 65536)
    assert data.load(odd).vocab_size == 60001


def test_foreign_shards_with_their_tokenizer(tmp_path):
    tokenizer = train_bpe([TEXT], 300)
    folder = foreign(tmp_path / "theirs", tokenizer.encode(TEXT), tokenizer.encode("a fox"))
    path = tokenizer.save(tmp_path)
    assert open_dataset(folder, str(path)).vocab_size == tokenizer.vocab_size
    tokenizer.save(folder)
    dataset = data.load(folder)
    assert decoded(dataset, "train") == TEXT
    assert dataset.vocab_size == tokenizer.vocab_size
    with pytest.raises(DataError, match="the tokenizer byte has only 256"):
        data.load(folder, "byte")


def test_foreign_folders_that_lack_something(tmp_path):
    folder = foreign(tmp_path / "llmc", [1, 2], [3])
    (folder / "fineweb_val_000000.bin").unlink()
    with pytest.raises(DataError, match="no .*val.*bin"):
        data.load(folder)
    (folder / "fineweb_val_000000.bin").write_bytes(b"x" * 1024)
    with pytest.raises(DataError, match="no token shard"):
        data.load(folder)
    with pytest.raises(DataError, match="prepare it first"):
        open_dataset(tmp_path)


def test_gpt2_from_the_cache(text, tmp_path):
    """Any byte-level vocabulary stands in for the real one, which is tested elsewhere."""
    folder = tmp_path / "cache" / "tenarai" / "tokenizers" / "gpt2"
    folder.mkdir(parents=True)
    small = train_bpe([TEXT], 300)
    small.save(folder)
    assert prepare([text], None, "gpt2").vocab_size == small.vocab_size
    assert data.load(foreign(tmp_path / "llmc", [1, 2], [3])).vocab_size == small.vocab_size
    with pytest.raises(TokenizerError):
        data.load(foreign(tmp_path / "llmc2", [1, 2], [3]), str(tmp_path / "none"))
