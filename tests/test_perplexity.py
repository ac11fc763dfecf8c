"""Perplexity and KL divergence: windows by hand, sums against plain formulas, the verb."""

import json

import numpy as np
import pytest

from tenarai import cli, load
from tenarai.errors import TenaraiError
from tenarai.infer.kl_base import BaseReader, BaseWriter, digest
from tenarai.infer.perplexity import Window, halves, kl_divergence, log_softmax, measure, strided
from tiny import write_model


def spans(windows):
    return [(w.start, w.end, w.first) for w in windows]


def test_strided_windows_count_every_token_once():
    assert spans(strided(10, 4, 2)) == [(0, 4, 1), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    assert spans(strided(9, 4, 3)) == [(0, 4, 1), (3, 7, 4), (6, 9, 7)]
    assert spans(strided(3, 8, 4)) == [(0, 3, 1)]
    assert spans(strided(1, 8, 4)) == []
    for n in range(2, 40):
        for context in range(2, 9):
            for stride in range(1, context):
                counted = [i for w in strided(n, context, stride) for i in range(w.first, w.end)]
                assert counted == list(range(1, n))
                assert all(w.end - w.start <= context for w in strided(n, context, stride))


def test_halves_are_llama_cpps():
    assert spans(halves(17, 8)) == [(0, 8, 5), (8, 16, 13)]  # 3 of 8 count
    with pytest.raises(TenaraiError, match="7 tokens, fewer than one window of 8"):
        list(halves(7, 8))


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_bad_strides(stride):
    with pytest.raises(TenaraiError, match="stride"):
        list(strided(20, 8, stride))


def bigram(seed, V=11):
    """A model whose logits depend on the last token and on how much stands before it."""
    table = np.random.default_rng(seed).normal(size=(V, V)).astype(np.float32)
    return lambda ids: table[ids] * (1 + 0.1 * np.arange(len(ids), dtype=np.float32)[:, None])


def test_the_sum_is_what_it_says(rng):
    tokens = rng.integers(0, 11, 200).astype(np.int32)
    model = bigram(1)
    windows = list(strided(200, 16, 5))
    expected = []
    for w in windows:
        z = model(tokens[w.start : w.end]).astype(np.float64)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        expected += [-np.log(p[i - w.start - 1, tokens[i]]) for i in range(w.first, w.end)]
    value, error = measure(model, tokens, windows).perplexity()
    assert value == pytest.approx(np.exp(np.mean(expected)), rel=1e-6)
    assert error == pytest.approx(value * np.std(expected, ddof=1) / np.sqrt(199), rel=1e-6)


def test_all_tokens_alike_is_the_vocabularys_size():
    figures = measure(lambda ids: np.zeros((len(ids), 50), np.float32),
                      np.arange(30, dtype=np.int32), [Window(0, 30, 1)])  # fmt: skip
    assert figures.perplexity() == pytest.approx((50.0, 0.0), abs=1e-4)
    assert figures.as_json()["tokens_counted"] == 29


def test_what_stands_before_every_window():
    seen = []

    def model(ids):
        seen.append(ids.tolist())
        return np.zeros((len(ids), 20), np.float32)

    tokens = np.arange(10, 18, dtype=np.int32)
    figures = measure(model, tokens, [Window(0, 4, 1), Window(2, 6, 4)], bos=1)
    assert seen == [[1, 10, 11, 12, 13], [1, 12, 13, 14, 15]] and figures.counted == 5
    seen.clear()
    measure(model, tokens, [Window(4, 8, 7)], bos=1, bos_replaces=True)
    assert seen == [[1, 15, 16, 17]]


def test_kl_divergence_by_eye():
    half, quarter = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert kl_divergence(half, quarter) == pytest.approx([expected])
    assert kl_divergence(half, half).tolist() == [0]
    never = np.array([[0.0, -np.inf]])
    assert kl_divergence(never, half) == pytest.approx([np.log(2)])
    assert log_softmax(np.array([[1e4, 0.0]], np.float32)).tolist() == [[0, -1e4]]


def test_kl_between_two_models(rng):
    tokens = rng.integers(0, 11, 150).astype(np.int32)
    windows = list(strided(150, 12, 6))
    one, other = bigram(1), bigram(2)
    found = measure(
        one, tokens, windows, base=lambda ids, first: other(ids)[first - 1 : -1]
    ).as_json()
    expected = []
    for w in windows:
        q, p = (log_softmax(m(tokens[w.start : w.end]).astype(np.float64)) for m in (one, other))
        rows = slice(w.first - w.start - 1, w.end - w.start - 1)
        expected += (np.exp(p) * (p - q)).sum(axis=1)[rows].tolist()
    assert found["kl"]["mean"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["kl"]["max"] == pytest.approx(max(expected), rel=1e-4)
    alone = measure(other, tokens, windows).perplexity()[0]
    assert found["kl"]["base_perplexity"] == pytest.approx(alone)


def test_a_saved_base_gives_what_the_model_gives(rng, tmp_path):
    tokens = rng.integers(0, 11, 400).astype(np.int32)
    windows = list(strided(400, 100, 90))  # more rows than are saved at once
    one, other = bigram(1), bigram(2)
    about, rows = {"text": digest(tokens, windows)}, 399
    with BaseWriter(tmp_path / "b", about, rows, 11) as save:
        measure(other, tokens, windows, save=save)
    reader = BaseReader(tmp_path / "b", about["text"], rows, 11)
    saved = measure(one, tokens, windows, base=reader).as_json()["kl"]
    live = measure(one, tokens, windows, base=lambda ids, f: other(ids)[f - 1 : -1]).as_json()["kl"]
    assert saved["mean"] == pytest.approx(live["mean"], rel=1e-3)
    reader = BaseReader(tmp_path / "b", about["text"], rows, 11)
    assert measure(other, tokens, windows, base=reader).as_json()["kl"]["mean"] < 1e-6


def test_bad_bases(tmp_path):
    path = tmp_path / "b"
    windows = [Window(0, 3, 1)]
    with BaseWriter(path, {"text": digest(np.arange(3), windows)}, 2, 4) as save:
        save(np.zeros((2, 4), np.float32))
    text = digest(np.arange(3), windows)
    assert BaseReader(path, text, 2, 4)(np.arange(3), 1).shape == (2, 4)
    for wanted, message in [(("x", 2, 4), "another text"), ((text, 3, 4), "number of tokens"),
                            ((text, 2, 5), "vocabulary")]:  # fmt: skip
        with pytest.raises(TenaraiError, match=message):
            BaseReader(path, *wanted)
    whole = path.read_bytes()
    for damaged, message in [(whole[:-1], "bytes long"), (whole + b"\0", "bytes long"),
                             (whole[:20], "no file of log"), (b"", "no file of log"),
                             (b"x" * 100, "no file of log"),
                             (b"tnklbase\xff\xff\xff\xff", "no file of log"),
                             (b"tnklbase\x02\0\0\0[]", "damaged")]:  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(TenaraiError, match=message):
            BaseReader(path, text, 2, 4)
    with pytest.raises(TenaraiError, match="cannot read"):
        BaseReader(tmp_path / "none", text, 2, 4)
    with pytest.raises(ValueError, match="1 rows"), BaseWriter(path, {}, 2, 4) as save:
        save(np.zeros((1, 4), np.float32))


def test_an_empty_text():
    with pytest.raises(TenaraiError, match="fewer than 2"):
        measure(bigram(1), np.zeros(1, np.int32), [])


# The verb


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perplexity")
    write_model(folder / "a.tenarai")
    write_model(folder / "b.tenarai", seed=4)
    (folder / "text.txt").write_text("To be, or not to be: that is the question. " * 8, "utf-8")
    return folder


def perplexity(files, *arguments):
    command = ["perplexity", "-m", files / "a.tenarai", "-f", files / "text.txt", *arguments]
    return cli.main(list(map(str, command)))


def test_the_verb_measures_the_model(files, capsys):
    assert perplexity(files, "-c", 32, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    model = load(files / "a.tenarai")
    tokens = np.asarray(model.tokenizer.encode((files / "text.txt").read_text("utf-8")), np.int32)
    expected = measure(model.logits, tokens, list(strided(len(tokens), 32, 16))).perplexity()
    assert (found["perplexity"], found["standard_error"]) == pytest.approx(expected)
    assert found["tokens_counted"] == len(tokens) - 1 and found["tokens_per_s"] > 0
    assert perplexity(files, "-c", 32, "--windows", "halves", "--chunks", 3) == 0
    shown = capsys.readouterr().out
    assert "45 tokens counted: 3 windows of 32 tokens, the second half of each" in shown
    assert " ± " in shown and "tokens per second" in shown


def test_the_verb_compares_models(files, capsys):
    assert perplexity(files, "--kl-vs", files / "a.tenarai", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kl"]["mean"] == pytest.approx(0, abs=1e-7)
    assert perplexity(files, "--kl-vs", files / "b.tenarai", "--json") == 0
    live = json.loads(capsys.readouterr().out)["kl"]
    base = files / "base"
    assert cli.main(["perplexity", "-m", str(files / "b.tenarai"), "-f", str(files / "text.txt"),
                     "--save-base", str(base)]) == 0  # fmt: skip
    capsys.readouterr()
    assert perplexity(files, "--kl-base", base, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kl"]["mean"] == pytest.approx(
        live["mean"], rel=0.01
    )
    assert perplexity(files, "--kl-base", base) == 0
    assert "KL divergence from the base" in capsys.readouterr().out
    assert perplexity(files, "--kl-base", base, "-c", 16) == 1
    assert "belongs to another text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["--stride", "64"], 1, "stride"),
        (["--windows", "halves", "--stride", "3"], 2, "strided windows"),
        (["--kl-vs", "x", "--kl-base", "y"], 2, "not both"),
        (["-c", "65"], 1, "context is 65"),
        (["-c", "1"], 1, "stride"),
    ],
)
def test_bad_usage(files, arguments, status, message, capsys):
    assert perplexity(files, *arguments) == status
    assert message in capsys.readouterr().err
