"""A few thousand of the fuzzer's cases; a long run is `python tests/fuzz_gguf.py`."""

import itertools
import random

import pytest

import fuzz_gguf
from gguf_mutations import KINDS, WAYS, case, fields, parts_of, seeds
from tenarai.io import gguf


@pytest.mark.parametrize("start", [0, 1000, 2000])
@pytest.mark.timeout(300)
def test_damaged_files_get_an_answer_or_one_line(start):
    run = fuzz_gguf.fuzz(range(start, start + 1000), 20261124)
    assert run.failures == []
    assert run.cases == 1000
    for outcome in ("file read", "file refused", "model made", "model refused", "tokenizer made",
                    "tokenizer refused", "chat made", "chat refused"):  # fmt: skip
        assert run.outcomes[outcome] > 0, outcome


def test_the_undamaged_files_are_whole():
    """What is to be damaged gets through everything, so that damage is what stops a case."""
    for seed in seeds():
        file = fuzz_gguf.look(b"".join(part.data for part in parts_of(seed)))
        came = ["model made", "tokenizer made", "chat made"]
        if seed.name == "types":  # it is no model
            came = ["model refused", "tokenizer refused"]
        assert fuzz_gguf.use(file) == came


def test_a_case_is_the_same_each_time():
    for number in range(50):
        assert case(number, 7) == case(number, 7)
    assert len({case(number, 7)[0] for number in range(200)}) > 150
    assert {case(number, 7)[2] for number in range(200)} == {way.__name__ for way in WAYS}


def planted(monkeypatch, error):
    """An error in the reader, met by the first files that are read."""

    def parse(data, path):
        error(data)
        return real(data, path)

    real = gguf.parse
    monkeypatch.setattr(fuzz_gguf.gguf, "parse", parse)
    return fuzz_gguf.fuzz(range(20), 1).failures


def test_failures_are_found(monkeypatch):
    """A planted exception, a long allocation, a slow case, an error that says nothing."""

    def index(data):
        return data[len(data)]

    found = planted(monkeypatch, index)
    assert len(found) == 20 and "IndexError" in found[0][1]
    monkeypatch.undo()
    found = planted(monkeypatch, lambda data: bytes(fuzz_gguf.USING + (1 << 20)))
    assert "reading took" in found[0][1] and "its file has" in found[1][1]
    monkeypatch.undo()
    monkeypatch.setattr(fuzz_gguf, "SECONDS", 0.0)
    assert "took 0." in fuzz_gguf.fuzz(range(1), 1).failures[0][1]
    monkeypatch.undo()

    def says_nothing(data):
        raise gguf.GGUFError("")

    found = planted(monkeypatch, says_nothing)
    assert len(found) == 20 and "no line" in found[0][1]


def test_every_kind_of_part_is_changed():
    assert {part.kind for seed in seeds() for part in seed.parts} == set(KINDS)
    changed = set()
    for number in range(400):
        rng = random.Random(number)
        seed = seeds()[number % 3]
        data = fields(seed, rng)
        pairs = zip(data, seed.bytes, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is not None:
            ends = itertools.accumulate(len(part.data) for part in seed.parts)
            changed.add(seed.parts[next(i for i, end in enumerate(ends) if at < end)].kind)
    assert changed == set(KINDS)
