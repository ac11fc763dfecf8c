"""The learning rate at the places where its formula changes."""

import pytest

from tenarai.config import Schedule
from tenarai.train.schedule import learning_rate


def rates(**settings):
    schedule = Schedule(**({"steps": 100, "warmup": 10, "decay": 20, "min_lr": 0.1} | settings))
    return [learning_rate(schedule, 1.0, step) for step in range(schedule.steps)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warm_up_rises_to_the_top(kind):
    lr = rates(kind=kind)
    assert lr[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert lr[10] == 1.0


def test_cosine():
    lr = rates(kind="cosine")
    assert lr[55] == pytest.approx(0.55)  # half of the way: half between 1 and 0.1
    assert all(a >= b for a, b in zip(lr[10:], lr[11:], strict=False))
    assert 0.1 < lr[-1] < 0.101


def test_warm_up_stable_decay():
    lr = rates(kind="wsd")
    assert set(lr[10:81]) == {1.0}
    assert lr[90] == pytest.approx(0.55)
    assert lr[-1] == pytest.approx(0.1 + 0.9 / 20)


def test_constant():
    assert set(rates(kind="constant")[10:]) == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_edges(kind):
    assert rates(kind=kind, warmup=0, decay=0)[0] == 1.0
    assert rates(kind=kind, steps=10, warmup=10, decay=0)[-1] == 1.0
    assert len(rates(kind=kind, steps=1, warmup=0, decay=1)) == 1
