"""Evaluations: questions from files, and what is counted, as lm-evaluation-harness does both.

    hellaswag        which of four endings goes on     acc, acc_norm, acc_bytes
    choice           which of the given answers        acc, acc_norm, acc_bytes
    lambada          the last word of a passage        acc (greedy), perplexity (of a word)
    perplexity       a whole text                      word_perplexity, byte_perplexity, ...

The answer that is taken is the most probable one: acc; the most probable one a character, so that
long answers are not at a disadvantage: acc_norm; one a byte: acc_bytes. Every choice is scored
after the question and a space. `Question` texts are made here, probabilities in likelihood.py.
"""

from __future__ import annotations

import bz2
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tenarai.errors import TenaraiError
from tenarai.infer.likelihood import Score, Scorer, prefix_token, request_of, rolling
from tenarai.tokenizers import Tokenizer

MAX_BYTES = 1 << 30
GROUPS = 64  # questions between two moves of the bar


@dataclass(frozen=True)
class Question:
    """A context, what may follow it, and which of that does."""

    context: str
    choices: tuple[str, ...]
    answer: int


Metrics = dict[str, tuple[float, float]]  # name: value, its standard error


# Reading


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where it stands and the object, of each line of a JSONL file (or its .bz2). Raises
    TenaraiError."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TenaraiError(f"{where}: is not JSON ({error}): one object a line") from error
        if not isinstance(record, dict):
            raise TenaraiError(f"{where}: holds a {type(record).__name__}, expected an object")
        yield where, record


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TenaraiError(f"{path}: is larger than {MAX_BYTES:,} bytes")
        with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise TenaraiError(f"cannot read {path}: {error}") from error
    if len(data) > MAX_BYTES:
        raise TenaraiError(f"{path}: is larger than {MAX_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TenaraiError(f"{path}: is not UTF-8 ({error.reason})") from error


def _field(where: str, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        said = "missing" if name not in record else f"{value!r}, expected a text"
        raise TenaraiError(f"{where}: {name!r} is {said}")
    return value


def _question(where: str, context: str, choices: Any, answer: Any) -> Question:
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not texts or not choices:
        raise TenaraiError(f"{where}: the choices are no list of texts, none of them empty")
    if isinstance(answer, str) and answer.isdecimal():
        answer = int(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise TenaraiError(f"{where}: the answer is {answer!r}, expected 0 to {len(choices) - 1}")
    return Question(context, tuple(choices), answer)


def hellaswag(path: Path) -> Iterator[Question]:
    """The published JSONL (activity_label, ctx_a, ctx_b, endings, label), or six lines a question:
    the context as it is, the number of the right ending, four endings."""
    if path.name.removesuffix(".bz2").endswith(".txt"):
        lines = _text(path).rstrip("\n").split("\n")
        for i in range(0, len(lines), 6):
            where = f"{path}, line {i + 1}"
            if len(lines) < i + 6:
                raise TenaraiError(f"{where}: the file ends within a question of six lines")
            yield _question(where, lines[i].strip(), lines[i + 2 : i + 6], lines[i + 1].strip())
        return
    for where, record in records(path):
        label, a, b = (_field(where, record, n) for n in ("activity_label", "ctx_a", "ctx_b"))
        endings = record.get("endings")
        if isinstance(endings, list) and all(isinstance(e, str) for e in endings):
            endings = [_without_marks(e) for e in endings]
        context = _without_marks(f"{label}: {a} {b.capitalize()}")
        yield _question(where, context, endings, record.get("label"))


def _without_marks(text: str) -> str:
    """WikiHow's marks in brackets, which are left over from pages, taken out."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def choice(path: Path, template: str = "{question}") -> Iterator[Question]:
    """JSONL of {"question", "choices": [...], "answer": its index}, or as ARC is published, with
    {"text", "label"} lists for choices and a label as answerKey. `{question}` in the template
    stands for the question."""
    if "{question}" not in template:
        raise TenaraiError(f"the template {template!r} has no {{question}} in it")
    for where, record in records(path):
        context = template.replace("{question}", _field(where, record, "question"))
        choices, answer = record.get("choices"), record.get("answer")
        if isinstance(choices, dict):
            labels = choices.get("label")
            key = record.get("answerKey")
            if not isinstance(labels, list) or key not in labels:
                raise TenaraiError(f"{where}: answerKey is {key!r}, expected one of {labels}")
            choices, answer = choices.get("text"), labels.index(key)
        yield _question(where, context, choices, answer)


def lambada(path: Path) -> Iterator[Question]:
    """JSONL of {"text"}: everything before the last space, and from there on what is asked for."""
    for where, record in records(path):
        before, space, word = _field(where, record, "text").rpartition(" ")
        if not word:
            raise TenaraiError(f"{where}: the text ends with a space, so it has no last word")
        yield Question(before, (space + word,), 0)


def texts(path: Path) -> Iterator[str]:
    """The documents of JSONL ({"text"} or {"page"} a line), or a text file as one."""
    if path.suffix not in (".jsonl", ".json"):
        yield _text(path)
        return
    for where, record in records(path):
        yield _field(where, record, "page" if "page" in record else "text")


# Counting


def score(
    scorer: Scorer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    delimiter: str = " ",
    progress: bool = False,
) -> list[list[Score]]:
    """A score for each choice of each question, after its context and `delimiter`."""
    groups = [
        [request_of(tokenizer, q.context, delimiter + c) for c in q.choices] for q in questions
    ]
    # disable=None: tqdm is silent where stderr is no terminal
    quiet = None if progress else True
    with tqdm(total=len(groups), desc="eval", unit="question", disable=quiet) as bar:
        return scorer(groups, bar.update)


def accuracies(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Metrics:
    """acc, acc_norm and acc_bytes, each the mean over the questions."""
    right: dict[str, list[float]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for q, found in zip(questions, scores, strict=True):
        log_p = np.array([s.log_likelihood for s in found])
        lengths = {
            "acc": np.ones(len(found)),
            "acc_norm": np.array([len(c) for c in q.choices]),
            "acc_bytes": np.array([len(c.encode()) for c in q.choices]),
        }
        for name, length in lengths.items():
            right[name].append(float(np.argmax(log_p / length) == q.answer))
    return {name: _mean(values) for name, values in right.items()}


def last_words(scores: Sequence[Sequence[Score]]) -> Metrics:
    """acc: how often greedy decoding writes the word; perplexity of a word, exp(−mean log p)."""
    mean, error = _mean([s.log_likelihood for (s,) in scores])
    value = math.exp(-mean)
    return {
        "acc": _mean([float(s.greedy) for (s,) in scores]),
        "perplexity": (value, value * error),
    }


def whole_texts(
    scorer: Scorer, tokenizer: Tokenizer, documents: Sequence[str], progress: bool = False
) -> Metrics:
    """Perplexity of a token, a word (between white space) and a byte, and bits a byte, over all
    documents: exp(−Σ log p / count). The errors are those of a token's mean, in proportion."""
    groups, words, bytes = [], 0, 0
    for document in documents:
        ids = tokenizer.with_bos(tokenizer.encode(document))
        groups += [[r] for r in rolling(ids, prefix_token(tokenizer), scorer.context)]
        words += len(re.split(r"\s+", document))
        bytes += len(document.encode())
    quiet = None if progress else True
    with tqdm(total=len(groups), desc="eval", unit="window", disable=quiet) as bar:
        scores = [s for (s,) in scorer(groups, bar.update)]
    total, tokens = sum(s.log_likelihood for s in scores), sum(s.tokens for s in scores)
    if not tokens:
        raise TenaraiError("the text has no token to score: take a longer one")
    _, error = _mean([s.log_likelihood / max(1, s.tokens) for s in scores])
    found = {}
    for name, count in (("perplexity", tokens), ("word_perplexity", words),
                        ("byte_perplexity", bytes)):  # fmt: skip
        value = math.exp(-total / count)
        found[name] = (value, value * error * tokens / count)
    bits = -total / bytes / math.log(2)
    return found | {"bits_per_byte": (bits, error * tokens / bytes / math.log(2))}


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, s / √n."""
    x = np.array(values, np.float64)
    error = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0
    return float(x.mean()), error


TASKS: dict[str, Callable[..., Iterator[Any]]] = {
    "hellaswag": hellaswag,
    "lambada": lambada,
    "choice": choice,
    "perplexity": texts,
}
