"""`tenarai eval` and the harness's adapter, against what lm-evaluation-harness counted itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from eval_task import questions, small_model
from tenarai.cli.eval import eval as command
from tenarai.errors import TenaraiError
from tenarai.infer import tasks
from tenarai.infer.likelihood import Request, Scorer, request_of, rolling
from tenarai.infer.perplexity import log_softmax
from tenarai.ops import reference

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "eval.json").read_text())


def scorer(model):
    return Scorer(model.ops, model.model, model.params)


@pytest.mark.parametrize("kind", ["plain", "bos"])
def test_the_harness_counts_the_same(tmp_path, kind):
    model, files = small_model(reference, kind == "bos"), questions(tmp_path)
    for name in ("choice", "hellaswag", "lambada"):
        asked = list(tasks.TASKS[name](files[name]))
        delimiter = "" if name == "lambada" else " "
        scores = tasks.score(scorer(model), model.tokenizer, asked, delimiter)
        found = tasks.last_words(scores) if name == "lambada" else tasks.accuracies(asked, scores)
        golden = GOLDENS[kind][name]
        flat = [s for group in scores for s in group]
        expected = golden["log_likelihoods"]
        # float32 on both sides, sums in another order
        np.testing.assert_allclose([s.log_likelihood for s in flat], [e[0] for e in expected],
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
        assert [s.greedy for s in flat] == [e[1] for e in expected]
        for metric, (value, error) in found.items():
            assert value == pytest.approx(golden["metrics"][metric], rel=1e-4), (name, metric)
            if f"{metric}_stderr" in golden["metrics"]:
                assert error == pytest.approx(golden["metrics"][f"{metric}_stderr"], rel=1e-4)
    found = tasks.whole_texts(
        scorer(model), model.tokenizer, list(tasks.texts(files["perplexity"]))
    )
    for metric, value in GOLDENS[kind]["perplexity"]["metrics"].items():
        assert found[metric][0] == pytest.approx(value, rel=1e-4), metric


def test_scores_are_those_of_whole_sequences():
    """Shared beginnings, cuts into batches of few rows, more choices than slots."""
    model, rng = small_model(reference), np.random.default_rng(1)
    score = scorer(model)
    score.rows = score.cache.rows = 7
    groups = []
    for n in (1, 3, 20):
        context = rng.integers(0, 280, rng.integers(1, 20)).tolist()
        ends = [rng.integers(0, 280, rng.integers(1, 9)).tolist() for _ in range(n)]
        groups.append([Request(context, end) for end in ends])
    for group, found in zip(groups, score(groups), strict=True):
        for r, s in zip(group, found, strict=True):
            ids = np.array(r.context + r.continuation)
            rows = log_softmax(model.logits(ids[:-1]))[len(r.context) - 1 :]
            expected = rows[np.arange(len(rows)), r.continuation].sum()
            assert s.log_likelihood == pytest.approx(expected, rel=1e-4)


def test_what_greedy_decoding_writes_is_greedy():
    model = small_model(reference)
    given = model.tokenizer.encode("the cat sat")
    written = model.generate(given, 5, 0, return_tokens=True)
    other = [*written[:4], (written[4] + 1) % 280]
    (found,) = scorer(model)([[Request(given, written), Request(given, other)]])
    assert [s.greedy for s in found] == [True, False] and found[0].tokens == 5


def test_requests():
    tokenizer = small_model(reference).tokenizer
    both = request_of(tokenizer, "the cat  ", "sat")
    assert both.context == tokenizer.encode("the cat")
    assert both.context + both.continuation == tokenizer.encode("the cat  sat")
    assert request_of(tokenizer, "", "cat").context == [tokenizer.eot]
    parts = list(rolling(list(range(10)), 99, 4))
    assert [(p.context, p.continuation) for p in parts] == [
        ([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9]),
    ]  # fmt: skip
    with pytest.raises(TenaraiError, match="empty"):
        request_of(tokenizer, "a", "")


@pytest.mark.parametrize(
    "name, line, words",
    [
        ("choice", "{", "line 2: is not JSON"),
        ("choice", "[1]", "line 2: holds a list"),
        ("choice", '{"question": 3}', "'question' is 3"),
        ("choice", '{"question": "a", "choices": []}', "no list of texts"),
        ("choice", '{"question": "a", "choices": ["b"], "answer": 1}', "answer is 1, expected 0"),
        ("choice", '{"question": "a", "choices": {"label": ["A"]}, "answerKey": "B"}', "answerKey"),
        ("hellaswag", '{"activity_label": "a"}', "'ctx_a' is missing"),
        ("lambada", '{"text": "ends with "}', "ends with a space"),
    ],
)
def test_broken_questions(tmp_path, name, line, words):
    path = tmp_path / "q.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(TenaraiError, match=f"q.jsonl.*{words}"):
        list(tasks.TASKS[name](path))


def test_hellaswag_of_six_lines(shared_data):
    asked = list(tasks.hellaswag(shared_data / "eval" / "hellaswag_val_full.txt.bz2"))
    assert len(asked) > 10_000 and asked[0].answer == 3 and len(asked[0].choices) == 4
    assert asked[0].context.startswith("Roof shingle removal: A man is sitting on a roof. he")


def test_the_verb(tmp_path):
    model, files = small_model(reference), questions(tmp_path)
    model.save(tmp_path / "m.tenarai")

    def run(*arguments):
        result = CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    how = ["-m", tmp_path / "m.tenarai", "-d"]
    found = json.loads(run("choice", *how, files["choice"], "--json"))
    assert found["samples"] == 24
    golden = GOLDENS["plain"]["choice"]["metrics"]
    assert found["results"]["acc"]["value"] == pytest.approx(golden["acc"])
    text = run("lambada", *how, files["lambada"], "--limit", 3)
    assert "3 samples" in text and "perplexity" in text
    template = ["--template", "Question: {question}\\nAnswer:", "--limit", 4]
    assert "acc_bytes" in run("choice", *how, files["choice"], *template)
    help = run("--help")
    assert sum(line.strip().startswith("tenarai eval ") for line in help.splitlines()) == 3


def test_the_harness_drives_the_model(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from tenarai.eval_harness import TenaraiLM

    model, files = small_model(reference), questions(tmp_path)
    model.save(tmp_path / "m.tenarai")
    lm = TenaraiLM(model=str(tmp_path / "m.tenarai"), threads=1)
    asked = list(tasks.choice(files["choice"]))
    pairs = [(q.context, f" {c}") for q in asked for c in q.choices]

    def requests(kind, arguments):
        return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]

    found = lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    expected = GOLDENS["plain"]["choice"]["log_likelihoods"]
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], rtol=1e-3)
    pages = [(t,) for t in tasks.texts(files["perplexity"])]
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", pages), disable_tqdm=True)
    expected = GOLDENS["plain"]["perplexity"]["log_likelihoods"]
    np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-3)
    whole = lm._written("the cat", {"until": [], "max_gen_toks": 12})
    assert whole == model.generate("the cat", 12, 0)
    stop = whole[3:5]
    (cut,) = lm.generate_until(
        requests("generate_until", [("the cat", {"until": [stop], "max_gen_toks": 12})]),
        disable_tqdm=True,
    )
    assert cut == whole[: whole.index(stop)]
