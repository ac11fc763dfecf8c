"""DPO: the loss and its gradient by the complex step, PyTorch's formula, a run that learns."""

import json

import numpy as np
import pytest

from complex_step import TOLERANCE, gradient_errors
from tenarai.errors import TenaraiError
from tenarai.finetune.run import finetune
from tenarai.ops import Fast, reference
from tenarai.ops.gradient import FROZEN, Unwritten
from tenarai.ops.preference import dpo_forward, log_probs
from test_finetune import GIVEN, write_lines, write_llama
from tiny import Quiet, chat_tokenizer

BETA = 0.7


@pytest.fixture
def case(rng):
    """x (4, 5, 6), w (7, 6), targets, ℓ⁰: one pair's rows of different lengths."""
    x, w = rng.normal(size=(4, 5, 6)), rng.normal(size=(7, 6))
    targets = rng.integers(0, 7, (4, 5)).astype(np.int32)
    targets[:, :2] = targets[1, 3:] = -1
    return x, w, targets, rng.normal(size=4) - 5


def test_gradients_by_the_complex_step(case, rng):
    x, w, targets, before = case
    dw = np.zeros_like(w)
    _, _, dx = dpo_forward(reference, x, w, targets, before, BETA, dw, 0.3)

    def f(point):
        return 0.3 * dpo_forward(reference, point["x"], point["w"], targets, before, BETA)[0]

    errors = gradient_errors(f, {"x": x, "w": w}, {"x": dx, "w": dw}, rng)
    assert max(errors.values()) < TOLERANCE, errors


def test_the_kernels_and_frozen_and_unwritten_weights(case):
    x, w, targets, before = case
    dw = np.zeros_like(w)
    loss, z, dx = dpo_forward(reference, x, w, targets, before, BETA, dw)
    x32, w32, ops = x.astype(np.float32), w.astype(np.float32), Fast(2)
    for given in (FROZEN, Unwritten(np.full((7, 6), np.nan, np.float32))):
        got, margins, dx32 = dpo_forward(ops, x32, w32, targets, before, BETA, given)
        assert got == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(margins, z, rtol=1e-5)
        np.testing.assert_allclose(dx32, dx, atol=1e-6)
        if given is not FROZEN:
            np.testing.assert_allclose(given.array, dw, atol=1e-6)


def test_it_is_pytorchs_formula(case):
    torch = pytest.importorskip("torch")
    x, w, targets, before = case
    dw = np.zeros_like(w)
    loss, _, dx = dpo_forward(reference, x, w, targets, before, BETA, dw)
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    logs = torch.log_softmax(tx @ tw.T, -1)
    t = torch.tensor(targets).long()
    taken = torch.gather(logs, 2, t.clamp(min=0)[..., None])[..., 0]
    rows = (taken * (t >= 0)).sum(1)
    gained = rows - torch.tensor(before)
    wanted = -torch.nn.functional.logsigmoid(BETA * (gained[::2] - gained[1::2])).mean()
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(log_probs(reference, x, w, targets), rows.detach(), rtol=1e-12)
    np.testing.assert_allclose(dx, tx.grad, atol=1e-12)
    np.testing.assert_allclose(dw, tw.grad, atol=1e-12)


def test_a_pair_without_targets_is_left_out_and_far_margins_are_finite(case):
    x, w, targets, before = case
    one = dpo_forward(reference, x[:2], w, targets[:2], before[:2], BETA)[0]
    targets[2:] = -1
    before[2:] = 0
    assert dpo_forward(reference, x, w, targets, before, BETA)[0] == pytest.approx(one, rel=1e-12)
    for sign in (1, -1):
        far = before[:2] + [0, sign * 1e5]
        with np.errstate(all="raise", under="ignore"):
            loss, z, dx = dpo_forward(reference, x[:2], w, targets[:2], far, BETA, np.zeros_like(w))
        assert np.isfinite(dx).all() and (loss == 0) == (sign > 0) and sign * z[0] > 1e4


def pair(question, chosen, rejected):
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def test_a_run_learns_the_better_answers(tmp_path):
    base = write_llama(tmp_path / "b.tenarai", chat_tokenizer())
    turns = [{"role": "user", "content": "say x"}]
    answer = {"role": "assistant", "content": "xx"}
    lines = [pair(f"say {c}", c * 3, c * 2 + "?") for c in "abcdefgh"]
    lines.append({"prompt": turns, "chosen": "xxx", "rejected": [answer]})
    lines.append({"chosen": [*turns, answer], "rejected": [*turns, {**answer, "content": "?"}]})
    data = write_lines(tmp_path / "d.jsonl", lines)
    given = GIVEN | {
        "preferences": {"dpo": True},
        "optimiser": {"batch": 3, "accumulate": 1, "lr": 2e-2},
    }
    given |= {"schedule": {"steps": 8}}
    result = finetune(base, data, out=tmp_path / "r", report=Quiet(), given=given)
    assert result.val_loss_before == pytest.approx(np.log(2), rel=1e-5)
    assert result.val_loss < 0.68
    records = [json.loads(x) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["margin"] > 0 and records[-1]["accuracy"] > 0.5
    with pytest.raises(TenaraiError, match="--lora 16"):
        finetune(
            base, data, out=tmp_path / "f", report=Quiet(), given=given | {"lora": {"rank": 0}}
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (pair("q", "a", "a"), "line 1: .*are the same"),
        (pair("q", "a", " "), "line 1: message 2 of rejected is an empty answer"),
        ({"prompt": "q", "completion": "a"}, "line 1: has no chosen"),
        (pair("q", "a", 3), "line 1: rejected is int"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, line, message):
    from tenarai.data.records import read_records

    with pytest.raises(TenaraiError, match=message):
        read_records(write_lines(tmp_path / "d.jsonl", [line]), pairs=True)
